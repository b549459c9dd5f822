//! What an ONNX file of a package may hold. Files that pass are encoded again from what was
//! checked, so that a runtime never sees a field this code did not.

use prost::Message;
use ratplus_graphs::model::{StoredTensor, Weight, value_infos};
use ratplus_graphs::onnx::{
    AttributeProto, AttributeType, ModelProto, NodeProto, TensorProto, ValueInfoProto,
};
use ratplus_graphs::ops::{DOMAIN, Definition, ElementType, Linear, Op};
use ratplus_graphs::package::{CustomNodes, Engine, Manifest, Target, WEIGHTS_FILE};
use ratplus_graphs::precision::{MATMUL_NBITS, MICROSOFT_DOMAIN, Stored};
use std::collections::BTreeMap;

/// Decodes an engine's file for `target` and checks it against the manifest.
pub fn decode(
    manifest: &Manifest,
    engine: &Engine,
    target: Target,
    storage: &[StoredTensor],
    bytes: &[u8],
) -> Result<ModelProto, Vec<String>> {
    let mut model = ModelProto::decode(bytes).map_err(|error| {
        vec![format!(
            "expected an ONNX model: {error}; export the package again"
        )]
    })?;
    let problems = check(manifest, engine, target, storage, &model);
    if problems.is_empty() {
        // Every backend of ours knows the operators by one domain.
        let custom = |domain: &str| !domain.is_empty() && domain != MICROSOFT_DOMAIN;
        let nodes = model.graph.iter_mut().flat_map(|graph| &mut graph.node);
        for node in nodes.filter(|node| custom(&node.domain)) {
            node.domain = DOMAIN.into();
        }
        for import in model
            .opset_import
            .iter_mut()
            .filter(|import| custom(&import.domain))
        {
            import.domain = DOMAIN.into();
        }
        Ok(model)
    } else {
        Err(problems)
    }
}

fn check(
    manifest: &Manifest,
    engine: &Engine,
    target: Target,
    storage: &[StoredTensor],
    model: &ModelProto,
) -> Vec<String> {
    let Some(graph) = &model.graph else {
        return vec!["expected a graph, found none".into()];
    };
    let mut problems = Vec::new();
    if model.ir_version != manifest.ir_version {
        problems.push(format!(
            "ir_version: expected {} as in the manifest, found {}",
            manifest.ir_version, model.ir_version
        ));
    }
    let opset = model
        .opset_import
        .iter()
        .find(|import| import.domain.is_empty());
    let opset = opset.map(|import| import.version);
    if opset != Some(manifest.opset) {
        problems.push(format!(
            "opset: expected {} as in the manifest, found {opset:?}",
            manifest.opset
        ));
    }
    let declared = |list| value_infos(target, manifest.logits, list);
    values(
        "input",
        &declared(&engine.inputs),
        &graph.input,
        &mut problems,
    );
    values(
        "output",
        &declared(&engine.outputs),
        &graph.output,
        &mut problems,
    );
    initializers(storage, &graph.initializer, &mut problems);
    let products = products(manifest);
    let matrices = matrices(manifest);
    let nodes = target.custom_nodes(manifest.fallback);
    for node in &graph.node {
        if node.domain == MICROSOFT_DOMAIN && node.op_type == MATMUL_NBITS {
            let expected = products.get(node.input.get(1).map_or("", String::as_str));
            check_product(node, expected, &mut problems);
            continue;
        }
        check_node(node, nodes.domain(), &mut problems);
        if node.op_type == Op::Linear.name() {
            check_linear(node, &matrices, &mut problems);
        }
    }
    for function in &model.functions {
        let known = Op::ALL.iter().any(|op| op.name() == function.name);
        if function.domain != DOMAIN || !known || nodes != CustomNodes::WithFunctions {
            problems.push(format!(
                "function `{}.{}`: not one of this package's operators",
                function.domain, function.name
            ));
        }
        for node in &function.node {
            if node.domain == MICROSOFT_DOMAIN && node.op_type == MATMUL_NBITS {
                check_body_product(manifest, node, &mut problems);
                continue;
            }
            check_node(node, None, &mut problems);
        }
    }
    problems
}

