//! The `OrtCustomOp`s: one per operator and element types.

use crate::api::{Api, Api18};
use crate::compute::EMULATED;
use crate::guard;
use crate::infer::infer;
use crate::kernel::Kernel;
use ort_sys::*;
use ratplus_graphs::ops::{DOMAIN_VERSION, Definition, ElementType, Op, Port, PortType};
use ratplus_graphs::with_op;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{null, null_mut};

/// An execution provider that the operators are registered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// ORT's threads.
    Cpu,
    /// A provider of CUDA, by its name; what its kernels need of ORT came with API 18.
    Cuda(Api18, &'static CStr),
}

/// ONNX Runtime's providers for CUDA: the one in its GPU packages, and the one that is a plugin.
pub const CUDA_PROVIDERS: [&CStr; 2] = [c"CUDAExecutionProvider", c"CudaPluginExecutionProvider"];

impl Provider {
    /// ORT's name for it.
    pub fn name(self) -> &'static CStr {
        match self {
            Self::Cuda(_, name) if !EMULATED => name,
            _ => c"CPUExecutionProvider",
        }
    }
}

/// An operator as ORT knows it. ORT passes the address of `raw`, the first field, to callbacks.
#[repr(C)]
pub struct Descriptor {
    raw: OrtCustomOp,
    /// The runtime.
    pub api: Api,
    /// Where its kernels run.
    pub provider: Provider,
    /// The operator.
    pub op: Op,
    /// The operator's name, as ORT takes it.
    pub name: &'static CStr,
    /// Its element types.
    pub types: Types,
}

/// What an operator's type variables stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Types {
    /// `T`.
    pub element: ElementType,
    /// `C`; the same as `T` where the operator has no cache.
    pub cache: ElementType,
}

impl Types {
    /// Everything that the variables of `op` may stand for.
    pub fn of(op: Op) -> impl Iterator<Item = Self> {
        let cached = op.inputs().iter().any(|port| port.dtype == PortType::C);
        let pairs = ElementType::ACTIVATIONS
            .into_iter()
            .flat_map(|element| ElementType::ACTIVATIONS.map(|cache| Self { element, cache }));
        pairs.filter(move |types| cached || types.element == types.cache)
    }
}

// SAFETY: nothing of it changes once it is made.
unsafe impl Sync for Descriptor {}
// SAFETY: it points to static text and to ORT's tables, which belong to no thread.
unsafe impl Send for Descriptor {}

impl Descriptor {
    /// The operator for a runtime whose table was asked for at `level`.
    pub fn new(api: Api, level: u32, provider: Provider, op: Op, types: Types) -> Self {
        let aliases: unsafe extern "system" fn(_, _) -> _ = with_op!(op, O => may_inplace::<O>);
        // The descriptor itself is never freed.
        let name = CString::new(op.name())
            .unwrap_or_default()
            .into_boxed_c_str();
        let raw = OrtCustomOp {
            version: level,
            // Replaced by the second versions, which can fail.
            CreateKernel: None,
            KernelCompute: None,
            GetName: Some(get_name),
            GetExecutionProviderType: Some(get_execution_provider_type),
            GetInputType: Some(get_input_type),
            GetInputTypeCount: Some(get_input_type_count),
            GetOutputType: Some(get_output_type),
            GetOutputTypeCount: Some(get_output_type_count),
            KernelDestroy: Some(kernel_destroy),
            GetInputCharacteristic: Some(get_input_characteristic),
            GetOutputCharacteristic: Some(get_output_characteristic),
            GetInputMemoryType: Some(get_input_memory_type),
            GetVariadicInputMinArity: Some(get_min_arity),
            GetVariadicInputHomogeneity: Some(get_homogeneity),
            GetVariadicOutputMinArity: Some(get_min_arity),
            GetVariadicOutputHomogeneity: Some(get_homogeneity),
            CreateKernelV2: Some(create_kernel),
            KernelComputeV2: Some(kernel_compute),
            InferOutputShapeFn: Some(infer_output_shape),
            // Any version of the domain: `DOMAIN_VERSION` and later.
            GetStartVersion: Some(get_start_version),
            GetEndVersion: Some(get_end_version),
            // "May": the planner reuses the input's buffer where it is free to. "Alias" would
            // force that on callers who bind two buffers.
            GetMayInplace: Some(aliases),
            ReleaseMayInplace: Some(release_may_inplace),
            GetAliasMap: Some(get_alias_map),
            ReleaseAliasMap: Some(release_may_inplace),
        };
        Self {
            raw,
            api,
            provider,
            op,
            name: Box::leak(name),
            types,
        }
    }

