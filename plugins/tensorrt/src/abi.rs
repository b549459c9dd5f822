//! What the C++ classes of `cpp` and the Rust code call each other by; the other side is
//! `cpp/abi.h`, which compares the layouts with TensorRT's.

use ratplus_graphs::ops::{ElementType, TensorType};
use std::ffi::{c_char, c_void};

/// `nvinfer1::Dims::MAX_DIMS`.
pub const MAX_RANK: usize = 8;

/// `nvinfer1::PluginTensorDesc`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tensor {
    /// Number of dimensions.
    pub rank: i32,
    /// -1 where not known.
    pub dims: [i64; MAX_RANK],
    /// `nvinfer1::DataType`.
    pub dtype: i32,
    /// `nvinfer1::TensorFormat`.
    pub format: i32,
    /// Unused.
    pub scale: f32,
}

/// `nvinfer1::TensorFormat::kLINEAR`.
pub const LINEAR: i32 = 0;

/// `nvinfer1::DataType` of each element type.
const DATA_TYPES: [(ElementType, i32); 4] = [
    (ElementType::F32, 0),
    (ElementType::F16, 1),
    (ElementType::BF16, 7),
    (ElementType::I64, 8),
];

/// The element type of a `nvinfer1::DataType`; `None` for those that no operator has.
pub fn element(code: i32) -> Option<ElementType> {
    let found = DATA_TYPES.iter().find(|(_, known)| *known == code);
    found.map(|(element, _)| *element)
}

/// The `nvinfer1::DataType` of an element type.
pub fn data_type(element: ElementType) -> i32 {
    let found = DATA_TYPES.iter().find(|(known, _)| *known == element);
    found.map_or(-1, |(_, code)| *code)
}

impl Tensor {
    /// The dimensions, as many as there are.
    pub fn dims(&self) -> &[i64] {
        let rank = usize::try_from(self.rank).unwrap_or(0);
        &self.dims[..rank.min(MAX_RANK)]
    }

    /// Whether no dimension is open.
    pub fn is_known(&self) -> bool {
        self.dims().iter().all(|&dim| dim >= 0)
    }

    /// Type and shape; `None` where a dimension is open or no operator has the type.
    pub fn known(&self) -> Option<TensorType> {
        let dims = self.dims().iter().map(|&dim| usize::try_from(dim).ok());
        let shape: Option<Vec<_>> = dims.collect();
        Some(TensorType::new(element(self.dtype)?, shape?))
    }
}

/// `nvinfer1::PluginField`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Ends with a null byte.
    pub name: *const c_char,
    /// `length` values.
    pub data: *const c_void,
    /// `nvinfer1::PluginFieldType`.
    pub kind: i32,
    /// Values, not bytes.
    pub length: i32,
}

// SAFETY: static tables of fields hold pointers to what is never freed or changed.
unsafe impl Sync for Field {}
// SAFETY: what they point to belongs to no thread.
unsafe impl Send for Field {}

/// `nvinfer1::PluginFieldType::kFLOAT32`.
pub const FLOAT32: i32 = 1;
/// `nvinfer1::PluginFieldType::kFLOAT64`.
pub const FLOAT64: i32 = 2;
/// `nvinfer1::PluginFieldType::kINT32`.
pub const INT32: i32 = 5;
/// `nvinfer1::PluginFieldType::kCHAR`.
pub const CHAR: i32 = 6;
/// `nvinfer1::PluginFieldType::kINT64`.
pub const INT64: i32 = 10;

/// Where a dimension of an output comes from.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Number of the input.
    pub input: i32,
    /// Which of its dimensions.
    pub axis: i32,
}

/// An operator, for as long as the library is loaded.
#[repr(C)]
#[derive(Debug)]
pub struct Operator {
    /// `op_type`.
    pub name: *const c_char,
    /// The plugin's version.
    pub version: *const c_char,
    /// The plugin's namespace.
    pub domain: *const c_char,
    /// Number of inputs.
    pub inputs: i32,
    /// Number of outputs.
    pub outputs: i32,
    /// What a creator takes, without data.
    pub fields: *const Field,
    /// How many.
    pub field_count: i32,
    /// Per output: the input whose memory it takes over, or -1.
    pub aliased: *const i32,
    /// Per output.
    pub ranks: *const i32,
    /// Per output, [`MAX_RANK`] entries.
    pub sources: *const Source,
}

// SAFETY: everything it points to is never freed or changed.
unsafe impl Sync for Operator {}
// SAFETY: what it points to belongs to no thread.
unsafe impl Send for Operator {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_back() {
        for element_type in [
            ElementType::F32,
            ElementType::F16,
            ElementType::BF16,
            ElementType::I64,
        ] {
            assert_eq!(element(data_type(element_type)), Some(element_type));
        }
        // int32, and one that does not exist.
        assert_eq!((element(3), element(99)), (None, None));
    }

    #[test]
    fn open_dimensions_are_not_known() {
        let mut tensor = Tensor {
            rank: 2,
            dims: [4, 5, 0, 0, 0, 0, 0, 0],
            dtype: 7,
            format: LINEAR,
            scale: 1.0,
        };
        assert_eq!(
            tensor.known(),
            Some(TensorType::new(ElementType::BF16, [4, 5]))
        );
        tensor.dims[1] = -1;
        assert_eq!(tensor.known(), None);
        tensor.rank = -1;
        assert_eq!(tensor.dims(), [0; 0]);
        tensor.rank = 99;
        assert_eq!(tensor.dims().len(), MAX_RANK);
    }
}
