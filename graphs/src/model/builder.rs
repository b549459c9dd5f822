//! Writes a graph node by node and knows the type of every value.

use super::lowering::Lowering;
use super::{OPEN_SIZES, activation};
use crate::onnx::{AttributeProto, NodeProto, NodeWriter, TensorProto, ValueInfoProto};
use crate::ops::linear::{self, dequantized};
use crate::ops::{ElementType, TensorType};
use crate::package::{INPUT_IDS, Products};
use crate::precision::{MATMUL_NBITS, MICROSOFT_DOMAIN, Quantization};
use crate::spec::Activation;

const F32: ElementType = ElementType::F32;

/// A value of the graph. In the reference's graphs, which hold f16 and bf16 in f32, the type is the
/// one that the numbers are rounded to.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub name: String,
    pub dtype: ElementType,
    pub shape: Vec<usize>,
}

impl Value {
    pub fn new(name: impl Into<String>, tensor: TensorType) -> Self {
        Self {
            name: name.into(),
            dtype: tensor.dtype,
            shape: tensor.shape,
        }
    }

    pub fn tensor(&self) -> TensorType {
        TensorType::new(self.dtype, &*self.shape)
    }

    /// The shape with another last dimension.
    pub fn with_width(&self, width: usize) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = width;
        }
        shape
    }

    fn like(&self, name: String) -> Self {
        Self {
            name,
            ..self.clone()
        }
    }
}

/// How the matrix of a linear layer is given, `[outputs, inputs]`.
pub(super) enum Matrix {
    /// As a value of its own type.
    Stored(Value),
    /// As block-wise integers, in these constants.
    Blocks {
        quantization: Quantization,
        sizes: [usize; 2],
        constants: Vec<String>,
    },
}

pub(super) struct Builder {
    w: NodeWriter,
    lowering: Lowering,
    declared: Vec<ValueInfoProto>,
    /// Shapes of open sizes by rank and last dimension.
    shapes: Vec<((usize, usize), String)>,
}

impl Builder {
    pub fn new(lowering: Lowering) -> Self {
        Self {
            w: NodeWriter::new("", lowering.casts),
            lowering,
            declared: Vec::new(),
            shapes: Vec::new(),
        }
    }

    /// The nodes, and the types of values that they declare.
    pub fn finish(self) -> (Vec<NodeProto>, Vec<ValueInfoProto>) {
        (self.w.finish(), self.declared)
    }

    pub fn lowering(&self) -> Lowering {
        self.lowering
    }

    /// What later names start with.
    pub fn set_prefix(&mut self, prefix: &str) {
        self.w.set_prefix(prefix);
    }

    pub fn fresh(&mut self, hint: &str) -> String {
        self.w.fresh(hint)
    }

    /// Gives the value `from` the name `to`.
    fn rename(&mut self, from: &str, to: &str) {
        self.w.rename(from, to);
        let declared = self.declared.iter_mut().filter(|info| info.name == from);
        declared.for_each(|info| info.name = to.into());
    }

    /// One output of a fresh name, or of `name`.
    fn node(
        &mut self,
        (domain, op_type): (&str, &str),
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
        name: Option<&str>,
    ) -> String {
        let output = match name {
            Some(name) => name.to_owned(),
            None => self.w.fresh(&op_type.to_lowercase()),
        };
        self.w.push(domain, op_type, inputs, &[&output], attributes);
        output
    }

    /// Rows of `data`.
    pub fn gather(&mut self, data: &Value, indices: &Value) -> Value {
        let shape = [&*indices.shape, &data.shape[1..]].concat();
        let name = self.w.gather(&data.name, &indices.name, 0);
        Value::new(name, TensorType::new(data.dtype, shape))
    }

    /// The value in another shape, under `name` where it is given one: as rows, `[B * L, width]`, or as
    /// `[B, L, width]`.
    pub fn reshape(&mut self, value: &Value, shape: &[usize], name: Option<&str>) -> Value {
        if value.shape == shape {
            if let Some(name) = name {
                self.rename(&value.name, name);
            }
            return value.like(name.map_or_else(|| value.name.clone(), str::to_owned));
        }
        let sizes = match shape {
            &[.., width] if self.lowering.has_open_sizes() => self.open_shape(shape.len(), width),
            _ => {
                let sizes: Vec<_> = shape.iter().map(|&size| size as i64).collect();
                self.w.ints(&sizes)
            }
        };
        let inputs = [value.name.as_str(), &sizes];
        let name = self.node(("", "Reshape"), &inputs, Vec::new(), name);
        Value::new(name, TensorType::new(value.dtype, shape))
    }

