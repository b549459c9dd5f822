//! Backend `ratplus` of Triton Inference Server: packages over [`ratplus_runtime::scheduler`].
//!
//! The server loads `libtriton_ratplus.so` and calls the functions below. Requests are read and checked, wait for
//! their turn, and run in the slots of one scheduler; the scheduler's thread answers them, so that requests of one
//! instance run together. docs/triton.md says what models take and give, `ratplus triton` writes their
//! configurations.
//!
//! - `request`, `response`, `metrics`, `log`: the server's objects.
//! - `config`: what configurations say. `engine`: what runs, shared. `read`: tensors become a request.
//! - `answer`: what sequences say becomes responses.

#![allow(unsafe_code)]

mod answer;
mod config;
#[cfg(test)]
mod double;
mod engine;
mod error;
mod ffi;
mod log;
mod metrics;
mod read;
mod request;
mod response;
#[cfg(test)]
mod tests;
mod text;

use answer::{Answer, Shared};
use config::Config;
use engine::{Engine, Engines};
use error::{Fault, check, entry, guarded};
use ffi::{Code, Status};
use metrics::{Families, Metrics, Number};
use response::Owned;
use serde_json::{Map, Value};
use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::Arc;
use std::{ptr, slice};
use text::string;

/// What all models share.
struct Backend {
    engines: Engines,
    families: Families,
    /// What `--backend-config` says.
    given: Map<String, Value>,
    /// This library's folder.
    folder: PathBuf,
}

/// A model that is loaded.
struct Model {
    decoupled: bool,
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
}

/// What this library has put into an object of the server's; null before.
///
/// # Safety
/// `get` is the server's function for objects such as `object`, whose state is a `T`.
unsafe fn state<O, T>(
    object: *mut O,
    get: unsafe extern "C" fn(*mut O, *mut *mut c_void) -> Status,
) -> Result<*mut T, Fault> {
    let mut state = ptr::null_mut();
    // SAFETY: the caller's contract.
    unsafe { check(get(object, &mut state))? };
    Ok(state.cast())
}

/// Drops it.
///
/// # Safety
/// As for [`state`]; nobody uses it any more.
unsafe fn drop_state<O, T>(
    object: *mut O,
    get: unsafe extern "C" fn(*mut O, *mut *mut c_void) -> Status,
) -> Result<(), Fault> {
    // SAFETY: the caller's contract; it was a box's.
    unsafe {
        let state = state::<O, T>(object, get)?;
        if !state.is_null() {
            drop(Box::from_raw(state));
        }
    }
    Ok(())
}

/// Loads the backend.
///
/// # Safety
/// The server calls it once before all others.
#[unsafe(no_mangle)]
#[allow(non_snake_case)] // Triton's name, as those below.
pub unsafe extern "C" fn TRITONBACKEND_Initialize(backend: *mut ffi::Backend) -> Status {
    entry(|| {
        let (mut major, mut minor, mut kind, mut location) = (0, 0, 0, ptr::null());
        // SAFETY: `backend` is the server's; the location lives with it.
        let folder = unsafe {
            check(ffi::TRITONBACKEND_ApiVersion(&mut major, &mut minor))?;
            check(ffi::TRITONBACKEND_BackendArtifacts(
                backend,
                &mut kind,
                &mut location,
            ))?;
            PathBuf::from(string(location))
        };
        if major != ffi::API.0 || minor < ffi::API.1 {
            return Err(Fault::invalid(format!(
                "expected Triton's backend API {}.{} or newer, found {major}.{minor}; use Triton 24.10 or newer",
                ffi::API.0,
                ffi::API.1
            )));
        }
        log::install();
        let state = Box::new(Backend {
            engines: Engines::default(),
            families: Families::new(),
            // SAFETY: as above.
            given: unsafe { config::command_line(backend)? },
            folder,
        });
        // SAFETY: the server keeps it until `TRITONBACKEND_Finalize`.
        unsafe {
            check(ffi::TRITONBACKEND_BackendSetState(
                backend,
                Box::into_raw(state).cast(),
            ))
        }
    })
}

/// Ends the backend.
///
/// # Safety
/// The server calls it once, when no model is left.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn TRITONBACKEND_Finalize(backend: *mut ffi::Backend) -> Status {
    // SAFETY: set by `TRITONBACKEND_Initialize`, and nobody uses it any more.
    entry(|| unsafe { drop_state::<_, Backend>(backend, ffi::TRITONBACKEND_BackendState) })
}

