//! What is used of Triton's C interface, declared after the headers `tritonserver.h` and `tritonbackend.h` of
//! triton-inference-server/core, backend API 1.19. Each group says which of the two.
//!
//! Nothing is linked: the process that loads this library is the server, and has them.

use std::ffi::{c_char, c_int, c_void};
use std::marker::{PhantomData, PhantomPinned};

/// The backend API that this library is written against.
pub const API: (u32, u32) = (1, 19);

/// Objects that only the server sees into.
macro_rules! opaque {
    ($($name:ident)*) => {$(
        #[repr(C)]
        pub struct $name {
            _bytes: [u8; 0],
            _pinned: PhantomData<(*mut u8, PhantomPinned)>,
        }
    )*};
}

opaque! {
    Error Message Parameter MetricFamily Metric MetricArgs
    Backend Model Instance Request Input Factory Response Output ResponseStatistics
}

/// `TRITONSERVER_DataType`, which numbers its members in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct DataType(pub c_int);

impl DataType {
    pub const BOOL: Self = Self(1);
    pub const UINT32: Self = Self(4);
    pub const INT32: Self = Self(8);
    pub const INT64: Self = Self(9);
    pub const FP32: Self = Self(11);
    pub const BYTES: Self = Self(13);
}

/// `TRITONSERVER_MemoryType`.
pub type MemoryType = c_int;
pub const MEMORY_CPU: MemoryType = 0;
pub const MEMORY_GPU: MemoryType = 2;

/// `TRITONSERVER_ParameterType`.
pub type ParameterType = c_int;
pub const PARAMETER_STRING: ParameterType = 0;
pub const PARAMETER_INT: ParameterType = 1;
pub const PARAMETER_BOOL: ParameterType = 2;
pub const PARAMETER_DOUBLE: ParameterType = 3;

/// `TRITONSERVER_LogLevel`.
pub type LogLevel = c_int;
pub const LOG_INFO: LogLevel = 0;
pub const LOG_WARN: LogLevel = 1;
pub const LOG_ERROR: LogLevel = 2;
pub const LOG_VERBOSE: LogLevel = 3;

/// `TRITONSERVER_Error_Code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    Internal = 1,
    InvalidArgument = 3,
    Unavailable = 4,
    Cancelled = 7,
}

/// `TRITONSERVER_MetricKind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum MetricKind {
    Counter = 0,
    Gauge = 1,
    Histogram = 2,
}

/// `TRITONSERVER_RESPONSE_COMPLETE_FINAL`.
pub const RESPONSE_FINAL: u32 = 1;
/// `TRITONSERVER_REQUEST_RELEASE_ALL`.
pub const RELEASE_ALL: u32 = 1;

/// What a call returns: null for success, else an error that the caller deletes.
pub type Status = *mut Error;

// tritonserver.h
unsafe extern "C" {
    pub fn TRITONSERVER_ErrorNew(code: Code, message: *const c_char) -> Status;
    pub fn TRITONSERVER_ErrorDelete(error: Status);
    pub fn TRITONSERVER_ErrorMessage(error: Status) -> *const c_char;

    pub fn TRITONSERVER_LogIsEnabled(level: LogLevel) -> bool;
    pub fn TRITONSERVER_LogMessage(
        level: LogLevel,
        file: *const c_char,
        line: c_int,
        message: *const c_char,
    ) -> Status;

    pub fn TRITONSERVER_MessageSerializeToJson(
        message: *mut Message,
        base: *mut *const c_char,
        bytes: *mut usize,
    ) -> Status;
    pub fn TRITONSERVER_MessageDelete(message: *mut Message) -> Status;

    pub fn TRITONSERVER_ParameterNew(
        name: *const c_char,
        kind: ParameterType,
        value: *const c_void,
    ) -> *mut Parameter;
    pub fn TRITONSERVER_ParameterDelete(parameter: *mut Parameter);

    pub fn TRITONSERVER_MetricFamilyNew(
        family: *mut *mut MetricFamily,
        kind: MetricKind,
        name: *const c_char,
        description: *const c_char,
    ) -> Status;
    pub fn TRITONSERVER_MetricFamilyDelete(family: *mut MetricFamily) -> Status;
    pub fn TRITONSERVER_MetricArgsNew(arguments: *mut *mut MetricArgs) -> Status;
    pub fn TRITONSERVER_MetricArgsSetHistogram(
        arguments: *mut MetricArgs,
        buckets: *const f64,
        count: u64,
    ) -> Status;
    pub fn TRITONSERVER_MetricArgsDelete(arguments: *mut MetricArgs) -> Status;
    pub fn TRITONSERVER_MetricNew(
        metric: *mut *mut Metric,
        family: *mut MetricFamily,
        labels: *mut *const Parameter,
        count: u64,
    ) -> Status;
    pub fn TRITONSERVER_MetricNewWithArgs(
        metric: *mut *mut Metric,
        family: *mut MetricFamily,
        labels: *mut *const Parameter,
        count: u64,
        arguments: *const MetricArgs,
    ) -> Status;
    pub fn TRITONSERVER_MetricDelete(metric: *mut Metric) -> Status;
    pub fn TRITONSERVER_MetricIncrement(metric: *mut Metric, value: f64) -> Status;
    pub fn TRITONSERVER_MetricSet(metric: *mut Metric, value: f64) -> Status;
    pub fn TRITONSERVER_MetricObserve(metric: *mut Metric, value: f64) -> Status;
}

