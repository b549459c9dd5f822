//! The part of ONNX Runtime's C interface that this crate uses.
//!
//! Only entries of API 17 are used. An older runtime's table is shorter than this build's, so the
//! table is never copied or borrowed as a whole.

use super::device::DeviceMemory;
use super::dylib;
use super::memory::{Buffer, Memory};
use libloading::os::unix::Library;
use memmap2::Mmap;
use ort_sys::{
    ONNXTensorElementDataType, OrtAllocatorType, OrtApi, OrtApiBase, OrtEnv, OrtLoggingLevel,
    OrtMemType, OrtMemoryInfo, OrtStatusPtr, OrtValue,
};
use ratplus_graphs::ops::{ElementType, TensorType};
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::Arc;

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {message}")]
pub(crate) struct OrtError {
    /// Function of the C interface.
    pub call: &'static str,
    /// The runtime's words.
    pub message: String,
}

impl OrtError {
    pub(super) fn new(call: &'static str, message: impl Into<String>) -> Self {
        Self {
            call,
            message: message.into(),
        }
    }
}

/// Whether what is for a GPU runs on the CPU, in the emulator: for tests only.
pub(crate) const EMULATED: bool = cfg!(feature = "cuda-emulation");

/// The API that is asked for; every later release offers it too.
const API: u32 = 17;

/// A loaded runtime and its environment; lives as long as the process.
pub(crate) struct Api {
    pub(super) table: *const OrtApi,
    minor: u32,
    pub(super) env: *mut OrtEnv,
}

// SAFETY: the table is constant; the environment is documented as usable from any
// thread.
unsafe impl Send for Api {}
// SAFETY: as above.
unsafe impl Sync for Api {}

/// Calls an entry of the table and turns its status into a `Result`.
macro_rules! call {
    ($api:expr, $name:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: the entry exists in every supported table (API 17); pointers are live objects of
        // this API, owned by the wrappers below.
        unsafe {
            let entry = (&raw const (*$api.table).$name).read();
            $api.check(stringify!($name), entry($($arg),*))
        }
    };
}

/// Calls an entry that returns nothing.
macro_rules! release {
    ($api:expr, $name:ident($arg:expr)) => {
        // SAFETY: the entry exists in every supported table; the object is owned and released once.
        unsafe {
            let entry = (&raw const (*$api.table).$name).read();
            entry($arg)
        }
    };
}

pub(super) fn c_string(call: &'static str, bytes: &[u8]) -> Result<CString, OrtError> {
    CString::new(bytes).map_err(|_| OrtError::new(call, "a name holds a NUL byte"))
}

impl Api {
    /// Version of the runtime in `library`, and the file it was loaded from.
    pub fn version_of(library: &Library) -> Result<(String, Option<PathBuf>), OrtError> {
        let base = Self::base(library)?;
        // SAFETY: `base` is the library's constant table of two functions.
        let version = unsafe { CStr::from_ptr(((*base).GetVersionString)()) };
        let file = dylib::file_of(base.cast());
        Ok((version.to_string_lossy().into_owned(), file))
    }

    fn base(library: &Library) -> Result<*const OrtApiBase, OrtError> {
        type Entry = unsafe extern "system" fn() -> *const OrtApiBase;
        // SAFETY: `OrtGetApiBase` has had this signature in every release.
        let base = match unsafe { library.get::<Entry>("OrtGetApiBase") } {
            // SAFETY: as above.
            Ok(entry) => unsafe { entry() },
            Err(_) => {
                let message = "the library does not export it";
                return Err(OrtError::new("OrtGetApiBase", message));
            }
        };
        if base.is_null() {
            return Err(OrtError::new("OrtGetApiBase", "returned null"));
        }
        Ok(base)
    }

    /// Sets up the runtime in `library`, release 1.`minor`.
    pub fn new(library: &Library, minor: u32) -> Result<Self, OrtError> {
        let base = Self::base(library)?;
        // SAFETY: `base` is the library's constant table.
        let table = unsafe { ((*base).GetApi)(API) };
        if table.is_null() {
            let message = format!("the runtime does not offer API {API}");
            return Err(OrtError::new("GetApi", message));
        }
        let api = Self {
            table,
            minor,
            env: null_mut(),
        };
        // Failures arrive as statuses; nothing is logged to standard error as well.
        let level = OrtLoggingLevel::ORT_LOGGING_LEVEL_FATAL;
        let mut env = null_mut();
        call!(api, CreateEnv(level, c"ratplus".as_ptr(), &mut env))?;
        Ok(Self { env, ..api })
    }

    pub(super) fn check(&self, call: &'static str, status: OrtStatusPtr) -> Result<(), OrtError> {
        if status.0.is_null() {
            return Ok(());
        }
        // SAFETY: the status is live until it is released right here.
        let message = unsafe {
            let entry = (&raw const (*self.table).GetErrorMessage).read();
            CStr::from_ptr(entry(status.0))
                .to_string_lossy()
                .into_owned()
        };
        release!(self, ReleaseStatus(status.0));
        Err(OrtError::new(call, message))
    }

    /// Whether a model in memory may have external data. Release 1.20 has the option too, but
    /// its constant folding looks into the current folder.
    pub fn memory_models_have_external_data(&self) -> bool {
        self.minor >= 21
    }

