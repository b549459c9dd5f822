//! Configuration, flags and weights against one another.

mod common;

use common::{GATE, IN_PROJ, Tensors, checkpoint, config, lines, tensors, with_config};
use ratplus_exporter::checkpoint::Checkpoint;
use ratplus_exporter::resolve::{ResolveError, ResolveOptions, resolve};
use serde_json::{Value, json};
use std::path::Path;

#[test]
fn every_size_that_differs_from_the_weights_is_named() {
    let good = tensors(2, 64);
    assert_eq!(
        with_config(&good, &config(), ResolveOptions::default())
            .unwrap()
            .sources
            .len(),
        15
    );
    for (field, value, expected) in [
        (
            "vocab_size",
            json!(100),
            "`embedding.wte.weight`: expected [100, 64], found [97, 64]",
        ),
        (
            "d_ffn",
            json!(128),
            "`backbone.layers.0.hidden_layer.fc1.weight`: expected [128, 64], found [256, 64]",
        ),
        (
            "d_model",
            json!(128),
            "`backbone.ln.weight`: expected [128], found [64]",
        ),
        (
            "recurrence",
            json!(false),
            "`backbone.layers.0.seq_layer.in_proj.weight`: expected [256, 64], found [320, 64] (it has a forget gate: \
             `recurrence: true`)",
        ),
        (
            "num_layers",
            json!(3),
            "patterns: expected one entry per layer (3), found 2",
        ),
        (
            "d_head",
            json!(7),
            "d_head: expected a divisor of d_model 64, found 7",
        ),
        ("d_head", json!(0), "d_head: expected 1 to 2^24, found 0"),
        (
            "rope_base",
            json!(-1.0),
            "rope_base: expected a positive number, found -1",
        ),
        (
            "norm_eps",
            json!(0.0),
            "norm_eps: expected a positive number, found 0",
        ),
        (
            "model_type",
            json!("llama"),
            "model_type: expected `ratplus`, found `llama` in config.json",
        ),
    ] {
        let mut config = config();
        config[field] = value;
        if field == "d_model" {
            config["d_head"] = json!(32);
        }
        let found = lines(with_config(&good, &config, ResolveOptions::default()));
        assert!(found.contains(&expected.to_owned()), "{field}: {found:#?}");
    }
}

#[test]
fn layers_that_only_one_side_has_are_one_line() {
    let mut three = config();
    three["num_layers"] = json!(3);
    three["patterns"]
        .as_array_mut()
        .unwrap()
        .push(json!({"dilation": 1}));
    assert_eq!(
        lines(with_config(
            &tensors(2, 64),
            &three,
            ResolveOptions::default()
        )),
        ["num_layers: expected 3, found 2 layers in the checkpoint"]
    );
    assert_eq!(
        lines(with_config(
            &tensors(5, 64),
            &config(),
            ResolveOptions::default()
        )),
        ["num_layers: expected 2, found 5 layers in the checkpoint"]
    );
}

#[test]
fn all_differences_are_listed_at_once() {
    let mut bad = tensors(2, 64);
    bad.remove("backbone.ln.weight");
    bad.insert("extra.bias".into(), ("F32", vec![3]));
    bad.insert("head.lm_head.weight".into(), ("F32", vec![97, 63]));
    bad.insert(
        "backbone.layers.0.seq_layer.out_proj.weight".into(),
        ("I64", vec![64, 64]),
    );
    bad.insert(
        "_orig_mod.embedding.wte.weight".into(),
        ("F32", vec![97, 64]),
    );
    bad.insert(IN_PROJ.into(), ("F32", vec![256, 64]));
    let error = with_config(&bad, &config(), ResolveOptions::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "model.safetensors: what is expected is not what was found:\
         \n  `embedding.wte.weight`: expected once, found as `_orig_mod.embedding.wte.weight` and as `embedding.wte.weight`\
         \n  `backbone.layers.0.seq_layer.out_proj.weight`: expected f32, f16, bf16 or f64, found i64\
         \n  `backbone.layers.1.seq_layer.in_proj.weight`: expected [320, 64], found [256, 64] (no forget gate: attention \
         only, `recurrence: false`)\
         \n  `backbone.ln.weight`: expected [64], found nothing\
         \n  `head.lm_head.weight`: expected [97, 64], found [97, 63]\
         \n  `extra.bias`: expected no such tensor, found f32 [3]"
    );
}

