//! ORT's table of functions, and what it hands out, with errors as [`Failure`].

use ort_sys::*;
use ratplus_graphs::ops::ElementType;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::offset_of;
use std::ptr::{NonNull, null, null_mut};

/// An error on its way to becoming an `OrtStatus`.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of error.
    pub code: OrtErrorCode,
    message: String,
}

impl Failure {
    /// A failure with this code and message.
    pub fn new(code: OrtErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// Something the model or the caller got wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(OrtErrorCode::ORT_INVALID_ARGUMENT, message)
    }

    /// The same with `text` in front.
    pub fn prefixed(self, text: impl std::fmt::Display) -> Self {
        Self {
            code: self.code,
            message: format!("{text}: {}", self.message),
        }
    }
}

/// A runtime's table of functions, as long as API 17 or longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Api(NonNull<OrtApi>);

// SAFETY: a table belongs to no thread and is never unloaded before its last use.
unsafe impl Send for Api {}
// SAFETY: a table is constant, and its functions take calls from several threads.
unsafe impl Sync for Api {}

/// The same, as long as API 18 or longer: what CUDA kernels need beyond API 17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Api18(Api);

/// Reads one function of the table, without a reference to the whole: the table of an older
/// runtime is shorter than the type. Only functions that come before `$end` compile.
macro_rules! function {
    ($api:expr, $name:ident) => {
        function!($api, $name, SessionOptionsAppendExecutionProvider_VitisAI)
    };
    ($api:expr, $name:ident, $end:ident) => {{
        const {
            assert!(
                offset_of!(OrtApi, $name) < offset_of!(OrtApi, $end),
                "newer than the table is known to be"
            );
        }
        #[allow(unused_unsafe)] // Where the macro is used under `unsafe`.
        // SAFETY: the table holds at least the functions of its API.
        let function = unsafe { (&raw const (*$api.0.as_ptr()).$name).read() };
        function
    }};
}

