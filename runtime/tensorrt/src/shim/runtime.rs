//! Runs plans.

use super::network::c_path;
use super::{Raw, call, tensors};
use crate::{Library, NvinferError, Tensor};
use std::ffi::{CStr, CString, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::Arc;

struct RuntimeHandle {
    raw: Raw,
    library: Library,
}

// SAFETY: a runtime belongs to no thread: it may be used and freed on any.
unsafe impl Send for RuntimeHandle {}
// SAFETY: TensorRT lets several threads call `deserializeCudaEngine`, the only call that takes `&self`.
unsafe impl Sync for RuntimeHandle {}

impl Drop for RuntimeHandle {
    fn drop(&mut self) {
        // SAFETY: the runtime is freed once, after its engines.
        unsafe { (self.library.table.runtime_free)(self.raw) }
    }
}

/// Turns plans into engines.
#[derive(Clone)]
pub struct Runtime(Arc<RuntimeHandle>);

impl Runtime {
    /// A runtime on the calling thread's current GPU, with a registry of its own that holds the
    /// plugins of `plugins`.
    ///
    /// # Errors
    /// TensorRT's words: usually no GPU, or no driver.
    pub fn new(library: &Library, plugins: Option<&Path>) -> Result<Self, NvinferError> {
        let failed = |message: String| library.failed("creating its runtime", &message);
        let plugins = plugins.map(c_path).transpose().map_err(failed)?;
        let logger = library.loaded.logger().map_err(failed)?;
        let mut raw = null_mut();
        // SAFETY: the symbols are the loaded library's, which is of the table's release; all
        // pointers are valid for the call, and the logger for the process.
        let made = call(|text| unsafe {
            (library.table.runtime_new)(
                &raw const library.loaded.symbols,
                logger.raw,
                plugins.as_ref().map_or(null(), |path| path.as_ptr()),
                &raw mut raw,
                text,
            )
        });
        made.map_err(failed)?;
        Ok(Self(Arc::new(RuntimeHandle {
            raw,
            library: library.clone(),
        })))
    }

    /// Reads the header of a plan of TensorRT for RTX: every reason why it does not run here.
    /// Other plans say that when they are opened.
    ///
    /// # Errors
    /// The plan is not one.
    pub fn unfit(&self, plan: &[u8]) -> Result<Vec<&'static str>, NvinferError> {
        let mut bits = 0u64;
        // SAFETY: the runtime is live, the plan readable, the number valid for the write.
        let checked = call(|text| unsafe {
            (self.0.library.table.runtime_check)(
                self.0.raw,
                plan.as_ptr(),
                plan.len(),
                &raw mut bits,
                text,
            )
        });
        let failed = |message: String| {
            let library = &self.0.library;
            library.failed("reading the plan's header", &message)
        };
        checked.map_err(failed)?;
        const REASONS: [&str; 7] = [
            "it is of another version",
            "it is not for this GPU's compute capability",
            "the CUDA driver is older than the one it was built with",
            "the CUDA runtime is older than the one it was built with",
            "the GPU has too little memory",
            "it is malformed",
            "CUDA failed",
        ];
        let known = REASONS.iter().enumerate();
        let mut reasons: Vec<_> = known
            .filter(|(bit, _)| bits >> bit & 1 == 1)
            .map(|(_, reason)| *reason)
            .collect();
        if bits != 0 && reasons.is_empty() {
            reasons.push("it gives no reason");
        }
        Ok(reasons)
    }

    /// Opens a plan on the calling thread's current GPU.
    ///
    /// # Errors
    /// TensorRT's words.
    pub fn open(&self, plan: &[u8]) -> Result<Engine, NvinferError> {
        let mut raw = null_mut();
        // SAFETY: the runtime is live, the plan readable, the pointer valid for the write.
        let made = call(|text| unsafe {
            (self.0.library.table.engine_new)(
                self.0.raw,
                plan.as_ptr(),
                plan.len(),
                &raw mut raw,
                text,
            )
        });
        made.map_err(|message| self.0.library.failed("opening the plan", &message))?;
        Ok(Engine(Arc::new(EngineHandle {
            raw,
            runtime: self.0.clone(),
        })))
    }
}

struct EngineHandle {
    raw: Raw,
    runtime: Arc<RuntimeHandle>,
}

