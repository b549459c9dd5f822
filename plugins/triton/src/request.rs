//! Requests as the server hands them over: tensors, checked.

use crate::error::{Fault, check};
use crate::ffi::{self, DataType};
use crate::text::{c_string, string};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_void};
use std::{ptr, slice};

/// A request that this library has not released. It does not own it.
#[derive(Clone, Copy)]
pub struct Tensors(*mut ffi::Request);

/// A tensor of a request, in one piece.
struct Tensor {
    data_type: DataType,
    shape: Vec<i64>,
    bytes: Vec<u8>,
}

/// Largest tensor that is read: the longest prompts of any package are far shorter.
const MAX_BYTES: u64 = 64 << 20;

impl Tensors {
    /// # Safety
    /// `request` is the server's and is not released while this is used.
    pub unsafe fn new(request: *mut ffi::Request) -> Self {
        Self(request)
    }

    /// Names of the outputs that the client wants: all of the configuration's where it names none.
    pub fn outputs(self) -> Result<BTreeSet<String>, Fault> {
        use ffi::{TRITONBACKEND_RequestOutputCount, TRITONBACKEND_RequestOutputName};
        // SAFETY: these are of a request's outputs.
        unsafe {
            self.names(
                TRITONBACKEND_RequestOutputCount,
                TRITONBACKEND_RequestOutputName,
            )
        }
    }

    /// Names of the inputs that came.
    fn inputs(self) -> Result<BTreeSet<String>, Fault> {
        use ffi::{TRITONBACKEND_RequestInputCount, TRITONBACKEND_RequestInputName};
        // SAFETY: these are of a request's inputs.
        unsafe {
            self.names(
                TRITONBACKEND_RequestInputCount,
                TRITONBACKEND_RequestInputName,
            )
        }
    }

    /// # Safety
    /// The functions are the server's, which count and name the same things of a request.
    unsafe fn names(
        self,
        count: unsafe extern "C" fn(*mut ffi::Request, *mut u32) -> ffi::Status,
        name: unsafe extern "C" fn(*mut ffi::Request, u32, *mut *const c_char) -> ffi::Status,
    ) -> Result<BTreeSet<String>, Fault> {
        let mut number = 0;
        // SAFETY: the request lives; the caller's contract.
        unsafe { check(count(self.0, &mut number))? };
        let named = |index| {
            let mut found = ptr::null();
            // SAFETY: as above; the name lives with the request.
            unsafe {
                check(name(self.0, index, &mut found))?;
                Ok(string(found))
            }
        };
        (0..number).map(named).collect()
    }

    /// What came beside the tensors, as JSON has it; the server's own are left out.
    pub fn parameters(self) -> Result<Vec<(String, Value)>, Fault> {
        let mut count = 0;
        // SAFETY: the request lives.
        unsafe { check(ffi::TRITONBACKEND_RequestParameterCount(self.0, &mut count))? };
        let mut parameters = Vec::new();
        for index in 0..count {
            let (mut name, mut kind, mut value) = (ptr::null(), 0, ptr::null::<c_void>());
            // SAFETY: as above; name and value live with the request, and the kind says what the value is.
            let (name, value) = unsafe {
                check(ffi::TRITONBACKEND_RequestParameter(
                    self.0, index, &mut name, &mut kind, &mut value,
                ))?;
                let value = match kind {
                    _ if value.is_null() => Value::Null,
                    ffi::PARAMETER_STRING => string(value.cast()).into(),
                    ffi::PARAMETER_INT => value.cast::<i64>().read().into(),
                    ffi::PARAMETER_BOOL => value.cast::<bool>().read().into(),
                    ffi::PARAMETER_DOUBLE => value.cast::<f64>().read().into(),
                    _ => Value::Null,
                };
                (string(name), value)
            };
            if !name.starts_with("triton_") {
                parameters.push((name, value));
            }
        }
        Ok(parameters)
    }

