//! Model repositories of Triton Inference Server for packages.
//!
//! [`Repository::write`] adds the models of a package: those of the backend `ratplus` ([`ratplus`]), which batches
//! and generates by itself, or one of Triton's own backends for ONNX Runtime or TensorRT ([`stock`]), which runs one
//! graph and keeps a sequence's states, while the client picks tokens.

mod files;
pub mod ratplus;
pub mod stock;
mod text;

pub use files::{Model, Repository, RepositoryError};
