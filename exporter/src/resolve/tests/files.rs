//! Configurations in files, given or beside the weights.

use super::*;
use std::path::Path;

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
            config_file: Some(path.clone()),
            ..ResolveOptions::default()
        };
        let found = resolve(&weights, &options).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(found.spec.activation, Activation::Relu, "{}", path.display());
        assert_eq!(found.spec.d_head, 4);
        assert_eq!(found.spec.kept_patterns(0)[0].to_string(), pattern);
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
        config_file: Some(path),
        ..ResolveOptions::default()
    };
    let found = resolve(&checkpoint(true, &json!(null), distinct), &options);
    assert_eq!(
        refused(found),
        ["num_layers: expected 9223372036854775807, found 2 layers in the checkpoint"]
    );
    let error = crate::resolve::synthetic("config", &options)
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
        config_file: Some(path),
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
        "overrides model.backbone.hidden_cell.act_fn of the training configuration",
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
        assert_eq!(found.spec.kept_patterns(0)[0].dilation_or_minus_one(), -1);
    }
    // Another model's says nothing.
    let other = json!({"model_type": "llama", "hidden_size": 4096});
    std::fs::write(directory.path().join("config.json"), other.to_string()).unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    assert!(refused(resolve(&checkpoint, &options))[0].starts_with("d_head: "));
    // Nor one that is cut off; either is told.
    let flags = ResolveOptions {
        d_head: Some(16),
        dilation: vec![4],
        ..ResolveOptions::default()
    };
    for (text, why) in [
        (other.to_string(), "it does not say"),
        ("{\"model_type\": ".into(), "not JSON"),
    ] {
        std::fs::write(directory.path().join("config.json"), text).unwrap();
        let found = resolve(&checkpoint, &flags).unwrap();
        has_note(&found, "configuration not read: ");
        has_note(&found, why);
    }
}

/// A saved value that cannot be read is replaced by a configuration that says every field, and by no other.
#[test]
fn only_a_whole_configuration_replaces_what_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("whole.json");
    let options = ResolveOptions {
        config_file: Some(path.clone()),
        ..ResolveOptions::default()
    };
    let unread = run(set("/model/backbone/hidden_cell", json!("<mylib.Cell>")));
    let mut whole = json!({
        "vocab_size": V, "d_model": D, "num_layers": 2, "d_head": 4, "d_ffn": 4 * D, "rope": true,
        "rope_base": 10000.0, "norm_eps": 1e-6, "activation": "silu",
        "patterns": [{"dilation": 4}, {"dilation": 1}],
    });
    std::fs::write(&path, whole.to_string()).unwrap();
    let found = resolved(&unread, &options).unwrap();
    assert_eq!(found.spec.activation, Activation::Silu);
    has_note(&found, "found `<mylib.Cell>`");
    for field in ["activation", "rope", "rope_base", "norm_eps", "patterns"] {
        let said = whole[field].take();
        std::fs::write(&path, whole.to_string()).unwrap();
        let problems = refused(resolved(&unread, &options));
        assert!(
            problems[0].contains("found `<mylib.Cell>`"),
            "{field}: {problems:?}"
        );
        whole[field] = said;
    }
}
