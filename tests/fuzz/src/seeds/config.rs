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
    super::json([
        with(16, json!([uniform, heads])),
        with(16, json!([uniform, uniform])),
        with(32, json!([heads])),
        with(1 << 24, json!([uniform, uniform])),
    ])
}
