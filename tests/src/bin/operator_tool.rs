//! What the Python tests know of the operators, from the code that defines them, and the hosts that
//! only Rust has. It answers requests until standard input ends.
//!
//! A request is a line of JSON, whose `do` says what and whose `bytes` how many bytes follow it: a
//! one-node model, or tensors. An answer has the same form; what went wrong is its `error`.
//!
//! | `do` | besides | answer |
//! |---|---|---|
//! | `schemas` | | `operators`: ports, aliases, attributes, types |
//! | `function` | a model, `max_seq_len` | the model with the operator's function |
//! | `inline` | a model, `max_seq_len` | the model in standard operators |
//! | `load` | a model, `max_seq_len`, `body`: whether in standard operators | `engine` of tract |
//! | `run` | `engine`, its inputs | its outputs, in the graph's order; f16 and bf16 are carried in f32 |
//! | `drop` | `engine` | |

use prost::Message;
use ratplus_graphs::model::{ReferenceGraph, Rounding, rounding_attributes};
use ratplus_graphs::onnx::{AttributeType, LowCasts, ModelProto, NodeProto, OPSET, ValueInfoProto};
use ratplus_graphs::ops::body::{BodyShape, function, inline};
use ratplus_graphs::ops::{
    AttributeKind, AttributeReader, AttributeSpec, AttributeValue, Axis, DOMAIN, Definition,
    ElementType, Inferred, Op, Operator, PLUGIN_ATTRIBUTES, Port, PortType, Ports, Schema,
    TensorType,
};
use ratplus_graphs::package::TensorInfo;
use ratplus_graphs::with_operator;
use ratplus_tract::{TensorRef, TractEngine, TractWeights};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, Read, Write};

type Answer = Result<(Value, Vec<u8>), Box<dyn Error>>;

fn main() -> Result<(), Box<dyn Error>> {
    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut engines = Engines::default();
    let mut line = String::new();
    while input.read_line(&mut line)? > 0 {
        let request: Value = serde_json::from_str(&line)?;
        line.clear();
        let mut bytes = vec![0; number(&request, "bytes").unwrap_or(0)];
        input.read_exact(&mut bytes)?;
        let (mut head, bytes) = answer(&mut engines, &request, &bytes)
            .unwrap_or_else(|error| (json!({ "error": error.to_string() }), Vec::new()));
        head["bytes"] = bytes.len().into();
        writeln!(output, "{head}")?;
        output.write_all(&bytes)?;
        output.flush()?;
    }
    Ok(())
}

fn answer(engines: &mut Engines, request: &Value, bytes: &[u8]) -> Answer {
    let model = || ModelProto::decode(bytes);
    let plain = |head| Ok((head, Vec::new()));
    match request["do"].as_str().unwrap_or_default() {
        "schemas" => {
            let all: Map<_, _> = Op::ALL
                .iter()
                .map(|&op| (op.name().to_owned(), schema(op)))
                .collect();
            let plugin: Map<_, _> = PLUGIN_ATTRIBUTES
                .iter()
                .map(|&(name, value)| (name.to_owned(), value.into()))
                .collect();
            plain(json!({ "domain": DOMAIN, "plugin_attributes": plugin, "operators": all }))
        }
        form @ ("function" | "inline") => {
            let model = lower(model()?, form, number(request, "max_seq_len")?)?;
            Ok((json!({}), model.encode_to_vec()))
        }
        "load" => {
            let body = request["body"].as_bool().unwrap_or(false);
            let engine = engines.load(&model()?, number(request, "max_seq_len")?, body)?;
            plain(json!({ "engine": engine }))
        }
        "run" => Ok((json!({}), engines.run(number(request, "engine")?, bytes)?)),
        "drop" => {
            engines.loaded.remove(&number(request, "engine")?);
            plain(json!({}))
        }
        other => Err(format!("there is no request `{other}`").into()),
    }
}

fn number(request: &Value, name: &str) -> Result<usize, Box<dyn Error>> {
    let found = request[name]
        .as_u64()
        .ok_or_else(|| format!("{name}: expected a number"))?;
    Ok(usize::try_from(found)?)
}

