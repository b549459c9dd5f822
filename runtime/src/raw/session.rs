//! Sessions and what they are bound to.

use super::api::{Api, EMULATED, OrtError, Value, c_string};
use super::memory::{Buffer, Memory};
use ort_sys::{
    OrtCUDAProviderOptionsV2, OrtIoBinding, OrtPrepackedWeightsContainer, OrtSessionOptions,
};
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::Arc;

/// Weights in the layout of the matrix kernels, shared by the sessions that name it.
pub(crate) struct Prepacked {
    api: &'static Api,
    container: *mut OrtPrepackedWeightsContainer,
}

// SAFETY: the runtime guards the container with a lock.
unsafe impl Send for Prepacked {}
// SAFETY: as above.
unsafe impl Sync for Prepacked {}

impl Prepacked {
    pub fn new(api: &'static Api) -> Result<Self, OrtError> {
        let mut container = null_mut();
        call!(api, CreatePrepackedWeightsContainer(&mut container))?;
        Ok(Self { api, container })
    }
}

impl Drop for Prepacked {
    fn drop(&mut self) {
        release!(self.api, ReleasePrepackedWeightsContainer(self.container));
    }
}

/// What a session keeps using after it is built; dropped after it.
#[derive(Default)]
struct Kept {
    values: Vec<Arc<Value>>,
    prepacked: Option<Arc<Prepacked>>,
}

/// Options of a session to be.
pub(crate) struct Builder {
    api: &'static Api,
    options: *mut OrtSessionOptions,
    kept: Kept,
}

impl Builder {
    /// Default options, one run at a time.
    pub fn new(api: &'static Api) -> Result<Self, OrtError> {
        let mut options = null_mut();
        call!(api, CreateSessionOptions(&mut options))?;
        let builder = Self {
            api,
            options,
            kept: Kept::default(),
        };
        call!(api, SetInterOpNumThreads(options, 1))?;
        Ok(builder)
    }

    /// Threads of each operator; 0 is the runtime's choice.
    pub fn threads(self, threads: usize) -> Result<Self, OrtError> {
        let threads = i32::try_from(threads)
            .map_err(|_| OrtError::new("SetIntraOpNumThreads", "too many threads"))?;
        call!(self.api, SetIntraOpNumThreads(self.options, threads))?;
        Ok(self)
    }

    /// Threads sleep while they wait.
    pub fn passive_wait(self) -> Result<Self, OrtError> {
        self.config(c"session.intra_op.allow_spinning", c"0")
    }

    /// Writes a profile to a file whose path starts with `prefix`.
    pub fn profile(self, prefix: &Path) -> Result<Self, OrtError> {
        let prefix = c_string("EnableProfiling", prefix.as_os_str().as_bytes())?;
        call!(self.api, EnableProfiling(self.options, prefix.as_ptr()))?;
        Ok(self)
    }

    /// Runs every node on GPU number `ordinal`: what that cannot run is an error, not the CPU's.
    /// With `graph`, a run is recorded and replayed from then on; until then, and in the first
    /// run of every other thread, the model runs more than once.
    pub fn cuda(self, ordinal: i32, graph: bool) -> Result<Self, OrtError> {
        if EMULATED {
            return Ok(self);
        }
        let api = self.api;
        let options = CudaOptions::new(api)?;
        let pairs = cuda_options(ordinal, graph);
        let keys = pairs.each_ref().map(|(key, _)| key.as_ptr());
        let values = pairs.each_ref().map(|(_, value)| value.as_ptr());
        let (keys, values, count) = (keys.as_ptr(), values.as_ptr(), pairs.len());
        call!(
            api,
            UpdateCUDAProviderOptions(options.options, keys, values, count)
        )?;
        call!(
            api,
            SessionOptionsAppendExecutionProvider_CUDA_V2(self.options, options.options)
        )?;
        self.config(c"session.disable_cpu_ep_fallback", c"1")?
            .config(c"session.use_device_allocator_for_initializers", c"1")
    }

    fn config(self, key: &CStr, value: &CStr) -> Result<Self, OrtError> {
        call!(
            self.api,
            AddSessionConfigEntry(self.options, key.as_ptr(), value.as_ptr())
        )?;
        Ok(self)
    }