/// Loads a model.
///
/// # Safety
/// The server calls it once for each.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInitialize(model: *mut ffi::Model) -> Status {
    entry(|| {
        let (mut backend, mut name, mut version) = (ptr::null_mut(), ptr::null(), 0);
        // SAFETY: `model` is the server's, the name lives with it, and its backend's state was set by
        // `TRITONBACKEND_Initialize` and lives longer.
        let (backend, name) = unsafe {
            check(ffi::TRITONBACKEND_ModelBackend(model, &mut backend))?;
            check(ffi::TRITONBACKEND_ModelName(model, &mut name))?;
            check(ffi::TRITONBACKEND_ModelVersion(model, &mut version))?;
            let state = state::<_, Backend>(backend, ffi::TRITONBACKEND_BackendState)?;
            (&*state, string(name))
        };
        // SAFETY: as above.
        let config = unsafe { Config::of(model, version, &backend.given, &backend.folder)? };
        let engine = backend.engines.open(&config)?;
        let metrics = Metrics::new(&backend.families, &name, version)?;
        metrics.set(Number::Slots, engine.model.slots() as f64);
        let state = Box::new(Model {
            decoupled: config.decoupled,
            engine,
            metrics: Arc::new(metrics),
        });
        // SAFETY: the server keeps it until `TRITONBACKEND_ModelFinalize`.
        unsafe {
            check(ffi::TRITONBACKEND_ModelSetState(
                model,
                Box::into_raw(state).cast(),
            ))
        }
    })
}

/// Unloads a model; the last one over a package ends what runs it.
///
/// # Safety
/// The server calls it once, on a thread of its own, when no request is left.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn TRITONBACKEND_ModelFinalize(model: *mut ffi::Model) -> Status {
    // SAFETY: set by `TRITONBACKEND_ModelInitialize`, and nobody uses it any more.
    entry(|| unsafe { drop_state::<_, Model>(model, ffi::TRITONBACKEND_ModelState) })
}

/// Takes requests; they are answered from the scheduler's thread. Waits while the slots and the scheduler's queue are
/// full, so that the server's own queue fills, and its policy holds.
///
/// # Safety
/// The server calls it with an instance of a model that is loaded and requests for it.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInstanceExecute(
    instance: *mut ffi::Instance,
    requests: *mut *mut ffi::Request,
    count: u32,
) -> Status {
    let prepared = guarded(|| {
        let mut model = ptr::null_mut();
        // SAFETY: the instance is the server's, and its model's state was set by `TRITONBACKEND_ModelInitialize`; it
        // lives until all requests are answered.
        unsafe {
            check(ffi::TRITONBACKEND_ModelInstanceModel(instance, &mut model))?;
            let state = state::<_, Model>(model, ffi::TRITONBACKEND_ModelState)?;
            state
                .as_ref()
                .ok_or_else(|| Fault::internal("the model is not loaded"))
        }
    });
    match prepared {
        // SAFETY: so many of the server's, which are this library's from here on.
        Ok(model) => unsafe { take(instance, requests, count, |owned| accept(model, owned)) },
        // The requests stay the server's, which answers them with the error.
        Err(fault) => return fault.status(),
    }
    ptr::null_mut()
}

/// Takes requests and gives each to `accept`, whose panic ends that request alone: it is answered as it is dropped.
///
/// # Safety
/// `requests` are `count` of the server's, the caller's to give, for `instance`, which outlives them.
unsafe fn take(
    instance: *mut ffi::Instance,
    requests: *mut *mut ffi::Request,
    count: u32,
    accept: impl Fn(Owned),
) {
    // What cannot be told to the log has nowhere to go.
    let _ = guarded(|| {
        // SAFETY: the caller's contract.
        let requests = unsafe { slice::from_raw_parts(requests, count as usize) };
        // All are taken before the first waits for its turn: their times begin here.
        let taken: Vec<_> = requests
            .iter()
            // SAFETY: as above.
            .map(|&request| unsafe { Owned::take(instance, request) })
            .collect();
        for owned in taken {
            let queued = guarded(|| {
                accept(owned);
                Ok(())
            });
            if let Err(fault) = queued {
                tracing::error!(%fault, "a request was not queued");
            }
        }
        Ok(())
    });
}

/// Queues a request, or answers what is wrong with it.
fn accept(model: &Model, mut owned: Owned) {
    if !owned.is_answerable() {
        return;
    }
    let asked = match guarded(|| read::read(owned.tensors(), &model.engine.model, model.decoupled))
    {
        Ok(asked) => asked,
        Err(fault) => return owned.fail(&fault),
    };
    let Some(turn) = model.engine.turns.wait(|| owned.is_cancelled()) else {
        return owned.fail(&Fault::new(Code::Cancelled, "the request was cancelled"));
    };
    let metrics = model.metrics.clone();
    let answer = Answer::new(
        asked.wanted,
        asked.text,
        asked.scores,
        (owned, turn, metrics),
    );
    let shared = Shared::new(answer);
    let sink = Box::new(shared.clone());
    let queued = guarded(|| {
        let tickets = model.engine.model.submit(vec![(asked.request, sink)]);
        tickets.map_err(|refused| read::refused(&refused.into()))
    });
    match queued {
        Ok(tickets) => tickets.into_iter().for_each(|ticket| shared.keep(ticket)),
        Err(fault) => shared.fail(&fault),
    }
}