    /// The value that has the shape `[B * L, width]` or `[B, L, width]` of open sizes.
    fn open_shape(&mut self, rank: usize, width: usize) -> String {
        let known = self
            .shapes
            .iter()
            .find(|(found, ..)| *found == (rank, width));
        if let Some((_, name)) = known {
            return name.clone();
        }
        let name = if rank == 2 {
            self.w.ints(&[-1, width as i64])
        } else {
            let (ids, width) = (
                self.w.call("Shape", &[INPUT_IDS]),
                self.w.ints(&[width as i64]),
            );
            self.w.concat(&[&ids, &width], 0)
        };
        self.shapes.push(((rank, width), name.clone()));
        name
    }

    /// The last dimension in parts of these widths.
    pub fn split(&mut self, rows: &Value, widths: &[usize]) -> Vec<Value> {
        let names = self.w.split(&rows.name, -1, widths);
        let part = |&width: &usize| TensorType::new(rows.dtype, rows.with_width(width));
        let parts = names.into_iter().zip(widths.iter().map(part));
        parts.map(|(name, part)| Value::new(name, part)).collect()
    }

    /// The value in another type, rounded where that holds less.
    pub fn convert(&mut self, value: &Value, to: ElementType) -> Value {
        let name = match self.lowering.is_written(value.dtype, to) {
            true => self.w.cast(&value.name, to),
            false => value.name.clone(),
        };
        Value::new(name, TensorType::new(to, &*value.shape))
    }

    /// [`convert`](Self::convert) under `name`.
    pub fn convert_as(&mut self, value: &Value, to: ElementType, name: &str) -> Value {
        match self.lowering.is_written(value.dtype, to) {
            true => self.w.cast_as(&value.name, to, name),
            false => self.rename(&value.name, name),
        }
        Value::new(name, TensorType::new(to, &*value.shape))
    }

    /// `op_type` of values of one type, the last of which may be shorter.
    pub fn elementwise(&mut self, op_type: &str, operands: &[&Value]) -> Value {
        let names: Vec<_> = operands
            .iter()
            .map(|operand| operand.name.as_str())
            .collect();
        let name = self.w.call(op_type, &names);
        operands[0].like(name)
    }

    /// A matrix `[N, K]` from its integers, and the scales of blocks of `block_size` along its rows.
    pub fn dequantize(
        &mut self,
        integers: &Value,
        scales: &Value,
        block_size: usize,
        to: ElementType,
    ) -> Value {
        let scales = self.convert(scales, to);
        let attributes = [("axis", 1), ("block_size", block_size as i64)]
            .map(|(name, value)| AttributeProto::int(name, value));
        let inputs = [integers.name.as_str(), &scales.name];
        let name = self.node(("", "DequantizeLinear"), &inputs, attributes.into(), None);
        Value::new(name, TensorType::new(to, &*integers.shape))
    }

    /// Rows in f32, in blocks of 8 bits and a scale.
    pub fn rounded_to_bytes(&mut self, rows: &Value, block_size: usize) -> Value {
        let rows = self.convert(rows, F32);
        let width = rows.shape.last().copied();
        let name = linear::rounded_to_bytes(&mut self.w, &rows.name, block_size, width);
        rows.like(name)
    }

    /// `rows x matrix^T`: in the type of both with native products where they have one, else in
    /// f32.
    pub fn linear(&mut self, rows: &Value, matrix: &Matrix) -> Value {
        let native = match matrix {
            Matrix::Stored(stored) => {
                self.lowering.products == Products::Native && stored.dtype == rows.dtype
            }
            Matrix::Blocks { .. } => false,
        };
        let dtype = if native { rows.dtype } else { F32 };
        let shape = rows.shape.clone();
        let rows = self.convert(rows, dtype);
        let width = shape[shape.len() - 1];
        let count = rows.tensor().elements() / width;
        let rows = self.reshape(&rows, &[count, width], None);
        let (name, outputs) = match matrix {
            Matrix::Stored(stored) => {
                let stored = self.convert(stored, dtype);
                let name = self.product(&rows, &stored.name);
                (name, stored.shape[0])
            }
            Matrix::Blocks {
                quantization,
                sizes,
                constants,
            } if !self.lowering.widened_blocks
                && (quantization.bits == 4 || self.lowering.products == Products::Native) =>
            {
                let mut operands = vec![rows.name.as_str()];
                operands.extend(constants.iter().map(String::as_str));
                let of_sizes = [("K", sizes[1]), ("N", sizes[0])]
                    .map(|(name, size)| AttributeProto::int(name, size as i64));
                let attributes = [&of_sizes[..], &quantization.node_attributes()].concat();
                let op = (MICROSOFT_DOMAIN, MATMUL_NBITS);
                (self.node(op, &operands, attributes, None), sizes[0])
            }
            Matrix::Blocks {
                quantization,
                sizes,
                constants,
            } if !self.lowering.widened_blocks => {
                let constant = |at| constants.get(at).map_or("", String::as_str);
                let constants = [0, 1, 2].map(constant);
                let matrix = dequantized(&mut self.w, *quantization, &rows.name, constants);
                (self.product(&rows, &matrix), sizes[0])
            }
            Matrix::Blocks {
                sizes, constants, ..
            } => (self.product(&rows, &constants[0]), sizes[0]),
        };
        let made = Value::new(name, TensorType::new(dtype, [count, outputs]));
        let shape = [&shape[..shape.len() - 1], &[outputs]].concat();
        self.reshape(&made, &shape, None)
    }

