//! What the library of RAT+ operators knows of errors on GPUs.

use super::dylib;
use std::ffi::{CStr, c_char};
use std::path::Path;

type TakeDeviceError = unsafe extern "C" fn(*mut c_char, usize) -> usize;

/// The library's function that takes an error.
#[derive(Clone, Copy)]
pub(crate) struct DeviceErrors(TakeDeviceError);

impl DeviceErrors {
    /// The function of `library`, which a session has loaded or will.
    pub fn of(library: &Path) -> Result<Self, String> {
        let library = dylib::open(library)?;
        // SAFETY: the function has had this signature since there is one of its name, and the
        // library is never unloaded.
        let take = unsafe { library.get("RatplusTakeDeviceError") }
            .map_err(|_| "it exports no RatplusTakeDeviceError: it was built before ort-cuda")?;
        Ok(Self(*take))
    }

    /// The error that a kernel has left, once: names of the node and the slot.
    pub fn take(self) -> Option<String> {
        let mut text = [0u8; 2048];
        // SAFETY: there is room for as many bytes; the library ends them with a null.
        let length = unsafe { (self.0)(text.as_mut_ptr().cast(), text.len()) };
        let text = CStr::from_bytes_until_nul(&text).unwrap_or_default();
        (length > 0).then(|| text.to_string_lossy().into_owned())
    }
}
