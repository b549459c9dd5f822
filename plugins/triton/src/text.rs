//! Texts across the border.

use std::ffi::{CStr, CString, c_char};

/// A text for the server, up to its first null character.
pub fn c_string(text: &str) -> CString {
    let text = text.split('\0').next().unwrap_or_default();
    CString::new(text).unwrap_or_default()
}

/// A text of the server's; what is no UTF-8 in it is replaced.
///
/// # Safety
/// `text` is null or ends with a null byte, and lives as long as the call.
pub unsafe fn string(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's contract.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}
