//! The `OrtCustomOp`s: one per operator and element types.

use crate::api::{Api, Api18};
use crate::compute::EMULATED;
use crate::guard;
use crate::infer::infer;
use crate::kernel::Kernel;
use ort_sys::*;
use ratplus_graphs::ops::{DOMAIN_VERSION, ElementType, Op, Port, PortType};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{null, null_mut};

/// An execution provider that the operators are registered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// ORT's threads.
    Cpu,
    /// `CUDAExecutionProvider`; what its kernels need of ORT came with API 18.
    Cuda(Api18),
}

/// An operator as ORT knows it. ORT passes the address of `raw`, the first field, to callbacks.
#[repr(C)]
pub struct Descriptor {
    raw: OrtCustomOp,
    api: Api,
    provider: Provider,
    op: Op,
    types: Types,
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

// SAFETY: constant once made.
unsafe impl Sync for Descriptor {}
// SAFETY: as above.
unsafe impl Send for Descriptor {}

impl Descriptor {
    /// The operator for a runtime whose table was asked for at `level`.
    pub fn new(api: Api, level: u32, provider: Provider, op: Op, types: Types) -> Self {
        let aliases: Option<unsafe extern "system" fn(_, _) -> _> = match op {
            Op::RecurrenceScan => Some(scan_may_inplace),
            Op::DilatedAttention => Some(attention_may_inplace),
        };
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
            GetInputCharacteristic: Some(get_characteristic),
            GetOutputCharacteristic: Some(get_characteristic),
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
            GetMayInplace: aliases,
            ReleaseMayInplace: Some(release_may_inplace),
            GetAliasMap: Some(get_alias_map),
            ReleaseAliasMap: Some(release_may_inplace),
        };
        Self {
            raw,
            api,
            provider,
            op,
            types,
        }
    }

    /// What ORT is given.
    pub fn raw(&'static self) -> *const OrtCustomOp {
        (&raw const *self).cast()
    }

    /// The element type of `port`; none outside the schema.
    fn element_of(&self, port: Option<&Port>) -> ONNXTensorElementDataType {
        use ONNXTensorElementDataType::*;
        let Types { element, cache } = self.types;
        match port.map(|port| port.dtype.resolve(element, cache)) {
            Some(ElementType::F32) => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
            Some(ElementType::F16) => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
            Some(ElementType::BF16) => ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
            Some(ElementType::I64) => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
            Some(ElementType::U8) => ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
            None => ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED,
        }
    }
}

/// # Safety
/// `op` is from [`Descriptor::raw`].
unsafe fn descriptor<'a>(op: *const OrtCustomOp) -> &'a Descriptor {
    // SAFETY: `raw` is the first field of a `repr(C)` struct, and the pointer was made from one
    // to the whole.
    unsafe { &*op.cast() }
}

// Callbacks without a status hold nothing that could panic; the others run under a guard.

unsafe extern "system" fn get_name(op: *const OrtCustomOp) -> *const c_char {
    // SAFETY: ORT passes back what it was given.
    op_name(unsafe { descriptor(op) }.op).as_ptr()
}

/// Its name, as ORT takes it.
pub fn op_name(op: Op) -> &'static CStr {
    match op {
        Op::RecurrenceScan => c"RecurrenceScan",
        Op::DilatedAttention => c"DilatedAttention",
    }
}

/// Null stands for the CPU provider.
unsafe extern "system" fn get_execution_provider_type(op: *const OrtCustomOp) -> *const c_char {
    // SAFETY: ORT passes back what it was given.
    match unsafe { descriptor(op) }.provider {
        Provider::Cuda(_) if !EMULATED => c"CUDAExecutionProvider".as_ptr(),
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

unsafe extern "system" fn get_characteristic(
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
    let Descriptor {
        api,
        provider,
        op,
        types,
        ..
    } = unsafe { descriptor(op) };
    guard::status(*api, || {
        // SAFETY: `info` is live during the call, and `kernel` writable.
        unsafe {
            let made = Kernel::new(*api, *provider, *op, *types, info)?;
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
    guard::status(kernel.api(), || unsafe { kernel.compute(context) })
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

/// The pairs of [`Op::aliases`] as ORT takes them.
struct InPlace {
    inputs: [c_int; 2],
    outputs: [c_int; 2],
}

const SCAN: InPlace = InPlace {
    inputs: [3, 4],
    outputs: [2, 3],
};
const ATTENTION: InPlace = InPlace {
    inputs: [3, 4],
    outputs: [1, 2],
};

/// # Safety
/// Both are writable.
unsafe fn may_inplace(
    pairs: &'static InPlace,
    inputs: *mut *mut c_int,
    outputs: *mut *mut c_int,
) -> usize {
    // SAFETY: the caller's contract. ORT only reads what the pointers lead to.
    unsafe {
        inputs.write(pairs.inputs.as_ptr().cast_mut());
        outputs.write(pairs.outputs.as_ptr().cast_mut());
    }
    pairs.inputs.len()
}

unsafe extern "system" fn scan_may_inplace(
    inputs: *mut *mut c_int,
    outputs: *mut *mut c_int,
) -> usize {
    // SAFETY: ORT passes two variables.
    unsafe { may_inplace(&SCAN, inputs, outputs) }
}

unsafe extern "system" fn attention_may_inplace(
    inputs: *mut *mut c_int,
    outputs: *mut *mut c_int,
) -> usize {
    // SAFETY: ORT passes two variables.
    unsafe { may_inplace(&ATTENTION, inputs, outputs) }
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

    #[test]
    fn only_the_attention_has_a_cache() {
        assert_eq!(Types::of(Op::RecurrenceScan).count(), 3);
        assert_eq!(Types::of(Op::DilatedAttention).count(), 9);
        assert!(Types::of(Op::RecurrenceScan).all(|types| types.element == types.cache));
    }

    #[test]
    fn constants_are_the_schema() {
        for (op, pairs) in [
            (Op::RecurrenceScan, SCAN),
            (Op::DilatedAttention, ATTENTION),
        ] {
            assert_eq!(op_name(op).to_str(), Ok(op.name()));
            let pairs = pairs.inputs.into_iter().zip(pairs.outputs);
            let pairs: Vec<_> = pairs.map(|(i, o)| (i as usize, o as usize)).collect();
            assert_eq!(pairs, op.aliases());
        }
    }
}
