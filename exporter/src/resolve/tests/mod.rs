//! What training runs and published files say about a model, and what becomes of it.

mod files;
mod run;
mod tied;

use super::{ResolveError, ResolveOptions, Resolved, resolve};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::testing::{Pickler, View, pth};
use ratplus_graphs::model::Weight;
use ratplus_graphs::spec::{Activation, ModelSpec};
use serde_json::{Value, json};

const V: usize = 11;
const D: usize = 8;
const HEAD: &str = "head.lm_head.weight";
const EMBEDDING: &str = "embedding.wte.weight";

fn spec(recurrence: bool) -> ModelSpec {
    ModelSpec {
        vocab_size: V,
        d_model: D,
        num_layers: 2,
        d_head: 4,
        d_ffn: 4 * D,
        recurrence,
        ..ModelSpec::default()
    }
}

fn python(p: Pickler, value: &Value) -> Pickler {
    match value {
        Value::Null => p.op(b"N"),
        Value::Bool(value) => p.op([if *value { 0x88 } else { 0x89 }]),
        Value::Number(number) => match number.as_i64() {
            Some(value) => p.int(value),
            None => p.op(b"G").op(number.as_f64().unwrap().to_be_bytes()),
        },
        Value::String(text) => p.str(text),
        Value::Array(items) => items.iter().fold(p.op(b"]("), python).op(b"e"),
        Value::Object(fields) => fields
            .iter()
            .fold(p.op(b"}("), |p, (key, value)| python(p.str(key), value))
            .op(b"u"),
    }
}

/// A checkpoint whose weights are in `storages`, one each but where `share` gives another's, with
/// the configuration of its run.
fn checkpoint(
    recurrence: bool,
    config: &Value,
    change: impl Fn(Weight) -> Option<(String, f32)>,
) -> Checkpoint {
    let spec = spec(recurrence);
    let mut storages: Vec<(String, Vec<u8>)> = Vec::new();
    let mut p = Pickler::new().op(b"}(").str("task").op(b"}(");
    for weight in Weight::all(&spec) {
        let Some((key, value)) = change(weight) else {
            continue;
        };
        let shape: Vec<_> = weight.shape(&spec).iter().map(|&dim| dim as i64).collect();
        let numel = shape.iter().product::<i64>() as usize;
        if !storages.iter().any(|(known, _)| *known == key) {
            let bytes = value.to_le_bytes().repeat(numel);
            storages.push((key.clone(), bytes));
        }
        p = p
            .str(&weight.name())
            .tensor(&View::contiguous("FloatStorage", &key, &shape));
    }
    let p = python(p.op(b"u").str("config"), config).op(b"u");
    let storages: Vec<_> = storages
        .iter()
        .map(|(key, bytes)| (key.as_str(), bytes.clone()))
        .collect();
    Checkpoint::from_bytes("model.pth", pth(p.stop(), &storages)).unwrap()
}

/// Every weight of its own.
fn distinct(weight: Weight) -> Option<(String, f32)> {
    let places = Weight::all(&spec(true));
    let at = places.iter().position(|&place| place == weight)?;
    Some((at.to_string(), at as f32 + 1.0))
}

/// What a run of the released code saves.
fn run(change: impl Fn(&mut Value)) -> Value {
    let init = json!({"_name_": "fixed", "initializer_range": 0.02});
    let mut config = json!({
        "trainer": {"seed": 1005, "dtype": "bfloat16", "anything": {"at": "all"}},
        "data": {"_name_": "fineweb_llama", "seq_len": 64, "vocab_size": V},
        "model": {
            "backbone": {
                "_name_": "sequence", "num_layers": 2, "d_model": D, "bias": false, "ln": "rmsnorm",
                "dropout": 0.0, "init": init,
                "seq_cell": {
                    "_name_": "ratplus", "d_model": D, "d_head": 4, "num_head": 2, "k_channel": 4,
                    "bias": false, "init": init, "ln": "rmsnorm", "dilation_size": 4, "local_size": 3,
                    "initial_size": 2, "apply_re": true, "joint_train": false,
                },
                "hidden_cell": {
                    "_name_": "ffn", "d_model": D, "d_ffn": 4 * D, "bias": false, "act_fn": "gelu",
                    "ln": "rmsnorm", "dropout": 0.0, "init": init,
                },
            },
            "embedding": {
                "_name_": "lm", "vocab_size": V, "seq_len": 64, "d_model": D, "dropout": 0.0, "init": init,
                "pe": {"_name_": "rope", "dim": 4, "base": 10000, "max_seq_len": 64},
            },
            "head": {"_name_": "lm", "vocab_size": V, "d_model": D, "init": init},
        },
        "task": {
            "_name_": "lm", "tie_embedding": false, "ignore_index": -100,
            "loss": {"_name_": "cross_entropy"}, "metric": {"_name_": "ppl"},
        },
    });
    change(&mut config);
    config
}

fn set(pointer: &'static str, value: Value) -> impl Fn(&mut Value) {
    move |config| {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[field] = value.clone();
    }
}

const CELL: &str = "/model/backbone/seq_cell";

fn cell(fields: Value) -> impl Fn(&mut Value) {
    move |config| {
        let cell = config.pointer_mut(CELL).unwrap().as_object_mut().unwrap();
        cell.extend(fields.as_object().unwrap().clone());
    }
}

fn resolved(config: &Value, options: &ResolveOptions) -> Result<Resolved, ResolveError> {
    resolve(&checkpoint(true, config, distinct), options)
}

fn plain(config: &Value) -> Resolved {
    resolved(config, &ResolveOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn refused(result: Result<Resolved, ResolveError>) -> Vec<String> {
    match result {
        Err(
            ResolveError::Mismatch { problems, .. } | ResolveError::Undetermined { problems, .. },
        ) => problems,
        Err(other) => panic!("{other}"),
        Ok(resolved) => panic!("{:?}", resolved.notes),
    }
}

#[track_caller]
fn has_note(resolved: &Resolved, part: &str) {
    let found = resolved.notes.iter().any(|note| note.contains(part));
    assert!(found, "{part}: {:#?}", resolved.notes);
}

const SAVED: &str = "in the training configuration saved in the checkpoint";
