//! What RAT+ deployment agrees on, defined once.
//!
//! - [`pattern`]: which keys a query sees.
//! - [`cache`]: closed-form arithmetic between token positions and rows of the compact KV cache.
//! - [`spec`]: the model's sizes and patterns, as in `config.json`.
//! - [`precision`]: how weights are stored: in the package's type, as block-wise integers, in f32.
//! - [`ops`]: the operators of domain [`ops::DOMAIN`]: ports, attributes, inference, and each in
//!   standard ONNX operators.
//! - [`onnx`]: the ONNX messages this project reads and writes.
//! - [`model`]: the chunk graph of a whole model for any static sequence length.
//! - [`cost`]: cache bytes and FLOPs a token, against dense attention.
//! - [`package`]: engines, targets, files, and `manifest.json`, where the exporter and the runtime meet.
//! - [`staging`]: folders beside a package while it is written.
//! - [`tolerance`]: what counts as equal.
//!
//! Every other crate is generated from this one or tested against it.

pub mod cache;
pub mod cost;
mod limits;
pub mod model;
pub mod onnx;
pub mod ops;
pub mod package;
pub mod pattern;
pub mod precision;
pub mod spec;
pub mod staging;
mod tensor;
pub mod tolerance;

pub use package as manifest;
pub use package::plans;