/// A type in words, open dimensions by name.
fn show(info: &ValueInfoProto) -> String {
    let tensor = info
        .r#type
        .as_ref()
        .and_then(|found| found.tensor_type.as_ref());
    let dtype = tensor.and_then(|tensor| ElementType::from_onnx(tensor.elem_type));
    let dims = tensor.and_then(|tensor| tensor.shape.as_ref());
    let Some((dtype, dims)) = dtype.zip(dims) else {
        return "no tensor of a known type and rank".into();
    };
    let dims = dims
        .dim
        .iter()
        .map(|dim| match (&dim.dim_param, dim.dim_value) {
            (Some(name), _) => name.clone(),
            (None, size) => size.map_or_else(|| "?".into(), |size| size.to_string()),
        });
    format!("{dtype}[{}]", dims.collect::<Vec<_>>().join(", "))
}

fn values(
    kind: &str,
    expected: &[ValueInfoProto],
    found: &[ValueInfoProto],
    problems: &mut Vec<String>,
) {
    if expected.len() != found.len() {
        problems.push(format!(
            "expected {} {kind}s as in the manifest, found {}",
            expected.len(),
            found.len()
        ));
    }
    for (expected, found) in expected.iter().zip(found) {
        if expected.name != found.name {
            problems.push(format!(
                "{kind}: expected `{}` as in the manifest, found `{}`",
                expected.name, found.name
            ));
        } else if found != expected {
            problems.push(format!(
                "{kind} `{}`: expected {} as in the manifest, found {}",
                expected.name,
                show(expected),
                show(found)
            ));
        }
    }
}

fn initializers(storage: &[StoredTensor], found: &[TensorProto], problems: &mut Vec<String>) {
    let mut missing: BTreeMap<_, _> = storage
        .iter()
        .map(|stored| (stored.name.as_str(), stored))
        .collect();
    for tensor in found {
        let name = &tensor.name;
        let Some(stored) = missing.remove(name.as_str()) else {
            problems.push(format!("initializer `{name}`: unknown, or there twice"));
            continue;
        };
        if tensor.tensor_type().as_ref() != Some(&stored.tensor) {
            problems.push(format!(
                "initializer `{name}`: expected {} for the model's sizes, found type {} with dims {:?}",
                stored.tensor, tensor.data_type, tensor.dims
            ));
        }
        let expected = [
            ("location", WEIGHTS_FILE.to_owned()),
            ("offset", stored.offset.to_string()),
            ("length", stored.tensor.bytes().to_string()),
        ];
        for (key, value) in &expected {
            let entry = tensor.external_entry(key);
            if entry != Some(value.as_str()) {
                problems.push(format!(
                    "initializer `{name}`: expected external data with {key} `{value}`, found {entry:?}"
                ));
            }
        }
        if tensor.external_data.len() != expected.len()
            || tensor.data_location != 1
            || tensor.raw_data.is_some()
        {
            problems.push(format!(
                "initializer `{name}`: expected location, offset and length in {WEIGHTS_FILE} and \
                 nothing else"
            ));
        }
    }
    for name in missing.keys() {
        problems.push(format!("initializer `{name}`: missing"));
    }
}

/// What follows the rows in a node whose matrix is block-wise integers, and its attributes.
struct Product {
    constants: Vec<String>,
    attributes: Vec<AttributeProto>,
}

/// Every such node of the package by its first constant.
fn products(manifest: &Manifest) -> BTreeMap<String, Product> {
    let mut products = BTreeMap::new();
    for weight in Weight::all(&manifest.model) {
        let stored = manifest.precision.stored(weight, manifest.dtype);
        let shape = weight.shape(&manifest.model);
        let (Stored::Blocks(quantization), &[outputs, inputs]) = (stored, &*shape) else {
            continue;
        };
        let tensors = quantization.tensors(&weight.name(), [outputs, inputs]);
        let constants: Vec<_> = tensors.into_iter().map(|(name, _)| name).collect();
        let sizes = [("K", inputs), ("N", outputs)];
        let sizes = sizes.map(|(name, size)| AttributeProto::int(name, size as i64));
        let product = Product {
            attributes: [&sizes[..], &quantization.node_attributes()].concat(),
            constants: constants.clone(),
        };
        products.extend(constants.into_iter().next().map(|name| (name, product)));
    }
    products
}

