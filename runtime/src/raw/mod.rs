//! Every `unsafe` block of this crate: dynamic libraries, the C interface of ONNX Runtime, memory
//! that both sides see, memory maps. What leaves this module is safe to use.

#[macro_use]
mod api;
mod dylib;
mod memory;
mod session;

pub(crate) use api::{Api, OrtError, Value};
pub(crate) use dylib::Dylib;
pub(crate) use memory::{Memory, map_file};
pub(crate) use session::{Binding, Builder, OrtSession, Prepacked};
