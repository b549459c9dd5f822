//! A stand-in for the server, for tests: the functions that requests, responses, configurations and the log need. Others
//! do nothing.

#![allow(non_snake_case)]

use crate::ffi::*;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// A tensor of a request, in several pieces.
pub struct Piece {
    pub name: &'static str,
    pub data_type: DataType,
    pub shape: Vec<i64>,
    pub buffers: Vec<Vec<u8>>,
    pub memory: MemoryType,
    /// Bytes that the server says it has.
    pub bytes: u64,
}

/// A response that was sent: outputs by name, flags, an error's code and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub outputs: Vec<(String, Vec<i64>, Vec<u8>)>,
    pub flags: u32,
    pub error: Option<(i32, String)>,
}

/// What became of a request.
#[derive(Default)]
pub struct Fate {
    pub sent: Mutex<Vec<Sent>>,
    pub released: AtomicUsize,
    pub factories: AtomicUsize,
    pub cancelled: AtomicBool,
    /// Of requests: success, and times in the order that they have to be in.
    pub statistics: Mutex<Vec<(bool, [u64; 4])>>,
}

pub struct RequestDouble {
    pub inputs: Vec<(CString, Piece)>,
    pub parameters: Vec<(CString, ParameterType, Vec<u8>)>,
    pub fate: Arc<Fate>,
}

impl RequestDouble {
    /// A request with these inputs, which its release frees.
    pub fn of(inputs: Vec<Piece>) -> (*mut Request, Arc<Fate>) {
        let fate = Arc::new(Fate::default());
        let named = |piece: Piece| (CString::new(piece.name).unwrap(), piece);
        let request = Self {
            inputs: inputs.into_iter().map(named).collect(),
            parameters: Vec::new(),
            fate: fate.clone(),
        };
        (Box::into_raw(Box::new(request)).cast(), fate)
    }
}

/// A model: its configuration as JSON, and its folder.
pub struct ModelDouble {
    pub config: CString,
    pub folder: CString,
}

/// Whether the log is on, whatever the level.
pub static LOGS: AtomicBool = AtomicBool::new(false);
/// Lines of the log.
pub static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct ResponseDouble {
    outputs: Vec<(String, Vec<i64>, Vec<u8>)>,
    fate: Arc<Fate>,
}

type ErrorDouble = (i32, CString);

/// SAFETY of all below: pointers are those that these functions made, as the server's contract says.
macro_rules! server {
    ($(fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $(-> $out:ty)? $body:block)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($argument: $kind),*) $(-> $out)? {
            #[allow(clippy::undocumented_unsafe_blocks, unused_unsafe)]
            unsafe { $body }
        }
    )*};
}

/// What does nothing.
macro_rules! idle {
    ($($name:ident($($kind:ty),*))*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name($(_: $kind),*) -> Status { ptr::null_mut() }
    )*};
    () => {};
}

const OK: Status = ptr::null_mut();

unsafe fn request<'a>(request: *mut Request) -> &'a RequestDouble {
    // SAFETY: one of `RequestDouble::of` that was not released.
    unsafe { &*request.cast::<RequestDouble>() }
}