fn schema(op: Op) -> Value {
    let port = |port: &Port| {
        let axes: Vec<_> = port.axes.iter().map(|axis| axis.name()).collect();
        let dtype = match port.dtype {
            PortType::T => "T",
            PortType::C => "C",
            PortType::W => "W",
            PortType::F32 => "f32",
            PortType::I64 => "i64",
            PortType::U8 => "u8",
        };
        json!({ "name": port.name, "dtype": dtype, "axes": axes, "optional": port.optional })
    };
    let attribute = |attribute: &AttributeSpec| {
        let kind = match attribute.kind {
            AttributeKind::Int => "int",
            AttributeKind::Ints => "ints",
            AttributeKind::Float => "float",
            AttributeKind::String => "string",
        };
        json!({ "name": attribute.name, "kind": kind, "kind_text": attribute.kind.to_string(), "optional": attribute.optional })
    };
    let schema: &Schema = op.schema();
    let names = |&(input, output): &(usize, usize)| {
        json!([schema.inputs[input].name, schema.outputs[output].name])
    };
    let types = pairs_of_types(schema);
    let on_gpu = types
        .iter()
        .filter(|(t, c)| Op::GPU.contains(&op) && schema.check_gpu_types(*t, *c).is_ok());
    let texts = |&(t, c): &(ElementType, ElementType)| json!([t.to_string(), c.to_string()]);
    json!({
        "inputs": schema.inputs.iter().map(port).collect::<Vec<_>>(),
        "outputs": schema.outputs.iter().map(port).collect::<Vec<_>>(),
        "aliases": schema.aliases.iter().map(names).collect::<Vec<_>>(),
        "attributes": schema.attributes.iter().map(attribute).collect::<Vec<_>>(),
        "types": types.iter().map(texts).collect::<Vec<_>>(),
        "gpu_types": on_gpu.map(texts).collect::<Vec<_>>(),
    })
}

/// `T` and `C` that the operator may have; `C` is `T` where it has no cache.
fn pairs_of_types(schema: &Schema) -> Vec<(ElementType, ElementType)> {
    let all = ElementType::ACTIVATIONS;
    let pairs = all.iter().flat_map(|&t| all.iter().map(move |&c| (t, c)));
    pairs
        .filter(|(t, c)| t == c || schema.variable(PortType::C).is_some())
        .collect()
}

/// A model of one custom node, read.
struct OneNode {
    /// Place of the node.
    at: usize,
    node: NodeProto,
    operator: Operator,
    shape: BodyShape,
}

impl OneNode {
    fn read(model: &ModelProto, max_seq_len: usize) -> Result<Self, Box<dyn Error>> {
        let graph = model.graph.as_ref().ok_or("the model has no graph")?;
        let ours = |node: &NodeProto| node.domain == DOMAIN;
        let at = graph
            .node
            .iter()
            .position(ours)
            .ok_or("the model has no custom node")?;
        let node = graph.node[at].clone();
        let named =
            |error: String| format!("node `{}` ({DOMAIN}.{}): {error}", node.name, node.op_type);
        let op = Op::named(&node.op_type).ok_or_else(|| named("no such operator".into()))?;
        let operator = op.read(&mut NodeAttributes(&node));
        let operator = operator.map_err(|errors| named(errors.to_string()))?;
        let types = node.input.iter().map(|name| {
            let info = graph.input.iter().find(|input| input.name == *name);
            info.and_then(|info| info.tensor())
                .ok_or_else(|| format!("{name} is no static input"))
        });
        let inputs = types.collect::<Result<Vec<TensorType>, _>>()?;
        let inferred = operator
            .infer(&inputs)
            .map_err(|errors| named(errors.to_string()))?;
        let shape = body_shape(&operator, &inferred, max_seq_len);
        Ok(Self {
            at,
            node,
            operator,
            shape,
        })
    }

    /// The node in standard operators.
    fn body(&self, casts: LowCasts) -> Result<Vec<NodeProto>, String> {
        with_operator!(&self.operator, operator => write(operator, &self.shape, casts, &self.node))
    }
}

