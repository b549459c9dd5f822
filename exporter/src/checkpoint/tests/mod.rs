//! Hostile, damaged and odd files, and views against a naive oracle.

mod beside;
mod containers;
mod counted;
mod damage;
mod files;
mod pickles;
mod shards;
mod views;
mod zips;

use super::testing::allocation::{Counting, peak};
use super::{Checkpoint, CheckpointError, ReadOptions};
use counted::Refusal;
use ratplus_graphs::ops::ElementType;
use std::collections::BTreeMap;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Opens a file, which may take memory in proportion to its length alone: the least value takes
/// one byte of a pickle and becomes a node, a depth and a place on the stack, in vectors that
/// double.
fn open_pth(bytes: Vec<u8>) -> Result<Checkpoint, CheckpointError> {
    let len = bytes.len();
    let (opened, peak) = peak(|| Checkpoint::from_bytes("x.pth", bytes));
    assert!(
        peak <= (64 << 10) + 160 * len,
        "{peak} bytes of memory for a file of {len}"
    );
    opened
}

/// The message without the file, which it has to name first.
#[track_caller]
fn message(result: Result<Checkpoint, CheckpointError>) -> Refusal {
    match result {
        Ok(checkpoint) => panic!("accepted: {checkpoint:?}"),
        Err(error) => {
            let text = error.to_string();
            let (file, rest) = text.split_once(": ").expect("a file's name");
            assert!(
                file.starts_with('/') || file.starts_with("x.") || file.ends_with(".index.json"),
                "{text}"
            );
            Refusal::new(rest)
        }
    }
}

type Values = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

/// Every tensor's shape and elements, `step` rows at a time.
fn values(checkpoint: &Checkpoint, step: usize) -> Result<Values, CheckpointError> {
    let mut reader = checkpoint.reader(ReadOptions {
        allow_nonfinite: true,
    });
    let mut values = Values::new();
    for tensor in checkpoint.tensors() {
        let Some(dtype) = tensor.dtype().element_type() else {
            continue;
        };
        let mut bytes = vec![0; tensor.numel() * dtype.size()];
        let row = tensor.row_len() * dtype.size();
        for start in (0..tensor.rows()).step_by(step) {
            let end = tensor.rows().min(start + step);
            reader.read_rows(
                tensor,
                start..end,
                dtype,
                &mut bytes[start * row..end * row],
            )?;
        }
        values.insert(tensor.name().to_owned(), (tensor.shape().to_vec(), bytes));
    }
    Ok(values)
}

fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

const F32: ElementType = ElementType::F32;
