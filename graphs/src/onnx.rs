//! The ONNX messages this project reads and writes, and small constructors for them.
//!
//! Field numbers are those of the ONNX specification. Fields this project never writes are not
//! declared: decoding drops them, so these types are for our own packages, not for any model.

use crate::ops::{ElementType, TensorType};
use prost::Message;

/// Default opset that packages are written with.
pub const OPSET: i64 = 18;
/// ONNX IR version of [`OPSET`]'s release line that every supported runtime reads.
pub const IR_VERSION: i64 = 9;

/// A model: graph, functions, opsets.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct ModelProto {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(string, tag = "2")]
    pub producer_name: String,
    #[prost(string, tag = "3")]
    pub producer_version: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<FunctionProto>,
}

/// A domain and its version.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// Nodes in topological order, initializers, inputs and outputs.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "13")]
    pub value_info: Vec<ValueInfoProto>,
}

/// One operator call.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    #[prost(string, tag = "7")]
    pub domain: String,
}

/// One attribute, or a reference to an attribute of the enclosing function.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct AttributeProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    #[prost(bytes = "vec", optional, tag = "4")]
    pub s: Option<Vec<u8>>,
    #[prost(message, optional, tag = "5")]
    pub t: Option<TensorProto>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    #[prost(enumeration = "AttributeType", tag = "20")]
    pub r#type: i32,
    #[prost(string, tag = "21")]
    pub ref_attr_name: String,
}

/// Kind of an attribute's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum AttributeType {
    Undefined = 0,
    Float = 1,
    Int = 2,
    String = 3,
    Tensor = 4,
    Ints = 7,
}

/// A constant tensor, in the file or beside it.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct TensorProto {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(bytes = "vec", optional, tag = "9")]
    pub raw_data: Option<Vec<u8>>,
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    /// 1 where the bytes are in `external_data`.
    #[prost(int32, tag = "14")]
    pub data_location: i32,
}

/// Key and value.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Name and type of a value.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct ValueInfoProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
}

/// Type of a value; only tensors here.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorTypeProto>,
}

/// Element type and shape.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct TensorTypeProto {
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

/// Dimensions.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<DimensionProto>,
}

/// One static dimension.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct DimensionProto {
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
}

/// A model-local function.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct FunctionProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, repeated, tag = "4")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    pub output: Vec<String>,
    #[prost(string, repeated, tag = "6")]
    pub attribute: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    pub node: Vec<NodeProto>,
    #[prost(message, repeated, tag = "9")]
    pub opset_import: Vec<OperatorSetIdProto>,
    #[prost(string, tag = "10")]
    pub domain: String,
}

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

/// Appends nodes with names of their own.
pub(crate) struct NodeWriter {
    nodes: Vec<NodeProto>,
    prefix: String,
    count: usize,
}

impl NodeWriter {
    /// Names of nodes and values will start with `prefix`.
    pub fn new(prefix: &str) -> Self {
        Self {
            nodes: Vec::new(),
            prefix: prefix.into(),
            count: 0,
        }
    }

    pub fn finish(self) -> Vec<NodeProto> {
        self.nodes
    }

    pub fn push_node(&mut self, node: NodeProto) {
        self.nodes.push(node);
    }

    pub fn extend(&mut self, nodes: Vec<NodeProto>) {
        self.nodes.extend(nodes);
    }

    /// Gives the last node's output `from` the name `to`.
    pub fn rename_last_output(&mut self, from: &str, to: &str) {
        if let Some(node) = self.nodes.last_mut() {
            for output in node.output.iter_mut().filter(|output| *output == from) {
                *output = to.into();
                node.name = to.into();
            }
        }
    }

    /// What later names start with.
    pub fn set_prefix(&mut self, prefix: &str) {
        self.prefix = prefix.into();
    }

    pub fn fresh(&mut self, hint: &str) -> String {
        self.count += 1;
        format!("{}{}_{}", self.prefix, hint, self.count)
    }

