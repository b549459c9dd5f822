//! ONNX Runtime custom-op library of the operators of [`ratplus_graphs::ops::DOMAIN`] for the CPU
//! provider and the CUDA provider, in f32, f16 and bf16.
//!
//! One binary serves ONNX Runtime 1.17 and later, with CUDA from 1.18 on. It links no runtime:
//! every function comes from the table that [`RegisterCustomOps`] is given. Nor does it link
//! CUDA: the driver is loaded where the CUDA provider makes a node. From 1.18 on, the operators
//! tell ORT's memory planner that the new cache and state may take the place of the old. A caller
//! that binds one buffer to `past_*` and `present_*` gets an update in place in every version.
//!
//! A slot whose lengths do not fit is idle in every node, and the others run; no run fails of it. On
//! a CPU its rows are NaN, as they are in the function bodies; [`RatplusTakeDeviceError`] tells which
//! node and slot it was.
//!
//! The CUDA provider captures a graph by running the model more than once: where states are updated
//! in place, every slot has to be idle (`seq_length` 0) in the first run on each thread.
//!
//! Load it with `SessionOptions.register_custom_ops_library(path)` in Python,
//! `SessionOptions::RegisterCustomOpsLibrary` in C++.

#![allow(unsafe_code)]
#![cfg_attr(
    not(feature = "cuda"),
    allow(dead_code, reason = "what only the CUDA provider needs of ORT")
)]

mod api;
mod attributes;
mod compute;
mod descriptor;
mod elsewhere;
#[cfg(feature = "fault-injection")]
mod fault;
mod guard;
mod infer;
mod kernel;
mod parallel;
mod plan;
mod registry;
mod told;
mod version;
mod watch;

use ort_sys::{OrtApiBase, OrtSessionOptions, OrtStatusPtr};
use ratplus_graphs::ops::Op;
use std::ffi::{c_char, c_void};

/// Adds the operators to `options`; the entry point ORT looks up by name.
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

/// Takes what a node has left: lengths of a slot that do not fit, with the names of node and slot, of
/// any session of the process. To be asked once a run is complete, on a GPU too, as it is when ORT's
/// `Run` returns.
///
/// Returns 0 where there is none. Otherwise returns the length of the message in bytes, writes
/// as much of it to `text` as `capacity` has room for, ends it with a null byte, and forgets the
/// error. May be called at any time and from any thread; loads nothing.
///
/// # Safety
/// `text` points to `capacity` writable bytes; it may be null where `capacity` is 0, which loses
/// the message.
#[unsafe(no_mangle)]
#[allow(non_snake_case)] // As ORT's.
pub unsafe extern "C" fn RatplusTakeDeviceError(text: *mut c_char, capacity: usize) -> usize {
    guard::outcome(|| {
        let message = told::take();
        // SAFETY: the caller's contract.
        Ok(unsafe { ratplus_kernels::write_message(message.as_deref(), text, capacity) })
    })
    .unwrap_or(0)
}

/// Describes the library as a JSON object: operators with their types, providers, levels of ONNX Runtime's API,
/// what its kernels are compiled for, version and build id.
///
/// Returns the length of the text in bytes, writes as much of it to `text` as `capacity` has room for, and
/// ends it with a null byte. May be called at any time and from any thread; loads nothing.
///
/// # Safety
/// `text` points to `capacity` writable bytes; it may be null where `capacity` is 0, to ask for the length.
#[unsafe(no_mangle)]
#[allow(non_snake_case)] // As ORT's.
pub unsafe extern "C" fn RatplusDescribe(text: *mut c_char, capacity: usize) -> usize {
    guard::outcome(|| {
        let description = description();
        // SAFETY: the caller's contract.
        Ok(unsafe { ratplus_kernels::write_message(Some(&description), text, capacity) })
    })
    .unwrap_or(0)
}

fn description() -> String {
    let cuda = descriptor::CUDA_PROVIDERS.map(|name| name.to_string_lossy());
    let mut providers = vec!["CPUExecutionProvider".into()];
    if cfg!(feature = "cuda") {
        providers.extend(cuda);
    }
    let api_levels = [version::OLDEST_API, version::NEWEST_API];
    let host = serde_json::json!({
        "host": "ONNX Runtime",
        "providers": providers,
        "oldest_release": format!("1.{}", version::OLDEST_API),
        "api_levels": api_levels,
    });
    ratplus_kernels::describe("libratplus_ort", env!("CARGO_PKG_VERSION"), &Op::ALL, host)
}

/// Has `watcher` called for every kernel of this library that is made on the calling thread, until
/// this is called again there: with null, nothing is. It gets `context`, and the name of the
/// kernel's node, its operator's and its execution provider's as C strings that live as long as the
/// call. A session makes its kernels on the thread that makes it, and a node that has one is run by
/// nothing else.
///
/// # Safety
/// `watcher` may be called with `context` until this is called again on this thread, and does not
/// unwind.
#[unsafe(no_mangle)]
#[allow(non_snake_case)] // As ORT's.
pub unsafe extern "C" fn RatplusWatchNodes(watcher: Option<watch::Watcher>, context: *mut c_void) {
    watch::watch(watcher, context);
}