/// Sizes in attributes decide what a runtime reads of the constants.
fn check_product(node: &NodeProto, expected: Option<&Product>, problems: &mut Vec<String>) {
    let Some(expected) = expected else {
        problems.push(format!(
            "node `{}`: its matrix `{}` is not one that the manifest has as integers",
            node.name,
            node.input.get(1).map_or("", String::as_str)
        ));
        return;
    };
    if node.input[1..] != expected.constants[..] || node.output.len() != 1 {
        problems.push(format!(
            "node `{}`: expected one output and, after the rows, the inputs {}, found {}",
            node.name,
            expected.constants.join(", "),
            node.input[1..].join(", ")
        ));
    }
    let mut attributes = node.attribute.clone();
    attributes.sort_by(|a, b| a.name.cmp(&b.name));
    if attributes != expected.attributes {
        let show = |list: &[AttributeProto]| {
            let one = |found: &AttributeProto| match found.i {
                Some(value) => format!("{}={value}", found.name),
                None => format!("{} of another type", found.name),
            };
            list.iter().map(one).collect::<Vec<_>>().join(" ")
        };
        problems.push(format!(
            "node `{}`: expected the attributes {} for the model's sizes, found {}",
            node.name,
            show(&expected.attributes),
            show(&attributes)
        ));
    }
}

/// The product of integers in the body of [`Op::Linear`]: its sizes are the node's.
fn check_body_product(manifest: &Manifest, node: &NodeProto, problems: &mut Vec<String>) {
    let quantization = manifest.precision.quantization;
    let mut expected: Vec<_> = [("K", "in_features"), ("N", "out_features")]
        .map(|(name, of)| AttributeProto::reference(name, of, AttributeType::Int))
        .into();
    expected.extend(quantization.iter().flat_map(|of| of.node_attributes()));
    let symmetric = quantization.is_some_and(|of| of.symmetric);
    let constants = &["weight", "scales", "zero_points"][..3 - usize::from(symmetric)];
    if node.attribute != expected || node.input[1..] != *constants {
        problems.push(format!(
            "node `{}`: expected {MATMUL_NBITS} of the function's own inputs and sizes",
            node.name
        ));
    }
}

/// The operator of every matrix of the package, by the matrix's first constant.
fn matrices(manifest: &Manifest) -> BTreeMap<String, Linear> {
    let mut matrices = BTreeMap::new();
    for weight in Weight::all(&manifest.model) {
        let stored = manifest.precision.stored(weight, manifest.dtype);
        let tensors = manifest
            .precision
            .tensors(weight, &manifest.model, manifest.dtype);
        let shape = weight.shape(&manifest.model);
        if let (Some((name, _)), &[out_features, in_features]) =
            (tensors.into_iter().next(), &*shape)
        {
            let linear = Linear {
                in_features,
                out_features,
                weight: stored.into(),
                activations: stored.activations(),
                activation: None,
                epsilon: None,
            };
            matrices.insert(name, linear);
        }
    }
    matrices
}

/// Sizes in attributes decide what a runtime without the library reads of the constants.
fn check_linear(node: &NodeProto, matrices: &BTreeMap<String, Linear>, problems: &mut Vec<String>) {
    let matrix = node.input.get(1).map_or("", String::as_str);
    let expected = matrices.get(matrix).map(Definition::attributes);
    let sizes = expected.map(|expected| {
        let of = |name: &str| node.find_attribute(name);
        of("in_features").and_then(|found| found.i) == Some(expected.in_features)
            && of("out_features").and_then(|found| found.i) == Some(expected.out_features)
            && of("weight_type").and_then(|found| found.s.as_deref())
                == Some(expected.weight_type.as_bytes())
            && of("block_size").and_then(|found| found.i) == expected.block_size
            && of("activations").and_then(|found| found.s.as_deref())
                == expected.activations.as_ref().map(|name| name.as_bytes())
    });
    if sizes != Some(true) {
        problems.push(format!(
            "node `{}`: expected a matrix of the package and its sizes, found others for `{matrix}`",
            node.name
        ));
    }
}

/// Domains, `custom` being that of custom nodes, and no constant that reads a file.
fn check_node(node: &NodeProto, custom: Option<&str>, problems: &mut Vec<String>) {
    let custom = custom == Some(&node.domain);
    let known = Op::ALL.iter().any(|op| op.name() == node.op_type);
    if !(node.domain.is_empty() || custom && known) {
        problems.push(format!(
            "node `{}`: operator `{}.{}` is not one a package may use here",
            node.name, node.domain, node.op_type
        ));
    }
    for attribute in &node.attribute {
        if let Some(tensor) = &attribute.t
            && (tensor.data_location != 0 || !tensor.external_data.is_empty())
        {
            problems.push(format!(
                "node `{}`: attribute `{}` refers to a file; only weights may",
                node.name, attribute.name
            ));
        }
    }
}
