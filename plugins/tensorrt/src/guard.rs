//! What keeps panics from TensorRT.

use crate::host;
use ratplus_kernels::panic_words;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `body`; an error or a panic is logged with `who` and becomes `bad`.
///
/// State that `body` was changing when it panicked is the plugin object's own, which TensorRT
/// discards.
pub fn guarded<T>(who: impl fmt::Display, bad: T, body: impl FnOnce() -> Result<T, String>) -> T {
    let message = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => return value,
        Ok(Err(message)) => message,
        Err(payload) => format!(
            "a defect in libratplus_trt, please report it: panic: {}",
            panic_words(payload)
        ),
    };
    // Logging calls into the host; what it may do wrong ends here as well.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        host::log(host::ERROR, &format!("{who}: {message}"));
    }));
    bad
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_panics_become_values() {
        assert_eq!(guarded("a", -1, || Ok(3)), 3);
        assert_eq!(guarded("a", -1, || Err("bad".into())), -1);
        assert_eq!(guarded("a", -1, || panic!("in it")), -1);
    }

    #[test]
    fn a_payload_that_panics_when_dropped_is_contained() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        assert_eq!(guarded("a", -1, || std::panic::panic_any(Bomb)), -1);
    }
}