/// Defines methods that call one function and have its status checked.
macro_rules! calls {
    ($($(#[$doc:meta])* $method:ident = $name:ident($($arg:ident: $type:ty),*);)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// The arguments are what ORT's function of the same name requires.
        pub unsafe fn $method(self $(, $arg: $type)*) -> Result<(), Failure> {
            // SAFETY: the caller's contract.
            self.check(unsafe { function!(self, $name)($($arg),*) })
        }
    )*};
}

/// Defines methods that give an object back.
macro_rules! releases {
    ($($method:ident = $name:ident($type:ty);)*) => {$(
        /// Gives the object back.
        ///
        /// # Safety
        /// It is the caller's and not used again.
        pub unsafe fn $method(self, object: *mut $type) {
            // SAFETY: the caller's contract.
            unsafe { function!(self, $name)(object) }
        }
    )*};
}

impl Api {
    /// The table at `table`; `None` if null.
    ///
    /// # Safety
    /// It has the functions of API 17 at least and is never unloaded before its last use.
    pub unsafe fn new(table: *const OrtApi) -> Option<Self> {
        NonNull::new(table.cast_mut()).map(Self)
    }

    /// A status for `failure`, owned by who receives it.
    pub fn status(self, failure: &Failure) -> OrtStatusPtr {
        create_status(
            function!(self, CreateStatus),
            failure.code,
            &failure.message,
        )
    }

    /// Writes a warning to the log of a node's session.
    ///
    /// # Safety
    /// `info` is live.
    pub unsafe fn warn(self, info: *const OrtKernelInfo, message: &str) -> Result<(), Failure> {
        let mut logger = null();
        let text = CString::new(message).unwrap_or_default();
        let place = c"ratplus".as_ptr();
        let level = OrtLoggingLevel::ORT_LOGGING_LEVEL_WARNING;
        // SAFETY: the caller's contract; the logger is the session's, the strings live as long as the call.
        unsafe {
            self.check(function!(self, KernelInfo_GetLogger)(info, &mut logger))?;
            let log = function!(self, Logger_LogMessage);
            self.check(log(logger, level, text.as_ptr(), place.cast(), 0, place))
        }
    }

    /// Turns a status into a result and releases it.
    fn check(self, status: OrtStatusPtr) -> Result<(), Failure> {
        let Some(status) = NonNull::new(status.0) else {
            return Ok(());
        };
        let status = status.as_ptr();
        // SAFETY: a status not null is the caller's until released.
        let failure = unsafe {
            let message = function!(self, GetErrorMessage)(status);
            Failure::new(
                function!(self, GetErrorCode)(status),
                CStr::from_ptr(message).to_string_lossy(),
            )
        };
        // SAFETY: the status is ours; its message was copied, and nothing uses it again.
        unsafe { function!(self, ReleaseStatus)(status) };
        Err(failure)
    }

    calls! {
        /// The description of an allocator's memory, which the allocator keeps.
        allocator_memory = AllocatorGetInfo(allocator: *const OrtAllocator, out: *mut *const OrtMemoryInfo);
        /// The number of a device.
        memory_device = MemoryInfoGetId(memory: *const OrtMemoryInfo, out: *mut c_int);
        /// The stream a running node has to use.
        context_stream = KernelContext_GetGPUComputeStream(context: *const OrtKernelContext, out: *mut *mut c_void);
        /// Makes a domain for custom operators.
        create_domain = CreateCustomOpDomain(name: *const c_char, out: *mut *mut OrtCustomOpDomain);
        /// Adds an operator to a domain; both live on.
        domain_add = CustomOpDomain_Add(domain: *mut OrtCustomOpDomain, op: *const OrtCustomOp);
        /// Adds a domain to session options; the domain outlives its sessions.
        add_domain = AddCustomOpDomain(options: *mut OrtSessionOptions, domain: *mut OrtCustomOpDomain);
        /// Reads an `INT` attribute.
        attribute_int = KernelInfoGetAttribute_int64(info: *const OrtKernelInfo, name: *const c_char, out: *mut i64);
        /// Reads a `FLOAT` attribute.
        attribute_float = KernelInfoGetAttribute_float(info: *const OrtKernelInfo, name: *const c_char, out: *mut f32);
        /// Reads an `INTS` attribute, or its length.
        attribute_ints = KernelInfoGetAttributeArray_int64(info: *const OrtKernelInfo, name: *const c_char, out: *mut i64, size: *mut usize);
        /// Counts a node's inputs.
        info_input_count = KernelInfo_GetInputCount(info: *const OrtKernelInfo, out: *mut usize);
        /// Counts a node's outputs.
        info_output_count = KernelInfo_GetOutputCount(info: *const OrtKernelInfo, out: *mut usize);
        /// Declared type of an input, to be released.
        info_input_type = KernelInfo_GetInputTypeInfo(info: *const OrtKernelInfo, index: usize, out: *mut *mut OrtTypeInfo);
        /// The tensor part of a type, which owns it.
        tensor_part = CastTypeInfoToTensorInfo(info: *const OrtTypeInfo, out: *mut *const OrtTensorTypeAndShapeInfo);
        /// Describes CPU memory, to be released.
        cpu_memory = CreateCpuMemoryInfo(kind: OrtAllocatorType, memory: OrtMemType, out: *mut *mut OrtMemoryInfo);
        /// The allocator of a running node, to be released.
        context_allocator = KernelContext_GetAllocator(context: *const OrtKernelContext, memory: *const OrtMemoryInfo, out: *mut *mut OrtAllocator);
        /// Allocates bytes.
        allocate = AllocatorAlloc(allocator: *mut OrtAllocator, bytes: usize, out: *mut *mut c_void);
        /// Frees what [`Api::allocate`] gave.
        free = AllocatorFree(allocator: *mut OrtAllocator, memory: *mut c_void);
        /// An input of a running node.
        context_input = KernelContext_GetInput(context: *const OrtKernelContext, index: usize, out: *mut *const OrtValue);
        /// An output of a running node, allocated where the caller has not bound one.
        context_output = KernelContext_GetOutput(context: *mut OrtKernelContext, index: usize, dims: *const i64, rank: usize, out: *mut *mut OrtValue);
        /// The elements of a tensor.
        data = GetTensorMutableData(value: *mut OrtValue, out: *mut *mut c_void);
        /// Type and shape of a tensor, to be released.
        type_and_shape = GetTensorTypeAndShape(value: *const OrtValue, out: *mut *mut OrtTensorTypeAndShapeInfo);
        /// Counts the inputs of a node whose shapes are inferred.
        infer_input_count = ShapeInferContext_GetInputCount(context: *const OrtShapeInferContext, out: *mut usize);
        /// Type and shape of an input, which the context keeps.
        infer_input = ShapeInferContext_GetInputTypeShape(context: *const OrtShapeInferContext, index: usize, out: *mut *mut OrtTensorTypeAndShapeInfo);
        /// An attribute of a node whose shapes are inferred.
        infer_attribute = ShapeInferContext_GetAttribute(context: *const OrtShapeInferContext, name: *const c_char, out: *mut *const OrtOpAttr);
        /// Reads an attribute.
        read_attribute = ReadOpAttr(attribute: *const OrtOpAttr, kind: OrtOpAttrType, data: *mut c_void, bytes: usize, out: *mut usize);
        /// Sets an output's type and shape.
        infer_output = ShapeInferContext_SetOutputTypeShape(context: *const OrtShapeInferContext, index: usize, info: *const OrtTensorTypeAndShapeInfo);
        /// Runs tasks on the session's threads; returns when all are done.
        parallel_for = KernelContext_ParallelFor(context: *const OrtKernelContext, task: unsafe extern "C" fn(*mut c_void, usize), tasks: usize, batches: usize, data: *mut c_void);
    }

    releases! {
        release_domain = ReleaseCustomOpDomain(OrtCustomOpDomain);
        release_type = ReleaseTypeInfo(OrtTypeInfo);
        release_shape = ReleaseTensorTypeAndShapeInfo(OrtTensorTypeAndShapeInfo);
        release_memory = ReleaseMemoryInfo(OrtMemoryInfo);
        release_allocator = ReleaseAllocator(OrtAllocator);
    }

    /// The longer table, where this one was asked for at `level`.
    pub fn api_18(self, level: u32) -> Option<Api18> {
        (level >= 18).then_some(Api18(self))
    }

    /// A node's name; empty where it has none.
    ///
    /// # Safety
    /// `info` is live.
    pub unsafe fn node_name(self, info: *const OrtKernelInfo) -> Result<String, Failure> {
        let get = function!(self, KernelInfo_GetNodeName);
        // SAFETY: the caller's contract; a null buffer asks for the size.
        unsafe { self.text(|out, size| get(info, out, size)) }
    }

    /// A `STRING` attribute.
    ///
    /// # Safety
    /// `info` is live.
    pub unsafe fn attribute_string(
        self,
        info: *const OrtKernelInfo,
        name: &CStr,
    ) -> Result<String, Failure> {
        let get = function!(self, KernelInfoGetAttribute_string);
        // SAFETY: the caller's contract; a null buffer asks for the size.
        unsafe { self.text(|out, size| get(info, name.as_ptr(), out, size)) }
    }

    /// # Safety
    /// `get` writes at most `size` bytes, and only the size where the buffer is null.
    unsafe fn text(
        self,
        get: impl Fn(*mut c_char, *mut usize) -> OrtStatusPtr,
    ) -> Result<String, Failure> {
        let mut size = 0;
        self.check(get(null_mut(), &mut size))?;
        let mut bytes = vec![0u8; size];
        self.check(get(bytes.as_mut_ptr().cast(), &mut size))?;
        bytes.truncate(size.saturating_sub(1));
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Element type and shape in `info`.
    ///
    /// # Safety
    /// `info` is live.
    pub unsafe fn read_shape(
        self,
        info: *const OrtTensorTypeAndShapeInfo,
    ) -> Result<TensorShape, Failure> {
        let mut shape = TensorShape::default();
        let element = (&raw mut shape.element).cast::<ONNXTensorElementDataType>();
        let dims = shape.dims.as_mut_ptr();
        // SAFETY: the caller's contract. The element type is written to an integer of the enum's
        // size: a newer runtime may have values the enum lacks.
        unsafe {
            self.check(function!(self, GetTensorElementType)(info, element))?;
            self.check(function!(self, GetDimensionsCount)(info, &mut shape.rank))?;
            let rank = shape.rank.min(MAX_RANK);
            self.check(function!(self, GetDimensions)(info, dims, rank))?;
        }
        Ok(shape)
    }

    /// A description of `shape`, to be released.
    pub fn make_shape(
        self,
        shape: &TensorShape,
    ) -> Result<*mut OrtTensorTypeAndShapeInfo, Failure> {
        let mut info = null_mut();
        let mut no_symbols: [*const c_char; MAX_RANK] = [c"".as_ptr(); MAX_RANK];
        let dims = shape.dims();
        let create = function!(self, CreateTensorTypeAndShapeInfo);
        // SAFETY: every pointer is live; ORT copies what it is given.
        unsafe {
            self.check(create(&mut info))?;
            // `element` is a value of `ElementType`: the cast gives an enumerator that exists.
            let element = (&raw const shape.element)
                .cast::<ONNXTensorElementDataType>()
                .read();
            let filled = self
                .check(function!(self, SetTensorElementType)(info, element))
                .and_then(|()| {
                    self.check(function!(self, SetDimensions)(
                        info,
                        dims.as_ptr(),
                        dims.len(),
                    ))
                })
                .and_then(|()| {
                    self.check(function!(self, SetSymbolicDimensions)(
                        info,
                        no_symbols.as_mut_ptr(),
                        dims.len(),
                    ))
                });
            if let Err(failure) = filled {
                self.release_shape(info);
                return Err(failure);
            }
        }
        Ok(info)
    }

    /// The shape an input of a node was declared with.
    ///
    /// # Safety
    /// `info` is live.
    pub unsafe fn declared_input(
        self,
        info: *const OrtKernelInfo,
        index: usize,
    ) -> Result<TensorShape, Failure> {
        let mut declared = null_mut();
        // SAFETY: the caller's contract.
        unsafe { self.info_input_type(info, index, &mut declared)? };
        let mut tensor = null();
        // SAFETY: `declared` is live and owns `tensor`, which is null for other types.
        let shape = unsafe {
            self.tensor_part(declared, &mut tensor).and_then(|()| {
                if tensor.is_null() {
                    Err(Failure::invalid(format!("input {index} is no tensor")))
                } else {
                    self.read_shape(tensor)
                }
            })
        };
        // SAFETY: it is ours.
        unsafe { self.release_type(declared) };
        shape
    }

    /// Elements, type and shape of a tensor.
    ///
    /// # Safety
    /// `value` is a live tensor.
    pub unsafe fn tensor(self, value: *const OrtValue) -> Result<Tensor, Failure> {
        let mut info = null_mut();
        let mut data = null_mut();
        // SAFETY: the caller's contract.
        let shape = unsafe {
            self.data(value.cast_mut(), &mut data)?;
            self.type_and_shape(value, &mut info)?;
            self.read_shape(info)
        };
        // SAFETY: it is ours.
        unsafe { self.release_shape(info) };
        Ok(Tensor {
            data,
            shape: shape?,
        })
    }
}

impl Api18 {
    /// The part that API 17 has.
    pub fn api(self) -> Api {
        self.0
    }

    /// The allocator of the provider that runs a node, to be released.
    ///
    /// # Safety
    /// `info` is live.
    pub unsafe fn info_allocator(
        self,
        info: *const OrtKernelInfo,
    ) -> Result<*mut OrtAllocator, Failure> {
        let mut allocator = null_mut();
        let get = function!(
            self.0,
            KernelInfoGetAllocator,
            AddExternalInitializersFromMemory
        );
        // SAFETY: the caller's contract.
        let status = unsafe { get(info, OrtMemType::OrtMemTypeDefault, &mut allocator) };
        self.0.check(status).map(|()| allocator)
    }

    /// Device memory for what a running node puts into its stream. It goes back to the allocator
    /// by [`Api::free`], as soon as the node returns: later nodes of that stream may use it then,
    /// other streams wait.
    ///
    /// # Safety
    /// `context` is a running node's that has a stream, and `memory` its provider's.
    pub unsafe fn stream_memory(
        self,
        context: *const OrtKernelContext,
        memory: *const OrtMemoryInfo,
        bytes: usize,
    ) -> Result<*mut c_void, Failure> {
        let mut data = null_mut();
        let get = function!(
            self.0,
            KernelContext_GetScratchBuffer,
            AddExternalInitializersFromMemory
        );
        // SAFETY: the caller's contract.
        let status = unsafe { get(context, memory, bytes, &mut data) };
        self.0.check(status).map(|()| data)
    }
}

/// A status made by `create`, which copies the message.
pub fn create_status(
    create: unsafe extern "system" fn(OrtErrorCode, *const c_char) -> OrtStatusPtr,
    code: OrtErrorCode,
    message: &str,
) -> OrtStatusPtr {
    let message: Vec<u8> = message.bytes().filter(|&byte| byte != 0).collect();
    let message = CString::new(message).unwrap_or_default();
    // SAFETY: the message is a C string.
    unsafe { create(code, message.as_ptr()) }
}

/// No port has a higher rank; more dimensions are counted but not kept.
pub const MAX_RANK: usize = 4;

/// Element type and shape as ORT gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TensorShape {
    /// `ONNXTensorElementDataType`.
    pub element: c_int,
    rank: usize,
    dims: [i64; MAX_RANK],
}

impl TensorShape {
    /// The shape of a type of this project. Ranks above [`MAX_RANK`] do not occur there.
    pub fn new(element: ElementType, shape: &[usize]) -> Self {
        let mut dims = [0; MAX_RANK];
        for (to, &from) in dims.iter_mut().zip(shape) {
            *to = i64::try_from(from).unwrap_or(i64::MAX);
        }
        Self {
            element: element.onnx(),
            rank: shape.len().min(MAX_RANK),
            dims,
        }
    }

    /// The dimensions, the first [`MAX_RANK`] of them; -1 where unknown.
    pub fn dims(&self) -> &[i64] {
        &self.dims[..self.rank.min(MAX_RANK)]
    }

    /// Whether every dimension is known, or there is no tensor. ORT describes an unknown rank as rank 0.
    pub fn is_known(&self) -> bool {
        *self == Tensor::NONE.shape || self.rank > 0 && self.dims().iter().all(|&dim| dim >= 0)
    }
}

/// A tensor of a running node.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// First element.
    pub data: *mut c_void,
    /// Type and shape.
    pub shape: TensorShape,
}

impl Tensor {
    /// Takes the place of a tensor not read yet.
    pub const NONE: Self = Self {
        data: null_mut(),
        shape: TensorShape {
            element: 0,
            rank: 0,
            dims: [0; MAX_RANK],
        },
    };
}
