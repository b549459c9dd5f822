//! Every `unsafe` block of this crate: the shim's functions, TensorRT's libraries.

mod loaded;
mod network;
mod runtime;

pub(crate) use loaded::Loaded;
pub use network::{Network, NetworkSource};
pub use runtime::{Context, ContextOptions, Engine, PlanSource, Refit, Runtime};

use crate::logger::Messages;
use crate::{ElementKind, Flavour, InputShape, Product, Tensor};
use std::ffi::{CStr, CString, c_char, c_void};
use std::ops::Deref;
use std::ptr::{null, null_mut};

type Log = unsafe extern "C" fn(*mut c_void, i32, *const c_char);
type Raw = *mut c_void;

/// Room for a message.
#[repr(C)]
pub(crate) struct Text {
    data: *mut c_char,
    capacity: usize,
}

/// TensorRT's functions that make everything else.
#[repr(C)]
pub(crate) struct Symbols {
    create_builder: *mut c_void,
    create_runtime: *mut c_void,
    create_parser: *mut c_void,
    create_refitter: *mut c_void,
    create_parser_refitter: *mut c_void,
}

#[repr(C)]
struct RawBytes {
    owner: Raw,
    data: *const u8,
    size: usize,
}

#[repr(C)]
struct RawTensor {
    name: *const c_char,
    dtype: i32,
    is_input: i32,
    rank: i32,
    dims: [i64; 8],
}

#[repr(C)]
struct RawView {
    data: *const u8,
    size: usize,
}

#[repr(C)]
struct NetworkRequest {
    model: *const u8,
    model_size: usize,
    path: *const c_char,
    plugin_library: *const c_char,
    timing_caches: *const RawView,
    timing_cache_count: i32,
    capabilities: *const i32,
    capability_count: i32,
    inputs: *const RawTensor,
    input_count: i32,
    profile_count: i32,
    settings: RawSettings,
}

#[repr(C)]
struct RawSettings {
    workspace_bytes: u64,
    optimization_level: i32,
    version_compatible: i32,
    hardware_compatibility: i32,
    detailed: i32,
    strip_weights: i32,
}

type Copy = unsafe extern "C" fn(*mut c_void, *mut c_void, *const u8, usize, *mut c_void) -> i32;

#[repr(C)]
struct RawPlan {
    data: *const u8,
    size: usize,
    copy: Copy,
    user: *mut c_void,
    host_code: i32,
    cache: *const u8,
    cache_size: usize,
}

#[repr(C)]
struct RawModel {
    data: *const u8,
    size: usize,
    path: *const c_char,
}

#[repr(C)]
struct ContextRequest {
    profile: i32,
    graph: i32,
    stream: *mut c_void,
    inputs: *const RawTensor,
    input_count: i32,
}

/// What the shim for one release can do: shim/nvinfer_api.h, field by field.
#[repr(C)]
pub(crate) struct Table {
    rtx: u32,
    major: u32,
    minor: u32,
    logger_new: unsafe extern "C" fn(Log, *mut c_void) -> Raw,
    /// Never called: TensorRT keeps the logger.
    _logger_free: unsafe extern "C" fn(Raw),
    network_new:
        unsafe extern "C" fn(*const Symbols, Raw, *const NetworkRequest, *mut Raw, Text) -> i32,
    network_tensor_count: unsafe extern "C" fn(Raw) -> i32,
    network_tensor: unsafe extern "C" fn(Raw, i32, *mut RawTensor) -> i32,
    network_capabilities: unsafe extern "C" fn(Raw, *mut i32, i32) -> i32,
    network_build: unsafe extern "C" fn(Raw, *mut RawBytes, Text) -> i32,
    network_timing_cache: unsafe extern "C" fn(Raw, *mut RawBytes, Text) -> i32,
    network_free: unsafe extern "C" fn(Raw),
    bytes_free: unsafe extern "C" fn(Raw),
    runtime_new: unsafe extern "C" fn(*const Symbols, Raw, *const c_char, *mut Raw, Text) -> i32,
    runtime_check: unsafe extern "C" fn(Raw, *const u8, usize, *mut u64, Text) -> i32,
    runtime_free: unsafe extern "C" fn(Raw),
    engine_new: unsafe extern "C" fn(Raw, *const RawPlan, *mut Raw, Text) -> i32,
    engine_refit: unsafe extern "C" fn(*const Symbols, Raw, Raw, *const RawModel, Text) -> i32,
    engine_inspect: unsafe extern "C" fn(Raw, Log, *mut c_void, Text) -> i32,
    engine_scratch: unsafe extern "C" fn(Raw, i32) -> i64,
    engine_cache: unsafe extern "C" fn(Raw, *mut RawBytes, Text) -> i32,
    engine_free: unsafe extern "C" fn(Raw),
    context_new: unsafe extern "C" fn(Raw, *const ContextRequest, *mut Raw, Text) -> i32,
    context_tensor_count: unsafe extern "C" fn(Raw) -> i32,
    context_tensor: unsafe extern "C" fn(Raw, i32, *mut RawTensor) -> i32,
    context_scratch: unsafe extern "C" fn(Raw, *mut c_void, i64),
    context_bind: unsafe extern "C" fn(Raw, *const c_char, *mut c_void) -> i32,
    context_enqueue: unsafe extern "C" fn(Raw, *mut c_void) -> i32,
    context_free: unsafe extern "C" fn(Raw),
}

