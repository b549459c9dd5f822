//! What a library of RAT+ operators says of itself.

use super::dylib;
use std::ffi::c_char;
use std::path::Path;

type Describe = unsafe extern "C" fn(*mut c_char, usize) -> usize;

/// The JSON object that `RatplusDescribe` of the library writes.
pub(crate) fn describe(library: &Path) -> Result<String, String> {
    let named = |problem: &str| format!("{}: {problem}", library.display());
    let file = library
        .canonicalize()
        .map_err(|error| named(&error.to_string()))?;
    let loaded = dylib::open(&file)?;
    // SAFETY: the function has had this signature since there is one of its name, and the library is never
    // unloaded.
    let describe = unsafe { loaded.get::<Describe>("RatplusDescribe") }.map_err(|_| {
        named("it exports no RatplusDescribe: it is no library of RAT+ operators, or an older one")
    })?;
    // SAFETY: null for no room asks for the length.
    let length = unsafe { describe(std::ptr::null_mut(), 0) };
    let mut text = vec![0u8; length + 1];
    // SAFETY: as many bytes are writable.
    unsafe { describe(text.as_mut_ptr().cast(), text.len()) };
    text.truncate(length);
    match length {
        0 => Err(named("it has nothing to say of itself, which is a defect")),
        _ => String::from_utf8(text).map_err(|error| named(&error.to_string())),
    }
}
