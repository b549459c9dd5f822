//! A loaded emulator and its controls.

use libloading::os::unix::{RTLD_LOCAL, RTLD_NOW};
use std::error::Error;
use std::ffi::{CStr, CString, c_char, c_int, c_uint};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::ptr::null;

/// The order in which threads and blocks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The runnable thread with the lowest index first.
    Forward,
    /// The one with the highest.
    Reverse,
    /// As the seed says.
    Random(u64),
}

/// What `RATPLUS_KERNEL` says of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its name in the module.
    pub name: String,
    /// The file it stands in.
    pub source: PathBuf,
    /// The type of its parameters.
    pub params: String,
    /// Bytes of its parameters.
    pub params_bytes: usize,
    /// Most threads of a block.
    pub max_threads: u32,
    /// Blocks that fit on a multiprocessor at a time.
    pub min_blocks: u32,
}

/// A library with the emulator in it.
#[derive(Debug)]
pub struct Library(ManuallyDrop<libloading::os::unix::Library>);

impl Library {
    /// Loads the library for the rest of the process, under the names of the driver.
    ///
    /// # Errors
    /// The loader's message.
    pub fn open(path: &Path) -> Result<Self, String> {
        // SAFETY: the library's initialisers only chain up its kernels.
        let library =
            unsafe { libloading::os::unix::Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
        library
            .map(|library| Self(ManuallyDrop::new(library)))
            .map_err(|error| {
                let words = error.source().map(ToString::to_string);
                words.unwrap_or_else(|| format!("{}: {error}", path.display()))
            })
    }

    /// A function of the library.
    ///
    /// # Safety
    /// `F` is the type of the function of that name.
    ///
    /// # Panics
    /// Where there is none.
    pub unsafe fn function<F: Copy>(&self, name: &CStr) -> F {
        // SAFETY: the caller's promise; the library stays loaded.
        let found = unsafe { self.0.get::<F>(name) };
        *found.unwrap_or_else(|error| panic!("{name:?}: {error}"))
    }

    /// Sets the order of the calling thread's launches, and how many blocks run at a time (1 to
    /// 4). Forward, one block where nothing was set.
    ///
    /// # Panics
    /// Where `resident_blocks` is not in 1..=4.
    pub fn configure(&self, order: Order, resident_blocks: u32) {
        let (order, seed) = match order {
            Order::Forward => (0, 0),
            Order::Reverse => (1, 0),
            Order::Random(seed) => (2, seed),
        };
        // SAFETY: the function's type in control.cpp.
        let configure: extern "C" fn(c_int, u64, c_uint) -> c_int =
            unsafe { self.function(c"ratplusEmulatorConfigure") };
        assert_eq!(
            configure(order, seed, resident_blocks),
            0,
            "{resident_blocks} resident blocks, which is not in 1..=4"
        );
    }

    /// Sets what the calling thread sees of the device. Compute capability 9.0 and 4
    /// multiprocessors where nothing was set.
    ///
    /// # Panics
    /// Where the numbers are no device's.
    pub fn set_device(&self, capability: (u32, u32), multiprocessors: u32) {
        // SAFETY: the function's type in control.cpp.
        let set: extern "C" fn(c_uint, c_uint, c_uint) -> c_int =
            unsafe { self.function(c"ratplusEmulatorSetDevice") };
        assert_eq!(
            set(capability.0, capability.1, multiprocessors),
            0,
            "no device has capability {capability:?} and {multiprocessors} multiprocessors"
        );
    }

    /// Sets for the process whether the device reaches memory that the driver did not allocate,
    /// as some systems with a GPU do. It does not where nothing was set.
    pub fn set_pageable_memory(&self, reachable: bool) {
        // SAFETY: the function's type in control.cpp.
        let set: extern "C" fn(c_int) -> c_int =
            unsafe { self.function(c"ratplusEmulatorSetPageableMemory") };
        set(reachable.into());
    }

    /// Names of the kernels, in order.
    pub fn kernels(&self) -> Vec<String> {
        let mut names: Vec<_> = self.table().map(|kernel| kernel.name).collect();
        names.sort();
        names
    }

    /// What the kernel's source says of it; none where there is no such kernel.
    pub fn kernel(&self, name: &str) -> Option<Kernel> {
        self.table().find(|kernel| kernel.name == name)
    }

    fn table(&self) -> impl Iterator<Item = Kernel> {
        // SAFETY: the function's type in control.cpp.
        let kernel: extern "C" fn(
            c_uint,
            &mut *const c_char,
            &mut *const c_char,
            &mut *const c_char,
            &mut c_uint,
            &mut c_uint,
            &mut c_uint,
        ) -> c_int = unsafe { self.function(c"ratplusEmulatorKernel") };
        let text = |literal| {
            // SAFETY: names and sources are literals of the library.
            unsafe { CStr::from_ptr(literal) }
                .to_string_lossy()
                .into_owned()
        };
        (0..).map_while(move |index| {
            let (mut name, mut source, mut params) = (null(), null(), null());
            let (mut params_bytes, mut max_threads, mut min_blocks) = (0, 0, 0);
            let result = kernel(
                index,
                &mut name,
                &mut source,
                &mut params,
                &mut params_bytes,
                &mut max_threads,
                &mut min_blocks,
            );
            (result == 0).then(|| Kernel {
                name: text(name),
                source: PathBuf::from(text(source)),
                params: text(params),
                params_bytes: params_bytes as usize,
                max_threads,
                min_blocks,
            })
        })
    }

    /// Bytes of the kernel's parameters; none where there is no such kernel.
    pub fn params_bytes(&self, kernel: &str) -> Option<usize> {
        // SAFETY: the function's type in control.cpp.
        let size: extern "C" fn(*const c_char) -> c_int =
            unsafe { self.function(c"ratplusEmulatorSizeof") };
        let name = CString::new(kernel).ok()?;
        usize::try_from(size(name.as_ptr())).ok()
    }

    /// How often the calling thread ran the kernel; none where there is no such kernel.
    pub fn launches(&self, kernel: &str) -> Option<u64> {
        self.count(kernel, false)
    }

    /// How often the process ran the kernel; none where there is no such kernel.
    pub fn launches_of_process(&self, kernel: &str) -> Option<u64> {
        self.count(kernel, true)
    }

    fn count(&self, kernel: &str, of_process: bool) -> Option<u64> {
        // SAFETY: the function's type in control.cpp.
        let launches: extern "C" fn(*const c_char, c_int) -> i64 =
            unsafe { self.function(c"ratplusEmulatorLaunches") };
        let name = CString::new(kernel).ok()?;
        u64::try_from(launches(name.as_ptr(), of_process.into())).ok()
    }

    /// Why the last call of this thread that gave a reason failed; empty where none did.
    pub fn last_error(&self) -> String {
        // SAFETY: the function's type in control.cpp.
        let error: extern "C" fn() -> *const c_char =
            unsafe { self.function(c"ratplusEmulatorLastError") };
        // SAFETY: the text ends with a zero and stays until this thread's next call.
        unsafe { CStr::from_ptr(error()) }
            .to_string_lossy()
            .into_owned()
    }

    /// Bytes that the process has allocated through the driver.
    pub fn allocated_bytes(&self) -> u64 {
        // SAFETY: the function's type in control.cpp.
        let bytes: extern "C" fn() -> u64 =
            unsafe { self.function(c"ratplusEmulatorAllocatedBytes") };
        bytes()
    }
}
