//! The emulator takes the driver's place.

#![allow(unsafe_code)]
#![cfg(target_os = "linux")]

use std::ffi::CStr;

fn dlopen(name: &CStr) -> *mut libc::c_void {
    // SAFETY: `name` ends with a zero.
    unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) }
}

#[test]
fn the_drivers_names_lead_to_the_emulator() {
    let loaded = ratplus_cuda_emulator::load().unwrap();
    assert!(std::ptr::eq(loaded, ratplus_cuda_emulator::load().unwrap()));
    let path = ratplus_cuda_emulator::library().to_str().unwrap();
    let path = std::ffi::CString::new(path).unwrap();
    assert_eq!(dlopen(c"libcuda.so.1"), dlopen(&path));
    // SAFETY: any address may be compared.
    let address: *const () = unsafe { loaded.function(c"cuLaunchKernel") };
    for name in [c"libcuda.so", c"libcuda.so.1"] {
        let library = dlopen(name);
        assert!(!library.is_null());
        // SAFETY: the library is loaded, the name ends with a zero.
        let found = unsafe { libc::dlsym(library, c"cuLaunchKernel".as_ptr()) };
        assert_eq!(found.cast_const().cast(), address, "{name:?}");
    }
}
