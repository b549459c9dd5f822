//! What fuzzing starts from: small valid inputs, and inputs that are nearly so. One module a
//! target, each with `seeds` and the `WORDS` of the format.

pub mod config;
pub mod golden;
pub mod index;
pub mod manifest;
pub mod onnx;
pub mod pickle;
pub mod pth;
pub mod request;
pub mod safetensors;
pub mod tokenizer;
pub mod zip;

mod package;

/// JSON values as files.
fn json(values: impl IntoIterator<Item = serde_json::Value>) -> Vec<Vec<u8>> {
    values
        .into_iter()
        .map(|value| value.to_string().into_bytes())
        .collect()
}
