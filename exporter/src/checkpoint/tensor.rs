//! What a checkpoint says about one tensor.

use ratplus_graphs::ops::ElementType;
use serde::Serialize;
use std::fmt;

/// Element type of a stored tensor. Only the first four are weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum StoredType {
    F32,
    F16,
    BF16,
    F64,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    /// One of the 8-bit floating-point types.
    F8,
    C64,
}

impl StoredType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 | Self::C64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool | Self::F8 => 1,
        }
    }

    /// Whether weights may have this type: f32, f16, bf16, or f64, which is rounded when read.
    pub fn is_weight(self) -> bool {
        self == Self::F64 || self.element_type().is_some()
    }

    /// The same type among those of a package's weights.
    pub fn element_type(self) -> Option<ElementType> {
        match self {
            Self::F32 => Some(ElementType::F32),
            Self::F16 => Some(ElementType::F16),
            Self::BF16 => Some(ElementType::BF16),
            _ => None,
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A tensor of a checkpoint: where its elements are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub(super) name: String,
    pub(super) dtype: StoredType,
    pub(super) shape: Vec<usize>,
    /// In elements, one per dimension.
    pub(super) strides: Vec<u64>,
    /// Index into the checkpoint's files.
    pub(super) file: usize,
    /// Byte of the first element in the file.
    pub(super) offset: u64,
    /// Index into the checkpoint's checksummed records.
    pub(super) record: Option<usize>,
}

impl Tensor {
    /// Name in the checkpoint, prefixes included.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same elements under another name.
    pub(crate) fn renamed(self, name: String) -> Self {
        Self { name, ..self }
    }

    /// Element type as stored.
    pub fn dtype(&self) -> StoredType {
        self.dtype
    }

    /// Shape, row-major.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of rows: the first dimension, 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements of one row.
    pub fn row_len(&self) -> usize {
        elements(self.shape.get(1..).unwrap_or_default())
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        elements(&self.shape)
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        contiguous_from(&self.shape, &self.strides) == 0
    }
}

/// The first dimension of the longest suffix of dimensions that lie in row-major order without
/// gaps; 0 for a contiguous tensor.
pub(super) fn contiguous_from(shape: &[usize], strides: &[u64]) -> usize {
    if shape.contains(&0) {
        return 0;
    }
    let mut expected = 1u64;
    for dim in (0..shape.len()).rev() {
        if shape[dim] != 1 && strides[dim] != expected {
            return dim + 1;
        }
        expected = expected.saturating_mul(shape[dim] as u64);
    }
    0
}

/// Only a tensor without elements can have more than fit: its other dimensions are anything.
fn elements(shape: &[usize]) -> usize {
    if shape.contains(&0) {
        return 0;
    }
    shape.iter().copied().fold(1, usize::saturating_mul)
}
