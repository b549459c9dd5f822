//! What holds for every checkpoint that is accepted.

use ratplus_exporter::checkpoint::testing::place;
use ratplus_exporter::checkpoint::{
    Checkpoint, CheckpointError, ReadOptions, Reader, StoredType, Tensor,
};
use ratplus_exporter::resolve::{ResolveOptions, resolve};
use ratplus_graphs::ops::ElementType;

/// Tensors with more elements are not compared: a view may repeat its storage, and inputs have
/// to be quick.
const MOST_ELEMENTS: usize = 1 << 14;

/// Reads every tensor of `checkpoint`, whose bytes are `file`, in several ways.
pub fn check(checkpoint: &Checkpoint, file: &[u8]) {
    let mut budget = MOST_ELEMENTS;
    let small: Vec<_> = checkpoint
        .tensors()
        .filter(|tensor| match budget.checked_sub(tensor.numel()) {
            Some(left) => {
                budget = left;
                true
            }
            None => false,
        })
        .collect();
    converted(checkpoint, &small, file.len());
    let mut options = ReadOptions::default();
    options.allow_nonfinite = true;
    let reader = || checkpoint.reader(options);
    let (mut whole, mut by_row) = (reader(), reader());
    for tensor in small {
        // Rounded as it is read; `converted` reads it.
        if tensor.dtype() == StoredType::F64 {
            continue;
        }
        let Some(dtype) = tensor.dtype().element_type() else {
            let refused = whole.read_rows(tensor, 0..0, ElementType::F32, &mut []);
            assert!(matches!(refused, Err(CheckpointError::Request { .. })));
            continue;
        };
        let by_row = read(&mut by_row, tensor, dtype, 1);
        match read(&mut whole, tensor, dtype, usize::MAX) {
            Ok(whole) => {
                assert_eq!(whole, oracle(tensor, file), "{}", tensor.name());
                assert_eq!(by_row.expect("as the whole"), whole, "{}", tensor.name());
            }
            Err(CheckpointError::Checksum { .. }) => assert!(by_row.is_err()),
            Err(error) => panic!("{}: {error}", tensor.name()),
        }
    }
    resolved(checkpoint);
}

fn resolved(checkpoint: &Checkpoint) {
    for options in [
        ResolveOptions::default(),
        ResolveOptions {
            d_head: Some(16),
            dilation: vec![16],
            local_window: vec![8],
            ..ResolveOptions::default()
        },
    ] {
        if let Ok(resolved) = resolve(checkpoint, &options) {
            resolved.spec.validate().expect("a resolved model is valid");
            for source in &resolved.sources {
                assert_eq!(source.rows(), source.shape[0], "{}", source.weight.name());
            }
        }
    }
}

/// Everything as one other type, which only values may keep from working.
fn converted(checkpoint: &Checkpoint, tensors: &[&Tensor], choice: usize) {
    let types = ElementType::ACTIVATIONS;
    let dtype = types[choice % types.len()];
    let mut options = ReadOptions::default();
    options.allow_nonfinite = choice.is_multiple_of(2);
    let mut reader = checkpoint.reader(options);
    for tensor in tensors {
        if !tensor.dtype().is_weight() {
            continue;
        }
        let stored = tensor.dtype().element_type();
        match read(&mut reader, tensor, dtype, 3) {
            Ok(_) | Err(CheckpointError::Checksum { .. }) => {}
            Err(CheckpointError::NonFinite { .. }) if !options.allow_nonfinite => {}
            Err(CheckpointError::Overflow { .. }) if stored != Some(dtype) => {}
            Err(error) => panic!("{}: {error}", tensor.name()),
        }
    }
}

/// A whole tensor, `step` rows at a time.
fn read(
    reader: &mut Reader<'_>,
    tensor: &Tensor,
    dtype: ElementType,
    step: usize,
) -> Result<Vec<u8>, CheckpointError> {
    let mut out = vec![0xa5; tensor.numel() * dtype.size()];
    // Without elements there may be any number of rows, or of elements in a row.
    let (rows, row) = match out.len() {
        0 => (tensor.rows().min(3), 0),
        _ => (tensor.rows(), tensor.row_len() * dtype.size()),
    };
    for start in (0..rows).step_by(step) {
        let end = rows.min(start.saturating_add(step));
        reader.read_rows(tensor, start..end, dtype, &mut out[start * row..end * row])?;
    }
    Ok(out)
}

/// The elements in row-major order, each from its own place in the file.
fn oracle(tensor: &Tensor, file: &[u8]) -> Vec<u8> {
    let (offset, strides) = place(tensor);
    let size = tensor.dtype().size();
    let mut out = Vec::with_capacity(tensor.numel() * size);
    for mut index in 0..tensor.numel() {
        let mut element = 0;
        for (&dim, &stride) in tensor.shape().iter().zip(strides).rev() {
            element += (index % dim) as u64 * stride;
            index /= dim;
        }
        let at = (offset + element * size as u64) as usize;
        out.extend(&file[at..at + size]);
    }
    out
}
