//! Both operators in standard ONNX operators.
//!
//! One body per operator serves as model-local function, where attributes are references and the
//! number of rows is read from the shape, and inline, where both are literals. There is no Loop
//! and no Scan: the recurrence is a log-depth scan over the static chunk length.

mod attention;
mod scan;

use attention::Attention;
use scan::Scan;

use crate::onnx::{
    AttributeProto, FunctionProto, NodeProto, NodeWriter, OperatorSetIdProto, TensorProto,
};
use crate::ops::{AttentionAttributes, AttributeKind, ElementType, Op, PLUGIN_ATTRIBUTES};

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
    /// Number of heads.
    pub num_heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
    /// `M`.
    pub max_seq_len: usize,
}

/// Both operators as model-local functions for packages of `shape`, which must not use other
/// sizes; patterns come from each node's attributes.
pub fn function(op: Op, shape: &BodyShape, opset: i64) -> FunctionProto {
    let names = |ports: &[crate::ops::Port]| {
        ports
            .iter()
            .map(|port| port.name.to_owned())
            .collect::<Vec<_>>()
    };
    let (input, output) = (names(op.inputs()), names(op.outputs()));
    let mut writer = NodeWriter::new("");
    write(
        &mut writer,
        op,
        shape,
        &Attributes::Reference,
        &input,
        &output,
    );
    let attribute = op.attributes().iter().map(|attribute| attribute.name);
    let plugin = PLUGIN_ATTRIBUTES.iter().map(|&(name, _)| name);
    FunctionProto {
        name: op.name().into(),
        input,
        output,
        attribute: attribute.chain(plugin).map(str::to_owned).collect(),
        node: writer.finish(),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: opset,
        }],
        domain: crate::ops::DOMAIN.into(),
    }
}

/// The nodes of one call of `op`, with the names of the graph's own values; `attributes` belongs
/// to [`Op::DilatedAttention`]. Fresh names start with `prefix`.
pub fn inline(
    op: Op,
    shape: &BodyShape,
    attributes: Option<&AttentionAttributes>,
    prefix: &str,
    inputs: &[String],
    outputs: &[String],
) -> Vec<NodeProto> {
    let mut writer = NodeWriter::new(prefix);
    let attributes = attributes.map_or(Attributes::Reference, Attributes::Literal);
    write(&mut writer, op, shape, &attributes, inputs, outputs);
    writer.finish()
}

fn write(
    writer: &mut NodeWriter,
    op: Op,
    shape: &BodyShape,
    attributes: &Attributes<'_>,
    inputs: &[String],
    outputs: &[String],
) {
    let shape = *shape;
    match op {
        Op::RecurrenceScan => Scan { w: writer, shape }.write(inputs, outputs),
        Op::DilatedAttention => Attention {
            w: writer,
            shape,
            attributes,
        }
        .write(inputs, outputs),
    }
}

/// Where a body's attributes come from.
enum Attributes<'a> {
    /// The enclosing function's.
    Reference,
    /// Known now.
    Literal(&'a AttentionAttributes),
}

const F32: ElementType = ElementType::F32;
const I64: ElementType = ElementType::I64;

/// What a body makes of `past_length` and `seq_length`.
struct Lengths {
    /// `[B]` i64, within bounds: 0 where the slot's lengths do not fit, which makes it idle.
    past: String,
    /// As `past`.
    seq: String,
    /// `[B, 1, 1]` f32, the outputs past `seq`: 0 for padding, NaN where the lengths do not fit.
    /// There is no other way to report them.
    unused: String,
}

/// Checks lengths as [`crate::ops::check_lengths`] does for the attention, slot by slot. The scan's
/// body does the same, though its schema has no `M`: a slot is idle in every layer or in none. Equal
/// nodes in every body of `op`: runtimes merge them.
fn lengths(
    w: &mut NodeWriter,
    op: Op,
    shape: &BodyShape,
    past_length: &str,
    seq_length: &str,
) -> Lengths {
    let longest = w.int(shape.seq_len.min(shape.max_seq_len) as i64);
    let max = w.int(shape.max_seq_len as i64);
    let none = w.int(0);
    // Where a difference could overflow, a length is negative, and refused for that. No node of one
    // operator is equal to one of the other: tract 0.23 loses nodes when it merges across them.
    let fits = match op {
        Op::DilatedAttention => {
            let room = w.call("Sub", &[&longest, seq_length]);
            let left = w.call("Sub", &[&max, seq_length]);
            let left = w.call("Sub", &[&left, past_length]);
            let least = w.call("Min", &[past_length, seq_length]);
            let least = w.call("Min", &[&least, &room]);
            let least = w.call("Min", &[&least, &left]);
            w.call("GreaterOrEqual", &[&least, &none])
        }
        Op::RecurrenceScan => {
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
fn valid_rows(w: &mut NodeWriter, seq_len: usize, seq_length: &str) -> String {
    let row = w.constant(positions(seq_len));
    let row = w.reshape(&row, &[1, seq_len, 1]);
    let seq = w.unsqueeze(seq_length, &[1, 2]);
    w.call("Less", &[&row, &seq])
}

/// `0 .. count`.
fn positions(count: usize) -> TensorProto {
    let values: Vec<_> = (0..count as i64).collect();
    TensorProto::i64s(&[count as i64], &values)
}

/// `output`: `rows` rounded to `T` where valid, else `unused`.
fn finish_rows(
    w: &mut NodeWriter,
    dtype: ElementType,
    valid: &str,
    rows: &str,
    unused: &str,
    output: &str,
) {
    if dtype == F32 {
        w.push("", "Where", &[valid, rows, unused], &[output], Vec::new());
    } else {
        let rows = w.call("Where", &[valid, rows, unused]);
        w.push(
            "",
            "Cast",
            &[&rows],
            &[output],
            vec![AttributeProto::int("to", dtype.onnx().into())],
        );
    }
}

/// The attributes of a custom node of `op`.
pub fn node_attributes(op: Op, attributes: Option<&AttentionAttributes>) -> Vec<AttributeProto> {
    let mut list = Vec::new();
    if let (Op::DilatedAttention, Some(attributes)) = (op, attributes) {
        let raw = attributes.to_raw();
        for spec in op.attributes() {
            let ints = |values: &[i64]| AttributeProto::ints(spec.name, values);
            list.push(match (spec.name, spec.kind) {
                ("num_heads", AttributeKind::Int) => AttributeProto::int(spec.name, raw.num_heads),
                ("dilation", _) => ints(&raw.dilation),
                ("local_window", _) => ints(&raw.local_window),
                ("initial", _) => ints(&raw.initial),
                _ => AttributeProto::float(spec.name, raw.scale),
            });
        }
    }
    list.extend(
        PLUGIN_ATTRIBUTES
            .iter()
            .map(|&(name, value)| AttributeProto::string(name, value)),
    );
    list
}
