//! The operators in standard ONNX operators.
//!
//! One body per operator serves as model-local function, where attributes are references and the
//! number of rows is read from the shape, and inline, where both are literals. There is no Loop
//! and no Scan: the recurrence is a log-depth scan over the static chunk length.

use super::{
    AttributeValue, Definition, ElementType, Op, Operator, PLUGIN_ATTRIBUTES, Port, Ports,
};
use crate::onnx::{
    AttributeProto, FunctionProto, LowCasts, NodeProto, NodeWriter, OperatorSetIdProto, TensorProto,
};
use crate::precision::{MICROSOFT_DOMAIN, MICROSOFT_VERSION, Quantization};

/// The sizes that a body is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyShape {
    /// The operators' `T`.
    pub dtype: ElementType,
    /// The attention's `C`.
    pub cache_dtype: ElementType,
    /// `B`.
    pub batch: usize,
    /// `L`.
    pub seq_len: usize,
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key-value heads.
    pub num_kv_heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
    /// `M`.
    pub max_seq_len: usize,
    /// Of matrices.
    pub quantization: Option<Quantization>,
}

/// One call of an operator, to be written in standard operators.
pub struct Call<'a, 'n, O: Definition> {
    /// Takes the nodes.
    pub(crate) w: &'a mut NodeWriter,
    /// What it is written for.
    pub shape: BodyShape,
    /// The operator; `None` where its attributes are the enclosing function's.
    pub operator: Option<&'a O>,
    /// Names of the values that it reads.
    pub inputs: O::Inputs<&'n str>,
    /// Names of the values that it makes.
    pub outputs: O::Outputs<&'n str>,
}

/// An operator as model-local function for packages of `shape`, which must not use other sizes;
/// patterns come from each node's attributes.
pub fn function(op: Op, shape: &BodyShape, opset: i64) -> FunctionProto {
    fn write<O: Definition>(shape: &BodyShape) -> Vec<NodeProto> {
        let mut writer = NodeWriter::new("", LowCasts::Cast);
        O::body(Call {
            w: &mut writer,
            shape: *shape,
            operator: None,
            inputs: Ports::from_ports(|port| {
                if O::in_function(port.name, shape) {
                    port.name
                } else {
                    ""
                }
            }),
            outputs: Ports::from_ports(|port| port.name),
        });
        writer.finish()
    }
    let schema = op.schema();
    let is_in = |name: &str| with_op!(op, O => O::in_function(name, shape));
    let inputs = schema.inputs.iter().filter(|port| is_in(port.name));
    let names = |port: &Port| port.name.to_owned();
    let integers = shape
        .quantization
        .map(|_| (MICROSOFT_DOMAIN, MICROSOFT_VERSION));
    let domains = [("", opset)].into_iter().chain(integers);
    let domains = domains.map(|(domain, version)| OperatorSetIdProto {
        domain: domain.into(),
        version,
    });
    let attribute = schema.attributes.iter().map(|attribute| attribute.name);
    let attribute = attribute.filter(|name| is_in(name));
    let plugin = PLUGIN_ATTRIBUTES.iter().map(|&(name, _)| name);
    FunctionProto {
        name: op.name().into(),
        input: inputs.map(names).collect(),
        output: schema.outputs.iter().map(names).collect(),
        attribute: attribute.chain(plugin).map(str::to_owned).collect(),
        node: with_op!(op, O => write::<O>(shape)),
        opset_import: domains.collect(),
        domain: super::DOMAIN.into(),
    }
}

/// The nodes of one call of `operator`, with the names of the graph's own values. Fresh names start
/// with `prefix`.
pub fn inline<'n, O: Definition>(
    operator: &O,
    shape: &BodyShape,
    casts: LowCasts,
    prefix: &str,
    inputs: O::Inputs<&'n str>,
    outputs: O::Outputs<&'n str>,
) -> Vec<NodeProto> {
    let mut writer = NodeWriter::new(prefix, casts);
    O::body(Call {
        w: &mut writer,
        shape: *shape,
        operator: Some(operator),
        inputs,
        outputs,
    });
    writer.finish()
}

/// The custom node of one call of `operator`.
pub fn node<'n, O: Definition + Into<Operator>>(
    operator: &O,
    name: String,
    domain: &str,
    inputs: O::Inputs<&'n str>,
    outputs: O::Outputs<&'n str>,
) -> NodeProto {
    let names = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect();
    let mut inputs = inputs.into_list();
    let last = inputs.iter().rposition(|name| !name.is_empty());
    inputs.truncate(last.map_or(0, |last| last + 1));
    NodeProto {
        input: names(inputs),
        output: names(outputs.into_list()),
        name,
        op_type: O::SCHEMA.name.into(),
        attribute: node_attributes(&operator.clone().into()),
        domain: domain.into(),
    }
}

