//! Lengths that did not fit, until somebody asks.

use std::sync::{Mutex, PoisonError};

/// The last message of a node on a CPU.
static TOLD: Mutex<Option<String>> = Mutex::new(None);

/// Keeps a message. Reached by runs with lengths that do not fit, and by no other.
pub fn tell(message: String) {
    *TOLD.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
}

/// A message of a node on a GPU, else of one on a CPU, once.
pub fn take() -> Option<String> {
    #[cfg(feature = "cuda")]
    if let Some(message) = ratplus_kernels::cuda::take_device_error() {
        return Some(message);
    }
    TOLD.lock().unwrap_or_else(PoisonError::into_inner).take()
}
