//! What training runs and published files say about a model, and what becomes of it.

use super::{ResolveError, ResolveOptions, Resolved, resolve};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::testing::{Pickler, View, pth};
use ratplus_graphs::model::Weight;
use ratplus_graphs::spec::{Activation, ModelSpec};
use serde_json::{Value, json};
use std::path::Path;

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

#[test]
fn a_run_says_its_whole_model() {
    let resolved = plain(&run(|_| {}));
    assert_eq!(
        resolved.spec,
        ModelSpec {
            patterns: resolved.spec.patterns.clone(),
            ..spec(true)
        }
    );
    let patterns = [0, 1].map(|layer| resolved.spec.layer_patterns(layer)[1].to_string());
    assert_eq!(patterns, ["D=4 W=3 I=2"; 2]);
    let notes: Vec<_> = resolved.notes.iter().map(String::as_str).collect();
    assert_eq!(
        notes,
        [
            "sizes from the weights: 2 layers, d_model 8, d_ffn 32, vocabulary 11, with recurrence",
            "d_head 4 from the training configuration saved in the checkpoint",
            "pattern D=4 W=3 I=2 from the training configuration saved in the checkpoint",
        ]
    );
}

#[test]
fn every_activation_rotation_and_base_is_kept() {
    for activation in Activation::ALL {
        let config = run(set(
            "/model/backbone/hidden_cell/act_fn",
            json!(activation.name()),
        ));
        assert_eq!(plain(&config).spec.activation, activation);
    }
    let empty = plain(&run(set("/model/embedding/pe", json!({"_name_": "empty"}))));
    assert!(!empty.spec.rope);
    has_note(&empty, "unlike the released models: no rotary embedding");
    for base in [json!(500_000), json!(1e6)] {
        let found = plain(&run(set("/model/embedding/pe/base", base.clone())));
        assert_eq!(Some(found.spec.rope_base), base.as_f64());
    }
    let norm = json!({"_name_": "rmsnorm", "eps": 1e-5});
    let found = plain(&run(set("/model/backbone/ln", norm)));
    assert_eq!(found.spec.norm_eps, 1e-5);
}

#[test]
fn another_function_is_refused_by_field() {
    const GELU: &str = "expected one of `gelu`, `fastgelu`, `silu`, `relu`, `relusquared`";
    for (pointer, value, problem) in [
        (
            "/model/backbone/hidden_cell/act_fn",
            json!("swiglu"),
            format!("model.backbone.hidden_cell.act_fn: {GELU}, found `swiglu`"),
        ),
        (
            "/model/embedding/pe/_name_",
            json!("alibi"),
            "model.embedding.pe._name_: expected `rope` or `empty`, found `alibi`".into(),
        ),
        (
            "/model/backbone/seq_cell/_name_",
            json!("mamba"),
            "model.backbone.seq_cell._name_: expected `ratplus`, found `mamba`".into(),
        ),
        (
            "/model/backbone/hidden_cell/_name_",
            json!("moe"),
            "model.backbone.hidden_cell._name_: expected `ffn`, found `moe`".into(),
        ),
        (
            "/model/backbone/ln",
            json!("layernorm"),
            "model.backbone.ln: expected `rmsnorm`, found `layernorm`".into(),
        ),
        (
            "/model/backbone/seq_cell/ln",
            json!({"_name_": "layernorm"}),
            "model.backbone.seq_cell.ln._name_: expected `rmsnorm`, found `layernorm`".into(),
        ),
        (
            "/model/backbone/seq_cell/bias",
            json!(true),
            "model.backbone.seq_cell.bias: expected false, found true".into(),
        ),
        (
            "/model/backbone/seq_cell/apply_re",
            json!(false),
            "model.backbone.seq_cell.apply_re: expected true, as in_proj has 5 blocks of rows, found false"
                .into(),
        ),
        (
            "/model/embedding/pe/dim",
            json!(2),
            "model.embedding.pe.dim: expected 4, as whole heads are rotated, found 2".into(),
        ),
        (
            "/model/backbone/seq_cell/num_head",
            json!(4),
            "model.backbone.seq_cell.num_head: expected 2, 8 channels in heads of 4, found 4".into(),
        ),
        (
            "/model/backbone/num_layers",
            json!(3),
            "model.backbone.num_layers: expected 2, as the weights have, found 3".into(),
        ),
        (
            "/model/backbone/hidden_cell/d_ffn",
            json!(16),
            "model.backbone.hidden_cell.d_ffn: expected 32, as the weights have, found 16".into(),
        ),
        (
            "/model/backbone/seq_cell/d_head",
            json!("4"),
            "model.backbone.seq_cell.d_head: expected a whole number that is not negative, found `4`".into(),
        ),
    ] {
        let mut options = ResolveOptions::default();
        if pointer.ends_with("seq_cell/d_head") {
            options.d_head = Some(4);
        }
        let found = refused(resolved(&run(set(pointer, value)), &options));
        assert_eq!(found, [format!("{problem} {SAVED}")], "{pointer}");
    }
    let both = run(|config| {
        set("/model/backbone/ln", json!("layernorm"))(config);
        set("/model/backbone/hidden_cell/act_fn", json!("swiglu"))(config);
    });
    assert_eq!(
        refused(resolved(&both, &ResolveOptions::default())).len(),
        2
    );
}