/// The graph of a model of one custom node for the reference. As itself, the node is as the model has it:
/// tract is to say what is wrong with it.
fn reference(
    model: &ModelProto,
    max_seq_len: usize,
    body: bool,
) -> Result<ReferenceGraph, Box<dyn Error>> {
    let nodes = if body {
        OneNode::read(model, max_seq_len)?.body(Rounding::AsStored.casts())?
    } else {
        vec![rounded(model)?]
    };
    let graph = model.graph.as_ref().ok_or("the model has no graph")?;
    let infos = |list: &[ValueInfoProto]| -> Result<Vec<TensorInfo>, String> {
        let infos = list.iter().map(|info| {
            let tensor = info.tensor();
            let tensor = tensor.ok_or_else(|| format!("{} has no static type", info.name))?;
            Ok(TensorInfo {
                name: info.name.clone(),
                tensor,
            })
        });
        infos.collect()
    };
    let (inputs, outputs) = (infos(&graph.input)?, infos(&graph.output)?);
    Ok(ReferenceGraph::new(nodes, inputs, outputs, Vec::new()))
}

/// The custom node, told the types of its first input of `T` and of `C`.
fn rounded(model: &ModelProto) -> Result<NodeProto, Box<dyn Error>> {
    let graph = model.graph.as_ref().ok_or("the model has no graph")?;
    let mut nodes = graph.node.iter();
    let node = nodes.find(|node| node.domain == DOMAIN);
    let mut node = node.ok_or("the model has no custom node")?.clone();
    let op = Op::named(&node.op_type).ok_or_else(|| format!("no operator {}", node.op_type))?;
    let declared = |variable| {
        let name = node.input.get(op.schema().variable(variable)?)?;
        let info = graph.input.iter().find(|input| input.name == *name)?;
        Some(info.tensor()?.dtype)
    };
    let element = declared(PortType::T).unwrap_or(ElementType::F32);
    let cache = declared(PortType::C).unwrap_or(element);
    node.attribute
        .extend(rounding_attributes(op, [element, cache]));
    Ok(node)
}

/// The model with its custom node's function, or with the function's nodes in the node's place.
fn lower(
    mut model: ModelProto,
    form: &str,
    max_seq_len: usize,
) -> Result<ModelProto, Box<dyn Error>> {
    let mut opsets = model.opset_import.iter();
    let opset = opsets
        .find(|opset| opset.domain.is_empty())
        .map_or(OPSET, |opset| opset.version);
    let one = OneNode::read(&model, max_seq_len)?;
    if form == "function" {
        let op = one.operator.op();
        model.functions.push(function(op, &one.shape, opset));
    } else if let Some(graph) = &mut model.graph {
        graph
            .node
            .splice(one.at..=one.at, one.body(LowCasts::Cast)?);
        model.opset_import.retain(|opset| opset.domain != DOMAIN);
    }
    Ok(model)
}

fn write<O: Definition>(
    operator: &O,
    shape: &BodyShape,
    casts: LowCasts,
    node: &NodeProto,
) -> Result<Vec<NodeProto>, String> {
    let inputs = O::Inputs::from_list(node.input.iter().map(String::as_str));
    let outputs = O::Outputs::from_list(node.output.iter().map(String::as_str));
    let (inputs, outputs) = inputs
        .zip(outputs)
        .ok_or("the node has other ports than its schema")?;
    Ok(inline(operator, shape, casts, "body_", inputs, outputs))
}

/// What a package of this one node would have its bodies written for.
fn body_shape(operator: &Operator, node: &Inferred, max_seq_len: usize) -> BodyShape {
    let attribute = |name: &str| {
        operator.attributes().find_map(|(spec, value)| match value {
            AttributeValue::Int(heads) if spec.name == name => usize::try_from(heads).ok(),
            _ => None,
        })
    };
    let num_heads = attribute("num_heads").unwrap_or(1);
    let channels = node.dims.get(Axis::Channels).unwrap_or(num_heads);
    BodyShape {
        dtype: node.element,
        cache_dtype: node.cache,
        batch: node.dims[Axis::Batch],
        seq_len: node.dims[Axis::SeqLen],
        num_heads,
        num_kv_heads: attribute("num_kv_heads").unwrap_or(num_heads),
        head_dim: node.dims.get(Axis::HeadDim).unwrap_or(channels / num_heads),
        max_seq_len: node.dims.get(Axis::MaxSeqLen).unwrap_or(max_seq_len),
        quantization: None,
    }
}