#[test]
fn the_separate_gate_has_to_fit() {
    let with = |in_proj: usize, gate: &[usize], recurrence: bool| {
        let mut tensors = tensors(2, 64);
        tensors.insert(IN_PROJ.into(), ("F32", vec![in_proj, 64]));
        tensors.insert(GATE.into(), ("F32", gate.to_vec()));
        let mut config = config();
        config["recurrence"] = json!(recurrence);
        if !recurrence {
            tensors.insert(IN_PROJ.replace('1', "0"), ("F32", vec![256, 64]));
        }
        with_config(&tensors, &config, ResolveOptions::default())
    };
    assert_eq!(
        with(256, &[64, 64], true).unwrap().sources[8].parts.len(),
        2
    );
    assert_eq!(
        lines(with(320, &[64, 64], true)),
        [format!(
            "`{IN_PROJ}`: expected [256, 64], found [320, 64]; `fgate_proj` would be a second forget gate"
        )]
    );
    assert_eq!(
        lines(with(256, &[32, 64], true)),
        [format!("`{GATE}`: expected [64, 64], found [32, 64]")]
    );
    assert_eq!(
        lines(with(256, &[64, 64], false)),
        [format!(
            "`{GATE}`: expected no such tensor, found f32 [64, 64]"
        )]
    );
}

#[test]
fn flags_override_the_configuration_field_by_field() {
    let options = ResolveOptions {
        d_head: Some(16),
        dilation: vec![2, 16],
        initial: vec![1],
        ..ResolveOptions::default()
    };
    let resolved = with_config(&tensors(2, 64), &config(), options).unwrap();
    let shown = |layer: usize| {
        resolved
            .spec
            .kept_patterns(layer)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(shown(0), ["D=2 W=8 I=1"; 4]);
    assert_eq!(
        shown(1),
        [
            "D=16 W=0 I=1",
            "D=16 W=0 I=1",
            "D=16 W=0 I=1",
            "D=16 W=16 I=1"
        ]
    );
    assert_eq!(resolved.notes.len(), 1);
    assert!(
        resolved.notes[0]
            .starts_with("`dilation: 2,16` and `initial: 1` overrides the patterns of ")
    );
    let options = ResolveOptions {
        d_head: Some(32),
        ..ResolveOptions::default()
    };
    let found = lines(with_config(&tensors(2, 64), &config(), options));
    assert_eq!(
        found,
        ["patterns[1]: expected one pattern or one per head (2), found 4"]
    );
    let options = ResolveOptions {
        dilation: vec![1, 2, 3],
        local_window: vec![-4],
        initial: vec![1 << 40],
        ..ResolveOptions::default()
    };
    assert_eq!(
        lines(with_config(&tensors(2, 64), &config(), options)),
        [
            "`dilation`: expected one value or one per layer (2), found 3",
            "`local_window`: local_window is -4, expected 0 or more and less than 2^31",
            "`initial`: initial is 1099511627776, expected 0 or more and less than 2^31",
        ]
    );
}

#[test]
fn without_a_configuration_everything_has_a_source_or_a_flag() {
    let small = checkpoint("model.safetensors", &tensors(2, 64));
    assert_eq!(
        lines(resolve(&small, &ResolveOptions::default())),
        [
            "d_head: 2 layers of width 64 are no released size; give `d_head` or `config_file`",
            "pattern: neither the checkpoint nor its path names one; give `dilation` (with `local_window` and `initial`), \
             or `config_file`",
        ]
    );
    let flags = ResolveOptions {
        d_head: Some(16),
        dilation: vec![1, 8],
        initial: vec![4],
        ..ResolveOptions::default()
    };
    let resolved = resolve(&small, &flags).unwrap();
    assert_eq!(resolved.spec.kept_patterns(1)[0].to_string(), "D=8 W=0 I=4");
    assert_eq!(
        resolved.notes,
        [
            "sizes from the weights: 2 layers, d_model 64, d_ffn 256, vocabulary 97, with recurrence",
            "pattern by layer (D=1 W=0 I=4; D=8 W=0 I=4) from `dilation: 1,8` and `initial: 4`; no local window, as nothing \
             gives any",
        ]
    );
    let windows = ResolveOptions {
        d_head: Some(16),
        local_window: vec![3],
        ..ResolveOptions::default()
    };
    assert!(lines(resolve(&small, &windows))[0].starts_with("pattern: neither"));
    let named = checkpoint("runs/d16w256p4/model.safetensors", &tensors(2, 64));
    let resolved = resolve(&named, &windows).unwrap();
    assert_eq!(
        resolved.spec.kept_patterns(0)[0].to_string(),
        "D=16 W=3 I=4"
    );
    assert_eq!(
        resolved.notes[1],
        "pattern D=16 W=3 I=4 from the name `d16w256p4`, changed by `local_window: 3`"
    );
    let dilation = ResolveOptions {
        d_head: Some(16),
        dilation: vec![2],
        ..ResolveOptions::default()
    };
    let notes = resolve(&named, &dilation).unwrap().notes;
    assert_eq!(
        notes[1],
        "set aside for `dilation`: D=16 W=256 I=4 from the name `d16w256p4`"
    );
    assert_eq!(
        notes[2],
        "pattern D=2 W=0 I=0 from `dilation: 2`; no local window and no initial tokens, as nothing gives any"
    );
    let joint = checkpoint(
        "x-ratplusd64p0w0reTruejointtrainTrue-ffn/1.safetensors",
        &tensors(2, 64),
    );
    assert!(lines(resolve(&joint, &windows))[0].contains("joint-training run"));
}

#[test]
fn released_sizes_need_no_head_size() {
    // Shapes of the released model without their elements: rows of the vocabulary are not checked here.
    let mut shapes = tensors(24, 8);
    for (_, shape) in shapes.values_mut() {
        for dim in shape.iter_mut() {
            *dim = if *dim == 97 { 97 } else { *dim * 256 };
        }
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0u64);
    for (name, (_, shape)) in &shapes {
        let start = end;
        end += shape.iter().product::<usize>() as u64 * 2;
        header.insert(
            name.clone(),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}),
        );
    }
    let header = Value::Object(header).to_string();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("D16_W256.safetensors");
    std::fs::write(
        &path,
        [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat(),
    )
    .unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    // Sparse: the elements are holes.
    file.set_len(8 + header.len() as u64 + end).unwrap();
    let resolved = resolve(
        &Checkpoint::open(&path).unwrap(),
        &ResolveOptions::default(),
    )
    .unwrap();
    assert_eq!((resolved.spec.d_head, resolved.spec.num_layers), (128, 24));
    assert_eq!(
        resolved.notes[1],
        "d_head 128: the size is the released 1.5B model's"
    );
    assert_eq!(
        resolved.notes[2],
        "pattern D=16 W=256 I=4 from the name `D16_W256.safetensors`; it does not name the initial tokens, so they are \
         those of the released recipe (`initial` changes them)"
    );
}

