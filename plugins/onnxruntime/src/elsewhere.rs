//! Whether nodes on the CPU may be in a session of another device.

use crate::api::Api;
use ort_sys::OrtKernelInfo;
use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

/// Libraries of providers that ONNX Runtime loads when a session asks for them.
const START: &str = "libonnxruntime_providers_";
/// Loaded with any of them.
const SHARED: &str = "libonnxruntime_providers_shared.so";

/// Warns, once a process, that a node is made for the CPU where providers of other devices are loaded:
/// in a session of one, every cache would be copied to the host and back at every layer.
///
/// # Safety
/// `info` is the one ORT passes to `CreateKernelV2`.
pub unsafe fn warn_once(api: Api, node: &str, info: *const OrtKernelInfo) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if WARNED.load(Ordering::Relaxed) {
        return;
    }
    let Some(library) = provider_library() else {
        return;
    };
    if !WARNED.swap(true, Ordering::Relaxed) {
        let message = format!(
            "{node} runs on the CPU, and this process has loaded {library}: where the session has that \
             provider, every cache is copied to the host and back at every layer; the operators have \
             kernels for the CPU, CUDAExecutionProvider and CudaPluginExecutionProvider"
        );
        // SAFETY: the caller's contract. Without a logger there is nobody to tell.
        let _ = unsafe { api.warn(info, &message) };
    }
}

/// The file name of a provider's library that this process has loaded.
fn provider_library() -> Option<String> {
    let mut found: Option<String> = None;
    // SAFETY: `look` takes what it is given here, and does not unwind.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut found).cast()) };
    found
}

unsafe extern "C" fn look(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    found: *mut c_void,
) -> c_int {
    // SAFETY: the loader's description is live during the call, its name a C string or null.
    let name = unsafe {
        let name = (*object).dlpi_name;
        if name.is_null() {
            return 0;
        }
        CStr::from_ptr(name).to_string_lossy()
    };
    let Some(file) = of_provider(&name) else {
        return 0;
    };
    // SAFETY: `provider_library`'s variable.
    unsafe { *found.cast::<Option<String>>() = Some(file.to_owned()) };
    1
}

/// The file's name, where it is a provider's.
fn of_provider(path: &str) -> Option<&str> {
    let file = path.rsplit('/').next()?;
    (file.starts_with(START) && file != SHARED).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_providers_are_known_by_name() {
        let cuda = "/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so";
        assert_eq!(of_provider(cuda), Some("libonnxruntime_providers_cuda.so"));
        for other in [
            "",
            "/lib/libc.so.6",
            "/capi/libonnxruntime.so.1.31.1",
            "/capi/libonnxruntime_providers_shared.so",
        ] {
            assert_eq!(of_provider(other), None, "{other}");
        }
        assert_eq!(provider_library(), None);
    }
}
