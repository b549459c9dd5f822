//! Checkpoints, configurations and flags that do not make a model: what each is told, whole.

mod common;

use common::{GATE, IN_PROJ, Tensors, checkpoint, config, lines, tensors, with_config};
use ratplus_exporter::resolve::{ResolveOptions, resolve};
use serde_json::{Value, json};

struct Case {
    tensors: Tensors,
    config: Value,
    options: ResolveOptions,
}

/// What is wrong, how it is made, and every line of the message.
type Fixture = (&'static str, fn(&mut Case), &'static [&'static str]);

const LN: &str = "backbone.ln.weight";
const HEAD: &str = "head.lm_head.weight";

const FIXTURES: &[Fixture] = &[
    (
        "no final norm",
        |c| drop(c.tensors.remove(LN)),
        &["`backbone.ln.weight`: expected [64], found nothing"],
    ),
    (
        "no head",
        |c| drop(c.tensors.remove(HEAD)),
        &[
            "`head.lm_head.weight`: expected [97, 64], found nothing; where it is tied to `embedding.wte.weight`, give a `config_file` with \"tie_embedding\": true",
        ],
    ),
    (
        "a vector for a matrix",
        |c| set(c, HEAD, "F32", &[97 * 64]),
        &["`head.lm_head.weight`: expected [97, 64], found [6208]"],
    ),
    (
        "a matrix on its side",
        |c| set(c, HEAD, "F32", &[64, 97]),
        &["`head.lm_head.weight`: expected [97, 64], found [64, 97]"],
    ),
    (
        "no rows",
        |c| set(c, LN, "F32", &[0]),
        &["`backbone.ln.weight`: expected [64], found [0]"],
    ),
    (
        "integers",
        |c| set(c, LN, "I64", &[64]),
        &["`backbone.ln.weight`: expected f32, f16, bf16 or f64, found i64"],
    ),
    (
        "doubles of another shape",
        |c| set(c, LN, "F64", &[63]),
        &["`backbone.ln.weight`: expected [64], found [63]"],
    ),
    (
        "a bias",
        |c| set(c, "head.lm_head.bias", "F32", &[97]),
        &["`head.lm_head.bias`: expected no such tensor, found f32 [97]"],
    ),
    (
        "a layer more",
        |c| c.tensors = tensors(3, 64),
        &["num_layers: expected 2, found 3 layers in the checkpoint"],
    ),
    (
        "a layer less",
        |c| c.tensors = tensors(1, 64),
        &["num_layers: expected 2, found 1 layers in the checkpoint"],
    ),
    (
        "both spellings of a name",
        |c| set(c, "_orig_mod.backbone.ln.weight", "F32", &[64]),
        &[
            "`backbone.ln.weight`: expected once, found as `_orig_mod.backbone.ln.weight` and as `backbone.ln.weight`",
        ],
    ),
    (
        "no gate",
        |c| set(c, IN_PROJ, "F32", &[256, 64]),
        &[
            "`backbone.layers.1.seq_layer.in_proj.weight`: expected [320, 64], found [256, 64] (no forget gate: attention \
         only, `recurrence: false`)",
        ],
    ),
    (
        "two gates",
        |c| set(c, GATE, "F32", &[64, 64]),
        &[
            "`backbone.layers.1.seq_layer.in_proj.weight`: expected [256, 64], found [320, 64]; `fgate_proj` would be a second \
         forget gate",
        ],
    ),
    (
        "another vocabulary",
        |c| c.config["vocab_size"] = json!(96),
        &[
            "`embedding.wte.weight`: expected [96, 64], found [97, 64]",
            "`head.lm_head.weight`: expected [96, 64], found [97, 64]",
        ],
    ),
    (
        "heads that do not divide",
        |c| c.config["d_head"] = json!(12),
        &[
            "d_head: expected a divisor of d_model 64, found 12",
            "patterns[1]: expected one pattern or one per head (5), found 4",
        ],
    ),
    (
        "odd heads",
        |c| c.config["d_head"] = json!(1),
        &[
            "d_head: rotary embedding needs an even number, found 1",
            "patterns[1]: expected one pattern or one per head (64), found 4",
        ],
    ),
    (
        "no heads",
        |c| c.config["d_head"] = json!(0),
        &[
            "d_head: expected 1 to 2^24, found 0",
            "patterns[1]: expected one pattern or one per head (64), found 4",
        ],
    ),
    (
        "wider than any",
        |c| c.config["d_ffn"] = json!(u64::MAX),
        &["d_ffn: expected 1 to 2^24, found 18446744073709551615"],
    ),
    (
        "more weights than any",
        |c| {
            c.config["d_model"] = json!(1 << 24);
            c.config["d_head"] = json!(1 << 22);
        },
        &["the model's weights: expected at most 2^48 elements, found 3377720239063040"],
    ),
    (
        "another model",
        |c| c.config["model_type"] = json!("llama"),
        &["model_type: expected `ratplus`, found `llama` in config.json"],
    ),
    (
        "a base of zero",
        |c| c.config["rope_base"] = json!(0.0),
        &["rope_base: expected a positive number, found 0"],
    ),
    (
        "a negative epsilon",
        |c| c.config["norm_eps"] = json!(-1e-6),
        &["norm_eps: expected a positive number, found -0.000001"],
    ),
    (
        "no patterns",
        |c| c.config["patterns"] = json!([]),
        &["patterns: expected one entry per layer (2), found 0"],
    ),
    (
        "a pattern for three heads",
        |c| {
            c.config["patterns"][1] = json!(vec![json!({"dilation": 1}); 3]);
        },
        &["patterns[1]: expected one pattern or one per head (4), found 3"],
    ),
    (
        "a dilation of zero",
        |c| c.options.dilation = vec![0],
        &["`dilation`: dilation is 0, expected -1 (none) or 1 or more and less than 2^31"],
    ),
    (
        "a dilation beyond 31 bits",
        |c| c.options.dilation = vec![1 << 31],
        &["`dilation`: dilation is 2147483648, expected -1 (none) or 1 or more and less than 2^31"],
    ),
    (
        "a negative window",
        |c| c.options.local_window = vec![-2],
        &["`local_window`: local_window is -2, expected 0 or more and less than 2^31"],
    ),
    (
        "initial tokens beyond 64 bits",
        |c| c.options.initial = vec![i64::MAX],
        &["`initial`: initial is 9223372036854775807, expected 0 or more and less than 2^31"],
    ),
    (
        "flags for three layers",
        |c| c.options.dilation = vec![1, 2, 3],
        &["`dilation`: expected one value or one per layer (2), found 3"],
    ),
    (
        "everything at once",
        |c| {
            c.tensors.remove(LN);
            set(c, HEAD, "BOOL", &[1]);
            set(c, "surprise", "F32", &[]);
        },
        &[
            "`backbone.ln.weight`: expected [64], found nothing",
            "`head.lm_head.weight`: expected [97, 64], found [1]",
            "`head.lm_head.weight`: expected f32, f16, bf16 or f64, found bool",
            "`surprise`: expected no such tensor, found f32 []",
        ],
    ),
];

fn set(case: &mut Case, name: &str, dtype: &'static str, shape: &[usize]) {
    case.tensors.insert(name.into(), (dtype, shape.to_vec()));
}

#[test]
fn mismatches_are_told_whole() {
    for &(name, change, expected) in FIXTURES {
        let mut case = Case {
            tensors: tensors(2, 64),
            config: config(),
            options: ResolveOptions::default(),
        };
        change(&mut case);
        let found = lines(with_config(&case.tensors, &case.config, case.options));
        assert_eq!(found, expected, "{name}");
    }
    println!(
        "mismatches of configuration and checkpoint: {}",
        FIXTURES.len()
    );
    assert!(FIXTURES.len() >= 25);
}

#[test]
fn what_nothing_says_is_asked_for() {
    let model = checkpoint("model.safetensors", &tensors(2, 64));
    let error = resolve(&model, &ResolveOptions::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "model.safetensors: the weights alone do not say everything:\
         \n  d_head: 2 layers of width 64 are no released size; give `d_head` or `config_file`\
         \n  pattern: neither the checkpoint nor its path names one; give `dilation` (with `local_window` and `initial`), \
         or `config_file`"
    );
}