    /// Execution providers the loaded library was built with.
    pub fn providers(&self) -> Result<Vec<String>, OrtError> {
        let (mut list, mut count) = (null_mut::<*mut c_char>(), 0);
        call!(self, GetAvailableProviders(&mut list, &mut count))?;
        // SAFETY: `list` holds `count` C strings until it is released.
        let names = unsafe {
            std::slice::from_raw_parts(list, usize::try_from(count).unwrap_or(0))
                .iter()
                .map(|&name| CStr::from_ptr(name).to_string_lossy().into_owned())
                .collect()
        };
        call!(self, ReleaseAvailableProviders(list, count))?;
        Ok(names)
    }
}

/// A tensor over memory that it keeps alive.
pub(crate) struct Value {
    api: &'static Api,
    pub(super) value: *mut OrtValue,
    pub(super) buffers: Option<Arc<[Buffer]>>,
    _kept: Option<Constant>,
}

/// Constant memory that a value keeps alive.
enum Constant {
    /// Of a file.
    Map { _map: Arc<Mmap> },
    /// Of a GPU.
    Device { _memory: Arc<DeviceMemory> },
}

// SAFETY: the value is owned and its memory is kept alive by the `Arc`s.
unsafe impl Send for Value {}
// SAFETY: `&Value` only allows passing the pointer to the runtime, which reads it.
unsafe impl Sync for Value {}

fn element(dtype: ElementType) -> ONNXTensorElementDataType {
    match dtype {
        ElementType::F32 => ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        ElementType::F16 => ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        ElementType::BF16 => ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        ElementType::I64 => ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        ElementType::U8 => ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
    }
}

impl Value {
    /// A tensor at byte `offset` of buffer `index`.
    pub fn of_buffer(
        api: &'static Api,
        memory: &Memory,
        index: usize,
        offset: usize,
        tensor: &TensorType,
    ) -> Result<Self, OrtError> {
        let buffer = &memory.shared()[index];
        check_bounds(offset, tensor, buffer.bytes())?;
        let info = MemoryInfo::new(api, memory.device())?;
        let address = buffer.address().wrapping_add(offset);
        let mut value = Self::over(api, &info, address, tensor)?;
        value.buffers = Some(memory.shared().clone());
        Ok(value)
    }

    /// A constant tensor at `offset` of a memory map.
    pub fn of_map(
        api: &'static Api,
        map: &Arc<Mmap>,
        offset: usize,
        tensor: &TensorType,
    ) -> Result<Self, OrtError> {
        check_bounds(offset, tensor, map.len())?;
        // The runtime only reads initializers; the map is read-only and would fault otherwise.
        let address = map.as_ptr().cast_mut().wrapping_add(offset);
        let mut value = Self::over(api, &MemoryInfo::new(api, None)?, address, tensor)?;
        value._kept = Some(Constant::Map { _map: map.clone() });
        Ok(value)
    }

    /// A constant tensor at `offset` of memory of GPU number `ordinal`.
    pub fn of_device(
        api: &'static Api,
        memory: &Arc<DeviceMemory>,
        ordinal: i32,
        offset: usize,
        tensor: &TensorType,
    ) -> Result<Self, OrtError> {
        check_bounds(offset, tensor, memory.bytes())?;
        let address = std::ptr::without_provenance_mut(memory.address() as usize + offset);
        let info = MemoryInfo::new(api, Some(ordinal))?;
        let mut value = Self::over(api, &info, address, tensor)?;
        value._kept = Some(Constant::Device {
            _memory: memory.clone(),
        });
        Ok(value)
    }

    fn over(
        api: &'static Api,
        info: &MemoryInfo,
        data: *mut u8,
        tensor: &TensorType,
    ) -> Result<Self, OrtError> {
        let shape: Vec<_> = tensor.shape.iter().map(|&size| size as i64).collect();
        let mut value = null_mut();
        call!(
            api,
            CreateTensorWithDataAsOrtValue(
                info.info,
                data.cast::<c_void>(),
                tensor.bytes(),
                shape.as_ptr(),
                shape.len(),
                element(tensor.dtype),
                &mut value,
            )
        )?;
        Ok(Self {
            api,
            value,
            buffers: None,
            _kept: None,
        })
    }
}

fn check_bounds(offset: usize, tensor: &TensorType, bytes: usize) -> Result<(), OrtError> {
    let end = offset.checked_add(tensor.bytes());
    if end.is_some_and(|end| end <= bytes) {
        return Ok(());
    }
    let message = format!("{tensor} at {offset} does not fit in {bytes} bytes");
    Err(OrtError::new("CreateTensorWithDataAsOrtValue", message))
}

/// A description of where memory is; values copy it.
struct MemoryInfo {
    api: &'static Api,
    info: *mut OrtMemoryInfo,
}

impl MemoryInfo {
    /// The host's, or that of the GPU with this number.
    fn new(api: &'static Api, device: Option<i32>) -> Result<Self, OrtError> {
        let mut info = null_mut();
        let (kind, memory) = (
            OrtAllocatorType::OrtDeviceAllocator,
            OrtMemType::OrtMemTypeDefault,
        );
        match device {
            Some(ordinal) if !EMULATED => call!(
                api,
                CreateMemoryInfo(c"Cuda".as_ptr(), kind, ordinal, memory, &mut info)
            )?,
            _ => call!(api, CreateCpuMemoryInfo(kind, memory, &mut info))?,
        }
        Ok(Self { api, info })
    }
}

impl Drop for MemoryInfo {
    fn drop(&mut self) {
        release!(self.api, ReleaseMemoryInfo(self.info));
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        release!(self.api, ReleaseValue(self.value));
    }
}
