//! The CUDA driver, loaded when first asked for and never unloaded.

use super::error::CudaError;
use super::library::{self, function_table};
use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction,
    CUfunction_attribute, CUgraph, CUgraphExec, CUmodule, CUpointer_attribute, CUstream,
    CUstreamCaptureMode,
};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::sync::OnceLock;

pub(super) const LIBRARY: &str = "libcuda.so.1";
/// CUDA 12.0, as the driver writes it.
const OLDEST: c_int = 12000;

function_table! {
    /// The driver's functions that are used here. All are in every driver since CUDA 12.0.
    pub(super) struct Functions {
        fn cuInit(c_uint);
        fn cuDriverGetVersion(*mut c_int);
        fn cuGetErrorName(c_uint, *mut *const c_char);
        fn cuGetErrorString(c_uint, *mut *const c_char);
        fn cuDeviceGetCount(*mut c_int);
        fn cuDeviceGet(*mut CUdevice, c_int);
        fn cuDeviceGetName(*mut c_char, c_int, CUdevice);
        fn cuDeviceGetAttribute(*mut c_int, CUdevice_attribute, CUdevice);
        fn cuDeviceTotalMem_v2(*mut usize, CUdevice);
        fn cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
        fn cuCtxGetCurrent(*mut CUcontext);
        fn cuCtxSetCurrent(CUcontext);
        fn cuCtxPushCurrent_v2(CUcontext);
        fn cuCtxPopCurrent_v2(*mut CUcontext);
        fn cuCtxGetDevice(*mut CUdevice);
        fn cuCtxGetId(CUcontext, *mut u64);
        fn cuCtxSynchronize();
        fn cuModuleLoadData(*mut CUmodule, *const c_void);
        fn cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
        fn cuFuncGetAttribute(*mut c_int, CUfunction_attribute, CUfunction);
        fn cuFuncSetAttribute(CUfunction, CUfunction_attribute, c_int);
        fn cuOccupancyMaxActiveBlocksPerMultiprocessor(*mut c_int, CUfunction, c_int, usize);
        fn cuLaunchKernel(
            CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream,
            *mut *mut c_void, *mut *mut c_void,
        );
        fn cuMemAlloc_v2(*mut CUdeviceptr, usize);
        fn cuMemFree_v2(CUdeviceptr);
        fn cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
        fn cuMemFreeHost(*mut c_void);
        fn cuMemHostGetDevicePointer_v2(*mut CUdeviceptr, *mut c_void, c_uint);
        fn cuMemcpyHtoD_v2(CUdeviceptr, *const c_void, usize);
        fn cuMemcpyDtoH_v2(*mut c_void, CUdeviceptr, usize);
        fn cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
        fn cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
        fn cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, usize, CUstream);
        fn cuPointerGetAttribute(*mut c_void, CUpointer_attribute, CUdeviceptr);
        fn cuMemsetD8Async(CUdeviceptr, u8, usize, CUstream);
        fn cuStreamCreate(*mut CUstream, c_uint);
        fn cuStreamDestroy_v2(CUstream);
        fn cuStreamSynchronize(CUstream);
        fn cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode);
        fn cuStreamEndCapture(CUstream, *mut CUgraph);
        fn cuGraphInstantiateWithFlags(*mut CUgraphExec, CUgraph, u64);
        fn cuGraphLaunch(CUgraphExec, CUstream);
        fn cuGraphExecDestroy(CUgraphExec);
        fn cuGraphDestroy(CUgraph);
        fn cuEventCreate(*mut CUevent, c_uint);
        fn cuEventDestroy_v2(CUevent);
        fn cuEventRecord(CUevent, CUstream);
        fn cuEventSynchronize(CUevent);
        fn cuEventElapsedTime(*mut f32, CUevent, CUevent);
    }
}

/// The loaded and initialised driver.
pub(super) struct Driver {
    /// Its functions.
    pub call: Functions,
    /// CUDA version it is for: 1000 x major + 10 x minor.
    pub version: c_int,
    /// Whether it is the emulator of kernels/emulator.
    #[cfg(any(test, feature = "emulation"))]
    pub emulator: bool,
}

