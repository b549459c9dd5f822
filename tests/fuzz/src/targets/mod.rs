//! One module a target, each with `run`.

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

mod checkpoint;
mod scratch;