#[test]
fn another_vocabulary_of_the_data_is_a_note() {
    let found = plain(&run(set("/data/vocab_size", json!(9))));
    has_note(
        &found,
        "data.vocab_size 9 is not model.embedding.vocab_size 11",
    );
}

#[test]
fn unknown_fields_of_the_model_are_named() {
    let config = run(|config| {
        set("/model/backbone/seq_cell/sliding", json!(3))(config);
        set("/model/embedding/pe/scaling", json!({"factor": 4}))(config);
        set("/model/embedding/pe/other", Value::Null)(config);
        set("/trainer/new", json!(1))(config);
    });
    has_note(
        &plain(&config),
        "not known to this version, and not read: model.embedding.pe.scaling, model.backbone.seq_cell.sliding (",
    );
}

#[test]
fn older_names_of_fields_are_read() {
    let legacy = run(|config| {
        let fields = config.pointer_mut(CELL).unwrap().as_object_mut().unwrap();
        for (name, older) in [
            ("dilation_size", "chunk_size1"),
            ("initial_size", "prefix_size"),
            ("joint_train", "mix_train"),
        ] {
            let value = fields.remove(name).unwrap();
            fields.insert(older.into(), value);
        }
        fields["_name_"] = json!("ratplus16localprefixfgatesimple");
    });
    let found = plain(&legacy);
    assert_eq!(found.spec.layer_patterns(0)[0].to_string(), "D=4 W=3 I=2");
    has_note(&found, "is read as an older name of `ratplus`");
    let joint = run(|config| {
        cell(json!({"mix_train": true}))(config);
        config.pointer_mut(CELL).unwrap()["joint_train"] = Value::Null;
    });
    let problems = refused(resolved(&joint, &ResolveOptions::default()));
    assert!(problems[0].starts_with("pattern: the checkpoint was trained jointly"));
    let both = run(cell(json!({"chunk_size1": 8})));
    let problems = refused(resolved(&both, &ResolveOptions::default()));
    assert!(
        problems[0].contains(
            "dilation_size and model.backbone.seq_cell.chunk_size1: expected the same value"
        ),
        "{problems:?}"
    );
}

#[test]
fn initial_tokens_as_long_as_a_training_sequence_are_dense() {
    for (fields, expected) in [
        (
            json!({"dilation_size": -1, "local_size": 0, "initial_size": 64}),
            ["D=1 W=0 I=0"; 2],
        ),
        (
            json!({"dilation_size": -1, "local_size": 9, "initial_size": [64, 4]}),
            ["D=1 W=0 I=0", "D=-1 W=9 I=4"],
        ),
        (
            json!({"dilation_size": [-1, 4], "initial_size": 64}),
            ["D=1 W=0 I=0", "D=4 W=3 I=64"],
        ),
        (
            json!({"dilation_size": -1, "initial_size": 63}),
            ["D=-1 W=3 I=63"; 2],
        ),
    ] {
        let found = plain(&run(cell(fields.clone())));
        let patterns = [0, 1].map(|layer| found.spec.layer_patterns(layer)[0].to_string());
        assert_eq!(patterns, expected, "{fields}");
        let told = found
            .notes
            .iter()
            .any(|note| note.contains("is dense attention: read as D=1"));
        assert_eq!(told, expected[0] == "D=1 W=0 I=0", "{fields}");
    }
}

