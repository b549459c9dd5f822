//! Where weights lie in the weights file.

use super::{ROTARY_TABLES, Weight};
use crate::ops::{ElementType, TensorType};
use crate::package::PackageShape;
use crate::precision::{Precision, Stored};
use crate::spec::ModelSpec;

/// Where a stored tensor lies in the weights file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Name of the initializer.
    pub name: String,
    /// Type and shape.
    pub tensor: TensorType,
    /// First byte.
    pub offset: u64,
}

/// What a stored tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A weight, or block-wise integers in place of one.
    Weight(Weight, Stored),
    /// One of [`ROTARY_TABLES`].
    RotaryTable(&'static str),
}

/// What lies together in the weights file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredContent {
    /// What it is.
    pub content: Content,
    /// The tensors that hold it, in file order.
    pub tensors: Vec<StoredTensor>,
}

/// Every tensor starts at a multiple of this, so that a memory map can serve it in place.
pub const WEIGHT_ALIGNMENT: u64 = 4096;

/// Everything in the weights file, in file order, and the file's length.
pub fn stored_contents(
    spec: &ModelSpec,
    shape: &PackageShape,
    precision: &Precision,
) -> (Vec<StoredContent>, u64) {
    let mut offset = 0u64;
    let mut end = 0u64;
    let mut place = |(name, tensor): (String, TensorType)| {
        let stored = StoredTensor {
            name,
            tensor,
            offset,
        };
        end = offset + stored.tensor.bytes() as u64;
        offset = end.next_multiple_of(WEIGHT_ALIGNMENT);
        stored
    };
    let mut contents = Vec::new();
    for weight in precision.stored_weights(spec, shape.dtype) {
        let tensors = precision.tensors(weight, spec, shape.dtype).into_iter();
        contents.push(StoredContent {
            content: Content::Weight(weight, precision.stored(weight, shape.dtype)),
            tensors: tensors.map(&mut place).collect(),
        });
    }
    for name in ROTARY_TABLES {
        let tensor = TensorType::new(ElementType::F32, [shape.max_seq_len, spec.d_head / 2]);
        contents.push(StoredContent {
            content: Content::RotaryTable(name),
            tensors: vec![place((name.to_owned(), tensor))],
        });
    }
    (contents, end)
}

/// Every stored tensor in file order, and the file's length.
pub fn storage(
    spec: &ModelSpec,
    shape: &PackageShape,
    precision: &Precision,
) -> (Vec<StoredTensor>, u64) {
    let (contents, end) = stored_contents(spec, shape, precision);
    let tensors = contents.into_iter().flat_map(|content| content.tensors);
    (tensors.collect(), end)
}
