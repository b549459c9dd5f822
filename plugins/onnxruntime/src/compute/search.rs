//! Where NVRTC may be.

use ratplus_kernels::cuda::add_search_folders_around;
use std::ffi::{CStr, OsStr, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Has NVRTC looked for around the file that `address` was loaded from.
pub fn search_around(address: *const c_void) {
    if let Some(file) = file_of(address) {
        add_search_folders_around(&file);
    }
}

/// The file that `address` was loaded from.
fn file_of(address: *const c_void) -> Option<PathBuf> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: `info` is valid for writes; `dladdr` only compares `address` with what is loaded,
    // and `dli_fname` is a C string where it returns non-zero.
    unsafe {
        if libc::dladdr(address, info.as_mut_ptr()) == 0 {
            return None;
        }
        let name = info.assume_init().dli_fname;
        (!name.is_null()).then(|| OsStr::from_bytes(CStr::from_ptr(name).to_bytes()).into())
    }
}
