//! A whole `.pth`.

use super::checkpoint::check;
use ratplus_exporter::checkpoint::Checkpoint;

pub fn run(data: &[u8]) {
    if let Ok(checkpoint) = Checkpoint::from_bytes("x.pth", data.to_vec()) {
        check(&checkpoint, data);
    }
}