    /// The input of that name, if it came.
    fn tensor(self, name: &str) -> Result<Option<Tensor>, Fault> {
        if !self.inputs()?.contains(name) {
            return Ok(None);
        }
        let c_name: CString = c_string(name);
        let mut input = ptr::null_mut();
        let (mut data_type, mut shape, mut rank) = (DataType(0), ptr::null(), 0);
        let (mut bytes, mut buffers) = (0, 0);
        // SAFETY: the request lives, and the input, its shape and its buffers with it.
        let shape = unsafe {
            check(ffi::TRITONBACKEND_RequestInput(
                self.0,
                c_name.as_ptr(),
                &mut input,
            ))?;
            check(ffi::TRITONBACKEND_InputProperties(
                input,
                ptr::null_mut(),
                &mut data_type,
                &mut shape,
                &mut rank,
                &mut bytes,
                &mut buffers,
            ))?;
            match shape.is_null() {
                true => Vec::new(),
                false => slice::from_raw_parts(shape, rank as usize).to_vec(),
            }
        };
        if bytes > MAX_BYTES {
            let expected = format!("`{name}`: expected at most {MAX_BYTES} bytes, found {bytes}");
            return Err(Fault::invalid(expected));
        }
        let mut whole = Vec::new();
        for index in 0..buffers {
            let (mut buffer, mut bytes) = (ptr::null(), 0);
            let (mut memory, mut memory_id) = (ffi::MEMORY_CPU, 0);
            // SAFETY: as above; a buffer that is not a GPU's has so many bytes.
            unsafe {
                check(ffi::TRITONBACKEND_InputBuffer(
                    input,
                    index,
                    &mut buffer,
                    &mut bytes,
                    &mut memory,
                    &mut memory_id,
                ))?;
                if memory == ffi::MEMORY_GPU {
                    return Err(Fault::invalid(format!(
                        "`{name}`: expected a tensor in the CPU's memory, found it in a GPU's; send it in system \
                         memory"
                    )));
                }
                if !buffer.is_null() {
                    whole.extend_from_slice(slice::from_raw_parts(buffer.cast(), bytes as usize));
                }
            }
        }
        Ok(Some(Tensor {
            data_type,
            shape,
            bytes: whole,
        }))
    }

    /// One text.
    pub fn text(self, name: &str) -> Result<Option<String>, Fault> {
        let Some(tensor) = self.tensor(name)? else {
            return Ok(None);
        };
        tensor.holds(name, &[(DataType::BYTES, "BYTES")], true)?;
        let wrong = || Fault::invalid(format!("`{name}`: expected one string, found another form"));
        // A string is its length in four bytes, and itself.
        let (length, bytes) = tensor.bytes.split_first_chunk::<4>().ok_or_else(wrong)?;
        if u32::from_le_bytes(*length) as usize != bytes.len() {
            return Err(wrong());
        }
        let text = String::from_utf8(bytes.to_vec()).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Fault::invalid(format!(
                "`{name}`: expected UTF-8, found something else at byte {at}"
            ))
        })?;
        Ok(Some(text))
    }

    /// True or false.
    pub fn flag(self, name: &str) -> Result<Option<bool>, Fault> {
        let Some(tensor) = self.tensor(name)? else {
            return Ok(None);
        };
        tensor.holds(name, &[(DataType::BOOL, "BOOL")], true)?;
        match tensor.bytes[..] {
            [byte] => Ok(Some(byte != 0)),
            _ => Err(Fault::invalid(format!(
                "`{name}`: expected one byte, found {}",
                tensor.bytes.len()
            ))),
        }
    }

    /// Token ids of a vocabulary of that size.
    pub fn tokens(self, name: &str, vocab_size: usize) -> Result<Option<Vec<u32>>, Fault> {
        let Some(tensor) = self.tensor(name)? else {
            return Ok(None);
        };
        let types = [(DataType::INT32, "INT32"), (DataType::INT64, "INT64")];
        tensor.holds(name, &types, false)?;
        let ids: Vec<i64> = match tensor.data_type {
            DataType::INT32 => tensor.elements(|bytes| i32::from_le_bytes(bytes).into()),
            _ => tensor.elements(i64::from_le_bytes),
        };
        let count = tensor.shape.iter().product::<i64>();
        if ids.len() as i64 != count {
            let found = tensor.bytes.len();
            return Err(Fault::invalid(format!(
                "`{name}`: expected the bytes of {count} tokens, found {found}"
            )));
        }
        let id = |id: &i64| {
            u32::try_from(*id)
                .ok()
                .filter(|&id| (id as usize) < vocab_size)
        };
        match ids.iter().find(|token| id(token).is_none()) {
            None => Ok(Some(ids.iter().filter_map(id).collect())),
            Some(wrong) => Err(Fault::invalid(format!(
                "`{name}`: expected token ids of 0 to {}, found {wrong}",
                vocab_size.saturating_sub(1)
            ))),
        }
    }
}

impl Tensor {
    /// Whether it has one of these types and holds one element, or any number in one dimension.
    fn holds(&self, name: &str, types: &[(DataType, &str)], one: bool) -> Result<(), Fault> {
        if !types.iter().any(|(known, _)| *known == self.data_type) {
            let known: Vec<_> = types.iter().map(|(_, name)| *name).collect();
            return Err(Fault::invalid(format!(
                "`{name}`: expected {}, found Triton's data type {}",
                known.join(" or "),
                self.data_type.0
            )));
        }
        let wide = self.shape.iter().filter(|&&size| size != 1);
        if wide.count() <= usize::from(!one) && self.shape.iter().all(|&size| size >= 0) {
            return Ok(());
        }
        let expected = if one { "[1]" } else { "[-1]" };
        Err(Fault::invalid(format!(
            "`{name}`: expected the shape {expected}, found {:?}",
            self.shape
        )))
    }

    fn elements<const N: usize>(&self, read: impl Fn([u8; N]) -> i64) -> Vec<i64> {
        let (chunks, _) = self.bytes.as_chunks::<N>();
        chunks.iter().map(|&chunk| read(chunk)).collect()
    }
}
