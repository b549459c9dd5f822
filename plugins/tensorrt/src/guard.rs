//! What keeps panics from TensorRT.

use crate::host;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `body`; an error or a panic is logged with `who` and becomes `bad`.
///
/// State that `body` was changing when it panicked is the plugin object's own, which TensorRT
/// discards.
pub fn guarded<T>(who: impl Fn() -> String, bad: T, body: impl FnOnce() -> Result<T, String>) -> T {
    let message = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => return value,
        Ok(Err(message)) => message,
        Err(payload) => panic_message(payload),
    };
    // Logging calls into the host; what it may do wrong ends here as well.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        host::log(host::ERROR, &format!("{}: {message}", who()));
    }));
    bad
}

fn panic_message(payload: Box<dyn Any + Send>) -> String {
    let text = if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_owned()
    };
    // A payload may panic when dropped; the payload of that panic is left to leak.
    if let Err(second) = catch_unwind(AssertUnwindSafe(move || drop(payload))) {
        std::mem::forget(second);
    }
    format!("a defect in libratplus_trt, please report it: panic: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_panics_become_values() {
        assert_eq!(guarded(|| "a".into(), -1, || Ok(3)), 3);
        assert_eq!(guarded(|| "a".into(), -1, || Err("bad".into())), -1);
        assert_eq!(guarded(|| "a".into(), -1, || panic!("in it")), -1);
        let text = panic_message(Box::new("why"));
        assert!(text.ends_with("panic: why"), "{text}");
    }

    #[test]
    fn a_payload_that_panics_when_dropped_is_contained() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        assert!(panic_message(Box::new(Bomb)).ends_with("no message"));
    }
}
