//! The guard on a package's graphs. The first byte is the target and the way custom nodes are written, the rest
//! an ONNX file.

use crate::seeds::onnx::{GRAPHS, PACKAGES};
use prost::Message;
use ratplus_graphs::onnx::{ModelProto, TensorProto};
use ratplus_runtime::package::decode_model;

pub fn run(data: &[u8]) {
    let Some((&mode, file)) = data.split_first() else {
        return;
    };
    let (package, graph) = GRAPHS[usize::from(mode) % GRAPHS.len()];
    let package = &PACKAGES[package];
    let (target, _) = package.models[graph];
    let decode = |bytes: &[u8]| {
        let engine = &package.manifest.engines[0];
        decode_model(&package.manifest, engine, target, &package.storage, bytes)
    };
    let Ok(model) = decode(file) else {
        return;
    };
    let graph = model.graph.as_ref().expect("a checked graph");
    assert_eq!(graph.initializer.len(), package.storage.len());
    for tensor in &graph.initializer {
        assert_eq!(tensor.external_entry("location"), Some("weights.bin"));
        let number = |key| {
            tensor
                .external_entry(key)
                .and_then(|n| n.parse::<u64>().ok())
        };
        let (start, len) = (number("offset").unwrap(), number("length").unwrap());
        assert!(
            start
                .checked_add(len)
                .is_some_and(|end| end <= package.bytes)
        );
    }
    let nodes = graph
        .node
        .iter()
        .chain(model.functions.iter().flat_map(|f| &f.node));
    let inside =
        |tensor: &TensorProto| tensor.data_location == 0 && tensor.external_data.is_empty();
    assert!(
        nodes
            .flat_map(|node| &node.attribute)
            .filter_map(|attribute| attribute.t.as_ref())
            .all(inside)
    );
    // What runtimes are given holds nothing else. Bytes are compared, for NaN differs from itself.
    let bytes = model.encode_to_vec();
    let again = ModelProto::decode(&bytes[..]).expect("what was written");
    assert!(again.encode_to_vec() == bytes);
}
