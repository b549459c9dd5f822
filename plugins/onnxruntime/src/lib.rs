//! ONNX Runtime custom-op library of the operators of [`ratplus_graphs::ops::DOMAIN`] for the CPU
//! provider, in f32, f16 and bf16.
//!
//! One binary serves ONNX Runtime 1.17 and later. It links no runtime: every function comes from
//! the table that [`RegisterCustomOps`] is given. From 1.18 on, the operators tell ORT's memory
//! planner that the new cache and state may take the place of the old. A caller that binds one
//! buffer to `past_*` and `present_*` gets an update in place in every version.
//!
//! Load it with `SessionOptions.register_custom_ops_library(path)` in Python,
//! `SessionOptions::RegisterCustomOpsLibrary` in C++.

mod api;
mod compute;
mod descriptor;
#[cfg(feature = "fault-injection")]
mod fault;
mod guard;
mod infer;
mod kernel;
mod parallel;
mod plan;
mod registry;
mod version;

use ort_sys::{OrtApiBase, OrtSessionOptions, OrtStatusPtr};

/// Adds both operators to `options`; the entry point ORT looks up by name.
///
/// Registering with any number of session options is fine and allocates only once per runtime.
/// Registering twice with the same options makes ORT refuse the session: "domain already set".
///
/// # Errors
/// The returned status, which the caller releases: the runtime is older than 1.17, or refuses
/// the operators. Null is success.
///
/// # Safety
/// Both pointers come from one ONNX Runtime, as its `RegisterCustomOpsLibrary` passes them.
#[unsafe(no_mangle)]
#[allow(non_snake_case)] // ORT's name for it.
pub unsafe extern "C" fn RegisterCustomOps(
    options: *mut OrtSessionOptions,
    base: *const OrtApiBase,
) -> OrtStatusPtr {
    // SAFETY: the caller's contract.
    unsafe { registry::register(options, base) }
}
