//! Attributes of a node, as ORT tells them to its kernel and to shape inference.

use crate::api::{Api, Failure};
use ort_sys::{OrtKernelInfo, OrtOpAttr, OrtOpAttrType, OrtShapeInferContext};
use ratplus_graphs::ops::{AttributeKind, AttributeReader, AttributeSpec, AttributeValue};
use std::ffi::{CStr, CString, c_void};
use std::ptr::{null, null_mut};

/// Of a kernel that is being made.
pub struct KernelAttributes {
    api: Api,
    info: *const OrtKernelInfo,
}

impl KernelAttributes {
    /// # Safety
    /// `info` is live as long as the result.
    pub unsafe fn new(api: Api, info: *const OrtKernelInfo) -> Self {
        Self { api, info }
    }
}

/// Of a node whose shapes are inferred.
pub struct InferenceAttributes {
    api: Api,
    context: *const OrtShapeInferContext,
}

impl InferenceAttributes {
    /// # Safety
    /// `context` is live as long as the result.
    pub unsafe fn new(api: Api, context: *const OrtShapeInferContext) -> Self {
        Self { api, context }
    }
}

fn c_name(attribute: &AttributeSpec) -> Result<CString, String> {
    CString::new(attribute.name).map_err(|error| error.to_string())
}

impl AttributeReader for KernelAttributes {
    fn read(&mut self, attribute: &AttributeSpec) -> Result<Option<AttributeValue>, String> {
        let name = c_name(attribute)?;
        // SAFETY: `info` is live, as `new` was promised.
        let typed = |kind| unsafe { self.typed(kind, &name) };
        match typed(attribute.kind) {
            Ok(value) => Ok(Some(value)),
            // ORT does not say whether there is nothing or something else.
            Err(_)
                if AttributeKind::ALL
                    .into_iter()
                    .all(|kind| typed(kind).is_err()) =>
            {
                Ok(None)
            }
            Err(failure) => Err(format!("another kind ({failure})")),
        }
    }
}

impl KernelAttributes {
    /// # Safety
    /// `info` is live.
    unsafe fn typed(&self, kind: AttributeKind, name: &CStr) -> Result<AttributeValue, Failure> {
        let &Self { api, info } = self;
        let name = name.as_ptr();
        // SAFETY: the caller's contract. The list has the size that ORT told.
        unsafe {
            match kind {
                AttributeKind::Int => {
                    let mut value = 0;
                    let found = api.attribute_int(info, name, &mut value);
                    found.map(|()| AttributeValue::Int(value))
                }
                AttributeKind::Float => {
                    let mut value = 0.0;
                    let found = api.attribute_float(info, name, &mut value);
                    found.map(|()| AttributeValue::Float(value))
                }
                AttributeKind::Ints => {
                    let mut size = 0;
                    api.attribute_ints(info, name, null_mut(), &mut size)?;
                    let mut values = vec![0; size];
                    api.attribute_ints(info, name, values.as_mut_ptr(), &mut size)?;
                    Ok(AttributeValue::Ints(values))
                }
                AttributeKind::String => api
                    .attribute_string(info, CStr::from_ptr(name))
                    .map(AttributeValue::String),
            }
        }
    }
}

impl AttributeReader for InferenceAttributes {
    fn read(&mut self, attribute: &AttributeSpec) -> Result<Option<AttributeValue>, String> {
        let (name, mut found) = (c_name(attribute)?, null());
        // SAFETY: `context` is live, as `new` was promised.
        let named = unsafe {
            self.api
                .infer_attribute(self.context, name.as_ptr(), &mut found)
        };
        if named.is_err() {
            return Ok(None);
        }
        // SAFETY: ORT has just found it; an i64 and an f32 may hold any bits.
        let value = unsafe {
            match attribute.kind {
                AttributeKind::Int => self
                    .scalar(found, OrtOpAttrType::ORT_OP_ATTR_INT)
                    .map(AttributeValue::Int),
                AttributeKind::Float => self
                    .scalar(found, OrtOpAttrType::ORT_OP_ATTR_FLOAT)
                    .map(AttributeValue::Float),
                AttributeKind::Ints => self
                    .list(found, OrtOpAttrType::ORT_OP_ATTR_INTS)
                    .map(AttributeValue::Ints),
                AttributeKind::String => {
                    let text = self.list(found, OrtOpAttrType::ORT_OP_ATTR_STRING);
                    text.map(|mut text| {
                        // Some versions count a terminating null, some do not.
                        text.truncate(text.iter().position(|&c| c == 0).unwrap_or(text.len()));
                        AttributeValue::String(String::from_utf8_lossy(&text).into_owned())
                    })
                }
            }
        };
        let value = value.map_err(|failure| format!("another kind ({failure})"))?;
        Ok(Some(value))
    }
}

impl InferenceAttributes {
    /// # Safety
    /// `attribute` is live, and `T` what `kind` is read as.
    unsafe fn scalar<T: Default>(
        &self,
        attribute: *const OrtOpAttr,
        kind: OrtOpAttrType,
    ) -> Result<T, Failure> {
        let (mut value, mut size) = (T::default(), 0);
        let data = (&raw mut value).cast::<c_void>();
        // SAFETY: the caller's contract.
        unsafe {
            self.api
                .read_attribute(attribute, kind, data, size_of::<T>(), &mut size)?;
        }
        Ok(value)
    }

    /// # Safety
    /// `attribute` is live, and `T` an element of what `kind` is read as.
    unsafe fn list<T: Default + Clone>(
        &self,
        attribute: *const OrtOpAttr,
        kind: OrtOpAttrType,
    ) -> Result<Vec<T>, Failure> {
        let mut bytes = 0;
        // SAFETY: the caller's contract. Without room ORT fails but tells the size.
        unsafe {
            let _ = self
                .api
                .read_attribute(attribute, kind, null_mut(), 0, &mut bytes);
            let mut values = vec![T::default(); bytes / size_of::<T>()];
            let data = values.as_mut_ptr().cast();
            self.api
                .read_attribute(attribute, kind, data, bytes, &mut bytes)?;
            Ok(values)
        }
    }
}