    fn product(&mut self, rows: &Value, matrix: &str) -> String {
        let transposed = vec![AttributeProto::int("transB", 1)];
        self.w.op("Gemm", &[&rows.name, matrix], transposed)
    }

    /// The rows divided by their root mean square, times `weight`; in f32.
    pub fn rms_norm(&mut self, rows: &Value, weight: &Value, epsilon: f32) -> Value {
        let weight = self.convert(weight, F32);
        let rows = self.convert(rows, F32);
        let w = &mut self.w;
        let two = w.float(2.0);
        let squares = w.call("Pow", &[&rows.name, &two]);
        let axis = w.ints(&[-1]);
        let mean = w.call("ReduceMean", &[&squares, &axis]);
        let epsilon = w.float(epsilon);
        let mean = w.call("Add", &[&mean, &epsilon]);
        let root = w.call("Sqrt", &[&mean]);
        let scaled = w.call("Div", &[&rows.name, &root]);
        let scaled = w.call("Mul", &[&scaled, &weight.name]);
        rows.like(scaled)
    }

    /// In f32.
    pub fn activation(&mut self, activation: Activation, value: &Value) -> Value {
        let value = self.convert(value, F32);
        let name = activation::write(&mut self.w, activation, &value.name);
        value.like(name)
    }

    /// `[B, d]`, or `[B, 1, d]` of `[B, L, d]`: the row of each sequence's last token, the first of an
    /// idle slot.
    pub fn last_tokens(&mut self, rows: &Value, seq_length: &Value) -> Value {
        let batch = seq_length.shape[0];
        let width = rows.shape[rows.shape.len() - 1];
        let keeps_batch = rows.shape.len() == 3;
        let count = rows.tensor().elements() / width;
        let rows = &self.reshape(rows, &[count, width], None);
        let seq_len = count / batch;
        let open = self.lowering.has_open_sizes();
        let w = &mut self.w;
        let one = w.ints(&[1]);
        let longest = if open {
            let ids = w.call("Shape", &[INPUT_IDS]);
            w.slice(&ids, 0, 1, 2)
        } else {
            w.ints(&[seq_len as i64])
        };
        // Of a slot whose lengths do not fit, any row of its own: all are NaN in function bodies.
        let last = w.call("Max", &[&seq_length.name, &one]);
        let last = w.call("Min", &[&last, &longest]);
        let last = w.call("Sub", &[&last, &one]);
        if open {
            let index = w.unsqueeze(&last, &[1]);
            let chunk = self.reshape(rows, &[batch, seq_len, width], None);
            let slots = vec![AttributeProto::int("batch_dims", 1)];
            let name = self.w.op("GatherND", &[&chunk.name, &index], slots);
            return Value::new(name, TensorType::new(rows.dtype, [batch, width]));
        }
        let first: Vec<_> = (0..batch).map(|slot| (slot * seq_len) as i64).collect();
        let first = w.ints(&first);
        let index = w.call("Add", &[&last, &first]);
        let index = seq_length.like(index);
        let last = self.gather(rows, &index);
        match keeps_batch {
            true => self.reshape(&last, &[batch, 1, width], None),
            false => last,
        }
    }

    /// `seq_length` of the chunk that [`last_tokens`](Self::last_tokens) makes.
    pub fn at_most_one(&mut self, seq_length: &Value) -> Value {
        let one = self.w.ints(&[1]);
        seq_length.like(self.w.call("Min", &[&seq_length.name, &one]))
    }

    /// A tensor of `dtype` without elements: it stands for an input that a node is without.
    pub fn none(&mut self, dtype: ElementType) -> String {
        self.w
            .constant(TensorProto::raw(dtype.onnx(), &[0], Vec::new()))
    }

    /// Nodes that were written elsewhere.
    pub fn extend(&mut self, nodes: Vec<NodeProto>) {
        self.w.extend(nodes);
    }

    /// States the type of a value, whose first `open` dimensions are the graph's batch and length, for
    /// runtimes that have no rule for it.
    pub fn declare(&mut self, value: &Value, open: usize) {
        let info = ValueInfoProto::new(&value.name, &value.tensor());
        self.declared.push(info.opened(&OPEN_SIZES[..open]));
    }
}