#[test]
fn a_pretrained_checkpoint_says_that_it_is_not_adapted() {
    let joint = run(cell(
        json!({"joint_train": true, "dilation_size": 64, "local_size": 0, "initial_size": 0}),
    ));
    let with = |dilation: i64| ResolveOptions {
        dilation: vec![dilation],
        ..ResolveOptions::default()
    };
    let sparse = resolved(&joint, &with(16)).unwrap();
    has_note(
        &sparse,
        "the checkpoint is pretrained (jointly dense and D=64 W=0 I=0) and not adapted to D=16 W=0 I=0",
    );
    let dense = resolved(&joint, &with(1)).unwrap();
    assert!(!dense.notes.iter().any(|note| note.contains("pretrained")));
    assert!(refused(resolved(&joint, &ResolveOptions::default()))[0].contains("trained jointly"));
}

#[test]
fn sequences_longer_than_those_of_training_are_noted() {
    let asked = |max_seq_len: usize| {
        let options = ResolveOptions {
            max_seq_len: Some(max_seq_len),
            ..ResolveOptions::default()
        };
        let notes = resolved(&run(|_| {}), &options).unwrap().notes;
        notes
            .iter()
            .any(|note| note.starts_with("--max-seq-len 65 is past the 64 tokens"))
    };
    assert_eq!([64, 65].map(asked), [false, true]);
}

#[test]
fn the_size_of_a_head_follows_from_their_number() {
    let config = run(|config| {
        let fields = config.pointer_mut(CELL).unwrap().as_object_mut().unwrap();
        fields.remove("d_head");
        fields.remove("k_channel");
    });
    let found = plain(&config);
    assert_eq!(found.spec.d_head, 4);
    has_note(
        &found,
        "d_head 4: width 8 over model.backbone.seq_cell.num_head 2",
    );
}

#[test]
fn a_tied_matrix_has_either_name() {
    let tied = run(set("/task/tie_embedding", json!(true)));
    for missing in [Weight::LmHead, Weight::Embedding] {
        let without = |weight: Weight| distinct(weight).filter(|_| weight != missing);
        let options = ResolveOptions::default();
        let found = resolve(&checkpoint(true, &tied, without), &options).unwrap();
        assert!(found.spec.tie_embedding);
        has_note(
            &found,
            &format!(
                "`{}` is not in the checkpoint: head and embedding are tied",
                missing.name()
            ),
        );
        has_note(
            &found,
            "says task.tie_embedding of the training configuration",
        );
        let (first, last) = (&found.sources[0], &found.sources[14]);
        assert_eq!(
            (first.weight, last.weight),
            (Weight::Embedding, Weight::LmHead)
        );
        assert_eq!(first.parts, last.parts);
        // Where nothing says so, what to do.
        let silent = run(|config| config["task"] = json!({}));
        let problems = refused(resolve(&checkpoint(true, &silent, without), &options));
        let there = match missing {
            Weight::LmHead => EMBEDDING,
            _ => HEAD,
        };
        let remedy =
            format!("where it is tied to `{there}`, give a --config with \"tie_embedding\": true");
        assert!(
            problems.iter().any(|problem| problem.ends_with(&remedy)),
            "{problems:?}"
        );
        // A configuration of this one field is enough.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tie.json");
        std::fs::write(&path, r#"{"tie_embedding": true}"#).unwrap();
        let options = ResolveOptions {
            config: Some(path),
            ..options
        };
        let found = resolve(&checkpoint(true, &silent, without), &options).unwrap();
        assert!(found.spec.tie_embedding);
    }
}

#[test]
fn identical_matrices_become_one_and_others_stay_two() {
    let tied = run(set("/task/tie_embedding", json!(true)));
    let untied = run(|_| {});
    let shared = |weight: Weight| match weight {
        Weight::LmHead => distinct(Weight::Embedding),
        other => distinct(other),
    };
    // Another storage with the same numbers.
    let copied = |weight: Weight| match weight {
        Weight::LmHead => Some(("copy".into(), distinct(Weight::Embedding)?.1)),
        other => distinct(other),
    };
    let options = ResolveOptions::default();
    for config in [&tied, &untied] {
        for change in [&shared as &dyn Fn(Weight) -> Option<(String, f32)>, &copied] {
            let found = resolve(&checkpoint(true, config, change), &options).unwrap();
            assert!(found.spec.tie_embedding);
            has_note(
                &found,
                "head and embedding are the same matrix, which is stored once",
            );
        }
        let found = resolve(&checkpoint(true, config, distinct), &options).unwrap();
        assert!(!found.spec.tie_embedding);
    }
    has_note(
        &plain(&tied),
        "but the checkpoint has two that differ: both are kept",
    );
}

#[test]
fn a_run_is_a_configuration_file_too() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let config = run(set("/model/backbone/hidden_cell/act_fn", json!("relu")));
    let yaml = "\
# resolved
model:
  backbone:
    num_layers: 2
    d_model: 8
    seq_cell: {_name_: ratplus, d_head: 4, dilation_size: [1, 4], local_size: 3, initial_size: 2}
    hidden_cell:
      act_fn: relu
  embedding:
    pe:
      _name_: rope
      base: 1.0e+04
";
    let weights = checkpoint(true, &json!(null), distinct);
    for (path, pattern) in [
        (write("run.json", config.to_string()), "D=4 W=3 I=2"),
        (write("run.yaml", yaml.into()), "D=1 W=3 I=2"),
        (write("model.json", config["model"].to_string()), "D=4 W=3 I=2"),
        (
            write(
                "config.json",
                json!({
                    "architectures": ["X"], "model_type": "ratplus", "hidden_size": D, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 4 * D,
                    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "relu", "vocab_size": V,
                    "tie_word_embeddings": false, "torch_dtype": "float32", "rope_scaling": null,
                    "patterns": [{"dilation": 4, "local_window": 3, "initial": 2}, {"dilation": 1}],
                })
                .to_string(),
            ),
            "D=4 W=3 I=2",
        ),
    ] {
        let options = ResolveOptions {
            config: Some(path.clone()),
            ..ResolveOptions::default()
        };
        let found = resolve(&weights, &options).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(found.spec.activation, Activation::Relu, "{}", path.display());
        assert_eq!(found.spec.d_head, 4);
        assert_eq!(found.spec.layer_patterns(0)[0].to_string(), pattern);
        assert!(
            !found.notes.iter().any(|note| note.contains("not known")),
            "{:?}",
            found.notes
        );
    }
}