    /// What ORT is given.
    pub fn raw(&'static self) -> *const OrtCustomOp {
        (&raw const *self).cast()
    }

    /// The element type of `port`; undefined, which is any, for a matrix and outside the schema.
    fn element_of(&self, port: Option<&Port>) -> ONNXTensorElementDataType {
        use ONNXTensorElementDataType::*;
        let Types { element, cache } = self.types;
        match port.and_then(|port| port.dtype.resolve(element, cache)) {
            Some(ElementType::F32) => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
            Some(ElementType::F16) => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
            Some(ElementType::BF16) => ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
            Some(ElementType::I64) => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
            Some(ElementType::U8) => ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
            Some(ElementType::I8) => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
            Some(ElementType::I4) => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4,
            None => ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED,
        }
    }
}

/// # Safety
/// `op` is from [`Descriptor::raw`].
unsafe fn descriptor(op: *const OrtCustomOp) -> &'static Descriptor {
    // SAFETY: `raw` is the first field of a `repr(C)` struct, and the pointer was made from a
    // static reference to the whole.
    unsafe { &*op.cast() }
}

// Callbacks without a status hold nothing that could panic; the others run under a guard.

unsafe extern "system" fn get_name(op: *const OrtCustomOp) -> *const c_char {
    // SAFETY: ORT passes back what it was given.
    unsafe { descriptor(op) }.name.as_ptr()
}

/// Null stands for the CPU provider.
unsafe extern "system" fn get_execution_provider_type(op: *const OrtCustomOp) -> *const c_char {
    // SAFETY: ORT passes back what it was given.
    match unsafe { descriptor(op) }.provider {
        provider @ Provider::Cuda(..) if !EMULATED => provider.name().as_ptr(),
        _ => null(),
    }
}

unsafe extern "system" fn get_input_type(
    op: *const OrtCustomOp,
    index: usize,
) -> ONNXTensorElementDataType {
    // SAFETY: ORT passes back what it was given.
    let descriptor = unsafe { descriptor(op) };
    descriptor.element_of(descriptor.op.inputs().get(index))
}

unsafe extern "system" fn get_input_type_count(op: *const OrtCustomOp) -> usize {
    // SAFETY: ORT passes back what it was given.
    unsafe { descriptor(op) }.op.inputs().len()
}

unsafe extern "system" fn get_output_type(
    op: *const OrtCustomOp,
    index: usize,
) -> ONNXTensorElementDataType {
    // SAFETY: ORT passes back what it was given.
    let descriptor = unsafe { descriptor(op) };
    descriptor.element_of(descriptor.op.outputs().get(index))
}

unsafe extern "system" fn get_output_type_count(op: *const OrtCustomOp) -> usize {
    // SAFETY: ORT passes back what it was given.
    unsafe { descriptor(op) }.op.outputs().len()
}

unsafe extern "system" fn get_input_characteristic(
    op: *const OrtCustomOp,
    index: usize,
) -> OrtCustomOpInputOutputCharacteristic {
    // SAFETY: ORT passes back what it was given.
    let port = unsafe { descriptor(op) }.op.inputs().get(index);
    match port {
        Some(port) if port.optional => OrtCustomOpInputOutputCharacteristic::INPUT_OUTPUT_OPTIONAL,
        _ => OrtCustomOpInputOutputCharacteristic::INPUT_OUTPUT_REQUIRED,
    }
}

unsafe extern "system" fn get_output_characteristic(
    _: *const OrtCustomOp,
    _: usize,
) -> OrtCustomOpInputOutputCharacteristic {
    OrtCustomOpInputOutputCharacteristic::INPUT_OUTPUT_REQUIRED
}

unsafe extern "system" fn get_input_memory_type(_: *const OrtCustomOp, _: usize) -> OrtMemType {
    OrtMemType::OrtMemTypeDefault
}

unsafe extern "system" fn get_min_arity(_: *const OrtCustomOp) -> c_int {
    1
}

unsafe extern "system" fn get_homogeneity(_: *const OrtCustomOp) -> c_int {
    1
}

unsafe extern "system" fn get_start_version(_: *const OrtCustomOp) -> c_int {
    DOMAIN_VERSION as c_int
}

unsafe extern "system" fn get_end_version(_: *const OrtCustomOp) -> c_int {
    c_int::MAX
}

