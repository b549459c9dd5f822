//! `--config` beside a checkpoint of two layers.

use super::scratch;
use crate::seeds::config::CHECKPOINT;
use ratplus_exporter::checkpoint::Checkpoint;
use ratplus_exporter::resolve::{ResolveOptions, resolve};
use ratplus_graphs::spec::ModelSpec;
use std::fs;
use std::sync::LazyLock;

static WEIGHTS: LazyLock<Checkpoint> = LazyLock::new(|| {
    Checkpoint::from_bytes("model.safetensors", CHECKPOINT.clone()).expect("a checkpoint")
});

/// Patterns that are laid out: a model may have as many as heads, and inputs have to be quick.
const MOST_HEADS: usize = 1 << 10;

pub fn run(data: &[u8]) {
    if let Ok(spec) = serde_json::from_slice::<ModelSpec>(data) {
        round_trip(&spec);
        let heads = spec.num_heads().saturating_mul(spec.num_layers);
        if spec.validate().is_ok() && heads <= MOST_HEADS {
            lay_out(&spec);
        }
    }
    scratch::folder(|folder| {
        let path = folder.join("config.json");
        fs::write(&path, data).expect("a configuration");
        let options = ResolveOptions {
            config_file: Some(path),
            ..ResolveOptions::default()
        };
        for local_window in [vec![], vec![7]] {
            let options = ResolveOptions {
                local_window,
                ..options.clone()
            };
            if let Ok(resolved) = resolve(&WEIGHTS, &options) {
                resolved.spec.validate().expect("a resolved model is valid");
                assert_eq!((resolved.spec.d_model, resolved.spec.num_layers), (16, 2));
            }
        }
    });
}

fn round_trip(spec: &ModelSpec) {
    let json = serde_json::to_vec(spec).expect("a specification is JSON");
    let again: ModelSpec = serde_json::from_slice(&json).expect("what was written");
    assert_eq!(&again, spec);
}

fn lay_out(spec: &ModelSpec) {
    for max_seq_len in [1, 48, 1 << 28] {
        let normal = spec.normalized(max_seq_len);
        assert_eq!(normal.normalized(max_seq_len), normal);
        for layer in 0..spec.num_layers {
            let layout = normal.cache_layout(layer, max_seq_len);
            let rows: usize = layout.heads().iter().map(|head| head.rows).sum();
            assert_eq!(
                (rows, layout.heads().len()),
                (layout.rows(), spec.num_heads())
            );
        }
    }
}
