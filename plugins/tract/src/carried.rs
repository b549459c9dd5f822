//! Rewrites a package's graph for tract: low-precision tensors carried in f32, initializers as
//! inputs, functions dropped.

use crate::TractError;
use crate::operators::{CACHE_TYPE, ELEMENT_TYPE, ROUND};
use crate::quantized::{Product, is_product, products};
use ratplus_graphs::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
};
use ratplus_graphs::ops::{DOMAIN, ElementType, Op, PortType, TensorType};
use std::collections::{HashMap, HashSet};

/// A graph that tract can parse, and what its names mean.
pub(crate) struct Carried {
    /// Initializers became the inputs after `inputs`.
    pub model: ModelProto,
    /// Inputs, types as in the package.
    pub inputs: Vec<(String, TensorType)>,
    /// Weights, types as in the package.
    pub weights: Vec<(String, TensorType)>,
    /// Outputs, types as in the package.
    pub outputs: Vec<(String, TensorType)>,
}

/// What becomes of roundings to f16 and bf16 between operators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// Values are rounded where the package rounds them.
    #[default]
    AsStored,
    /// Everything is f32; only the weights are what the package stores. What is left out shows
    /// what the package's roundings cost.
    None,
}

/// The type that carries `dtype` in tract.
pub(crate) fn carrier(dtype: ElementType) -> ElementType {
    match dtype {
        ElementType::F16 | ElementType::BF16 => ElementType::F32,
        other => other,
    }
}

fn is_low(code: i32) -> bool {
    ElementType::from_onnx(code).is_some_and(|dtype| carrier(dtype) != dtype)
}

pub(crate) fn carry(model: &ModelProto, rounding: Rounding) -> Result<Carried, TractError> {
    let Some(graph) = &model.graph else {
        return Err(TractError::Graph(vec!["it has no graph".into()]));
    };
    let mut errors = Vec::new();
    let inputs = types(&graph.input, "input", &mut errors);
    let outputs = types(&graph.output, "output", &mut errors);
    let weights: Vec<_> = graph
        .initializer
        .iter()
        .filter_map(|tensor| match tensor.tensor_type() {
            Some(found) => Some((tensor.name.clone(), found)),
            None => {
                errors.push(format!(
                    "initializer `{}`: expected f32, f16, bf16 or i64, found data type {}",
                    tensor.name, tensor.data_type
                ));
                None
            }
        })
        .collect();
    check_names(graph, &mut errors);
    let products = products(graph).unwrap_or_else(|found| {
        errors.extend(found);
        Vec::new()
    });
    let parts: HashSet<_> = products.iter().flat_map(Product::parts).collect();
    let mut weights: Vec<_> = weights
        .into_iter()
        .filter(|(name, _)| !parts.contains(name))
        .collect();
    let mut matrices = HashMap::new();
    for product in &products {
        match matrices.insert(&product.blocks, product) {
            None => weights.push((product.blocks.clone(), product.matrix())),
            Some(other) if other == product => (),
            Some(_) => errors.push(format!(
                "`{}` is the matrix of two nodes that read it differently",
                product.blocks
            )),
        }
    }
    let dtypes = value_types(graph, &inputs, &weights);
    if !errors.is_empty() {
        return Err(TractError::Graph(errors));
    }

    let mut graph = graph.clone();
    graph.initializer.clear();
    graph.value_info.clear();
    let declared = |(name, tensor): &(String, TensorType)| {
        let carried = TensorType::new(carrier(tensor.dtype), &*tensor.shape);
        ValueInfoProto::new(name, &carried)
    };
    graph.input = inputs.iter().chain(&weights).map(declared).collect();
    graph.output = outputs.iter().map(declared).collect();
    let mut quantized = products.iter();
    for node in &mut graph.node {
        if is_product(node)
            && let Some(product) = quantized.next()
        {
            product.rewrite(node);
        }
        let to = node.find_attribute("to").and_then(|to| to.i);
        if node.domain == DOMAIN {
            for (name, variable) in [(ELEMENT_TYPE, PortType::T), (CACHE_TYPE, PortType::C)] {
                let stored = type_variable(node, variable, &dtypes);
                if let Some(stored) = stored.filter(|_| rounding == Rounding::AsStored) {
                    let code = stored.onnx().into();
                    node.attribute.push(AttributeProto::int(name, code));
                }
            }
        } else if node.op_type == "Cast" && to.is_some_and(|to| is_low(to as i32)) {
            match rounding {
                Rounding::AsStored => node.op_type = ROUND.into(),
                Rounding::None => {
                    node.op_type = "Identity".into();
                    node.attribute.clear();
                }
            }
        }
        for attribute in &mut node.attribute {
            if let Some(tensor) = &mut attribute.t
                && is_low(tensor.data_type)
            {
                widen_constant(tensor);
            }
        }
    }
    let model = ModelProto {
        graph: Some(graph),
        functions: Vec::new(),
        ..model.clone()
    };
    Ok(Carried {
        model,
        inputs,
        weights,
        outputs,
    })
}

