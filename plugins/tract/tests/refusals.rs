//! What does not fit is refused with a message that says what and where.

mod common;

use common::{Package, random_weights, spec};
use ratplus_graphs::model::{ReferenceGraph, Rounding};
use ratplus_graphs::onnx::ModelProto;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{
    INPUT_IDS, LOGITS, LogitsMode, PAST_LENGTH, PackageShape, SEQ_LENGTH, WEIGHTS_FILE,
};
use ratplus_tract::{Packing, TensorRef, TractEngine, TractError, TractWeights};
use serde_json::json;

const SEQ_LEN: usize = 4;

fn package() -> Package {
    let spec = spec(json!({
        "vocab_size": 11, "d_model": 8, "num_layers": 1, "d_head": 4, "d_ffn": 12,
        "patterns": [{"dilation": 3, "local_window": 2, "initial": 1}],
    }));
    let shape = PackageShape {
        batch: 1,
        max_seq_len: 9,
        dtype: ElementType::F32,
        cache_dtype: ElementType::F32,
        logits: LogitsMode::Last,
    };
    let weights = random_weights(&spec, 0);
    Package::new(&spec, shape, &weights)
}

/// The package's graph.
fn graph(package: &Package, inline: bool) -> ReferenceGraph {
    package.graph(SEQ_LEN, inline, Rounding::AsStored, &[])
}

/// The message of loading the package's graph after `change`.
fn load(change: impl FnOnce(&mut ModelProto)) -> String {
    let package = package();
    let mut graph = graph(&package, false);
    change(&mut graph.model);
    let weights = package.weights().unwrap();
    let error = TractEngine::new(&graph, &weights).expect_err("a refusal");
    error.to_string()
}

/// Sets an attribute of the attention node.
fn attention(change: impl FnOnce(&mut ratplus_graphs::onnx::NodeProto)) -> String {
    load(|model| {
        let nodes = &mut model.graph.as_mut().unwrap().node;
        let node = nodes
            .iter_mut()
            .find(|node| node.op_type == "DilatedAttention");
        change(node.unwrap());
    })
}

#[test]
fn attributes_are_named_with_their_node() {
    let message = attention(|node| node.attribute.retain(|a| a.name != "dilation"));
    assert!(
        message.contains("layers.0.DilatedAttention")
            && message.contains("attribute dilation: expected a list of integers, found none"),
        "{message}"
    );
    let message = attention(|node| {
        for attribute in &mut node.attribute {
            if attribute.name == "local_window" {
                attribute.ints = vec![-1];
            }
        }
    });
    assert!(
        message.contains("layers.0.DilatedAttention") && message.contains("local_window is -1"),
        "{message}"
    );
    let message = attention(|node| {
        for attribute in &mut node.attribute {
            if attribute.name == "initial" {
                attribute.ints = vec![2];
            }
        }
    });
    assert!(
        message.contains("R: the patterns keep 14 rows"),
        "{message}"
    );
    let message = attention(|node| {
        node.input.pop();
    });
    assert!(message.contains("expected 9 inputs, found 8"), "{message}");
}

#[test]
fn weights_that_are_missing_short_or_others() {
    let package = package();
    let path = package.dir.path().join(WEIGHTS_FILE);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let message = package.weights().unwrap_err().to_string();
    assert!(
        message.contains(WEIGHTS_FILE) && message.contains("tensor `rope.sin`: expected 72 bytes"),
        "{message}"
    );
    std::fs::remove_file(&path).unwrap();
    let message = package.weights().unwrap_err().to_string();
    assert!(
        message.contains("tensor `embedding.wte.weight`"),
        "{message}"
    );
    let error = TractEngine::new(&graph(&package, false), &TractWeights::default()).unwrap_err();
    let text = error.to_string();
    let found = "as the graph declares, found none; load the weights of this package";
    assert!(
        text.starts_with("weight `") && text.contains(found),
        "{text}"
    );
}

/// Runs a step with the given ids and lengths; every state is NaN.
fn step(
    engine: &mut TractEngine,
    ids: &[i64],
    past: i64,
    seq: i64,
) -> Result<Vec<f32>, TractError> {
    let infos = engine.inputs().to_vec();
    let states: Vec<_> = infos
        .iter()
        .map(|info| vec![f32::NAN; info.tensor.elements()])
        .collect();
    let (past, seq) = ([past], [seq]);
    let inputs: Vec<_> = infos
        .iter()
        .zip(&states)
        .map(|(info, state)| {
            let data = match info.name.as_str() {
                INPUT_IDS => TensorRef::I64(ids),
                PAST_LENGTH => TensorRef::I64(&past),
                SEQ_LENGTH => TensorRef::I64(&seq),
                _ => TensorRef::F32(state),
            };
            (info.name.as_str(), data)
        })
        .collect();
    let mut logits = vec![f32::NAN; 11];
    engine.run(&inputs, &mut [(LOGITS, &mut logits)])?;
    Ok(logits)
}

#[test]
fn runs_that_do_not_fit() {
    let package = package();
    let weights = package.weights().unwrap();
    for inline in [false, true] {
        let mut engine = TractEngine::new(&graph(&package, inline), &weights).unwrap();
        let logits = step(&mut engine, &[0, 10, 3, 4], 0, 4).unwrap();
        assert!(logits.iter().all(|x| x.is_finite()));
        for id in [-1, 11, i64::MAX, i64::MIN] {
            let message = step(&mut engine, &[0, 1, id, 2], 0, 4)
                .unwrap_err()
                .to_string();
            assert!(message.contains(&format!("found {id} at 2")), "{message}");
        }
        for (past, seq) in [(-1, 1), (6, 4), (0, 5), (0, -1), (i64::MAX, 1), (10, 0)] {
            let message = step(&mut engine, &[0; 4], past, seq)
                .unwrap_err()
                .to_string();
            assert!(message.contains("slot 0: past_length"), "{message}");
        }
        let message = step(&mut engine, &[0; 3], 0, 1).unwrap_err().to_string();
        assert!(
            message.contains("input `input_ids`: expected 4 values of i64"),
            "{message}"
        );
        let message = engine.run(&[("other", TensorRef::F32(&[]))], &mut [("more", &mut [])]);
        let message = message.unwrap_err().to_string();
        for part in [
            "input `input_ids` is missing",
            "input `other`: the graph has none",
            "output `more`: the graph has none",
        ] {
            assert!(message.contains(part), "{part} in {message}");
        }
    }
}

#[test]
fn packing_changes_no_bit() {
    let package = package();
    let weights = package.weights().unwrap();
    for inline in [false, true] {
        let graph = graph(&package, inline);
        assert_eq!(Packing::for_weights(&weights), Packing::Once);
        let [once, each] = [Packing::Once, Packing::EachRun].map(|packing| {
            let mut engine = TractEngine::with_packing(&graph, &weights, packing).unwrap();
            step(&mut engine, &[5, 6, 7, 8], 0, 3).unwrap()
        });
        assert_eq!(once, each);
    }
}
