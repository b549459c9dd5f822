//! Indexes of the shards that the target writes.

use serde_json::json;

pub const WORDS: &[&[u8]] = &[
    b"\"weight_map\":{",
    b"\"metadata\":{}",
    b"\"s1.safetensors\"",
    b"\"s2.safetensors\"",
    b"\"model.safetensors.index.json\"",
    b"\"../s1.safetensors\"",
    b"\"a\":",
    b"\"b\":",
    b"\"c\":",
    b"\\u0000",
    b"\\ud800",
];

pub fn seeds() -> Vec<Vec<u8>> {
    let (one, two) = ("s1.safetensors", "s2.safetensors");
    super::json([
        json!({"metadata": {"total_size": 48}, "weight_map": {"a": one, "b": one, "c": two}}),
        json!({"weight_map": {"a": one, "b": one}}),
        json!({"weight_map": {"a": one, "b": two, "c": two, "d": "none.safetensors"}}),
        json!({"weight_map": {"a": "../s1.safetensors"}}),
    ])
}