// tritonbackend.h: backends, models, instances
unsafe extern "C" {
    pub fn TRITONBACKEND_ApiVersion(major: *mut u32, minor: *mut u32) -> Status;
    pub fn TRITONBACKEND_BackendConfig(backend: *mut Backend, config: *mut *mut Message) -> Status;
    pub fn TRITONBACKEND_BackendArtifacts(
        backend: *mut Backend,
        kind: *mut c_int,
        location: *mut *const c_char,
    ) -> Status;
    pub fn TRITONBACKEND_BackendState(backend: *mut Backend, state: *mut *mut c_void) -> Status;
    pub fn TRITONBACKEND_BackendSetState(backend: *mut Backend, state: *mut c_void) -> Status;

    pub fn TRITONBACKEND_ModelName(model: *mut Model, name: *mut *const c_char) -> Status;
    pub fn TRITONBACKEND_ModelVersion(model: *mut Model, version: *mut u64) -> Status;
    pub fn TRITONBACKEND_ModelRepository(
        model: *mut Model,
        kind: *mut c_int,
        location: *mut *const c_char,
    ) -> Status;
    pub fn TRITONBACKEND_ModelConfig(
        model: *mut Model,
        config_version: u32,
        config: *mut *mut Message,
    ) -> Status;
    pub fn TRITONBACKEND_ModelBackend(model: *mut Model, backend: *mut *mut Backend) -> Status;
    pub fn TRITONBACKEND_ModelState(model: *mut Model, state: *mut *mut c_void) -> Status;
    pub fn TRITONBACKEND_ModelSetState(model: *mut Model, state: *mut c_void) -> Status;

    pub fn TRITONBACKEND_ModelInstanceModel(
        instance: *mut Instance,
        model: *mut *mut Model,
    ) -> Status;
}

