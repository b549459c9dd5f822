//! Every `unsafe` block of this crate: dynamic libraries, the C interface of ONNX Runtime, memory
//! that both sides see, memory maps. What leaves this module is safe to use.

#[macro_use]
mod api;
#[cfg_attr(not(feature = "cuda"), path = "without_cuda.rs")]
mod device;
mod device_errors;
mod dylib;
mod kernel_watch;
mod memory;
mod session;
#[cfg(feature = "tensorrt")]
mod tensorrt;

pub(crate) use api::{Api, EMULATED, OrtError, Value};
pub(crate) use device::{CudaError, Device};
pub(crate) use device_errors::DeviceErrors;
pub(crate) use dylib::open as open_library;
pub(crate) use kernel_watch::{KernelRun, KernelWatch};
pub(crate) use memory::{Memory, Plain, Visible, map_file};
pub(crate) use session::{Binding, Builder, OrtSession, Prepacked};
#[cfg(feature = "tensorrt")]
pub(crate) use tensorrt::{Place, PlanError, PlanRun};