    /// Loads a custom-op library and lets it register its operators.
    pub fn register(self, library: &Path) -> Result<Self, OrtError> {
        let call = "RegisterCustomOpsLibrary_V2";
        let path = c_string(call, library.as_os_str().as_bytes())?;
        call!(
            self.api,
            RegisterCustomOpsLibrary_V2(self.options, path.as_ptr())
        )?;
        Ok(self)
    }

    /// Uses `value` for the initializer `name` without copying it.
    pub fn initializer(mut self, name: &str, value: Arc<Value>) -> Result<Self, OrtError> {
        let text = c_string("AddInitializer", name.as_bytes())?;
        call!(
            self.api,
            AddInitializer(self.options, text.as_ptr(), value.value)
        )?;
        self.kept.values.push(value);
        Ok(self)
    }

    /// Reads external data of a model in memory from files in `folder`.
    pub fn external_data_folder(self, folder: &Path) -> Result<Self, OrtError> {
        let key = c"session.model_external_initializers_file_folder_path";
        let folder = c_string("AddSessionConfigEntry", folder.as_os_str().as_bytes())?;
        self.config(key, &folder)
    }

    /// Shares packed weights with other sessions.
    pub fn prepacked(mut self, prepacked: Arc<Prepacked>) -> Self {
        self.kept.prepacked = Some(prepacked);
        self
    }

    /// Builds the session from a model in memory.
    pub fn build(mut self, model: &[u8]) -> Result<OrtSession, OrtError> {
        let (api, mut session) = (self.api, null_mut());
        let (data, bytes) = (model.as_ptr().cast(), model.len());
        match &self.kept.prepacked {
            None => call!(
                api,
                CreateSessionFromArray(api.env, data, bytes, self.options, &mut session)
            )?,
            Some(prepacked) => call!(
                api,
                CreateSessionFromArrayWithPrepackedWeightsContainer(
                    api.env,
                    data,
                    bytes,
                    self.options,
                    prepacked.container,
                    &mut session,
                )
            )?,
        }
        Ok(OrtSession {
            api,
            session,
            _kept: std::mem::take(&mut self.kept),
        })
    }

    /// Builds the session from a file; its external data is read beside it.
    pub fn build_from_file(mut self, path: &Path) -> Result<OrtSession, OrtError> {
        let (api, mut session) = (self.api, null_mut());
        let path = c_string("CreateSession", path.as_os_str().as_bytes())?;
        match &self.kept.prepacked {
            None => call!(
                api,
                CreateSession(api.env, path.as_ptr(), self.options, &mut session)
            )?,
            Some(prepacked) => call!(
                api,
                CreateSessionWithPrepackedWeightsContainer(
                    api.env,
                    path.as_ptr(),
                    self.options,
                    prepacked.container,
                    &mut session,
                )
            )?,
        }
        Ok(OrtSession {
            api,
            session,
            _kept: std::mem::take(&mut self.kept),
        })
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        release!(self.api, ReleaseSessionOptions(self.options));
    }
}

/// Options of the CUDA provider.
struct CudaOptions {
    api: &'static Api,
    options: *mut OrtCUDAProviderOptionsV2,
}

impl CudaOptions {
    fn new(api: &'static Api) -> Result<Self, OrtError> {
        let mut options = null_mut();
        call!(api, CreateCUDAProviderOptions(&mut options))?;
        Ok(Self { api, options })
    }
}

impl Drop for CudaOptions {
    fn drop(&mut self) {
        release!(self.api, ReleaseCUDAProviderOptions(self.options));
    }
}

