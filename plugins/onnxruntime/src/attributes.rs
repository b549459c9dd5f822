//! Attributes of a node, as ORT tells them to its kernel and to shape inference.

use crate::api::{Api, Failure};
use ort_sys::{OrtKernelInfo, OrtOpAttrType, OrtShapeInferContext};
use ratplus_graphs::ops::{AttributeKind, AttributeReader, AttributeSpec, AttributeValue};
use std::ffi::{CStr, CString, c_char, c_void};
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

/// ORT does not say which of the two it is.
fn missing(failure: Failure) -> String {
    format!("none or another kind ({failure})")
}

impl KernelAttributes {
    /// Whether the node has an attribute of this name, of another kind than an integer.
    ///
    /// # Safety
    /// As [`new`](Self::new), and `name` is a C string.
    unsafe fn has_another_kind(&self, name: *const c_char) -> bool {
        let (api, info, mut size) = (self.api, self.info, 0);
        // SAFETY: the caller's contract; without room only the size is told.
        unsafe {
            api.attribute_float(info, name, &mut 0.0).is_ok()
                || api.attribute_string(info, CStr::from_ptr(name)).is_ok()
                || api
                    .attribute_ints(info, name, null_mut(), &mut size)
                    .is_ok()
        }
    }
}

impl AttributeReader for KernelAttributes {
    fn read(&mut self, attribute: &AttributeSpec) -> Result<AttributeValue, String> {
        let &mut Self { api, info } = self;
        let name = c_name(attribute)?;
        let name = name.as_ptr();
        // SAFETY: `info` is live, as `new` was promised. The list has the size that ORT told.
        unsafe {
            match attribute.kind {
                AttributeKind::Int => {
                    let mut value = 0;
                    let found = api.attribute_int(info, name, &mut value);
                    if found.is_err() && attribute.optional && self.has_another_kind(name) {
                        return Err("another kind".into());
                    }
                    found.map(|()| AttributeValue::Int(value))
                }
                AttributeKind::Float => {
                    let mut value = 0.0;
                    let found = api.attribute_float(info, name, &mut value);
                    found.map(|()| AttributeValue::Float(value))
                }
                AttributeKind::Ints => {
                    let mut size = 0;
                    let told = api.attribute_ints(info, name, null_mut(), &mut size);
                    told.and_then(|()| {
                        let mut values = vec![0; size];
                        api.attribute_ints(info, name, values.as_mut_ptr(), &mut size)?;
                        Ok(AttributeValue::Ints(values))
                    })
                }
                AttributeKind::String => api
                    .attribute_string(info, CStr::from_ptr(name))
                    .map(AttributeValue::String),
            }
        }
        .map_err(missing)
    }
}

impl AttributeReader for InferenceAttributes {
    fn read(&mut self, attribute: &AttributeSpec) -> Result<AttributeValue, String> {
        let name = c_name(attribute)?;
        // SAFETY: `context` is live, as `new` was promised; an i64 and an f32 may hold any bits.
        unsafe {
            match attribute.kind {
                AttributeKind::Int => self
                    .scalar(&name, OrtOpAttrType::ORT_OP_ATTR_INT)
                    .map(AttributeValue::Int),
                AttributeKind::Float => self
                    .scalar(&name, OrtOpAttrType::ORT_OP_ATTR_FLOAT)
                    .map(AttributeValue::Float),
                AttributeKind::Ints => self
                    .list(&name, OrtOpAttrType::ORT_OP_ATTR_INTS)
                    .map(AttributeValue::Ints),
                AttributeKind::String => {
                    let text = self.list(&name, OrtOpAttrType::ORT_OP_ATTR_STRING);
                    text.map(|mut text| {
                        // Some versions count a terminating null, some do not.
                        text.truncate(text.iter().position(|&c| c == 0).unwrap_or(text.len()));
                        AttributeValue::String(String::from_utf8_lossy(&text).into_owned())
                    })
                }
            }
        }
        .map_err(missing)
    }
}

impl InferenceAttributes {
    /// # Safety
    /// The context is live, and `T` what `kind` is read as.
    unsafe fn scalar<T: Default>(&self, name: &CStr, kind: OrtOpAttrType) -> Result<T, Failure> {
        let (mut attribute, mut value, mut size) = (null(), T::default(), 0);
        // SAFETY: the caller's contract.
        unsafe {
            self.api
                .infer_attribute(self.context, name.as_ptr(), &mut attribute)?;
            let data = (&raw mut value).cast::<c_void>();
            self.api
                .read_attribute(attribute, kind, data, size_of::<T>(), &mut size)?;
        }
        Ok(value)
    }

    /// # Safety
    /// The context is live, and `T` an element of what `kind` is read as.
    unsafe fn list<T: Default + Clone>(
        &self,
        name: &CStr,
        kind: OrtOpAttrType,
    ) -> Result<Vec<T>, Failure> {
        let (mut attribute, mut bytes) = (null(), 0);
        // SAFETY: the caller's contract. Without room ORT fails but tells the size.
        unsafe {
            self.api
                .infer_attribute(self.context, name.as_ptr(), &mut attribute)?;
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
