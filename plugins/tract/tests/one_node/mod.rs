//! Models of one node in tract.

use ratplus_graphs::body::{BodyShape, function, inline, node_attributes};
use ratplus_graphs::manifest::Fallback;
use ratplus_graphs::onnx::{
    GraphProto, IR_VERSION, ModelProto, NodeProto, OPSET, OperatorSetIdProto, ValueInfoProto,
};
use ratplus_graphs::ops::{AttentionAttributes, DOMAIN, Op, TensorType};
use ratplus_tract::{TensorRef, TractEngine, TractWeights};

/// A model of one node `op`, as `fallback` writes it.
pub fn model(
    op: Op,
    shape: &BodyShape,
    attributes: Option<&AttentionAttributes>,
    inputs: &[TensorType],
    outputs: &[TensorType],
    fallback: Fallback,
) -> ModelProto {
    let names = |ports: &[ratplus_graphs::ops::Port]| -> Vec<String> {
        ports.iter().map(|port| port.name.to_owned()).collect()
    };
    let (from, to) = (names(op.inputs()), names(op.outputs()));
    let infos = |names: &[String], types: &[TensorType]| -> Vec<ValueInfoProto> {
        let both = names.iter().zip(types);
        both.map(|(name, tensor)| ValueInfoProto::new(name, tensor))
            .collect()
    };
    let opset = |domain: &str, version| OperatorSetIdProto {
        domain: domain.into(),
        version,
    };
    let (input, output) = (infos(&from, inputs), infos(&to, outputs));
    let node = match fallback {
        Fallback::Inline => inline(op, shape, attributes, "", &from, &to),
        _ => vec![NodeProto {
            input: from,
            output: to,
            name: "node".into(),
            op_type: op.name().into(),
            domain: DOMAIN.into(),
            attribute: node_attributes(op, attributes),
        }],
    };
    ModelProto {
        ir_version: IR_VERSION,
        opset_import: vec![opset("", OPSET), opset(DOMAIN, 1)],
        graph: Some(GraphProto {
            node,
            name: "one node".into(),
            input,
            output,
            ..GraphProto::default()
        }),
        functions: match fallback {
            Fallback::Function => vec![function(op, shape, OPSET)],
            _ => Vec::new(),
        },
        ..ModelProto::default()
    }
}

/// An engine of one node.
pub fn engine(model: &ModelProto) -> TractEngine {
    TractEngine::with_weights(model, &TractWeights::default()).expect("a model")
}

/// A run of one node: its outputs.
pub fn run(engine: &mut TractEngine, op: Op, inputs: &[TensorRef<'_>]) -> Vec<Vec<f32>> {
    let infos = engine.outputs().to_vec();
    let mut results: Vec<_> = infos
        .iter()
        .map(|info| vec![f32::NAN; info.tensor.elements()])
        .collect();
    let mut outputs: Vec<_> = infos
        .iter()
        .zip(&mut results)
        .map(|(info, result)| (info.name.as_str(), &mut result[..]))
        .collect();
    let named: Vec<_> = op
        .inputs()
        .iter()
        .map(|port| port.name)
        .zip(inputs.iter().copied())
        .collect();
    engine.run(&named, &mut outputs).expect("a run");
    results
}
