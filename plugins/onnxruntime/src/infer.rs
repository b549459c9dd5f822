//! Shape inference.

use crate::api::{Api, Failure, TensorShape};
use crate::plan::Plan;
use ort_sys::{OrtOpAttrType, OrtShapeInferContext};
use ratplus_graphs::ops::{AttentionAttributes, Op, RawAttentionAttributes};
use std::ffi::{CStr, c_void};
use std::ptr::{null, null_mut};

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
    #[cfg(feature = "fault-injection")]
    // SAFETY: the caller's contract.
    unsafe { fault(api, context) }.trip("infer");
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
    let attributes = match op {
        Op::RecurrenceScan => None,
        // SAFETY: the caller's contract.
        Op::DilatedAttention => match unsafe { attributes(api, context) } {
            None => return Ok(()),
            attributes => attributes,
        },
    };
    let plan = Plan::new(op, attributes.as_ref(), &inputs)?;
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

/// # Safety
/// `context` is live.
unsafe fn attributes(
    api: Api,
    context: *const OrtShapeInferContext,
) -> Option<AttentionAttributes> {
    // SAFETY: the caller's contract; an i64 and an f32 may hold any bits.
    let raw = unsafe {
        RawAttentionAttributes {
            num_heads: scalar(api, context, c"num_heads", OrtOpAttrType::ORT_OP_ATTR_INT)?,
            dilation: ints(api, context, c"dilation")?,
            local_window: ints(api, context, c"local_window")?,
            initial: ints(api, context, c"initial")?,
            scale: scalar(api, context, c"scale", OrtOpAttrType::ORT_OP_ATTR_FLOAT)?,
        }
    };
    raw.try_into().ok()
}

/// # Safety
/// `context` is live, and `T` what `kind` is read as.
unsafe fn scalar<T: Default>(
    api: Api,
    context: *const OrtShapeInferContext,
    name: &CStr,
    kind: OrtOpAttrType,
) -> Option<T> {
    let (mut attribute, mut value, mut size) = (null(), T::default(), 0);
    // SAFETY: the caller's contract.
    unsafe {
        api.infer_attribute(context, name.as_ptr(), &mut attribute)
            .ok()?;
        let data = (&raw mut value).cast::<c_void>();
        api.read_attribute(attribute, kind, data, size_of::<T>(), &mut size)
            .ok()?;
    }
    Some(value)
}

/// # Safety
/// `context` is live.
unsafe fn ints(api: Api, context: *const OrtShapeInferContext, name: &CStr) -> Option<Vec<i64>> {
    const KIND: OrtOpAttrType = OrtOpAttrType::ORT_OP_ATTR_INTS;
    let (mut attribute, mut bytes) = (null(), 0);
    // SAFETY: the caller's contract. Without room ORT fails but tells the size.
    unsafe {
        api.infer_attribute(context, name.as_ptr(), &mut attribute)
            .ok()?;
        let _ = api.read_attribute(attribute, KIND, null_mut(), 0, &mut bytes);
        let mut values = vec![0i64; bytes / size_of::<i64>()];
        let data = values.as_mut_ptr().cast();
        api.read_attribute(attribute, KIND, data, bytes, &mut bytes)
            .ok()?;
        Some(values)
    }
}

/// # Safety
/// `context` is live.
#[cfg(feature = "fault-injection")]
unsafe fn fault(api: Api, context: *const OrtShapeInferContext) -> crate::fault::Fault {
    let (mut attribute, mut size) = (null(), 0);
    let mut text = [0u8; 64];
    let kind = OrtOpAttrType::ORT_OP_ATTR_STRING;
    // SAFETY: the caller's contract.
    let found = unsafe {
        api.infer_attribute(context, c"ratplus_fault".as_ptr(), &mut attribute)
            .and_then(|()| {
                let data = text.as_mut_ptr().cast();
                api.read_attribute(attribute, kind, data, text.len(), &mut size)
            })
    };
    // Some versions count a terminating null, some do not.
    let text = if found.is_ok() { &text[..] } else { &[] };
    let text: Vec<u8> = text.iter().copied().take_while(|&byte| byte != 0).collect();
    crate::fault::Fault::named(String::from_utf8_lossy(&text).into_owned())
}