// SAFETY: an engine belongs to no thread: it may be used and freed on any.
unsafe impl Send for EngineHandle {}
// SAFETY: what takes `&self` calls const functions and makes contexts, which several threads may do.
unsafe impl Sync for EngineHandle {}

impl Drop for EngineHandle {
    fn drop(&mut self) {
        // SAFETY: the engine is freed once, after its contexts.
        unsafe { (self.runtime.library.table.engine_free)(self.raw) }
    }
}

/// A plan that is ready to run.
#[derive(Clone)]
pub struct Engine(Arc<EngineHandle>);

impl Engine {
    /// Inputs and outputs.
    pub fn tensors(&self) -> Vec<Tensor> {
        let table = self.0.runtime.library.table;
        // SAFETY: the engine is live.
        let count = unsafe { (table.engine_tensor_count)(self.0.raw) };
        tensors(count, |index, tensor| {
            // SAFETY: the engine is live, the index below its count, the tensor valid for the write.
            unsafe { (table.engine_tensor)(self.0.raw, index, tensor) }
        })
    }

    /// The input that `output` has to share memory with; `None` where there is none or where
    /// TensorRT, before 11, does not say.
    pub fn alias(&self, output: &str) -> Option<String> {
        let output = CString::new(output).ok()?;
        // SAFETY: the engine is live, the name a C string; what is returned lives with the engine.
        let input = unsafe {
            let name = (self.0.runtime.library.table.engine_alias)(self.0.raw, output.as_ptr());
            if name.is_null() {
                return None;
            }
            CStr::from_ptr(name)
        };
        Some(input.to_string_lossy().into_owned())
    }

    /// What one run at a time needs.
    ///
    /// # Errors
    /// TensorRT's words: usually too little memory.
    pub fn context(&self) -> Result<Context, NvinferError> {
        let mut raw = null_mut();
        let library = &self.0.runtime.library;
        let make = library.table.context_new;
        // SAFETY: the engine is live and the pointer valid for the write.
        let made = call(|text| unsafe { make(self.0.raw, &raw mut raw, text) });
        made.map_err(|message| library.failed("making an execution context", &message))?;
        Ok(Context {
            raw,
            engine: self.0.clone(),
        })
    }
}

/// Addresses and scratch memory of one run at a time.
pub struct Context {
    raw: Raw,
    engine: Arc<EngineHandle>,
}

// SAFETY: a context may be used by one thread at a time, and what changes it takes `&mut self`.
unsafe impl Send for Context {}
// SAFETY: `&Context` offers nothing.
unsafe impl Sync for Context {}

impl Context {
    /// Gives a tensor its memory.
    ///
    /// # Safety
    /// At `address` lies device memory for the whole tensor, aligned to 256 bytes, for as long as
    /// this context, or work that it enqueued, may use it.
    ///
    /// # Errors
    /// TensorRT's words.
    pub unsafe fn bind(&mut self, tensor: &str, address: u64) -> Result<(), NvinferError> {
        let library = &self.engine.runtime.library;
        let failed = |what| library.failed("binding a tensor", &format!("`{tensor}` {what}"));
        let name = CString::new(tensor).map_err(|_| failed("holds a NUL byte"))?;
        let address = address as usize as *mut c_void;
        // SAFETY: the context is live, the name a C string; the address is the caller's contract.
        match unsafe { (library.table.context_bind)(self.raw, name.as_ptr(), address) } {
            0 => Ok(()),
            _ => Err(failed("was refused")),
        }
    }

    /// Enqueues one run: no allocation on this side.
    ///
    /// # Safety
    /// `stream` is a live stream of the GPU that the engine was opened on, whose context is
    /// current; every tensor is bound, and nobody else touches its memory until the stream has
    /// done the run.
    ///
    /// # Errors
    /// TensorRT's words.
    pub unsafe fn enqueue(&mut self, stream: *mut c_void) -> Result<(), NvinferError> {
        let library = &self.engine.runtime.library;
        // SAFETY: the context is live; the rest is the caller's contract.
        match unsafe { (library.table.context_enqueue)(self.raw, stream) } {
            0 => Ok(()),
            _ => Err(library.failed("enqueuing a run", "IExecutionContext::enqueueV3 failed")),
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is freed once.
        unsafe { (self.engine.runtime.library.table.context_free)(self.raw) }
    }
}