/// Attributes as ONNX has them.
struct NodeAttributes<'a>(&'a NodeProto);

impl AttributeReader for NodeAttributes<'_> {
    fn read(&mut self, attribute: &AttributeSpec) -> Result<Option<AttributeValue>, String> {
        let Some(found) = self.0.find_attribute(attribute.name) else {
            return Ok(None);
        };
        let text = || String::from_utf8_lossy(found.s.as_deref().unwrap_or_default()).into_owned();
        let value = match (attribute.kind, found.r#type()) {
            (AttributeKind::Int, AttributeType::Int) => {
                Ok(AttributeValue::Int(found.i.unwrap_or(0)))
            }
            (AttributeKind::Ints, AttributeType::Ints) => {
                Ok(AttributeValue::Ints(found.ints.clone()))
            }
            (AttributeKind::Float, AttributeType::Float) => {
                Ok(AttributeValue::Float(found.f.unwrap_or(0.0)))
            }
            (AttributeKind::String, AttributeType::String) => Ok(AttributeValue::String(text())),
            (_, other) => Err(format!("{other:?}").to_lowercase()),
        };
        value.map(Some)
    }
}

/// Models in tract, by number.
#[derive(Default)]
struct Engines {
    loaded: HashMap<usize, TractEngine>,
    made: usize,
}

impl Engines {
    fn load(
        &mut self,
        model: &ModelProto,
        max_seq_len: usize,
        body: bool,
    ) -> Result<usize, Box<dyn Error>> {
        let graph = reference(model, max_seq_len, body)?;
        let engine = TractEngine::new(&graph, &TractWeights::default())?;
        self.made += 1;
        self.loaded.insert(self.made, engine);
        Ok(self.made)
    }

    fn run(&mut self, engine: usize, bytes: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
        let engine = self
            .loaded
            .get_mut(&engine)
            .ok_or("there is no such engine")?;
        let mut rest = bytes;
        let mut given = Vec::new();
        for info in engine.inputs() {
            let dtype = match info.tensor.dtype {
                dtype @ (ElementType::I64 | ElementType::U8) => dtype,
                _ => ElementType::F32,
            };
            let size = info.tensor.elements() * dtype.size();
            let (own, others) = rest.split_at_checked(size).ok_or("an input is cut short")?;
            rest = others;
            given.push((info.name.clone(), InputData::read(dtype, own)));
        }
        let inputs: Vec<_> = given
            .iter()
            .map(|(name, data)| (name.as_str(), data.tensor()))
            .collect();
        let zeros = |elements| vec![0.0_f32; elements];
        let mut made: Vec<_> = engine
            .outputs()
            .iter()
            .map(|info| (info.name.clone(), zeros(info.tensor.elements())))
            .collect();
        let mut outputs: Vec<_> = made
            .iter_mut()
            .map(|(name, values)| (name.as_str(), values.as_mut_slice()))
            .collect();
        engine.run(&inputs, &mut outputs)?;
        let values = made.iter().flat_map(|(_, values)| values);
        Ok(values.flat_map(|value| value.to_le_bytes()).collect())
    }
}

/// An input's elements.
enum InputData {
    I64(Vec<i64>),
    F32(Vec<f32>),
    U8(Vec<u8>),
}

impl InputData {
    fn read(dtype: ElementType, bytes: &[u8]) -> Self {
        match dtype {
            ElementType::I64 => {
                let (values, _) = bytes.as_chunks();
                Self::I64(values.iter().map(|it| i64::from_le_bytes(*it)).collect())
            }
            ElementType::U8 => Self::U8(bytes.to_vec()),
            _ => {
                let (values, _) = bytes.as_chunks();
                Self::F32(values.iter().map(|it| f32::from_le_bytes(*it)).collect())
            }
        }
    }

    fn tensor(&self) -> TensorRef<'_> {
        match self {
            Self::I64(values) => TensorRef::I64(values),
            Self::F32(values) => TensorRef::F32(values),
            Self::U8(values) => TensorRef::U8(values),
        }
    }
}