#[test]
fn other_checkpoints_are_told_apart() {
    let other: Tensors = [("model.embed_tokens.weight".to_owned(), ("F32", vec![10, 4]))].into();
    let found = lines(resolve(
        &checkpoint("model.safetensors", &other),
        &ResolveOptions::default(),
    ));
    assert_eq!(
        found.last().unwrap(),
        "not the weights of a RAT+ model: the checkpoint has 1 tensors, the first of them `model.embed_tokens.weight`"
    );
    let mut gap = tensors(4, 64);
    gap.retain(|name, _| !name.contains("layers.2."));
    gap.insert(
        "backbone.layers.99999999999999999999.x".into(),
        ("F32", vec![1]),
    );
    let options = ResolveOptions {
        d_head: Some(16),
        dilation: vec![1],
        ..ResolveOptions::default()
    };
    let found = lines(resolve(&checkpoint("model.safetensors", &gap), &options));
    assert!(
        found[0].starts_with("`backbone.layers.2`: expected layers numbered from 0"),
        "{found:#?}"
    );
}

#[test]
fn configurations_that_cannot_be_read() {
    let model = checkpoint("model.safetensors", &tensors(2, 64));
    let with = |path: &Path| {
        let options = ResolveOptions {
            config_file: Some(path.to_owned()),
            ..ResolveOptions::default()
        };
        match resolve(&model, &options).unwrap_err() {
            ResolveError::Config { problems, .. } => problems.join("\n"),
            other => panic!("{other}"),
        }
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    assert!(with(&path).starts_with("cannot open: "));
    assert!(with(directory.path()).ends_with("found no regular file"));
    const WHOLE: &str = "a whole number that is not negative";
    let size = |field: &str, found: &str| format!("{field}: expected {WHOLE}, found {found}");
    for (text, problem) in [
        (
            "",
            "expected the fields of a model's configuration, found an empty file".into(),
        ),
        (
            r#"{"vocab_size": 1, "vocab_size": 1}"#,
            "not a model configuration: not JSON: `vocab_size` is there twice at line 1 column 34".into(),
        ),
        (
            "[]",
            "expected the fields of a model's configuration, found a list of 0".into(),
        ),
        (
            "plain text",
            "expected the fields of a model's configuration, found `plain text`".into(),
        ),
        (r#"{"vocab_size": -1}"#, size("vocab_size", "-1")),
        (r#"{"vocab_size": 1.5}"#, size("vocab_size", "1.5")),
        (r#"{"hidden_size": "4"}"#, size("hidden_size", "`4`")),
        (
            "model: {backbone: {num_layers: '${layers}'}}",
            size(
                "model.backbone.num_layers",
                "the interpolation `${layers}` (save the resolved configuration: \
                 OmegaConf.to_container(config, resolve=True))",
            ),
        ),
        (
            r#"{"d_model": 4, "hidden_size": 8}"#,
            "d_model and hidden_size: expected the same value, found two".into(),
        ),
        (
            r#"{"patterns": {"dilation": 4}}"#,
            "patterns: expected a list of one entry per layer, found an object".into(),
        ),
        (
            r#"{"patterns": [{"dilation": 0}]}"#,
            "patterns[0].dilation: expected -1 (none) or 1 or more and less than 2^31, found 0".into(),
        ),
        (
            r#"{"patterns": [{"dilation": 4, "local_window": "64"}]}"#,
            "patterns[0].local_window: expected a whole number, found `64`".into(),
        ),
        (
            r#"{"patterns": [{"dilation": 1}, [{"dilation": 4}, {"local_window": 4}]]}"#,
            "patterns[1][1].dilation: expected -1 (none) or 1 or more, found nothing".into(),
        ),
        (
            r#"{"patterns": [{"dilation": 4, "window": 64}]}"#,
            "patterns[0].window: expected dilation, local_window, initial, block_size, top_k or score".into(),
        ),
        (
            r#"{"patterns": [{"dilation": -1, "block_size": 64, "top_k": 16}]}"#,
            "patterns[0].score: expected `bounds` or `mean`, found nothing".into(),
        ),
        (
            r#"{"patterns": [{"block_size": 0, "top_k": "9", "score": "max", "keys": 3}]}"#,
            "patterns[0].top_k: expected a whole number, found `9`\n\
             patterns[0].score: expected `bounds` or `mean`, found `max`\n\
             patterns[0].keys: expected dilation, local_window, initial, block_size, top_k or score\n\
             patterns[0].block_size: expected 1 or more and less than 2^31, found 0"
                .into(),
        ),
        (
            r#"{"patterns": [{"top_k": 3, "score": "mean"}]}"#,
            "patterns[0].block_size: expected the number of keys of a block, found nothing".into(),
        ),
        (
            r#"{"patterns": [[{"dilation": 1}, {"block_size": 8, "top_k": 3, "score": "mean"}]]}"#,
            "patterns[0][1].block_size: expected none, as blocks are chosen in whole layers; write one pattern for \
             the layer"
                .into(),
        ),
        (
            r#"{"patterns": [7]}"#,
            "patterns[0]: expected a pattern such as {\"dilation\": 16, \"local_window\": 256, \
             \"initial\": 4} or {\"block_size\": 64, \"top_k\": 16, \"score\": \"bounds\"}, or a list of one per key-value \
             head, found 7"
                .into(),
        ),
        (
            r#"{"activation": "swiglu"}"#,
            "activation: expected one of `gelu`, `fastgelu`, `silu`, `relu`, `relusquared`, found `swiglu`".into(),
        ),
        (
            r#"{"recurrence": "yes", "rope_base": [], "model_type": 7}"#,
            "model_type: expected a text, found 7\n\
             rope_base: expected a number, found a list of 0\n\
             recurrence: expected true or false, found `yes`"
                .into(),
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(with(&path), problem, "{text}");
    }
}
