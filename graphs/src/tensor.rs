//! Element types and shapes of tensors.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Element type of a tensor.
///
/// ```
/// use ratplus_graphs::ElementType;
/// assert_eq!(ElementType::BF16.size(), 2);
/// assert_eq!(ElementType::from_onnx(ElementType::BF16.onnx()), Some(ElementType::BF16));
/// assert_eq!(serde_json::to_string(&ElementType::BF16)?, "\"bf16\"");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned byte.
    U8,
    /// Signed byte.
    I8,
    /// Signed, of four bits: two elements a byte, the first in the lower half.
    I4,
}

impl ElementType {
    /// Types that keys, values and activations may have.
    pub const ACTIVATIONS: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Bytes of one element by itself.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::I64 => 8,
            Self::U8 | Self::I8 | Self::I4 => 1,
        }
    }

    /// `TensorProto.DataType`; ORT's `ONNXTensorElementDataType` has the same numbers.
    pub fn onnx(self) -> i32 {
        match self {
            Self::F32 => 1,
            Self::F16 => 10,
            Self::BF16 => 16,
            Self::I64 => 7,
            Self::U8 => 2,
            Self::I8 => 3,
            Self::I4 => 22,
        }
    }

    /// The type with this `TensorProto.DataType`.
    pub fn from_onnx(code: i32) -> Option<Self> {
        use ElementType::*;
        let all = [F32, F16, BF16, I64, U8, I8, I4];
        all.into_iter().find(|t| t.onnx() == code)
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorType {
    /// Element type.
    pub dtype: ElementType,
    /// Static shape.
    pub shape: Vec<usize>,
}

impl TensorType {
    /// A tensor of `dtype` with `shape`.
    pub fn new(dtype: ElementType, shape: impl Into<Vec<usize>>) -> Self {
        Self {
            dtype,
            shape: shape.into(),
        }
    }

    /// What stands for an input that a node is without: a tensor that has no element.
    pub fn none(dtype: ElementType) -> Self {
        Self::new(dtype, [0])
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of a dense buffer.
    pub fn bytes(&self) -> usize {
        match self.dtype {
            ElementType::I4 => self.elements().div_ceil(2),
            dtype => self.elements() * dtype.size(),
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}
