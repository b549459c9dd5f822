//! The chunk graph of a whole model, for any static sequence length, as each target wants it.
//!
//! Activations are rows `[B * L, width]` except around the two operators. In f16 and bf16
//! packages weights and activations are rounded to that type after every linear layer, norm,
//! gate, activation and residual sum, while the arithmetic between roundings is f32. Only the
//! products of linear layers are in the type itself where the target has them: ONNX Runtime's CPU
//! provider has no bf16 arithmetic.

mod activation;
mod builder;
mod layers;
mod lowering;
mod reference;
mod storage;
mod taps;
mod weights;

pub use layers::Sizes;
pub use reference::{
    CACHE_TYPE, ELEMENT_TYPE, ROUND_TO, ReferenceGraph, ReferenceOptions, ReferenceWeight,
    Rounding, WeightParts, carrier, reference, reference_weights, rounding_attributes,
};
pub use storage::{
    Content, StoredContent, StoredTensor, WEIGHT_ALIGNMENT, storage, stored_contents,
};
pub use taps::{EMBEDDED, FINAL_NORM, Tap, taps};
pub use weights::{ROTARY_TABLES, Weight, rotary_row};

use crate::onnx::{GraphProto, ModelProto, OperatorSetIdProto, TensorProto, ValueInfoProto};
use crate::ops::{DOMAIN_VERSION, Op, body};
use crate::package::{
    CustomNodes, Fallback, INPUT_IDS, LOGITS, LogitsMode, Products, Target, TensorInfo,
    WEIGHTS_FILE,
};
use crate::precision::{IntegerLayout, MICROSOFT_DOMAIN, MICROSOFT_VERSION};
use lowering::Lowering;

/// Everything that determines one ONNX file.
#[derive(Clone, Debug)]
pub struct GraphOptions<'a> {
    /// Model, shape and chunk length.
    pub sizes: Sizes<'a>,
    /// What it is built for.
    pub target: Target,
    /// How custom nodes are written.
    pub fallback: Fallback,
    /// Opset of the default domain.
    pub opset: i64,
    /// ONNX IR version.
    pub ir_version: i64,
}

/// Builds one ONNX file; its initializers refer to [`WEIGHTS_FILE`] as [`storage`] lays it out.
pub fn build(options: &GraphOptions<'_>) -> ModelProto {
    let GraphOptions { sizes, opset, .. } = *options;
    let (spec, shape, precision) = (sizes.spec, sizes.shape, sizes.precision);
    let lowering = Lowering::of(options.target, options.fallback);
    let (node, mut value_info) = layers::write(&sizes, lowering);
    let (inputs, outputs) = shape.tensors(spec, sizes.seq_len);
    let value_infos = |list| value_infos(options.target, shape.logits, list);
    // Graph outputs declare themselves.
    value_info.retain(|info| !outputs.iter().any(|output| output.name == info.name));
    let initializer = storage(spec, &shape, precision)
        .0
        .iter()
        .map(|stored| {
            TensorProto::external(&stored.name, &stored.tensor, WEIGHTS_FILE, stored.offset)
        })
        .collect();
    let graph = GraphProto {
        name: "ratplus".into(),
        node,
        initializer,
        input: value_infos(&inputs),
        output: value_infos(&outputs),
        value_info,
    };
    let mut opset_import = vec![opset_of("", opset)];
    let domain = lowering.custom.domain();
    opset_import.extend(domain.map(|domain| opset_of(domain, DOMAIN_VERSION)));
    if precision.layout() == Some(IntegerLayout::Product) {
        opset_import.push(opset_of(MICROSOFT_DOMAIN, MICROSOFT_VERSION));
    }
    let mut functions = Vec::new();
    if lowering.custom == CustomNodes::WithFunctions {
        let used = |op: &Op| match op {
            Op::RecurrenceScan => spec.recurrence,
            Op::Linear => lowering.products == Products::Plain,
            Op::DilatedAttention => spec
                .patterns
                .iter()
                .any(|layer| layer.block_top_k().is_none()),
            Op::BlockTopKAttention => spec
                .patterns
                .iter()
                .any(|layer| layer.block_top_k().is_some()),
        };
        let body = sizes.body();
        let ops = Op::ALL.into_iter().filter(used);
        functions.extend(ops.map(|op| body::function(op, &body, opset)));
    }
    ModelProto {
        ir_version: options.ir_version,
        producer_name: "ratplus".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        opset_import,
        functions,
    }
}

/// Names of the dimensions that are open where a graph [has such](Target::has_open_sizes).
pub const OPEN_SIZES: [&str; 2] = ["batch", "seq_len"];

/// How graphs for `target` declare inputs or outputs of an engine.
pub fn value_infos(target: Target, logits: LogitsMode, list: &[TensorInfo]) -> Vec<ValueInfoProto> {
    let declared = |info: &TensorInfo| {
        let open = match &*info.name {
            _ if !target.has_open_sizes() => 0,
            INPUT_IDS => 2,
            LOGITS if logits == LogitsMode::All => 2,
            _ => 1,
        };
        ValueInfoProto::new(&info.name, &info.tensor).opened(&OPEN_SIZES[..open])
    };
    list.iter().map(declared).collect()
}

fn opset_of(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto {
        domain: domain.into(),
        version,
    }
}

#[cfg(test)]
mod tests;