impl Driver {
    /// The driver of this process; loads it the first time. A failure stays.
    pub fn get() -> Result<&'static Self, CudaError> {
        static DRIVER: OnceLock<Result<Driver, CudaError>> = OnceLock::new();
        DRIVER
            .get_or_init(|| Self::load(LIBRARY))
            .as_ref()
            .map_err(Clone::clone)
    }

    /// Loads and initialises the driver of that file name.
    pub fn load(name: &'static str) -> Result<Self, CudaError> {
        // SAFETY: this soname is the CUDA driver's; its initialisers are what loading it means.
        let library = unsafe { library::open(Path::new(name)) };
        let library = library.map_err(|message| CudaError::DriverMissing {
            library: name,
            message,
        })?;
        // SAFETY: the signatures are cuda.h's, and the library stays loaded.
        let call = unsafe { Functions::from_library(&library) };
        let call = call.map_err(|name| CudaError::DriverTooOld {
            found: format!("one without {name}"),
        })?;
        let mut driver = Self {
            call,
            version: 0,
            #[cfg(any(test, feature = "emulation"))]
            // SAFETY: the symbol is only looked for.
            emulator: unsafe { library.get::<fn()>(b"ratplusEmulatorConfigure\0") }.is_ok(),
        };
        // SAFETY: the pointer is valid for the write; this call needs no initialised driver.
        let code = unsafe { (driver.call.cuDriverGetVersion)(&raw mut driver.version) };
        driver.check("cuDriverGetVersion", code)?;
        if driver.version < OLDEST {
            return Err(CudaError::DriverTooOld {
                found: version_text(driver.version),
            });
        }
        // SAFETY: 0 is the only flag value there is.
        let code = unsafe { (driver.call.cuInit)(0) };
        match code {
            // CUDA_ERROR_NO_DEVICE
            100 => Err(CudaError::NoDevice {
                ordinal: 0,
                count: 0,
            }),
            _ => driver.check("cuInit", code).map(|()| driver),
        }
    }

    /// An error unless `code`, which `call` returned, is success.
    pub fn check(&self, call: &'static str, code: u32) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        let (name, words) = self.words(code);
        Err(CudaError::Call {
            call,
            name,
            code,
            words,
        })
    }

    /// Name and description of an error.
    #[cold]
    pub fn words(&self, code: u32) -> (String, String) {
        let text = |function: unsafe extern "C" fn(c_uint, *mut *const c_char) -> u32| {
            let mut text = std::ptr::null();
            // SAFETY: `text` is valid for the write; the driver leaves a static string or null.
            unsafe {
                if function(code, &raw mut text) != 0 || text.is_null() {
                    return None;
                }
                Some(CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        (
            text(self.call.cuGetErrorName).unwrap_or_else(|| "unknown error".into()),
            text(self.call.cuGetErrorString)
                .unwrap_or_else(|| "the driver has no words for it".into()),
        )
    }

    /// How many GPUs there are.
    pub fn device_count(&self) -> Result<i32, CudaError> {
        let mut count = 0;
        // SAFETY: the pointer is valid for the write.
        let code = unsafe { (self.call.cuDeviceGetCount)(&raw mut count) };
        self.check("cuDeviceGetCount", code).map(|()| count)
    }

    /// Handle of GPU number `ordinal`.
    pub fn device(&self, ordinal: i32) -> Result<CUdevice, CudaError> {
        let count = self.device_count()?;
        if !(0..count).contains(&ordinal) {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let mut device = 0;
        // SAFETY: the pointer is valid for the write.
        let code = unsafe { (self.call.cuDeviceGet)(&raw mut device, ordinal) };
        self.check("cuDeviceGet", code).map(|()| device)
    }

    /// One attribute of a GPU.
    pub fn attribute(
        &self,
        device: CUdevice,
        attribute: CUdevice_attribute,
    ) -> Result<i32, CudaError> {
        let mut value = 0;
        // SAFETY: the pointer is valid for the write.
        let code = unsafe { (self.call.cuDeviceGetAttribute)(&raw mut value, attribute, device) };
        self.check("cuDeviceGetAttribute", code).map(|()| value)
    }
}

/// `13.0` for 13000.
pub(super) fn version_text(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_driver_is_one_clear_error() {
        let error = Driver::load("libratplus-no-driver.so.1").err().unwrap();
        let text = error.to_string();
        assert!(matches!(error, CudaError::DriverMissing { .. }), "{text}");
        for part in [
            "libratplus-no-driver.so.1",
            "cannot open",
            "install NVIDIA's driver",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn another_library_is_no_driver() {
        let error = Driver::load("libc.so.6").err().unwrap();
        let text = error.to_string();
        assert!(matches!(error, CudaError::DriverTooOld { .. }), "{text}");
        assert!(text.contains("one without cuInit"), "{text}");
    }

    #[test]
    fn versions_read_as_nvidia_writes_them() {
        assert_eq!(version_text(13000), "13.0");
        assert_eq!(version_text(12090), "12.9");
    }
}
