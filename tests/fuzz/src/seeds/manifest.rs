//! Manifests of small packages.

use super::package::package;
use ratplus_graphs::package::{Fallback, Manifest};
use ratplus_graphs::precision::Quantization;
use serde_json::json;

pub const WORDS: &[&[u8]] = &[
    b"\"plans\":{",
    b"\"tensorrt\":",
    b"\"tensorrt-rtx\":",
    b"\"files\":{",
    b"\"blake3\":\"\"",
    b"\"bytes\":18446744073709551615",
    b"\"cache_dtype\":\"bf16\"",
    b"\"precision\":{",
    b"\"quantization\":{",
    b"\"keep_f32\":{\"layers\":[0],\"head\":true}",
    b"\"fallback\":\"trt-plugins\"",
    b"\"logits\":\"all\"",
    b"\"batch\":65536",
    b"\"max_seq_len\":268435456",
    b"\"d_model\":16777216",
    b"\"dilation\":1",
    b"2147483647",
    b"16777216",
    b"../",
];

pub fn seeds() -> Vec<Vec<u8>> {
    let manifest = package(Fallback::Function, None).manifest;
    let quantization = Quantization {
        bits: 4,
        block_size: 32,
        symmetric: true,
        layout: Default::default(),
        activations: Default::default(),
    };
    let quantized = package(Fallback::None, Some(quantization)).manifest;
    // The largest sizes that a specification may have, in a file of a few hundred bytes.
    let mut wide = json!(manifest);
    wide["model"]["d_model"] = json!(1 << 24);
    wide["model"]["d_head"] = json!(2);
    wide["model"]["patterns"] = json!([{"dilation": 1, "local_window": 0, "initial": 0}]);
    let mut long = wide.clone();
    long["max_seq_len"] = json!(1 << 28);
    long["batch"] = json!(1 << 16);
    long["model"]["d_head"] = json!(1 << 24);
    long["model"]["patterns"] =
        json!([{"dilation": 1, "local_window": 2147483647, "initial": 2147483647}]);
    let mut seeds = vec![
        manifest.to_json(),
        quantized.to_json(),
        json!(manifest).to_string().into_bytes(),
    ];
    for value in [wide, long] {
        let manifest: Manifest = serde_json::from_value(value).expect("a manifest");
        seeds.push(json!(manifest).to_string().into_bytes());
    }
    seeds
}