server! {
    fn TRITONSERVER_ErrorNew(code: Code, message: *const c_char) -> Status {
        let message = CStr::from_ptr(message).to_owned();
        Box::into_raw(Box::new((code as i32, message))).cast()
    }
    fn TRITONSERVER_ErrorDelete(error: Status) {
        drop(Box::from_raw(error.cast::<ErrorDouble>()));
    }
    fn TRITONSERVER_ErrorMessage(error: Status) -> *const c_char {
        (*error.cast::<ErrorDouble>()).1.as_ptr()
    }
    fn TRITONSERVER_LogIsEnabled(_level: LogLevel) -> bool { LOGS.load(SeqCst) }
    fn TRITONSERVER_LogMessage(_l: LogLevel, _file: *const c_char, _line: c_int, message: *const c_char) -> Status {
        LOG.lock().unwrap().push(CStr::from_ptr(message).to_string_lossy().into_owned());
        OK
    }
    fn TRITONSERVER_MessageSerializeToJson(message: *mut Message, base: *mut *const c_char, bytes: *mut usize) -> Status {
        let text = &(*message.cast::<ModelDouble>()).config;
        (*base, *bytes) = (text.as_ptr(), text.as_bytes().len());
        OK
    }
    fn TRITONBACKEND_ModelConfig(model: *mut Model, _version: u32, config: *mut *mut Message) -> Status {
        *config = model.cast();
        OK
    }
    fn TRITONBACKEND_ModelRepository(model: *mut Model, _kind: *mut c_int, location: *mut *const c_char) -> Status {
        *location = (*model.cast::<ModelDouble>()).folder.as_ptr();
        OK
    }
    fn TRITONSERVER_ParameterNew(_n: *const c_char, _k: ParameterType, _v: *const c_void) -> *mut Parameter {
        ptr::null_mut()
    }
    fn TRITONSERVER_ParameterDelete(_parameter: *mut Parameter) {}

    fn TRITONBACKEND_RequestInput(of: *mut Request, name: *const c_char, input: *mut *mut Input) -> Status {
        let name = CStr::from_ptr(name);
        let found = request(of).inputs.iter().find(|(known, _)| known.as_c_str() == name);
        match found {
            Some((_, piece)) => *input = ptr::from_ref(piece).cast_mut().cast(),
            None => return TRITONSERVER_ErrorNew(Code::InvalidArgument, c"no such input".as_ptr()),
        }
        OK
    }
    fn TRITONBACKEND_RequestInputCount(of: *mut Request, count: *mut u32) -> Status {
        *count = request(of).inputs.len() as u32;
        OK
    }
    fn TRITONBACKEND_RequestInputName(of: *mut Request, index: u32, name: *mut *const c_char) -> Status {
        *name = request(of).inputs[index as usize].0.as_ptr();
        OK
    }
    fn TRITONBACKEND_RequestParameterCount(of: *mut Request, count: *mut u32) -> Status {
        *count = request(of).parameters.len() as u32;
        OK
    }
    fn TRITONBACKEND_RequestParameter(
        of: *mut Request, index: u32, name: *mut *const c_char, kind: *mut ParameterType, value: *mut *const c_void,
    ) -> Status {
        let (known, what, bytes) = &request(of).parameters[index as usize];
        (*name, *kind, *value) = (known.as_ptr(), *what, bytes.as_ptr().cast());
        OK
    }
    fn TRITONBACKEND_InputProperties(
        input: *mut Input, _name: *mut *const c_char, data_type: *mut DataType, shape: *mut *const i64, rank: *mut u32,
        bytes: *mut u64, buffers: *mut u32,
    ) -> Status {
        let piece = &*input.cast::<Piece>();
        (*data_type, *shape, *rank) = (piece.data_type, piece.shape.as_ptr(), piece.shape.len() as u32);
        (*bytes, *buffers) = (piece.bytes, piece.buffers.len() as u32);
        OK
    }
    fn TRITONBACKEND_InputBuffer(
        input: *mut Input, index: u32, buffer: *mut *const c_void, bytes: *mut u64, memory: *mut MemoryType,
        _id: *mut i64,
    ) -> Status {
        let piece = &*input.cast::<Piece>();
        let data = &piece.buffers[index as usize];
        (*buffer, *bytes, *memory) = (data.as_ptr().cast(), data.len() as u64, piece.memory);
        OK
    }
    fn TRITONBACKEND_RequestRelease(of: *mut Request, _flags: u32) -> Status {
        let owned = Box::from_raw(of.cast::<RequestDouble>());
        owned.fate.released.fetch_add(1, SeqCst);
        OK
    }
    fn TRITONBACKEND_ResponseFactoryNew(factory: *mut *mut Factory, of: *mut Request) -> Status {
        let fate = request(of).fate.clone();
        fate.factories.fetch_add(1, SeqCst);
        *factory = Box::into_raw(Box::new(fate)).cast();
        OK
    }
    fn TRITONBACKEND_ResponseFactoryDelete(factory: *mut Factory) -> Status {
        let fate = Box::from_raw(factory.cast::<Arc<Fate>>());
        fate.factories.fetch_sub(1, SeqCst);
        OK
    }
    fn TRITONBACKEND_ResponseFactoryIsCancelled(factory: *mut Factory, cancelled: *mut bool) -> Status {
        *cancelled = (&*factory.cast::<Arc<Fate>>()).cancelled.load(SeqCst);
        OK
    }
    fn TRITONBACKEND_ResponseFactorySendFlags(factory: *mut Factory, flags: u32) -> Status {
        let sent = Sent { outputs: Vec::new(), flags, error: None };
        (&*factory.cast::<Arc<Fate>>()).sent.lock().unwrap().push(sent);
        OK
    }
    fn TRITONBACKEND_ResponseNewFromFactory(response: *mut *mut Response, factory: *mut Factory) -> Status {
        let fate = (&*factory.cast::<Arc<Fate>>()).clone();
        *response = Box::into_raw(Box::new(ResponseDouble { outputs: Vec::new(), fate })).cast();
        OK
    }
    fn TRITONBACKEND_ResponseDelete(response: *mut Response) -> Status {
        drop(Box::from_raw(response.cast::<ResponseDouble>()));
        OK
    }
    fn TRITONBACKEND_ResponseOutput(
        response: *mut Response, output: *mut *mut Output, name: *const c_char, _data_type: DataType,
        shape: *const i64, rank: u32,
    ) -> Status {
        let response = &mut *response.cast::<ResponseDouble>();
        let name = CStr::from_ptr(name).to_string_lossy().into_owned();
        let shape = std::slice::from_raw_parts(shape, rank as usize).to_vec();
        response.outputs.push((name, shape, Vec::new()));
        *output = ptr::from_mut(response.outputs.last_mut().unwrap()).cast();
        OK
    }
    fn TRITONBACKEND_OutputBuffer(
        output: *mut Output, buffer: *mut *mut c_void, bytes: u64, memory: *mut MemoryType, _id: *mut i64,
    ) -> Status {
        let output = &mut *output.cast::<(String, Vec<i64>, Vec<u8>)>();
        if output.0 == "no room" {
            return TRITONSERVER_ErrorNew(Code::Internal, c"no room".as_ptr());
        }
        output.2 = vec![0; bytes as usize];
        (*buffer, *memory) = (output.2.as_mut_ptr().cast(), MEMORY_CPU);
        OK
    }
    fn TRITONBACKEND_ResponseSend(response: *mut Response, flags: u32, error: Status) -> Status {
        let ResponseDouble { outputs, fate } = *Box::from_raw(response.cast::<ResponseDouble>());
        let told = (!error.is_null()).then(|| {
            let (code, message) = &*error.cast::<ErrorDouble>();
            (*code, message.to_string_lossy().into_owned())
        });
        fate.sent.lock().unwrap().push(Sent { outputs, flags, error: told });
        OK
    }
    fn TRITONBACKEND_ModelInstanceReportStatistics(
        _i: *mut Instance, of: *mut Request, success: bool, a: u64, b: u64, c: u64, d: u64,
    ) -> Status {
        request(of).fate.statistics.lock().unwrap().push((success, [a, b, c, d]));
        OK
    }
}

