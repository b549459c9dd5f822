//! Models of one node in tract.

use ratplus_graphs::model::{ReferenceGraph, Rounding, rounding_attributes};
use ratplus_graphs::ops::body::{BodyShape, inline, node};
use ratplus_graphs::ops::{DOMAIN, Op, Operator, Port, Ports, TensorType};
use ratplus_graphs::package::TensorInfo;
use ratplus_graphs::with_operator;
use ratplus_tract::{TensorRef, TractEngine, TractWeights};

/// How the node is written.
// Each test file uses a part of it.
#[allow(dead_code)]
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// As itself.
    Node,
    /// As its body.
    Body,
}

/// An engine of one node of `operator`; values have their ports' names.
pub fn engine(
    operator: &Operator,
    shape: &BodyShape,
    inputs: &[TensorType],
    way: Way,
) -> TractEngine {
    let op = operator.op();
    let infos = |ports: &[Port], types: &[TensorType]| -> Vec<TensorInfo> {
        let both = ports.iter().zip(types).map(|(port, tensor)| TensorInfo {
            name: port.name.into(),
            tensor: tensor.clone(),
        });
        both.collect()
    };
    let outputs = operator.infer(inputs).expect("types that fit").outputs;
    let casts = Rounding::AsStored.casts();
    let nodes = with_operator!(operator, operator => {
        let (from, to) = (
            Ports::from_ports(|port| port.name),
            Ports::from_ports(|port| port.name),
        );
        match way {
            Way::Body => inline(operator, shape, casts, "", from, to),
            Way::Node => {
                let mut node = node(operator, "node".into(), DOMAIN, from, to);
                let types = [shape.dtype, shape.cache_dtype];
                node.attribute.extend(rounding_attributes(op, types));
                vec![node]
            }
        }
    });
    let (inputs, outputs) = (infos(op.inputs(), inputs), infos(op.outputs(), &outputs));
    let graph = ReferenceGraph::new(nodes, inputs, outputs, Vec::new());
    TractEngine::new(&graph, &TractWeights::default()).expect("a model")
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
