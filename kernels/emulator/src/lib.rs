//! The kernels of `kernels/cuda` on the CPU.
//!
//! The build compiles them with a C++ compiler into a library that exports the CUDA driver's API
//! under the driver's name. After [`load`], what asks the loader for `libcuda.so.1` (or
//! `libcuda.so`) gets the emulator, so that the code that launches kernels runs unchanged on a
//! machine without a GPU.
//!
//! A block's threads run in turns on the OS thread that launches it; everything is done when the
//! launch returns. Misuse that a GPU passes over in silence fails the launch: see
//! [`Library::last_error`]. On Linux only; elsewhere the crate is empty.

#![allow(unsafe_code)]
#![cfg(target_os = "linux")]

mod library;

pub use library::{Kernel, Library, Order};

use std::path::Path;
use std::sync::OnceLock;

/// The library that stands in for the driver's.
pub fn library() -> &'static Path {
    Path::new(env!("RATPLUS_EMULATOR"))
}

/// Loads the emulator into the process, once. Has to come before anything loads the driver.
///
/// # Errors
/// The loader's message.
pub fn load() -> Result<&'static Library, String> {
    static LOADED: OnceLock<Result<Library, String>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            let library = Library::open(library())?;
            // Depends on the first by name: both names lead to it now.
            Library::open(Path::new(env!("RATPLUS_EMULATOR_NAME")))?;
            Ok(library)
        })
        .as_ref()
        .map_err(Clone::clone)
}