impl Table {
    /// The release.
    pub fn flavour(&self) -> Flavour {
        Flavour {
            product: match self.rtx {
                0 => Product::TensorRt,
                _ => Product::Rtx,
            },
            version: (self.major, self.minor),
        }
    }
}

include!(concat!(env!("OUT_DIR"), "/flavours.rs"));

/// Every release that the shim was compiled for.
pub(crate) fn tables() -> impl Iterator<Item = &'static Table> {
    // SAFETY: each returns its constant table, laid out as `Table`.
    ENTRIES.iter().map(|entry| unsafe { &*entry() })
}

/// Runs a call that returns a code and may leave a message.
fn call(work: impl FnOnce(Text) -> i32) -> Result<(), String> {
    let mut room = vec![0u8; 1 << 16];
    let text = Text {
        data: room.as_mut_ptr().cast(),
        capacity: room.len(),
    };
    if work(text) == 0 {
        return Ok(());
    }
    let message = CStr::from_bytes_until_nul(&room).unwrap_or_default();
    Err(message.to_string_lossy().into_owned())
}

/// Bytes that TensorRT made.
pub struct Serialized {
    raw: RawBytes,
    table: &'static Table,
}

impl Serialized {
    /// What `write` makes.
    fn of(
        table: &'static Table,
        write: impl FnOnce(*mut RawBytes, Text) -> i32,
    ) -> Result<Self, String> {
        let raw = RawBytes {
            owner: null_mut(),
            data: null(),
            size: 0,
        };
        let mut bytes = Self { raw, table };
        call(|text| write(&raw mut bytes.raw, text))?;
        Ok(bytes)
    }
}

impl Deref for Serialized {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.raw.data.is_null() {
            return &[];
        }
        // SAFETY: TensorRT's memory holds as many bytes and nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.raw.data, self.raw.size) }
    }
}

impl Drop for Serialized {
    fn drop(&mut self) {
        if !self.raw.owner.is_null() {
            // SAFETY: the memory is freed once.
            unsafe { (self.table.bytes_free)(self.raw.owner) }
        }
    }
}

/// Inputs as the shim takes them.
struct RawInputs {
    tensors: Vec<RawTensor>,
    /// What the tensors point to.
    _names: Vec<CString>,
}

impl RawInputs {
    fn new(inputs: &[InputShape]) -> Self {
        let names = inputs.iter().map(|(name, _)| CString::new(name.as_str()));
        // TensorRT knows no name with a NUL byte.
        let names: Vec<_> = names.map(Result::unwrap_or_default).collect();
        let tensors = names.iter().zip(inputs).map(|(name, (_, shape))| {
            let mut dims = [0; 8];
            for (to, &size) in dims.iter_mut().zip(shape) {
                *to = size;
            }
            RawTensor {
                name: name.as_ptr(),
                dtype: 0,
                is_input: 1,
                rank: shape.len() as i32,
                dims,
            }
        });
        Self {
            tensors: tensors.collect(),
            _names: names,
        }
    }
}

/// `count` tensors, each described by `describe`.
fn tensors(count: i32, describe: impl Fn(i32, *mut RawTensor) -> i32) -> Vec<Tensor> {
    let one = |index| {
        let mut raw = RawTensor {
            name: null(),
            dtype: 0,
            is_input: 0,
            rank: 0,
            dims: [0; 8],
        };
        if describe(index, &raw mut raw) != 0 || raw.name.is_null() {
            return None;
        }
        // SAFETY: the name is a C string of the network or the engine, which is live.
        let name = unsafe { CStr::from_ptr(raw.name) };
        let rank = usize::try_from(raw.rank).unwrap_or(0).min(raw.dims.len());
        Some(Tensor {
            name: name.to_string_lossy().into_owned(),
            input: raw.is_input != 0,
            kind: match raw.dtype {
                0 => ElementKind::F32,
                1 => ElementKind::F16,
                2 => ElementKind::BF16,
                3 => ElementKind::I64,
                other => ElementKind::Other(other - 100),
            },
            shape: raw.dims[..rank].to_vec(),
        })
    };
    (0..count).filter_map(one).collect()
}

/// Where TensorRT sends its messages. It keeps the first logger that it is given, so there is one
/// for each library and it stays.
pub(crate) struct Logger {
    raw: Raw,
    messages: &'static Messages,
}

// SAFETY: the shim's logger belongs to no thread and is never freed.
unsafe impl Send for Logger {}
// SAFETY: the shim's logger has no state; the function it calls takes calls from several threads.
unsafe impl Sync for Logger {}

impl Logger {
    pub fn new(table: &'static Table) -> Self {
        unsafe extern "C" fn log(user: *mut c_void, severity: i32, text: *const c_char) {
            // SAFETY: `user` is the leaked messages, `text` a C string of TensorRT's.
            let (messages, text) = unsafe { (&*user.cast::<Messages>(), CStr::from_ptr(text)) };
            messages.log(severity, &text.to_string_lossy());
        }
        let messages: &'static Messages = Box::leak(Box::default());
        let user = std::ptr::from_ref(messages).cast_mut().cast();
        // SAFETY: function and messages live as long as the process.
        let raw = unsafe { (table.logger_new)(log, user) };
        Self { raw, messages }
    }
}
