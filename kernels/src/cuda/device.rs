//! Devices, their kernels, and launches.

use super::Stream;
use super::driver::{Driver, version_text};
use super::error::CudaError;
use super::flag::ErrorFlag;
use super::operator::LaunchBlock;
use super::program::Program;
use cudarc::driver::sys::{CUcontext, CUdevice_attribute as Attribute, CUfunction};
use std::ffi::{CStr, c_char};
use std::fmt;
use std::marker::PhantomData;
use std::sync::{PoisonError, RwLock};

/// What decides how kernels are launched on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Major and minor number.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory that one block can opt in to, in bytes.
    pub shared_memory_per_block: u32,
    /// Second-level cache, in bytes.
    pub l2_bytes: u64,
    /// The device's name.
    pub name: String,
    /// Memory of the device, in bytes.
    pub total_memory: u64,
}

/// The one argument of a kernel, passed by value.
///
/// # Safety
/// The type is `repr(C)`, of plain data, and laid out as the struct of the kernels that it is
/// passed to.
pub unsafe trait KernelParams: Copy {}

/// A kernel that is loaded on a device. It stays loaded.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    pub(super) raw: CUfunction,
    pub(super) kernel: &'static str,
}

// SAFETY: the handle is opaque; the driver takes it from every thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// A CUDA context with its kernels: one for each, for the life of the process.
pub struct Device {
    pub(super) driver: &'static Driver,
    pub(super) context: CUcontext,
    limits: DeviceLimits,
    program: Program,
    flag: ErrorFlag,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.limits.name)
    }
}

