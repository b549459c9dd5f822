//! Models of one node in tract.

use ratplus_graphs::manifest::Fallback;
use ratplus_graphs::onnx::{
    GraphProto, IR_VERSION, ModelProto, OPSET, OperatorSetIdProto, ValueInfoProto,
};
use ratplus_graphs::ops::body::{BodyShape, function, inline, node};
use ratplus_graphs::ops::{DOMAIN, Op, Operator, Port, Ports, TensorType};
use ratplus_graphs::with_operator;
use ratplus_tract::{TensorRef, TractEngine, TractWeights};

/// A model of one node of `operator`, as `fallback` writes it; values have their ports' names.
pub fn model(
    operator: &Operator,
    shape: &BodyShape,
    inputs: &[TensorType],
    fallback: Fallback,
) -> ModelProto {
    let op = operator.op();
    let infos = |ports: &[Port], types: &[TensorType]| -> Vec<ValueInfoProto> {
        let both = ports.iter().zip(types);
        both.map(|(port, tensor)| ValueInfoProto::new(port.name, tensor))
            .collect()
    };
    let opset = |domain: &str, version| OperatorSetIdProto {
        domain: domain.into(),
        version,
    };
    let outputs = operator.infer(inputs).expect("types that fit").outputs;
    let (input, output) = (infos(op.inputs(), inputs), infos(op.outputs(), &outputs));
    let node = with_operator!(operator, operator => {
        let (from, to) = (
            Ports::from_ports(|port| port.name),
            Ports::from_ports(|port| port.name),
        );
        match fallback {
            Fallback::Inline => inline(operator, shape, "", from, to),
            _ => vec![node(operator, "node".into(), DOMAIN, from, to)],
        }
    });
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
