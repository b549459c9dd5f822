//! `model.safetensors.index.json` beside two shards.

use super::scratch;
use ratplus_exporter::checkpoint::testing::f32_safetensors;
use ratplus_exporter::checkpoint::{Checkpoint, Format};
use std::fs;
use std::path::Path;

const INDEX: &str = "model.safetensors.index.json";

fn shards(folder: &Path) {
    if folder.join("s1.safetensors").exists() {
        return;
    }
    for (name, bytes) in [
        (
            "s1.safetensors",
            f32_safetensors(&[("a", &[2, 3]), ("b", &[4])]),
        ),
        ("s2.safetensors", f32_safetensors(&[("c", &[2])])),
    ] {
        fs::write(folder.join(name), bytes).expect("a shard");
    }
}

pub fn run(data: &[u8]) {
    scratch::folder(|folder| {
        shards(folder);
        let path = folder.join(INDEX);
        fs::write(&path, data).expect("an index");
        let Ok(checkpoint) = Checkpoint::open(&path) else {
            return;
        };
        assert_eq!(checkpoint.format(), Format::ShardedSafetensors);
        for tensor in checkpoint.tensors() {
            let shard = checkpoint.file_of(tensor);
            assert_eq!(shard.parent(), Some(folder), "outside: {shard:?}");
        }
    });
}
