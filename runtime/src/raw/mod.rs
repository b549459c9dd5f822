//! Every `unsafe` block of this crate: dynamic libraries, the C interface of ONNX Runtime, memory
//! that both sides see, memory maps. What leaves this module is safe to use.

#[macro_use]
mod api;
mod device_errors;
mod dylib;
mod kernel_watch;
mod memory;
mod session;
mod tensorrt;

pub(crate) use api::{Api, EMULATED, OrtError, Value};
pub(crate) use device_errors::DeviceErrors;
pub(crate) use dylib::open as open_library;
pub(crate) use kernel_watch::{KernelRun, KernelWatch};
pub(crate) use memory::{Memory, Plain, Visible, map_file};
pub(crate) use session::{Binding, Builder, OrtSession, Prepacked};
pub(crate) use tensorrt::{Place, PlanError, PlanRun};