/// The attributes of a custom node.
pub fn node_attributes(operator: &Operator) -> Vec<AttributeProto> {
    let own = operator.attributes().map(|(spec, value)| match value {
        AttributeValue::Int(value) => AttributeProto::int(spec.name, value),
        AttributeValue::Ints(values) => AttributeProto::ints(spec.name, values),
        AttributeValue::Float(value) => AttributeProto::float(spec.name, value),
        AttributeValue::String(value) => AttributeProto::string(spec.name, &value),
    });
    let plugin = PLUGIN_ATTRIBUTES
        .iter()
        .map(|&(name, value)| AttributeProto::string(name, value));
    own.chain(plugin).collect()
}

pub(super) const F32: ElementType = ElementType::F32;

/// What a body makes of `past_length` and `seq_length`.
pub(super) struct Lengths {
    /// `[B]` i64, within bounds: 0 where the slot's lengths do not fit, which makes it idle.
    pub past: String,
    /// As `past`.
    pub seq: String,
    /// `[B, 1, 1]` f32, the outputs past `seq`: 0 for padding, NaN where the lengths do not fit.
    /// There is no other way to report them.
    pub unused: String,
}

/// One of two ways to write the same check. No node of an operator's body may be equal to one of
/// another operator's in a graph with splits: tract 0.23 loses nodes when it merges across them.
pub(super) enum LengthCheck {
    /// By the room that is left.
    Room,
    /// By what is too much.
    Excess,
}

/// Checks lengths as [`check_lengths`](super::check_lengths) does with a bound, slot by slot. A body
/// does so even where its schema has no `M`: a slot is idle in every layer or in none. Equal nodes in
/// every body of an operator: runtimes merge them.
pub(super) fn lengths(
    w: &mut NodeWriter,
    check: LengthCheck,
    shape: &BodyShape,
    [past_length, seq_length]: [&str; 2],
) -> Lengths {
    let longest = w.int(shape.seq_len.min(shape.max_seq_len) as i64);
    let max = w.int(shape.max_seq_len as i64);
    let none = w.int(0);
    // Where a difference could overflow, a length is negative, and refused for that.
    let fits = match check {
        LengthCheck::Room => {
            let room = w.call("Sub", &[&longest, seq_length]);
            let left = w.call("Sub", &[&max, seq_length]);
            let left = w.call("Sub", &[&left, past_length]);
            let least = w.call("Min", &[past_length, seq_length]);
            let least = w.call("Min", &[&least, &room]);
            let least = w.call("Min", &[&least, &left]);
            w.call("GreaterOrEqual", &[&least, &none])
        }
        LengthCheck::Excess => {
            let over = w.call("Sub", &[seq_length, &longest]);
            let past_end = w.call("Sub", &[seq_length, &max]);
            let past_end = w.call("Add", &[&past_end, past_length]);
            let over = w.call("Max", &[&over, &past_end]);
            let within = w.call("LessOrEqual", &[&over, &none]);
            let least = w.call("Min", &[seq_length, past_length]);
            let counted = w.call("GreaterOrEqual", &[&least, &none]);
            w.call("And", &[&within, &counted])
        }
    };
    let past = w.call("Where", &[&fits, past_length, &none]);
    let seq = w.call("Where", &[&fits, seq_length, &none]);
    let (zero, nan) = (w.float(0.0), w.float(f32::NAN));
    let unused = w.call("Where", &[&fits, &zero, &nan]);
    let unused = w.unsqueeze(&unused, &[1, 2]);
    Lengths { past, seq, unused }
}

/// `[B, L, 1]`: whether a row of the chunk is a token.
pub(super) fn valid_rows(w: &mut NodeWriter, seq_len: usize, seq_length: &str) -> String {
    let row = w.constant(positions(seq_len));
    let row = w.reshape(&row, &[1, seq_len, 1]);
    let seq = w.unsqueeze(seq_length, &[1, 2]);
    w.call("Less", &[&row, &seq])
}

/// `0 .. count`.
pub(super) fn positions(count: usize) -> TensorProto {
    let values: Vec<_> = (0..count as i64).collect();
    TensorProto::i64s(&[count as i64], &values)
}

/// `output`: `then` where `condition`, else `other`, rounded to `dtype`.
pub(super) fn select(
    w: &mut NodeWriter,
    dtype: ElementType,
    [condition, then, other]: [&str; 3],
    output: &str,
) {
    let operands = [condition, then, other];
    if dtype == F32 {
        w.push("", "Where", &operands, &[output], Vec::new());
    } else {
        let rows = w.call("Where", &operands);
        w.cast_as(&rows, dtype, output);
    }
}