unsafe extern "system" fn create_kernel(
    op: *const OrtCustomOp,
    _api: *const OrtApi,
    info: *const OrtKernelInfo,
    kernel: *mut *mut c_void,
) -> OrtStatusPtr {
    // SAFETY: ORT passes back what it was given.
    let descriptor = unsafe { descriptor(op) };
    guard::status(descriptor.api, || {
        // SAFETY: `info` is live during the call, and `kernel` writable.
        unsafe {
            let made = Kernel::new(descriptor, info)?;
            kernel.write(Box::into_raw(Box::new(made)).cast());
        }
        Ok(())
    })
}

unsafe extern "system" fn kernel_compute(
    kernel: *mut c_void,
    context: *mut OrtKernelContext,
) -> OrtStatusPtr {
    // SAFETY: a pointer from `create_kernel`; runs share it.
    let kernel = unsafe { &*kernel.cast_const().cast::<Kernel>() };
    // SAFETY: `context` is live during the call.
    guard::status(kernel.api, || unsafe { kernel.compute(context) })
}

unsafe extern "system" fn kernel_destroy(kernel: *mut c_void) {
    if kernel.is_null() {
        return;
    }
    // A panic here has no status to go to; its message is on standard error.
    let _ = guard::outcome(|| {
        // SAFETY: a pointer from `create_kernel`, passed here once, after the last run.
        drop(unsafe { Box::from_raw(kernel.cast::<Kernel>()) });
        Ok(())
    });
}

/// ORT asks the first operator of a name, whatever the element types. Versions up to 1.31 at least
/// drop the status; creating the kernel finds the same mismatches.
unsafe extern "system" fn infer_output_shape(
    op: *const OrtCustomOp,
    context: *mut OrtShapeInferContext,
) -> OrtStatusPtr {
    // SAFETY: ORT passes back what it was given.
    let Descriptor { api, op, .. } = unsafe { descriptor(op) };
    // SAFETY: `context` is live during the call.
    guard::status(*api, || unsafe { infer(*api, *op, context) })
}

/// No operator has more aliases: tested.
const MAX_ALIASES: usize = 8;

/// The aliases of an operator as ORT takes them: places of inputs, places of outputs.
struct InPlace<O>(PhantomData<O>);

impl<O: Definition> InPlace<O> {
    const PLACES: &'static [[c_int; MAX_ALIASES]; 2] = &places(O::SCHEMA.aliases);
}

const fn places(aliases: &[(usize, usize)]) -> [[c_int; MAX_ALIASES]; 2] {
    let mut places = [[0; MAX_ALIASES]; 2];
    let mut at = 0;
    while at < aliases.len() {
        places[0][at] = aliases[at].0 as c_int;
        places[1][at] = aliases[at].1 as c_int;
        at += 1;
    }
    places
}

unsafe extern "system" fn may_inplace<O: Definition>(
    inputs: *mut *mut c_int,
    outputs: *mut *mut c_int,
) -> usize {
    let [from, to] = InPlace::<O>::PLACES;
    // SAFETY: ORT passes two variables, and only reads what the pointers lead to.
    unsafe {
        inputs.write(from.as_ptr().cast_mut());
        outputs.write(to.as_ptr().cast_mut());
    }
    O::SCHEMA.aliases.len()
}

/// The arrays are static.
unsafe extern "system" fn release_may_inplace(_: *mut c_int, _: *mut c_int) {}

unsafe extern "system" fn get_alias_map(
    inputs: *mut *mut c_int,
    outputs: *mut *mut c_int,
) -> usize {
    // SAFETY: ORT passes two variables.
    unsafe {
        inputs.write(null_mut());
        outputs.write(null_mut());
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{MAX_INPUTS, MAX_OUTPUTS};

    #[test]
    fn only_the_attention_has_a_cache() {
        assert_eq!(Types::of(Op::RecurrenceScan).count(), 3);
        assert_eq!(Types::of(Op::DilatedAttention).count(), 9);
        assert!(Types::of(Op::RecurrenceScan).all(|types| types.element == types.cache));
    }

    #[test]
    fn constants_fit_the_schemas() {
        for op in Op::ALL {
            let schema = op.schema();
            assert!(schema.inputs.len() <= MAX_INPUTS && schema.outputs.len() <= MAX_OUTPUTS);
            let (mut inputs, mut outputs) = (null_mut(), null_mut());
            // SAFETY: as ORT calls it; the lists have the length that it returns.
            let pairs: Vec<_> = unsafe {
                let count = with_op!(op, O => may_inplace::<O>(&mut inputs, &mut outputs));
                let place = |list: *mut c_int, at| *list.add(at) as usize;
                let pairs = (0..count).map(|at| (place(inputs, at), place(outputs, at)));
                pairs.collect()
            };
            assert_eq!(pairs, schema.aliases);
        }
    }
}
