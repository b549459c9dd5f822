//! Shape inference.

use crate::api::{Api, Failure, TensorShape};
use crate::attributes::InferenceAttributes;
use crate::plan::Plan;
use ort_sys::OrtShapeInferContext;
use ratplus_graphs::ops::Op;
use std::ptr::null_mut;

/// Sets the outputs' shapes where all inputs' are known, and does nothing elsewhere.
///
/// Attributes that cannot be read are left to the kernel's creation to report.
///
/// # Errors
/// Known shapes that contradict the schema.
///
/// # Safety
/// `context` is the one ORT passes to `InferOutputShapeFn`.
pub unsafe fn infer(api: Api, op: Op, context: *const OrtShapeInferContext) -> Result<(), Failure> {
    // SAFETY: the caller's contract.
    let mut attributes = unsafe { InferenceAttributes::new(api, context) };
    #[cfg(feature = "fault-injection")]
    crate::fault::Fault::read(&mut attributes).trip("infer");
    let mut count = 0;
    // SAFETY: the caller's contract.
    unsafe { api.infer_input_count(context, &mut count)? };
    let mut inputs = Vec::with_capacity(count);
    for index in 0..count {
        // SAFETY: the caller's contract.
        let Ok(input) = (unsafe { read_input(api, context, index) }) else {
            return Ok(());
        };
        inputs.push(input);
    }
    if !inputs.iter().all(TensorShape::is_known) {
        return Ok(());
    }
    let Ok(operator) = op.read(&mut attributes) else {
        return Ok(());
    };
    let plan = Plan::new(&operator, &inputs)?;
    for (index, output) in plan.outputs.iter().enumerate() {
        let info = api.make_shape(output)?;
        // SAFETY: `info` is live, and released once.
        unsafe {
            let set = api.infer_output(context, index, info);
            api.release_shape(info);
            set?;
        }
    }
    Ok(())
}

/// # Safety
/// `context` is live.
unsafe fn read_input(
    api: Api,
    context: *const OrtShapeInferContext,
    index: usize,
) -> Result<TensorShape, Failure> {
    let mut info = null_mut();
    // SAFETY: the caller's contract. The context keeps `info`.
    unsafe {
        api.infer_input(context, index, &mut info)?;
        api.read_shape(info)
    }
}