/// The CUDA provider's options by name.
fn cuda_options(ordinal: i32, graph: bool) -> [(&'static CStr, CString); 5] {
    let number = |value: i32| CString::new(value.to_string()).unwrap_or_default();
    [
        (c"device_id", number(ordinal)),
        (c"enable_cuda_graph", number(graph.into())),
        // Products of f32 values keep f32's precision.
        (c"use_tf32", number(0)),
        // The arena grows by what is asked for, not by powers of two.
        (c"arena_extend_strategy", c"kSameAsRequested".to_owned()),
        // Copies wait for the work before them.
        (c"do_copy_in_default_stream", number(1)),
    ]
}

/// A built engine.
pub(crate) struct OrtSession {
    api: &'static Api,
    session: *mut ort_sys::OrtSession,
    // Fields drop after `Drop::drop` has released the session.
    _kept: Kept,
}

// SAFETY: a session may be used from any thread.
unsafe impl Send for OrtSession {}
// SAFETY: runs of one session may overlap.
unsafe impl Sync for OrtSession {}

impl OrtSession {
    /// Runs with everything bound by `binding`, whose buffers are `memory`'s.
    pub fn run(&self, binding: &Binding, memory: &mut Memory) -> Result<(), OrtError> {
        let bound = binding.buffers.as_ref();
        if binding.session != self.session
            || bound.is_none_or(|buffers| !Arc::ptr_eq(buffers, memory.shared()))
        {
            let message = "the binding belongs to another session or other buffers";
            return Err(OrtError::new("RunWithBinding", message));
        }
        call!(
            self.api,
            RunWithBinding(self.session, null(), binding.binding)
        )
    }

    /// Stops profiling: the file holds the profile then.
    pub fn end_profiling(&self) -> Result<(), OrtError> {
        let (mut allocator, mut name) = (null_mut(), null_mut());
        call!(self.api, GetAllocatorWithDefaultOptions(&mut allocator))?;
        call!(
            self.api,
            SessionEndProfiling(self.session, allocator, &mut name)
        )?;
        match name.is_null() {
            true => Err(OrtError::new("SessionEndProfiling", "no file name")),
            false => call!(self.api, AllocatorFree(allocator, name.cast())),
        }
    }
}

impl Drop for OrtSession {
    fn drop(&mut self) {
        release!(self.api, ReleaseSession(self.session));
    }
}

/// Buffers for every input and output of a session, bound once.
pub(crate) struct Binding {
    api: &'static Api,
    binding: *mut OrtIoBinding,
    session: *mut ort_sys::OrtSession,
    buffers: Option<Arc<[Buffer]>>,
    values: Vec<Arc<Value>>,
}

// SAFETY: a binding is used by one run at a time, through `&mut Memory`.
unsafe impl Send for Binding {}
// SAFETY: as above.
unsafe impl Sync for Binding {}

impl Binding {
    /// An empty binding for `session`, which has to be the one it is run with.
    pub fn new(session: &OrtSession) -> Result<Self, OrtError> {
        let mut binding = null_mut();
        call!(session.api, CreateIoBinding(session.session, &mut binding))?;
        Ok(Self {
            api: session.api,
            binding,
            session: session.session,
            buffers: None,
            values: Vec::new(),
        })
    }

    fn keep(&mut self, value: &Arc<Value>) -> Result<(), OrtError> {
        self.values.push(value.clone());
        match (&self.buffers, &value.buffers) {
            (None, Some(_)) => self.buffers = value.buffers.clone(),
            (Some(bound), Some(buffers)) if Arc::ptr_eq(bound, buffers) => {}
            _ => {
                return Err(OrtError::new(
                    "BindInput",
                    "the value is not in the same buffers",
                ));
            }
        }
        Ok(())
    }

    pub fn input(&mut self, name: &str, value: &Arc<Value>) -> Result<(), OrtError> {
        let text = c_string("BindInput", name.as_bytes())?;
        call!(
            self.api,
            BindInput(self.binding, text.as_ptr(), value.value)
        )?;
        self.keep(value)
    }

    pub fn output(&mut self, name: &str, value: &Arc<Value>) -> Result<(), OrtError> {
        let text = c_string("BindOutput", name.as_bytes())?;
        call!(
            self.api,
            BindOutput(self.binding, text.as_ptr(), value.value)
        )?;
        self.keep(value)
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        release!(self.api, ReleaseIoBinding(self.binding));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_cuda_provider() {
        let texts = |ordinal, graph| {
            cuda_options(ordinal, graph).map(|(key, value)| {
                format!("{}={}", key.to_string_lossy(), value.to_string_lossy())
            })
        };
        assert_eq!(
            texts(3, true),
            [
                "device_id=3",
                "enable_cuda_graph=1",
                "use_tf32=0",
                "arena_extend_strategy=kSameAsRequested",
                "do_copy_in_default_stream=1",
            ]
        );
        assert_eq!(texts(0, false)[1], "enable_cuda_graph=0");
    }
}