/// A file may ask for as many layers as an integer holds.
#[test]
fn layers_beyond_the_checkpoints_are_refused_before_they_are_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.json");
    let huge = run(set("/model/backbone/num_layers", json!(i64::MAX)));
    std::fs::write(&path, huge.to_string()).unwrap();
    let options = ResolveOptions {
        config: Some(path),
        ..ResolveOptions::default()
    };
    let found = resolve(&checkpoint(true, &json!(null), distinct), &options);
    assert_eq!(
        refused(found),
        ["num_layers: expected 9223372036854775807, found 2 layers in the checkpoint"]
    );
    let error = super::synthetic("config", &options)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("num_layers: expected 1 to 65536, found 9223372036854775807"),
        "{error}"
    );
}

#[test]
fn what_is_given_wins_over_what_was_saved() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("given.json");
    std::fs::write(&path, r#"{"activation": "silu", "rope": false, "d_ff": 3}"#).unwrap();
    let options = ResolveOptions {
        config: Some(path),
        ..ResolveOptions::default()
    };
    let saved = run(|config| {
        set("/model/backbone/hidden_cell/act_fn", json!("swiglu"))(config);
        set("/model/embedding/pe", json!({"_name_": "alibi"}))(config);
    });
    let found = resolved(&saved, &options).unwrap();
    assert_eq!(
        (found.spec.activation, found.spec.rope),
        (Activation::Silu, false)
    );
    has_note(&found, "not known to this version, and not read: d_ff (");
    let relu = run(set("/model/backbone/hidden_cell/act_fn", json!("relu")));
    let found = resolved(&relu, &options).unwrap();
    assert_eq!(found.spec.activation, Activation::Silu);
    has_note(
        &found,
        "overrides model.backbone.hidden_cell.act_fn relu of the training configuration",
    );
}

#[test]
fn a_configuration_beside_safetensors_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/streaming");
    for file in ["model.safetensors", "config.json"] {
        std::fs::copy(golden.join(file), directory.path().join(file)).unwrap();
    }
    let options = ResolveOptions::default();
    for path in [
        directory.path().to_owned(),
        directory.path().join("model.safetensors"),
    ] {
        let found = resolve(&Checkpoint::open(path).unwrap(), &options).unwrap();
        has_note(&found, "configuration read: ");
        assert_eq!(found.spec.layer_patterns(0)[0].dilation_or_minus_one(), -1);
    }
    // Another model's says nothing.
    let other = json!({"model_type": "llama", "hidden_size": 4096});
    std::fs::write(directory.path().join("config.json"), other.to_string()).unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    assert!(refused(resolve(&checkpoint, &options))[0].starts_with("d_head: "));
}