    /// A node with given outputs.
    pub fn push(
        &mut self,
        domain: &str,
        op_type: &str,
        inputs: &[&str],
        outputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) {
        let name = outputs
            .first()
            .map_or_else(|| self.fresh(op_type), |first| (*first).into());
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&name| name.into()).collect(),
            output: outputs.iter().map(|&name| name.into()).collect(),
            name,
            op_type: op_type.into(),
            attribute,
            domain: domain.into(),
        });
    }

    /// A standard operator with one output of a fresh name.
    pub fn op(&mut self, op_type: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> String {
        let output = self.fresh(&op_type.to_lowercase());
        self.push("", op_type, inputs, &[&output], attribute);
        output
    }

    /// A standard operator without attributes.
    pub fn call(&mut self, op_type: &str, inputs: &[&str]) -> String {
        self.op(op_type, inputs, Vec::new())
    }

    pub fn constant(&mut self, tensor: TensorProto) -> String {
        self.op(
            "Constant",
            &[],
            vec![AttributeProto::tensor("value", tensor)],
        )
    }

    /// A vector of i64.
    pub fn ints(&mut self, values: &[i64]) -> String {
        self.constant(TensorProto::i64s(&[values.len() as i64], values))
    }

    /// A scalar i64.
    pub fn int(&mut self, value: i64) -> String {
        self.constant(TensorProto::i64s(&[], &[value]))
    }

    /// A scalar f32.
    pub fn float(&mut self, value: f32) -> String {
        self.constant(TensorProto::f32s(&[], &[value]))
    }

    pub fn cast(&mut self, input: &str, to: ElementType) -> String {
        self.op(
            "Cast",
            &[input],
            vec![AttributeProto::int("to", to.onnx().into())],
        )
    }

    /// A cast where the types differ, else the input itself.
    pub fn convert(&mut self, input: &str, from: ElementType, to: ElementType) -> String {
        if from == to {
            input.into()
        } else {
            self.cast(input, to)
        }
    }

    pub fn reshape(&mut self, input: &str, shape: &[usize]) -> String {
        let shape: Vec<_> = shape.iter().map(|&size| size as i64).collect();
        let shape = self.ints(&shape);
        self.call("Reshape", &[input, &shape])
    }

    pub fn unsqueeze(&mut self, input: &str, axes: &[i64]) -> String {
        let axes = self.ints(axes);
        self.call("Unsqueeze", &[input, &axes])
    }

    pub fn slice(&mut self, input: &str, axis: i64, start: usize, end: usize) -> String {
        let (start, end) = (self.ints(&[start as i64]), self.ints(&[end as i64]));
        let axis = self.ints(&[axis]);
        self.call("Slice", &[input, &start, &end, &axis])
    }

    pub fn concat(&mut self, inputs: &[&str], axis: i64) -> String {
        self.op("Concat", inputs, vec![AttributeProto::int("axis", axis)])
    }

    pub fn gather(&mut self, data: &str, indices: &str, axis: i64) -> String {
        self.op(
            "Gather",
            &[data, indices],
            vec![AttributeProto::int("axis", axis)],
        )
    }

    pub fn transpose(&mut self, input: &str, perm: &[i64]) -> String {
        self.op(
            "Transpose",
            &[input],
            vec![AttributeProto::ints("perm", perm)],
        )
    }

    /// Sizes along `axis`, one value each.
    pub fn split(&mut self, input: &str, axis: i64, sizes: &[usize]) -> Vec<String> {
        let outputs: Vec<_> = sizes.iter().map(|_| self.fresh("split")).collect();
        let sizes: Vec<_> = sizes.iter().map(|&size| size as i64).collect();
        let sizes = self.ints(&sizes);
        let names: Vec<_> = outputs.iter().map(String::as_str).collect();
        self.push(
            "",
            "Split",
            &[input, &sizes],
            &names,
            vec![AttributeProto::int("axis", axis)],
        );
        outputs
    }
}
