//! Writes nodes.

use super::{AttributeProto, NodeProto, TensorProto};
use crate::ops::ElementType;

/// What stands for a cast to f16 or bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LowCasts {
    /// A cast.
    Cast,
    /// [`ROUND_TO`]: values stay f32.
    Round,
    /// Nothing: values stay f32 as they are.
    None,
}

/// `op_type` of the reference's own node that rounds f32 to the nearest value of the type in its
/// attribute `to`, ties to even.
pub const ROUND_TO: &str = "RoundTo";

/// Appends nodes with names of their own.
pub(crate) struct NodeWriter {
    nodes: Vec<NodeProto>,
    prefix: String,
    count: usize,
    casts: LowCasts,
}

impl NodeWriter {
    /// Names of nodes and values will start with `prefix`.
    pub fn new(prefix: &str, casts: LowCasts) -> Self {
        Self {
            nodes: Vec::new(),
            prefix: prefix.into(),
            count: 0,
            casts,
        }
    }

    pub fn finish(self) -> Vec<NodeProto> {
        self.nodes
    }

    pub fn extend(&mut self, nodes: Vec<NodeProto>) {
        self.nodes.extend(nodes);
    }

    /// Gives the value `from` the name `to`.
    pub fn rename(&mut self, from: &str, to: &str) {
        for node in self.nodes.iter_mut().rev() {
            let values = node.input.iter_mut().chain(&mut node.output);
            values
                .filter(|value| *value == from)
                .for_each(|value| *value = to.into());
            if node.output.iter().any(|output| output == to) {
                node.name = to.into();
                return;
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
        let output = self.fresh("cast");
        self.cast_as(input, to, &output);
        output
    }

    /// A cast under the name `output`.
    pub fn cast_as(&mut self, input: &str, to: ElementType, output: &str) {
        let low = matches!(to, ElementType::F16 | ElementType::BF16);
        let attribute = vec![AttributeProto::int("to", to.onnx().into())];
        let (op_type, attribute) = match self.casts {
            LowCasts::Round if low => (ROUND_TO, attribute),
            LowCasts::None if low => ("Identity", Vec::new()),
            _ => ("Cast", attribute),
        };
        self.push("", op_type, &[input], &[output], attribute);
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

    /// The sum along `axis`, which goes.
    pub fn sum(&mut self, input: &str, axis: &str) -> String {
        let gone = vec![AttributeProto::int("keepdims", 0)];
        self.op("ReduceSum", &[input, axis], gone)
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
