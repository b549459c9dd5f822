//! Configurations, and the checkpoint they are for.

use ratplus_exporter::checkpoint::testing::f32_safetensors;
use serde_json::json;
use std::sync::LazyLock;

pub const WORDS: &[&[u8]] = &[
    b"\"patterns\":[",
    b"{\"dilation\":8,\"local_window\":8,\"initial\":4}",
    b"{\"dilation\":-1}",
    b"\"dilation\":",
    b"\"local_window\":",
    b"\"initial\":",
    b"\"d_model\":16",
    b"\"d_head\":8",
    b"\"num_layers\":",
    b"\"recurrence\":false",
    b"\"rope_base\":",
    b"\"norm_eps\":1e-300",
    b"16777216",
    b"2147483647",
    b"-1",
    b"1e309",
    b"\"activation\":\"fastgelu\"",
    b"\"tie_embedding\":true",
    b"\"rope\":false",
    b"\"hidden_size\":16",
    b"\"model\":{\"backbone\":{",
    b"\"seq_cell\":{",
    b"\"hidden_cell\":{\"act_fn\":",
    b"\"embedding\":{\"pe\":{\"_name_\":\"empty\"}}",
    b"\"dilation_size\":[",
    b"\"chunk_size1\":",
    b"model:\n  backbone:\n    ",
    b"&a [*a]",
    b"${x}",
];

/// A model of two layers, 16 wide.
pub static CHECKPOINT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let d = 16;
    let mut tensors = vec![
        ("embedding.wte.weight".to_owned(), vec![7, d]),
        ("backbone.ln.weight".to_owned(), vec![d]),
        ("head.lm_head.weight".to_owned(), vec![7, d]),
    ];
    for layer in 0..2 {
        let at = |name: &str| format!("backbone.layers.{layer}.{name}.weight");
        tensors.extend([
            (at("seq_layer.input_norm"), vec![d]),
            (at("seq_layer.in_proj"), vec![5 * d, d]),
            (at("seq_layer.out_proj"), vec![d, d]),
            (at("hidden_layer.ln"), vec![d]),
            (at("hidden_layer.fc1"), vec![2 * d, d]),
            (at("hidden_layer.fc2"), vec![d, 2 * d]),
        ]);
    }
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, shape)| (name.as_str(), shape.as_slice()))
        .collect();
    f32_safetensors(&tensors)
});

pub fn seeds() -> Vec<Vec<u8>> {
    let uniform = json!({"dilation": 8, "local_window": 8, "initial": 4});
    let heads = json!([{"dilation": -1, "local_window": 3}, {"dilation": 1}]);
    let with = |d_model: u64, patterns: serde_json::Value| {
        json!({
            "model_type": "ratplus", "vocab_size": 7, "d_model": d_model, "num_layers": 2,
            "d_head": 8, "d_ffn": 32, "rope_base": 10000.0, "norm_eps": 1e-6, "recurrence": true,
            "patterns": patterns,
        })
    };
    let cell = json!({
        "_name_": "ratplus", "d_head": 8, "num_head": 2, "k_channel": 8, "dilation_size": [1, 4], "local_size": 3,
        "initial_size": 2, "apply_re": true, "joint_train": false, "ln": "rmsnorm", "bias": false,
    });
    let run = json!({
        "data": {"seq_len": 64, "vocab_size": 7}, "task": {"_name_": "lm", "tie_embedding": false},
        "model": {
            "backbone": {
                "_name_": "sequence", "num_layers": 2, "d_model": 16, "seq_cell": cell,
                "hidden_cell": {"_name_": "ffn", "d_ffn": 32, "act_fn": "silu"},
            },
            "embedding": {"vocab_size": 7, "seq_len": 64, "pe": {"_name_": "rope", "dim": 8, "base": 10000}},
            "head": {"_name_": "lm"},
        },
    });
    let library = json!({
        "model_type": "ratplus", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "hidden_act": "relu2", "tie_word_embeddings": true, "patterns": [uniform, uniform],
    });
    let mut seeds = super::json([
        with(16, json!([uniform, heads])),
        with(16, json!([uniform, uniform])),
        with(32, json!([heads])),
        with(1 << 24, json!([uniform, uniform])),
        run,
        library,
        json!({"tie_embedding": true, "activation": "relu", "rope": false}),
    ]);
    let yaml = "model:\n  backbone:\n    seq_cell: {d_head: 8, chunk_size1: -1, local_size: 3, prefix_size: 64}\n  \
                embedding:\n    seq_len: 64\n    pe: {_name_: empty}\n";
    seeds.push(yaml.into());
    seeds
}
