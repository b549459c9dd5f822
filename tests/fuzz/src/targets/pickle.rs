//! The pickle of a `.pth` whose archive is sound: two storages of 24 and 512 bytes.

use super::checkpoint::check;
use ratplus_exporter::checkpoint::Checkpoint;
use ratplus_exporter::checkpoint::testing::{ZipEnd, records, zip};

pub fn run(data: &[u8]) {
    let storages = [("0", storage(24)), ("1", storage(512))];
    let file = zip(&records(data.to_vec(), &storages), &ZipEnd::default());
    if let Ok(checkpoint) = Checkpoint::from_bytes("x.pth", file.clone()) {
        check(&checkpoint, &file);
    }
}

fn storage(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 % 251) as u8).collect()
}
