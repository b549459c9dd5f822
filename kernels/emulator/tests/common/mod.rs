//! The test kernels behind the driver's functions.

#![allow(dead_code, unused_imports)] // each test file uses a part

use ratplus_cuda_emulator::{Library, Order};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::OnceLock;

/// The library with the test kernels.
pub fn emulator() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| Library::open(Path::new(env!("RATPLUS_EMULATOR_TESTS"))).unwrap())
}

/// Calls a function of the driver with arguments of the types given.
macro_rules! call {
    ($name:ident($($value:expr => $type:ty),* $(,)?)) => {{
        type Function = extern "C" fn($($type),*) -> std::ffi::c_int;
        let name = concat!(stringify!($name), "\0");
        let name = std::ffi::CStr::from_bytes_with_nul(name.as_bytes()).unwrap();
        // SAFETY: the types are those of the driver's function of that name.
        let function: Function = unsafe { $crate::common::emulator().function(name) };
        function($($value),*)
    }};
}
pub(crate) use call;

pub const SUCCESS: c_int = 0;
pub const INVALID_VALUE: c_int = 1;
pub const ILLEGAL_ADDRESS: c_int = 700;
pub const MISALIGNED_ADDRESS: c_int = 716;
pub const LAUNCH_FAILED: c_int = 719;

/// Every order, with one block at a time and with more.
pub fn in_every_order(mut check: impl FnMut()) {
    for order in [Order::Forward, Order::Reverse]
        .into_iter()
        .chain((0..6).map(Order::Random))
    {
        for resident in 1..=4 {
            emulator().configure(order, resident);
            check();
        }
    }
}

/// A thread with a current context and a loaded module.
pub struct Device {
    pub module: *mut c_void,
}

impl Device {
    pub fn new() -> Self {
        let mut context = null_mut();
        assert_eq!(call!(cuInit(0 => c_uint)), SUCCESS);
        assert_eq!(
            call!(cuDevicePrimaryCtxRetain(&mut context => &mut *mut c_void, 0 => c_int)),
            SUCCESS
        );
        assert_eq!(call!(cuCtxSetCurrent(context => *mut c_void)), SUCCESS);
        let mut module = null_mut();
        assert_eq!(
            call!(cuModuleLoadData(&mut module => &mut *mut c_void, c"image".as_ptr() => *const c_char)),
            SUCCESS
        );
        Self { module }
    }

    pub fn function(&self, name: &str) -> Result<*mut c_void, c_int> {
        let name = CString::new(name).unwrap();
        let mut function = null_mut();
        let result = call!(cuModuleGetFunction(
            &mut function => &mut *mut c_void,
            self.module => *mut c_void,
            name.as_ptr() => *const c_char,
        ));
        if result == SUCCESS {
            Ok(function)
        } else {
            Err(result)
        }
    }

    /// Launches on `stream` with blocks of `threads`.
    pub fn launch_on<P>(
        &self,
        stream: *mut c_void,
        name: &str,
        grid: (u32, u32, u32),
        threads: u32,
        shared_bytes: u32,
        params: &P,
    ) -> c_int {
        assert_eq!(
            emulator().params_bytes(name),
            Some(size_of::<P>()),
            "{name}"
        );
        let function = self.function(name).unwrap();
        let mut values = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        call!(cuLaunchKernel(
            function => *mut c_void,
            grid.0 => c_uint,
            grid.1 => c_uint,
            grid.2 => c_uint,
            threads => c_uint,
            1 => c_uint,
            1 => c_uint,
            shared_bytes => c_uint,
            stream => *mut c_void,
            values.as_mut_ptr() => *mut *mut c_void,
            null_mut() => *mut *mut c_void,
        ))
    }

    pub fn launch<P>(
        &self,
        name: &str,
        blocks: u32,
        threads: u32,
        shared_bytes: u32,
        params: &P,
    ) -> c_int {
        self.launch_on(
            null_mut(),
            name,
            (blocks, 1, 1),
            threads,
            shared_bytes,
            params,
        )
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        assert_eq!(call!(cuModuleUnload(self.module => *mut c_void)), SUCCESS);
        assert_eq!(call!(cuDevicePrimaryCtxRelease_v2(0 => c_int)), SUCCESS);
    }
}

/// Device memory with elements of `T`.
pub struct Buffer<T> {
    pub address: u64,
    pub length: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Copy + Default> Buffer<T> {
    pub fn new(length: usize) -> Self {
        let mut address = 0;
        let bytes = length * size_of::<T>();
        assert_eq!(
            call!(cuMemAlloc_v2(&mut address => &mut u64, bytes => usize)),
            SUCCESS
        );
        Self {
            address,
            length,
            element: std::marker::PhantomData,
        }
    }

    pub fn from(values: &[T]) -> Self {
        let buffer = Self::new(values.len());
        let bytes = size_of_val(values);
        assert_eq!(
            call!(cuMemcpyHtoD_v2(
                buffer.address => u64,
                values.as_ptr().cast() => *const c_void,
                bytes => usize,
            )),
            SUCCESS
        );
        buffer
    }

    pub fn read(&self) -> Vec<T> {
        let mut values = vec![T::default(); self.length];
        let bytes = size_of_val(&values[..]);
        assert_eq!(
            call!(cuMemcpyDtoH_v2(
                values.as_mut_ptr().cast() => *mut c_void,
                self.address => u64,
                bytes => usize,
            )),
            SUCCESS
        );
        values
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        let result = call!(cuMemFree_v2(self.address => u64));
        if !std::thread::panicking() {
            assert_eq!(result, SUCCESS);
        }
    }
}
