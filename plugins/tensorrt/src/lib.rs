//! TensorRT plugins of the operators of [`ratplus_graphs::ops::DOMAIN`], in f32, f16 and bf16.
//!
//! One binary serves TensorRT 10.3 and later, 11.x and TensorRT for RTX. It links neither
//! TensorRT nor CUDA. A registry loads it with `IPluginRegistry::loadLibrary` (trtexec:
//! `--dynamicPlugins`), which asks for [`getCreators`] and gives [`setLoggerFinder`] its loggers;
//! a host that merely loads it (`--staticPlugins`, ONNX Runtime's TensorRT provider, Triton) finds
//! the creators registered, where TensorRT was loaded before. It stays loaded once it is.
//!
//! Plugins are `IPluginV3` with the second version of the build capability: `present_*` may share
//! memory with `past_*` and the new state with the old, and do so under the preview feature of
//! aliased plugin I/O. Tensors are linear. A wrong field, type or shape is a return code and one
//! error in the host's log.
//!
//! Lengths are in device memory; a slot whose lengths do not fit counts as idle. The execution
//! that comes after the work fails then, and [`RatplusTakeDeviceError`] tells after the last.

#![allow(unsafe_code)]

mod abi;
#[cfg(target_os = "linux")]
mod exports;
#[cfg(target_os = "linux")]
mod fields;
#[cfg(target_os = "linux")]
mod guard;
#[cfg(target_os = "linux")]
mod host;
#[cfg(target_os = "linux")]
mod node;
mod operator;

#[cfg(target_os = "linux")]
pub use exports::{RatplusDescribe, RatplusTakeDeviceError, getCreators, setLoggerFinder};
