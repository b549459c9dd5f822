//! Checkpoints of a model of two layers, and what `resolve` says about them.

use ratplus_exporter::checkpoint::Checkpoint;
use ratplus_exporter::resolve::{ResolveError, ResolveOptions, Resolved, resolve};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub type Tensors = BTreeMap<String, (&'static str, Vec<usize>)>;

/// Names and shapes of a model of two layers, 64 wide.
pub fn tensors(layers: usize, d: usize) -> Tensors {
    let mut all = Tensors::new();
    let mut add = |name: String, shape: &[usize]| {
        all.insert(name, ("F32", shape.to_vec()));
    };
    add("embedding.wte.weight".into(), &[97, d]);
    for layer in 0..layers {
        let at = |name: &str| format!("backbone.layers.{layer}.{name}.weight");
        add(at("seq_layer.input_norm"), &[d]);
        add(at("seq_layer.in_proj"), &[5 * d, d]);
        add(at("seq_layer.out_proj"), &[d, d]);
        add(at("hidden_layer.ln"), &[d]);
        add(at("hidden_layer.fc1"), &[4 * d, d]);
        add(at("hidden_layer.fc2"), &[d, 4 * d]);
    }
    add("backbone.ln.weight".into(), &[d]);
    add("head.lm_head.weight".into(), &[97, d]);
    all
}

pub fn checkpoint(name: &str, tensors: &Tensors) -> Checkpoint {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, (dtype, shape)) in tensors {
        let start = end;
        let size = match *dtype {
            "I64" | "F64" => 8,
            "BOOL" => 1,
            _ => 4,
        };
        end += shape.iter().product::<usize>() * size;
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}),
        );
    }
    let header = Value::Object(header).to_string();
    let bytes = [
        (header.len() as u64).to_le_bytes().to_vec(),
        header.into_bytes(),
        // No two tensors are the same.
        (0..end).map(|at| (at / 4 % 61) as u8).collect(),
    ]
    .concat();
    Checkpoint::from_bytes(name, bytes).unwrap()
}

pub fn config() -> Value {
    json!({
        "model_type": "ratplus", "vocab_size": 97, "d_model": 64, "num_layers": 2, "d_head": 16, "d_ffn": 256,
        "patterns": [{"dilation": 8, "local_window": 8, "initial": 4}, [
            {"dilation": 1}, {"dilation": 4}, {"dilation": 8}, {"dilation": -1, "local_window": 16}
        ]],
    })
}

pub fn with_config(
    tensors: &Tensors,
    config: &Value,
    options: ResolveOptions,
) -> Result<Resolved, ResolveError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    resolve(
        &checkpoint("model.safetensors", tensors),
        &ResolveOptions {
            config_file: Some(path),
            ..options
        },
    )
}

/// A problem whose configuration is named without its folder.
fn without_folder(problem: String) -> String {
    match problem.rsplit_once(" in /") {
        Some((told, path)) => {
            let file = path.rsplit('/').next().unwrap_or_default();
            format!("{told} in {file}")
        }
        None => problem,
    }
}

#[track_caller]
pub fn lines(result: Result<Resolved, ResolveError>) -> Vec<String> {
    match result.unwrap_err() {
        ResolveError::Mismatch { problems, .. } | ResolveError::Undetermined { problems, .. } => {
            problems.into_iter().map(without_folder).collect()
        }
        other => panic!("{other}"),
    }
}

#[allow(dead_code)] // Not every test has one.
pub const IN_PROJ: &str = "backbone.layers.1.seq_layer.in_proj.weight";
#[allow(dead_code)]
pub const GATE: &str = "backbone.layers.1.seq_layer.fgate_proj.weight";
