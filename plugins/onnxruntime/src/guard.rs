//! What keeps a panic from crossing the C boundary.

use crate::api::{Api, Failure};
use ort_sys::{OrtErrorCode, OrtStatusPtr};
use ratplus_kernels::panic_words;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `body`; its error or panic becomes a status, success the null status.
pub fn status(api: Api, body: impl FnOnce() -> Result<(), Failure>) -> OrtStatusPtr {
    match outcome(body) {
        Ok(()) => OrtStatusPtr::default(),
        Err(failure) => api.status(&failure),
    }
}

/// Runs `body`; a panic becomes an error with its message.
///
/// State that `body` was changing when it panicked must not be used again: callers hand over
/// only what they discard or only read.
pub fn outcome<T>(body: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| Err(into_failure(payload)))
}

/// The message of a panic. [`Failure`]s that were thrown come out as they went in.
fn into_failure(payload: Box<dyn Any + Send>) -> Failure {
    let payload = match payload.downcast::<Failure>() {
        Ok(failure) => return *failure,
        Err(payload) => payload,
    };
    let words = panic_words(payload);
    Failure::new(
        OrtErrorCode::ORT_RUNTIME_EXCEPTION,
        format!("a defect in the ratplus custom-op library, please report it: panic: {words}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{panic_any, resume_unwind};

    #[test]
    fn a_panic_becomes_its_message() {
        let message = |body: fn()| {
            outcome(|| {
                body();
                Ok(())
            })
            .unwrap_err()
            .to_string()
        };
        assert!(message(|| panic!("literal")).ends_with("panic: literal"));
        assert!(message(|| panic!("number {}", 7)).ends_with("panic: number 7"));
        assert!(message(|| panic_any(7)).ends_with("panic: no message"));
    }

    #[test]
    fn a_payload_that_panics_when_dropped_is_contained() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let failure = outcome::<()>(|| panic_any(Bomb)).unwrap_err();
        assert!(failure.to_string().ends_with("no message"));
    }

    #[test]
    fn a_thrown_failure_keeps_code_and_message() {
        let thrown = Failure::new(OrtErrorCode::ORT_NO_MODEL, "as is");
        let failure = outcome::<()>(|| resume_unwind(Box::new(thrown))).unwrap_err();
        assert_eq!(failure.code, OrtErrorCode::ORT_NO_MODEL);
        assert_eq!(failure.to_string(), "as is");
    }
}