// SAFETY: the context is an opaque handle; the driver takes it from every thread, and everything
// that changes is behind a lock.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// Every context that was asked for, by the number that the driver gives it. An address alone
/// may come back for another context.
static DEVICES: RwLock<Vec<(u64, &'static Device)>> = RwLock::new(Vec::new());

impl Device {
    /// The device of the calling thread's current context. The first call for a context allocates
    /// and must not happen while a stream of it is being captured.
    pub fn current() -> Result<&'static Self, CudaError> {
        let driver = Driver::get()?;
        let mut context = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the write.
        let code = unsafe { (driver.call.cuCtxGetCurrent)(&raw mut context) };
        driver.check("cuCtxGetCurrent", code)?;
        if context.is_null() {
            return Err(CudaError::NoContext);
        }
        let mut id = 0;
        // SAFETY: the context is live, being current, and the pointer is valid for the write.
        let code = unsafe { (driver.call.cuCtxGetId)(context, &raw mut id) };
        driver.check("cuCtxGetId", code)?;
        let find = |devices: &[(u64, &'static Self)]| {
            let found = devices.iter().find(|(known, _)| *known == id);
            found.map(|&(_, device)| device)
        };
        let devices = DEVICES.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = find(&devices) {
            return Ok(device);
        }
        drop(devices);
        let mut devices = DEVICES.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = find(&devices) {
            return Ok(device);
        }
        let device = Self::new(driver, context)?;
        devices.push((id, device));
        Ok(device)
    }

    /// Device number `ordinal`: retains its primary context for the life of the process and makes
    /// it current on this thread.
    pub fn open(ordinal: i32) -> Result<&'static Self, CudaError> {
        let driver = Driver::get()?;
        let device = driver.device(ordinal)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the write.
        let code = unsafe { (driver.call.cuDevicePrimaryCtxRetain)(&raw mut context, device) };
        driver.check("cuDevicePrimaryCtxRetain", code)?;
        // SAFETY: the context is live.
        let code = unsafe { (driver.call.cuCtxSetCurrent)(context) };
        driver.check("cuCtxSetCurrent", code)?;
        Self::current()
    }

    /// Of `context`, which is current.
    fn new(driver: &'static Driver, context: CUcontext) -> Result<&'static Self, CudaError> {
        let mut device = 0;
        // SAFETY: the pointer is valid for the write.
        let code = unsafe { (driver.call.cuCtxGetDevice)(&raw mut device) };
        driver.check("cuCtxGetDevice", code)?;
        let limits = DeviceLimits::of(driver, device)?;
        let device = Self {
            driver,
            context,
            program: Program::new(driver, limits.compute_capability),
            limits,
            flag: ErrorFlag::new(driver)?,
        };
        Ok(Box::leak(Box::new(device)))
    }

    /// How many devices there are; makes none of them current.
    pub fn count() -> Result<i32, CudaError> {
        Driver::get()?.device_count()
    }

    /// CUDA version of the driver, as `13.0`.
    pub fn driver_version() -> Result<String, CudaError> {
        Ok(version_text(Driver::get()?.version))
    }

    /// The limits of device number `ordinal`; makes it not current and allocates nothing on it.
    pub fn describe(ordinal: i32) -> Result<DeviceLimits, CudaError> {
        let driver = Driver::get()?;
        DeviceLimits::of(driver, driver.device(ordinal)?)
    }

    /// Makes this device's context the current one of the calling thread.
    pub fn make_current(&self) -> Result<(), CudaError> {
        // SAFETY: the context was live when this device was made; the driver knows if it is not.
        let code = unsafe { (self.driver.call.cuCtxSetCurrent)(self.context) };
        self.driver.check("cuCtxSetCurrent", code)
    }

    /// Makes this device's context current until the value is dropped.
    pub(super) fn enter(&self) -> Result<Entered, CudaError> {
        // SAFETY: as in `make_current`.
        let code = unsafe { (self.driver.call.cuCtxPushCurrent_v2)(self.context) };
        let driver = self.driver;
        driver.check("cuCtxPushCurrent", code)?;
        Ok(Entered(driver, PhantomData))
    }

    /// What decides how kernels are launched here.
    pub fn limits(&self) -> &DeviceLimits {
        &self.limits
    }

    /// Where this device's kernels leave their errors.
    pub fn error_flag(&self) -> &ErrorFlag {
        &self.flag
    }

    /// What is worth knowing about how kernels were loaded: one line each.
    pub fn log(&self) -> Vec<String> {
        self.program.log()
    }

    /// The kernel of that name, allowed all shared memory that the device gives. Its unit is
    /// loaded, and compiled if need be, the first time: not allowed while a stream is captured.
    pub fn function(&self, kernel: &'static str) -> Result<Function, CudaError> {
        let _entered = self.enter()?;
        let limit = self.limits.shared_memory_per_block;
        self.program.function(kernel, limit)
    }

    /// Blocks of a kernel that a multiprocessor holds at a time.
    ///
    /// # Errors
    /// As [`function`](Self::function).
    pub fn resident_blocks(&self, block: &LaunchBlock) -> Result<u32, CudaError> {
        let function = self.function(block.kernel)?;
        let _entered = self.enter()?;
        let mut blocks = 0;
        let call = self.driver.call.cuOccupancyMaxActiveBlocksPerMultiprocessor;
        let threads = block.threads.cast_signed();
        // SAFETY: the context is current, the function loaded, the pointer valid for the write.
        let code = unsafe { call(&raw mut blocks, function.raw, threads, block.shared_bytes) };
        let name = "cuOccupancyMaxActiveBlocksPerMultiprocessor";
        self.driver.check(name, code)?;
        Ok(blocks.cast_unsigned())
    }

    /// Enqueues one kernel: one call to the driver, no lock, no allocation.
    ///
    /// # Safety
    /// This device's context is current, `stream` belongs to it, `function` came from
    /// [`function`](Self::function) of this device, and `params` is of the type that the kernel
    /// takes, with addresses that are as the kernel demands until the stream has run it.
    pub unsafe fn launch(
        &self,
        function: Function,
        grid: [u32; 3],
        block: u32,
        shared_bytes: u32,
        params: &impl KernelParams,
        stream: Stream,
    ) -> Result<(), CudaError> {
        let [x, y, z] = grid;
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast()];
        // SAFETY: the driver copies the parameters before it returns; the rest is the caller's
        // contract.
        let code = unsafe {
            (self.driver.call.cuLaunchKernel)(
                function.raw,
                x,
                y,
                z,
                block,
                1,
                1,
                shared_bytes,
                stream.0.cast(),
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        if code == 0 {
            return Ok(());
        }
        let (name, words) = self.driver.words(code);
        Err(CudaError::Launch {
            kernel: function.kernel,
            grid,
            block,
            shared_bytes,
            name,
            code,
            words,
        })
    }

    /// Waits for all work of this device's context.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let _entered = self.enter()?;
        // SAFETY: the context is current.
        let code = unsafe { (self.driver.call.cuCtxSynchronize)() };
        self.driver.check("cuCtxSynchronize", code)
    }
}

impl DeviceLimits {
    fn of(driver: &Driver, device: i32) -> Result<Self, CudaError> {
        let number = |attribute| {
            let value = driver.attribute(device, attribute)?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        let mut name = [0 as c_char; 256];
        // SAFETY: the driver writes at most this many bytes, a NUL among them.
        let code =
            unsafe { (driver.call.cuDeviceGetName)(name.as_mut_ptr(), name.len() as i32, device) };
        driver.check("cuDeviceGetName", code)?;
        // SAFETY: the driver ended the text with a NUL, or left the zeros.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) };
        let mut bytes = 0;
        // SAFETY: the pointer is valid for the write.
        let code = unsafe { (driver.call.cuDeviceTotalMem_v2)(&raw mut bytes, device) };
        driver.check("cuDeviceTotalMem", code)?;
        Ok(Self {
            compute_capability: (
                number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory_per_block: number(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            l2_bytes: number(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
            name: name.to_string_lossy().into_owned(),
            total_memory: bytes as u64,
        })
    }
}

/// A context that is current on this thread until dropped.
pub(super) struct Entered(&'static Driver, PhantomData<*const ()>);

impl Drop for Entered {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the write; what was pushed is popped.
        unsafe { (self.0.call.cuCtxPopCurrent_v2)(&raw mut context) };
    }
}
