//! What a training run saved decides what its model computes.

use super::*;

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
    let patterns = [0, 1].map(|layer| resolved.spec.kept_patterns(layer)[1].to_string());
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
        let config = run(set("/model/backbone/hidden_cell/act_fn", json!(activation)));
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
            "model.backbone.seq_cell.apply_re: expected true, as in_proj has 40 rows, found false"
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
    assert_eq!(found.spec.kept_patterns(0)[0].to_string(), "D=4 W=3 I=2");
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
        let patterns = [0, 1].map(|layer| found.spec.kept_patterns(layer)[0].to_string());
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
            .any(|note| note.starts_with("`max_seq_len: 65` is past the 64 tokens"))
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

/// What is there and cannot be read is not taken for absent.
#[test]
fn values_that_are_no_plain_ones_are_refused_by_field() {
    for (pointer, value, problem) in [
        (
            "/model/embedding/pe/base",
            json!("<numpy.core.multiarray.scalar>"),
            "model.embedding.pe.base: expected a number, found `<numpy.core.multiarray.scalar>`",
        ),
        (
            "/model/embedding/pe",
            json!("<mylib.Rope>"),
            "model.embedding.pe: expected fields, found `<mylib.Rope>`",
        ),
        (
            "/model/embedding/pe",
            Value::Null,
            "model.embedding.pe: expected fields with a `_name_`, found null",
        ),
        (
            "/model/embedding/pe/_name_",
            Value::Null,
            "model.embedding.pe._name_: expected `rope` or `empty`, found null",
        ),
        (
            "/model/backbone/hidden_cell/act_fn",
            Value::Null,
            "model.backbone.hidden_cell.act_fn: expected the name of a function, found null",
        ),
        (
            "/model/backbone/hidden_cell",
            json!("<mylib.Cell>"),
            "model.backbone.hidden_cell: expected fields, found `<mylib.Cell>`",
        ),
        (
            "/task/tie_embedding",
            json!("<numpy.core.multiarray.scalar>"),
            "task.tie_embedding: expected true or false, found `<numpy.core.multiarray.scalar>`",
        ),
    ] {
        let found = refused(resolved(
            &run(set(pointer, value)),
            &ResolveOptions::default(),
        ));
        assert_eq!(found, [format!("{problem} {SAVED}")], "{pointer}");
    }
    let object = json!({"model": "<mylib.Config>", "task": {}});
    let found = refused(resolved(&object, &ResolveOptions::default()));
    assert_eq!(
        found[0],
        format!("model: expected fields, found `<mylib.Config>` {SAVED}")
    );
}

#[test]
fn a_pattern_that_cannot_be_read_is_named_and_flags_may_give_it() {
    let cell_path = "model.backbone.seq_cell";
    for (fields, problem) in [
        (
            json!({"dilation_size": "4"}),
            format!(
                "{cell_path}.dilation_size: expected a whole number, or a list of one per layer, found `4`"
            ),
        ),
        (
            json!({"local_size": null}),
            format!("{cell_path}.local_size: expected a whole number, found nothing"),
        ),
    ] {
        let config = run(cell(fields));
        let found = refused(resolved(&config, &ResolveOptions::default()));
        assert!(
            found[0].starts_with(&format!("pattern: {problem} {SAVED}; give")),
            "{found:?}"
        );
        let options = ResolveOptions {
            dilation: vec![8],
            ..ResolveOptions::default()
        };
        let found = resolved(&config, &options).unwrap();
        assert_eq!(found.spec.kept_patterns(0)[0].to_string(), "D=8 W=0 I=0");
    }
}

#[test]
fn a_run_saved_as_text_is_read() {
    let text = "model:\n  backbone:\n    seq_cell: {d_head: 4, dilation_size: 2, local_size: 1, initial_size: 0}\n    \
                hidden_cell: {act_fn: relu}\n";
    let found = plain(&json!(text));
    assert_eq!(found.spec.activation, Activation::Relu);
    assert_eq!(found.spec.kept_patterns(0)[0].to_string(), "D=2 W=1 I=0");
}
