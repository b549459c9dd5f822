//! Runs plans.

use super::network::c_path;
use super::{ContextRequest, Raw, RawInputs, RawModel, RawPlan, Serialized, call, tensors};
use crate::{InputShape, Library, NvinferError, Tensor};
use std::ffi::{CStr, CString, c_char, c_void};
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

    /// Opens a plan on the calling thread's current GPU, and puts weights into it where it says so.
    ///
    /// # Errors
    /// TensorRT's words; every weight that the plan needs and the model has not.
    pub fn open(&self, plan: &PlanSource<'_>) -> Result<Engine, NvinferError> {
        unsafe extern "C" fn copy(
            user: *mut c_void,
            to: *mut c_void,
            from: *const u8,
            size: usize,
            stream: *mut c_void,
        ) -> i32 {
            // SAFETY: `user` is the plan's function below, and the reader asks for parts of the plan.
            let (copy, from) = unsafe {
                let copy = &*user.cast::<&CopyPart<'_>>();
                (copy, std::slice::from_raw_parts(from, size))
            };
            i32::from(!copy(to, from, stream))
        }
        let request = RawPlan {
            data: plan.bytes.as_ptr(),
            size: plan.bytes.len(),
            copy,
            user: (&raw const plan.copy).cast_mut().cast(),
            host_code: plan.host_code.into(),
            cache: plan.cache.as_ptr(),
            cache_size: plan.cache.len(),
        };
        let mut raw = null_mut();
        // SAFETY: the runtime is live; the plan, its function and the pointer for the result are valid
        // for the call.
        let made = call(|text| unsafe {
            let open = self.0.library.table.engine_new;
            open(self.0.raw, &raw const request, &raw mut raw, text)
        });
        made.map_err(|message| self.0.library.failed("opening the plan", &message))?;
        let engine = EngineHandle {
            raw,
            runtime: self.0.clone(),
        };
        if let Some(refit) = &plan.refit {
            engine.refit(refit)?;
        }
        Ok(Engine(Arc::new(engine)))
    }
}

/// Copies a part of a plan to the address, on the host or on the GPU, there in the stream. Whether
/// that was possible.
pub type CopyPart<'a> = dyn Fn(*mut c_void, &[u8], *mut c_void) -> bool + 'a;

/// A plan that is about to be opened.
pub struct PlanSource<'a> {
    /// All of it; it is read once, from front to back.
    pub bytes: &'a [u8],
    /// Gives TensorRT what it reads.
    pub copy: &'a CopyPart<'a>,
    /// Whether code for the host that is in the plan may run: it is version compatible.
    pub host_code: bool,
    /// TensorRT for RTX: what [`Engine::cache`] returned; may be empty, or of another machine.
    pub cache: &'a [u8],
    /// Where the plan is stripped: what it is given before it runs.
    pub refit: Option<Refit<'a>>,
}

/// The model that a stripped plan was built from, whose weights are put into it.
#[derive(Clone, Copy, Debug)]
pub struct Refit<'a> {
    /// The ONNX model without its weights, the same bytes as when the plan was built.
    pub model: &'a [u8],
    /// A file name in the folder that external weights lie in.
    pub path: &'a Path,
}

struct EngineHandle {
    raw: Raw,
    runtime: Arc<RuntimeHandle>,
}

// SAFETY: an engine belongs to no thread: it may be used and freed on any.
unsafe impl Send for EngineHandle {}
// SAFETY: what takes `&self` calls const functions and makes contexts, which several threads may do.
unsafe impl Sync for EngineHandle {}

