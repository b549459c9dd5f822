//! Every `unsafe` block of this crate: dynamic libraries, what `ort` lacks of ONNX Runtime, memory
//! that both sides see, memory maps. What leaves this module is safe to use.

mod description;
#[cfg_attr(not(feature = "cuda"), path = "without_cuda.rs")]
mod device;
mod dylib;
mod environment;
mod kernel_watch;
mod memory;
mod session;
#[cfg(feature = "tensorrt")]
mod tensorrt;
mod value;

pub(crate) use description::describe;
pub(crate) use device::{CudaError, Device, OwnedStream, Stream};
pub(crate) use dylib::open as open_library;
pub(crate) use environment::{environment, providers, version_of};
pub(crate) use kernel_watch::{KernelWatch, NodeKernel};
pub(crate) use memory::{Memory, Plain, Visible, map_file};
pub(crate) use session::{Binding, Model, OrtSession};
#[cfg(feature = "tensorrt")]
pub(crate) use tensorrt::{Place, PlanRun, Shared, open_plan};
pub(crate) use value::{EMULATED, Value, Weights};