// tritonbackend.h: requests and responses
unsafe extern "C" {
    pub fn TRITONBACKEND_RequestInput(
        request: *mut Request,
        name: *const c_char,
        input: *mut *mut Input,
    ) -> Status;
    pub fn TRITONBACKEND_RequestInputCount(request: *mut Request, count: *mut u32) -> Status;
    pub fn TRITONBACKEND_RequestInputName(
        request: *mut Request,
        index: u32,
        name: *mut *const c_char,
    ) -> Status;
    pub fn TRITONBACKEND_RequestOutputCount(request: *mut Request, count: *mut u32) -> Status;
    pub fn TRITONBACKEND_RequestOutputName(
        request: *mut Request,
        index: u32,
        name: *mut *const c_char,
    ) -> Status;
    pub fn TRITONBACKEND_RequestParameterCount(request: *mut Request, count: *mut u32) -> Status;
    pub fn TRITONBACKEND_RequestParameter(
        request: *mut Request,
        index: u32,
        name: *mut *const c_char,
        kind: *mut ParameterType,
        value: *mut *const c_void,
    ) -> Status;
    pub fn TRITONBACKEND_RequestRelease(request: *mut Request, flags: u32) -> Status;
    pub fn TRITONBACKEND_InputProperties(
        input: *mut Input,
        name: *mut *const c_char,
        data_type: *mut DataType,
        shape: *mut *const i64,
        rank: *mut u32,
        bytes: *mut u64,
        buffers: *mut u32,
    ) -> Status;
    pub fn TRITONBACKEND_InputBuffer(
        input: *mut Input,
        index: u32,
        buffer: *mut *const c_void,
        bytes: *mut u64,
        memory: *mut MemoryType,
        memory_id: *mut i64,
    ) -> Status;

    pub fn TRITONBACKEND_ResponseFactoryNew(
        factory: *mut *mut Factory,
        request: *mut Request,
    ) -> Status;
    pub fn TRITONBACKEND_ResponseFactoryDelete(factory: *mut Factory) -> Status;
    pub fn TRITONBACKEND_ResponseFactoryIsCancelled(
        factory: *mut Factory,
        cancelled: *mut bool,
    ) -> Status;
    pub fn TRITONBACKEND_ResponseFactorySendFlags(factory: *mut Factory, flags: u32) -> Status;
    pub fn TRITONBACKEND_ResponseNewFromFactory(
        response: *mut *mut Response,
        factory: *mut Factory,
    ) -> Status;
    pub fn TRITONBACKEND_ResponseDelete(response: *mut Response) -> Status;
    pub fn TRITONBACKEND_ResponseOutput(
        response: *mut Response,
        output: *mut *mut Output,
        name: *const c_char,
        data_type: DataType,
        shape: *const i64,
        rank: u32,
    ) -> Status;
    pub fn TRITONBACKEND_OutputBuffer(
        output: *mut Output,
        buffer: *mut *mut c_void,
        bytes: u64,
        memory: *mut MemoryType,
        memory_id: *mut i64,
    ) -> Status;
    /// Takes the response, whatever it returns; the error stays the caller's.
    pub fn TRITONBACKEND_ResponseSend(response: *mut Response, flags: u32, error: Status)
    -> Status;
}

// tritonbackend.h: statistics; times are nanoseconds of the monotonic clock
unsafe extern "C" {
    pub fn TRITONBACKEND_ModelInstanceReportStatistics(
        instance: *mut Instance,
        request: *mut Request,
        success: bool,
        exec_start: u64,
        compute_start: u64,
        compute_end: u64,
        exec_end: u64,
    ) -> Status;
    pub fn TRITONBACKEND_ModelInstanceReportBatchStatistics(
        instance: *mut Instance,
        batch_size: u64,
        exec_start: u64,
        compute_start: u64,
        compute_end: u64,
        exec_end: u64,
    ) -> Status;
    pub fn TRITONBACKEND_ModelInstanceResponseStatisticsNew(
        statistics: *mut *mut ResponseStatistics,
    ) -> Status;
    pub fn TRITONBACKEND_ModelInstanceResponseStatisticsDelete(
        statistics: *mut ResponseStatistics,
    ) -> Status;
    pub fn TRITONBACKEND_ModelInstanceResponseStatisticsSetModelInstance(
        statistics: *mut ResponseStatistics,
        instance: *mut Instance,
    ) -> Status;
    pub fn TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseFactory(
        statistics: *mut ResponseStatistics,
        factory: *mut Factory,
    ) -> Status;
    pub fn TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseStart(
        statistics: *mut ResponseStatistics,
        time: u64,
    ) -> Status;
    pub fn TRITONBACKEND_ModelInstanceResponseStatisticsSetComputeOutputStart(
        statistics: *mut ResponseStatistics,
        time: u64,
    ) -> Status;
    pub fn TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseEnd(
        statistics: *mut ResponseStatistics,
        time: u64,
    ) -> Status;
    pub fn TRITONBACKEND_ModelInstanceResponseStatisticsSetError(
        statistics: *mut ResponseStatistics,
        error: Status,
    ) -> Status;
    pub fn TRITONBACKEND_ModelInstanceReportResponseStatistics(
        statistics: *mut ResponseStatistics,
    ) -> Status;
}