impl EngineHandle {
    /// Nobody else has the engine yet.
    fn refit(&self, refit: &Refit<'_>) -> Result<(), NvinferError> {
        let library = &self.runtime.library;
        library.can_refit()?;
        let failed = |message: String| library.failed("putting weights into the plan", &message);
        let path = c_path(refit.path).map_err(failed)?;
        let logger = library.loaded.logger().map_err(failed)?;
        let model = RawModel {
            data: refit.model.as_ptr(),
            size: refit.model.len(),
            path: path.as_ptr(),
        };
        // SAFETY: the symbols are the loaded library's, which is of the table's release, and not null; the
        // engine is live and has no contexts; all pointers are valid for the call, the logger for the process.
        let done = call(|text| unsafe {
            (library.table.engine_refit)(
                &raw const library.loaded.symbols,
                logger.raw,
                self.raw,
                &raw const model,
                text,
            )
        });
        done.map_err(failed)
    }
}

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
    /// Every layer in words, as JSON; in detail where the plan was built so.
    ///
    /// # Errors
    /// TensorRT's words.
    pub fn inspect(&self) -> Result<String, NvinferError> {
        unsafe extern "C" fn take(user: *mut c_void, _: i32, text: *const c_char) {
            // SAFETY: `user` is the string below, `text` a C string of TensorRT's.
            let (to, text) = unsafe { (&mut *user.cast::<String>(), CStr::from_ptr(text)) };
            *to = text.to_string_lossy().into_owned();
        }
        let library = &self.0.runtime.library;
        let mut json = String::new();
        // SAFETY: the engine is live, and the string for the call.
        let told = call(|text| unsafe {
            let user = (&raw mut json).cast();
            (library.table.engine_inspect)(self.0.raw, take, user, text)
        });
        told.map_err(|message| library.failed("inspecting the plan", &message))?;
        Ok(json)
    }

    /// Bytes of scratch memory that a run at a profile needs.
    pub fn scratch_bytes(&self, profile: usize) -> usize {
        let ask = self.0.runtime.library.table.engine_scratch;
        // SAFETY: the engine is live.
        let bytes = unsafe { ask(self.0.raw, profile as i32) };
        usize::try_from(bytes).unwrap_or(0)
    }

    /// TensorRT for RTX: what its contexts have compiled so far; empty else.
    ///
    /// # Errors
    /// TensorRT's words.
    pub fn cache(&self) -> Result<Serialized, NvinferError> {
        let library = &self.0.runtime.library;
        let ask = library.table.engine_cache;
        // SAFETY: the engine is live and the bytes valid for the write.
        let cache = Serialized::of(library.table, |bytes, text| unsafe {
            ask(self.0.raw, bytes, text)
        });
        cache.map_err(|message| library.failed("reading the runtime cache", &message))
    }

    /// What one run at a time needs.
    ///
    /// # Safety
    /// The options' stream is a live stream of the GPU that the engine was opened on.
    ///
    /// # Errors
    /// TensorRT's words: usually too little memory.
    pub unsafe fn context(&self, options: &ContextOptions<'_>) -> Result<Context, NvinferError> {
        let inputs = RawInputs::new(options.inputs);
        let request = ContextRequest {
            profile: options.profile as i32,
            graph: options.graph.into(),
            stream: options.stream,
            inputs: inputs.tensors.as_ptr(),
            input_count: inputs.tensors.len() as i32,
        };
        let mut raw = null_mut();
        let library = &self.0.runtime.library;
        let make = library.table.context_new;
        // SAFETY: the engine is live, the request and the pointer valid for the call; the stream is the
        // caller's contract.
        let made = call(|text| unsafe { make(self.0.raw, &raw const request, &raw mut raw, text) });
        made.map_err(|message| library.failed("making an execution context", &message))?;
        Ok(Context {
            raw,
            engine: self.0.clone(),
        })
    }
}

/// How a context is made. It has no scratch memory until [`Context::set_scratch`].
#[derive(Clone, Copy, Debug)]
pub struct ContextOptions<'a> {
    /// Which of the plan's optimization profiles it runs.
    pub profile: usize,
    /// The profile's shapes; inputs that the plan has static do not count.
    pub inputs: &'a [InputShape],
    /// TensorRT for RTX: whether it captures its runs in a CUDA graph.
    pub graph: bool,
    /// What it may copy in while it is made.
    pub stream: *mut c_void,
}

/// Addresses of one run at a time.
pub struct Context {
    raw: Raw,
    engine: Arc<EngineHandle>,
}

// SAFETY: a context may be used by one thread at a time, and what changes it takes `&mut self`.
unsafe impl Send for Context {}
// SAFETY: `&Context` offers nothing.
unsafe impl Sync for Context {}

impl Context {
    /// Inputs and outputs as the context's profile has them.
    pub fn tensors(&self) -> Vec<Tensor> {
        let table = self.engine.runtime.library.table;
        // SAFETY: the context is live.
        let count = unsafe { (table.context_tensor_count)(self.raw) };
        tensors(count, |index, tensor| {
            // SAFETY: the context is live, the index below its count, the tensor valid for the write.
            unsafe { (table.context_tensor)(self.raw, index, tensor) }
        })
    }

    /// Gives it scratch memory.
    ///
    /// # Safety
    /// As [`bind`](Self::bind), of as many `bytes`; several contexts may share it, whose runs do not
    /// overlap.
    pub unsafe fn set_scratch(&mut self, address: u64, bytes: usize) {
        let set = self.engine.runtime.library.table.context_scratch;
        // SAFETY: the context is live; the rest is the caller's contract.
        unsafe { set(self.raw, address as usize as *mut c_void, bytes as i64) };
    }

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