fn types(
    infos: &[ValueInfoProto],
    kind: &str,
    errors: &mut Vec<String>,
) -> Vec<(String, TensorType)> {
    let mut list = Vec::new();
    for info in infos {
        match info.tensor() {
            Some(tensor) => list.push((info.name.clone(), tensor)),
            None => errors.push(format!(
                "{kind} `{}`: expected a static shape of f32, f16, bf16 or i64",
                info.name
            )),
        }
    }
    list
}

/// Every value is made once, before it is used, by an operator that there is.
fn check_names(graph: &GraphProto, errors: &mut Vec<String>) {
    let mut known = HashSet::new();
    let sources = graph.input.iter().map(|input| &input.name);
    for name in sources.chain(graph.initializer.iter().map(|tensor| &tensor.name)) {
        if !known.insert(name.as_str()) {
            errors.push(format!("`{name}` is defined twice"));
        }
    }
    for node in &graph.node {
        let ours = Op::ALL.iter().any(|op| op.name() == node.op_type);
        let other = node.domain.is_empty() || is_product(node);
        if (node.domain == DOMAIN) != ours || !(ours || other) {
            errors.push(format!(
                "node `{}`: there is no operator `{}` in domain `{}`",
                node.name, node.op_type, node.domain
            ));
        }
        for input in node.input.iter().filter(|input| !input.is_empty()) {
            if !known.contains(input.as_str()) {
                errors.push(format!(
                    "node `{}`: its input `{input}` is not defined before it",
                    node.name
                ));
            }
        }
        for output in &node.output {
            if !known.insert(output) {
                errors.push(format!("`{output}` is defined twice"));
            }
        }
    }
    for output in &graph.output {
        if !known.contains(output.name.as_str()) {
            errors.push(format!("output `{}` is not defined", output.name));
        }
    }
}

/// Types of values as the package has them. What is neither declared, cast nor a custom node's is
/// taken for its node's first input's: enough for all that custom nodes are given.
fn value_types(
    graph: &GraphProto,
    inputs: &[(String, TensorType)],
    weights: &[(String, TensorType)],
) -> HashMap<String, ElementType> {
    let declared = inputs.iter().chain(weights);
    let mut types: HashMap<_, _> = declared
        .map(|(name, tensor)| (name.clone(), tensor.dtype))
        .collect();
    for node in &graph.node {
        let to = node.find_attribute("to").and_then(|to| to.i);
        let cast = to.and_then(|to| ElementType::from_onnx(i32::try_from(to).ok()?));
        let first = node.input.first().and_then(|name| types.get(name).copied());
        for (index, name) in node.output.iter().enumerate() {
            let port = operator(node).and_then(|op| op.outputs().get(index));
            let dtype = match port.map(|port| port.dtype) {
                None => cast.or(first),
                Some(PortType::F32) => Some(ElementType::F32),
                Some(variable) => type_variable(node, variable, &types),
            };
            types.extend(dtype.map(|dtype| (name.clone(), dtype)));
        }
    }
    types
}

/// What `variable` stands for at a custom node: the type of the first input that has it.
fn type_variable(
    node: &NodeProto,
    variable: PortType,
    types: &HashMap<String, ElementType>,
) -> Option<ElementType> {
    let ports = operator(node)?.inputs();
    let port = ports.iter().position(|port| port.dtype == variable)?;
    types.get(node.input.get(port)?).copied()
}

/// The operator of a custom node.
fn operator(node: &NodeProto) -> Option<Op> {
    let ours = |op: &Op| node.domain == DOMAIN && op.name() == node.op_type;
    Op::ALL.into_iter().find(ours)
}

fn widen_constant(tensor: &mut TensorProto) {
    let Some(dtype) = ElementType::from_onnx(tensor.data_type) else {
        return;
    };
    let raw = tensor.raw_data.take().unwrap_or_default();
    let values: Vec<_> = raw
        .chunks_exact(dtype.size())
        .flat_map(|bytes| widen(dtype, bytes).to_le_bytes())
        .collect();
    tensor.data_type = ElementType::F32.onnx();
    tensor.raw_data = Some(values);
}

/// How far a value of `dtype` is from the one of the next smaller magnitude: what rounding to it may
/// have cost, doubled; 0 for f32 and i64, which round nothing here.
pub(crate) fn step(dtype: ElementType, value: f32) -> f32 {
    let magnitude = value.abs();
    let smaller = match dtype {
        ElementType::F16 => half::f16::from_f32(magnitude).to_bits().checked_sub(1),
        ElementType::BF16 => half::bf16::from_f32(magnitude).to_bits().checked_sub(1),
        _ => None,
    };
    smaller.map_or(0.0, |bits| magnitude - widen(dtype, &bits.to_le_bytes()))
}

/// The f32 value of one little-endian element; 0 for i64.
pub(crate) fn widen(dtype: ElementType, bytes: &[u8]) -> f32 {
    match (dtype, bytes) {
        (ElementType::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
        (ElementType::BF16, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f32(),
        (ElementType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        _ => 0.0,
    }
}
