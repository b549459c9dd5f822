//! Small constructors and readers of ONNX messages.

use super::{
    AttributeProto, AttributeType, DimensionProto, NodeProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::ops::{ElementType, TensorType};

impl AttributeProto {
    fn new(name: &str, r#type: AttributeType) -> Self {
        Self {
            name: name.into(),
            r#type: r#type.into(),
            ..Self::default()
        }
    }

    /// An integer.
    pub fn int(name: &str, value: i64) -> Self {
        Self {
            i: Some(value),
            ..Self::new(name, AttributeType::Int)
        }
    }

    /// A list of integers.
    pub fn ints(name: &str, values: impl Into<Vec<i64>>) -> Self {
        Self {
            ints: values.into(),
            ..Self::new(name, AttributeType::Ints)
        }
    }

    /// A float.
    pub fn float(name: &str, value: f32) -> Self {
        Self {
            f: Some(value),
            ..Self::new(name, AttributeType::Float)
        }
    }

    /// Text.
    pub fn string(name: &str, value: &str) -> Self {
        Self {
            s: Some(value.into()),
            ..Self::new(name, AttributeType::String)
        }
    }

    /// A constant.
    pub fn tensor(name: &str, value: TensorProto) -> Self {
        Self {
            t: Some(value),
            ..Self::new(name, AttributeType::Tensor)
        }
    }

    /// The value of attribute `of` of the enclosing function.
    pub fn reference(name: &str, of: &str, r#type: AttributeType) -> Self {
        Self {
            ref_attr_name: of.into(),
            ..Self::new(name, r#type)
        }
    }
}

impl TensorProto {
    /// A constant in the file.
    pub fn raw(data_type: i32, dims: &[i64], raw_data: Vec<u8>) -> Self {
        Self {
            dims: dims.into(),
            data_type,
            raw_data: Some(raw_data),
            ..Self::default()
        }
    }

    /// i64 values.
    pub fn i64s(dims: &[i64], values: &[i64]) -> Self {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Self::raw(ElementType::I64.onnx(), dims, bytes)
    }

    /// f32 values.
    pub fn f32s(dims: &[i64], values: &[f32]) -> Self {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Self::raw(ElementType::F32.onnx(), dims, bytes)
    }

    /// A tensor whose bytes are `length` bytes at `offset` of `location`.
    pub fn external(name: &str, tensor: &TensorType, location: &str, offset: u64) -> Self {
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: key.into(),
            value,
        };
        Self {
            dims: tensor.shape.iter().map(|&size| size as i64).collect(),
            data_type: tensor.dtype.onnx(),
            name: name.into(),
            external_data: vec![
                entry("location", location.into()),
                entry("offset", offset.to_string()),
                entry("length", tensor.bytes().to_string()),
            ],
            data_location: 1,
            ..Self::default()
        }
    }

    /// A value of `external_data`.
    pub fn external_entry(&self, key: &str) -> Option<&str> {
        self.external_data
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| entry.value.as_str())
    }

    /// Type and shape; `None` for an unknown type or a negative dimension.
    pub fn tensor_type(&self) -> Option<TensorType> {
        let shape = self
            .dims
            .iter()
            .map(|&dim| usize::try_from(dim).ok())
            .collect::<Option<Vec<_>>>()?;
        Some(TensorType::new(
            ElementType::from_onnx(self.data_type)?,
            shape,
        ))
    }
}

impl ValueInfoProto {
    /// A tensor value.
    pub fn new(name: &str, tensor: &TensorType) -> Self {
        let dim = tensor
            .shape
            .iter()
            .map(|&size| DimensionProto {
                dim_value: Some(size as i64),
                dim_param: None,
            })
            .collect();
        let tensor_type = TensorTypeProto {
            elem_type: tensor.dtype.onnx(),
            shape: Some(TensorShapeProto { dim }),
        };
        Self {
            name: name.into(),
            r#type: Some(TypeProto {
                tensor_type: Some(tensor_type),
            }),
        }
    }

    /// The same with its first dimensions open, under these names.
    pub fn opened(mut self, names: &[&str]) -> Self {
        let tensor = self.r#type.as_mut().and_then(|ty| ty.tensor_type.as_mut());
        let dims = tensor.and_then(|tensor| tensor.shape.as_mut());
        for (dim, name) in dims.into_iter().flat_map(|shape| &mut shape.dim).zip(names) {
            *dim = DimensionProto {
                dim_value: None,
                dim_param: Some((*name).into()),
            };
        }
        self
    }

    /// Type and shape; `None` where they are not static tensors of a known type.
    pub fn tensor(&self) -> Option<TensorType> {
        let tensor = self.r#type.as_ref()?.tensor_type.as_ref()?;
        let dims = &tensor.shape.as_ref()?.dim;
        let shape = dims
            .iter()
            .map(|dim| usize::try_from(dim.dim_value?).ok())
            .collect::<Option<Vec<_>>>()?;
        Some(TensorType::new(
            ElementType::from_onnx(tensor.elem_type)?,
            shape,
        ))
    }
}

impl NodeProto {
    /// The attribute `name`.
    pub fn find_attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute
            .iter()
            .find(|attribute| attribute.name == name)
    }
}
