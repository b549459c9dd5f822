//! Errors on their way to the server, and what keeps panics from it.

use crate::ffi::{self, Code, Status};
use crate::text::{c_string, string};
use ratplus_kernels::panic_words;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

/// What the server or a client is told.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    pub code: Code,
    pub message: String,
}

impl Fault {
    /// Of that kind.
    pub fn new(code: Code, message: impl Display) -> Self {
        let message = message.to_string();
        Self { code, message }
    }

    /// Of a request or a configuration.
    pub fn invalid(message: impl Display) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// Anything else.
    pub fn internal(message: impl Display) -> Self {
        Self::new(Code::Internal, message)
    }

    /// A panic of this library's, with what it says.
    pub fn defect(panic: impl Display) -> Self {
        Self::internal(format!(
            "a defect in libtriton_ratplus, please report it: panic: {panic}"
        ))
    }

    /// The server's own form, which whoever gets it deletes.
    pub fn status(&self) -> Status {
        let message = c_string(&self.message);
        // SAFETY: the server copies the text.
        unsafe { ffi::TRITONSERVER_ErrorNew(self.code, message.as_ptr()) }
    }
}

/// What a call of the server returned.
///
/// # Errors
/// The call's.
///
/// # Safety
/// `status` is such a return value, and nobody else uses it.
pub unsafe fn check(status: Status) -> Result<(), Fault> {
    if status.is_null() {
        return Ok(());
    }
    // SAFETY: an error of the server's has a text until it is deleted, here.
    unsafe {
        let message = string(ffi::TRITONSERVER_ErrorMessage(status));
        ffi::TRITONSERVER_ErrorDelete(status);
        Err(Fault::internal(message))
    }
}

/// Runs `body`; a panic becomes an error. What `body` was changing is only ever discarded after one.
///
/// # Errors
/// Those of `body`.
pub fn guarded<T>(body: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|payload| Err(Fault::defect(panic_words(payload))))
}

/// What an entry point returns.
pub fn entry(body: impl FnOnce() -> Result<(), Fault>) -> Status {
    match guarded(body) {
        Ok(()) => ptr::null_mut(),
        Err(fault) => fault.status(),
    }
}
