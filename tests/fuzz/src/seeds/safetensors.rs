//! safetensors files.

use ratplus_exporter::checkpoint::testing::{f32_safetensors, safetensors};

pub const WORDS: &[&[u8]] = &[
    b"{\"",
    b"\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}",
    b"\"dtype\":\"",
    b"\"shape\":[",
    b"\"data_offsets\":[",
    b"__metadata__",
    b"BF16",
    b"F16",
    b"F64",
    b"F4",
    b"F8_E4M3",
    b"I64",
    b"BOOL",
    b"18446744073709551615",
    b"4294967296",
    b"[]",
    b",0",
];

pub fn seeds() -> Vec<Vec<u8>> {
    let mixed = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[0,5],"data_offsets":[0,0]},"b":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"c":{"dtype":"F16","shape":[2,1,2],"data_offsets":[8,16]}}  "#;
    vec![
        f32_safetensors(&[("w", &[2, 3])]),
        f32_safetensors(&[("backbone.ln.weight", &[4]), ("x", &[1, 1, 2])]),
        safetensors(mixed, &[0x3c; 16]),
        safetensors(
            r#"{"__metadata__":{"head.lm_head.weight":"embedding.wte.weight"},"w":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}}"#,
            &[0x40; 16],
        ),
        super::config::CHECKPOINT.clone(),
    ]
}