idle! {
    TRITONSERVER_MessageDelete(*mut Message)
    TRITONSERVER_MetricFamilyNew(*mut *mut MetricFamily, MetricKind, *const c_char, *const c_char)
    TRITONSERVER_MetricFamilyDelete(*mut MetricFamily)
    TRITONSERVER_MetricArgsNew(*mut *mut MetricArgs)
    TRITONSERVER_MetricArgsSetHistogram(*mut MetricArgs, *const f64, u64)
    TRITONSERVER_MetricArgsDelete(*mut MetricArgs)
    TRITONSERVER_MetricNew(*mut *mut Metric, *mut MetricFamily, *mut *const Parameter, u64)
    TRITONSERVER_MetricNewWithArgs(*mut *mut Metric, *mut MetricFamily, *mut *const Parameter, u64, *const MetricArgs)
    TRITONSERVER_MetricDelete(*mut Metric)
    TRITONSERVER_MetricIncrement(*mut Metric, f64)
    TRITONSERVER_MetricSet(*mut Metric, f64)
    TRITONSERVER_MetricObserve(*mut Metric, f64)
    TRITONBACKEND_ApiVersion(*mut u32, *mut u32)
    TRITONBACKEND_BackendConfig(*mut Backend, *mut *mut Message)
    TRITONBACKEND_BackendArtifacts(*mut Backend, *mut c_int, *mut *const c_char)
    TRITONBACKEND_BackendState(*mut Backend, *mut *mut c_void)
    TRITONBACKEND_BackendSetState(*mut Backend, *mut c_void)
    TRITONBACKEND_ModelName(*mut Model, *mut *const c_char)
    TRITONBACKEND_ModelVersion(*mut Model, *mut u64)
    TRITONBACKEND_ModelBackend(*mut Model, *mut *mut Backend)
    TRITONBACKEND_ModelState(*mut Model, *mut *mut c_void)
    TRITONBACKEND_ModelSetState(*mut Model, *mut c_void)
    TRITONBACKEND_ModelInstanceModel(*mut Instance, *mut *mut Model)
    TRITONBACKEND_RequestOutputCount(*mut Request, *mut u32)
    TRITONBACKEND_RequestOutputName(*mut Request, u32, *mut *const c_char)
    TRITONBACKEND_ModelInstanceReportBatchStatistics(*mut Instance, u64, u64, u64, u64, u64)
    TRITONBACKEND_ModelInstanceResponseStatisticsNew(*mut *mut ResponseStatistics)
    TRITONBACKEND_ModelInstanceResponseStatisticsDelete(*mut ResponseStatistics)
    TRITONBACKEND_ModelInstanceResponseStatisticsSetModelInstance(*mut ResponseStatistics, *mut Instance)
    TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseFactory(*mut ResponseStatistics, *mut Factory)
    TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseStart(*mut ResponseStatistics, u64)
    TRITONBACKEND_ModelInstanceResponseStatisticsSetComputeOutputStart(*mut ResponseStatistics, u64)
    TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseEnd(*mut ResponseStatistics, u64)
    TRITONBACKEND_ModelInstanceResponseStatisticsSetError(*mut ResponseStatistics, Status)
    TRITONBACKEND_ModelInstanceReportResponseStatistics(*mut ResponseStatistics)
}
