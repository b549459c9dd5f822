//! A `.safetensors` file; what is accepted, the format's own crate accepts and reads alike.

use super::checkpoint::check;
use ratplus_exporter::checkpoint::{Checkpoint, testing::place};
use safetensors::SafeTensors;

pub fn run(data: &[u8]) {
    let Ok(checkpoint) = Checkpoint::from_bytes("x.safetensors", data.to_vec()) else {
        return;
    };
    let file = SafeTensors::deserialize(data).expect("the format's own crate accepts it");
    assert_eq!(checkpoint.tensors().len(), file.len());
    for tensor in checkpoint.tensors() {
        let view = file.tensor(tensor.name()).expect("the same names");
        assert_eq!(tensor.shape(), view.shape());
        let start = place(tensor).0 as usize;
        assert_eq!(&data[start..start + view.data().len()], view.data());
        assert_eq!(view.data().len(), tensor.numel() * tensor.dtype().size());
    }
    check(&checkpoint, data);
}
