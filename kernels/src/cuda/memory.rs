//! Memory on the device and memory that it can see.

use super::device::Device;
use super::driver::Driver;
use super::error::CudaError;
use super::{DevicePtr, OwnedStream, Stream};
use cudarc::driver::sys::{CUmemorytype, CUpointer_attribute};
use std::ffi::c_void;

/// Memory of a device, freed when dropped.
#[derive(Debug)]
pub struct DeviceMemory {
    device: &'static Device,
    address: DevicePtr,
    bytes: usize,
}

impl DeviceMemory {
    pub(super) fn new(device: &'static Device, bytes: usize) -> Result<Self, CudaError> {
        let _entered = device.enter()?;
        let mut address = 0;
        // SAFETY: the pointer is valid for the write. The driver refuses a size of 0.
        let code = unsafe { (device.driver.call.cuMemAlloc_v2)(&raw mut address, bytes.max(1)) };
        device.driver.check("cuMemAlloc", code)?;
        Ok(Self {
            device,
            address,
            bytes,
        })
    }

    /// Where it starts; aligned for every type.
    pub fn address(&self) -> DevicePtr {
        self.address
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of byte `offset`, from which `bytes` bytes are used.
    fn at(&self, what: &'static str, offset: usize, bytes: usize) -> Result<DevicePtr, CudaError> {
        let end = offset.checked_add(bytes);
        if end.is_some_and(|end| end <= self.bytes) {
            return Ok(self.address + offset as DevicePtr);
        }
        Err(CudaError::Unsupported {
            what: what.into(),
            expected: format!("at most the {} bytes of the allocation", self.bytes),
            found: format!("{bytes} from byte {offset} on"),
        })
    }

    /// Writes its first bytes and waits for that. Does not wait for streams of the caller's.
    pub fn upload(&self, from: &[u8]) -> Result<(), CudaError> {
        let to = self.at("upload to device memory", 0, from.len())?;
        let _entered = self.device.enter()?;
        let call = self.device.driver.call.cuMemcpyHtoD_v2;
        // SAFETY: `from` is readable, and the device memory holds as many bytes from `to` on.
        let code = unsafe { call(to, from.as_ptr().cast(), from.len()) };
        self.device.driver.check("cuMemcpyHtoD", code)?;
        // From pageable memory the call may return once the bytes are staged, and streams that do
        // not block do not wait for the stream of the copy.
        self.wait_for_null_stream()
    }

    /// Reads its first bytes and waits for that. Does not wait for streams of the caller's.
    pub fn download(&self, to: &mut [u8]) -> Result<(), CudaError> {
        let from = self.at("download from device memory", 0, to.len())?;
        let _entered = self.device.enter()?;
        let call = self.device.driver.call.cuMemcpyDtoH_v2;
        // SAFETY: `to` is writable, and the device memory holds as many bytes from `from` on.
        let code = unsafe { call(to.as_mut_ptr().cast(), from, to.len()) };
        self.device.driver.check("cuMemcpyDtoH", code)
    }

    /// Enqueues a write of its `bytes` bytes from `offset` on.
    ///
    /// # Safety
    /// `from` is readable and does not change until the stream has done it, as long as this lives.
    pub unsafe fn upload_in(
        &self,
        stream: &OwnedStream,
        offset: usize,
        from: *const u8,
        bytes: usize,
    ) -> Result<(), CudaError> {
        let to = self.at("upload to device memory", offset, bytes)?;
        let _entered = self.device.enter()?;
        // SAFETY: in bounds; the rest is the caller's contract.
        unsafe { self.device.upload_async(to, from, bytes, stream.stream()) }
    }

    /// Enqueues a read of its `bytes` bytes from `offset` on.
    ///
    /// # Safety
    /// `to` is writable and nobody looks at it until the stream has done it, as long as this lives.
    pub unsafe fn download_in(
        &self,
        stream: &OwnedStream,
        offset: usize,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), CudaError> {
        let from = self.at("download from device memory", offset, bytes)?;
        let _entered = self.device.enter()?;
        // SAFETY: in bounds; the rest is the caller's contract.
        unsafe { self.device.download_async(to, from, bytes, stream.stream()) }
    }

    /// Enqueues a write of its `bytes` bytes from `offset` on with those of `from` at `from_offset`.
    ///
    /// # Safety
    /// `from` is other memory; both live until the stream has done it.
    pub unsafe fn copy_in(
        &self,
        stream: &OwnedStream,
        offset: usize,
        from: &Self,
        from_offset: usize,
        bytes: usize,
    ) -> Result<(), CudaError> {
        const WHAT: &str = "copy in device memory";
        let to = self.at(WHAT, offset, bytes)?;
        let from = from.at(WHAT, from_offset, bytes)?;
        let _entered = self.device.enter()?;
        let stream = stream.stream();
        // SAFETY: both are in bounds; the rest is the caller's contract.
        unsafe { self.device.copy_device_async(to, from, bytes, stream) }
    }

    fn wait_for_null_stream(&self) -> Result<(), CudaError> {
        let call = self.device.driver.call.cuStreamSynchronize;
        // SAFETY: the null stream is there in every context, and callers have entered the device's.
        let code = unsafe { call(std::ptr::null_mut()) };
        self.device.driver.check("cuStreamSynchronize", code)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: the address came from `cuMemAlloc` and is freed once. A failure leaves the
            // memory to the end of the context.
            unsafe { (self.device.driver.call.cuMemFree_v2)(self.address) };
        }
    }
}

/// Host memory that stays in place and that every device can read and write, freed when dropped.
#[derive(Debug)]
pub struct PinnedMemory {
    device: &'static Device,
    start: *mut u8,
    address: DevicePtr,
    bytes: usize,
}

// SAFETY: the memory has no owner but this value, and the driver takes calls from every thread.
unsafe impl Send for PinnedMemory {}
// SAFETY: `&self` gives out shared slices and addresses only.
unsafe impl Sync for PinnedMemory {}

/// CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP
const PORTABLE_AND_MAPPED: u32 = 1 | 2;

/// Zeroed host memory of the current context, page-aligned, where the host and where the device
/// sees it. The caller frees it with `cuMemFreeHost`.
pub(super) fn allocate_mapped(
    driver: &Driver,
    bytes: usize,
) -> Result<(*mut u8, DevicePtr), CudaError> {
    let mut start: *mut c_void = std::ptr::null_mut();
    let call = driver.call.cuMemHostAlloc;
    // SAFETY: the pointer is valid for the write. The driver refuses a size of 0.
    let code = unsafe { call(&raw mut start, bytes.max(1), PORTABLE_AND_MAPPED) };
    driver.check("cuMemHostAlloc", code)?;
    let mut address = 0;
    let call = driver.call.cuMemHostGetDevicePointer_v2;
    // SAFETY: `start` was just allocated as mapped memory; 0 is the only flag value.
    let code = unsafe { call(&raw mut address, start, 0) };
    if let Err(error) = driver.check("cuMemHostGetDevicePointer", code) {
        // SAFETY: `start` came from `cuMemHostAlloc` and is freed once.
        unsafe { (driver.call.cuMemFreeHost)(start) };
        return Err(error);
    }
    // SAFETY: the driver returned this many writable bytes.
    unsafe { start.cast::<u8>().write_bytes(0, bytes) };
    Ok((start.cast(), address))
}

impl PinnedMemory {
    pub(super) fn new(device: &'static Device, bytes: usize) -> Result<Self, CudaError> {
        let _entered = device.enter()?;
        let (start, address) = allocate_mapped(device.driver, bytes)?;
        Ok(Self {
            device,
            start,
            address,
            bytes,
        })
    }

    /// Where the device sees it.
    pub fn device_address(&self) -> DevicePtr {
        self.address
    }

    /// Where the host sees it; page-aligned.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `bytes` bytes from `start` are initialised and live as long as `self`; who
        // starts device work on them promises not to look before it ends.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    /// Its bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: `start` came from `cuMemHostAlloc` and is freed once.
            unsafe { (self.device.driver.call.cuMemFreeHost)(self.start.cast()) };
        }
    }
}

impl Device {
    /// Memory on this device, with any content.
    pub fn allocate(&'static self, bytes: usize) -> Result<DeviceMemory, CudaError> {
        DeviceMemory::new(self, bytes)
    }

    /// Zeroed host memory that this device can see.
    pub fn allocate_pinned(&'static self, bytes: usize) -> Result<PinnedMemory, CudaError> {
        PinnedMemory::new(self, bytes)
    }

    /// Enqueues zeros.
    ///
    /// # Safety
    /// `bytes` bytes at `at` are writable device memory until the stream has done it, and this
    /// device's context is current.
    pub unsafe fn memset_zero_async(
        &self,
        at: DevicePtr,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's contract.
        let code = unsafe { (self.driver.call.cuMemsetD8Async)(at, 0, bytes, stream.0.cast()) };
        self.driver.check("cuMemsetD8Async", code)
    }

    /// Enqueues a copy between two places that do not overlap.
    ///
    /// # Safety
    /// `bytes` bytes at `from` are readable and at `to` writable device memory until the stream
    /// has done it, and this device's context is current.
    pub unsafe fn copy_device_async(
        &self,
        to: DevicePtr,
        from: DevicePtr,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        let call = self.driver.call.cuMemcpyDtoDAsync_v2;
        // SAFETY: the caller's contract.
        let code = unsafe { call(to, from, bytes, stream.0.cast()) };
        self.driver.check("cuMemcpyDtoDAsync", code)
    }

    /// Enqueues a copy from the host.
    ///
    /// # Safety
    /// As [`copy_device_async`](Self::copy_device_async), `from` being host memory that does not
    /// change until the stream has done it.
    pub unsafe fn upload_async(
        &self,
        to: DevicePtr,
        from: *const u8,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        let call = self.driver.call.cuMemcpyHtoDAsync_v2;
        // SAFETY: the caller's contract.
        let code = unsafe { call(to, from.cast(), bytes, stream.0.cast()) };
        self.driver.check("cuMemcpyHtoDAsync", code)
    }

    /// Copies from the host to an address of either side: at once on the host, in the stream on the GPU.
    ///
    /// # Safety
    /// There is room at `to`; on the GPU, `from` does not change until the stream has done it, and this
    /// device's context is current.
    pub unsafe fn copy_anywhere(
        &self,
        to: *mut u8,
        from: &[u8],
        stream: Stream,
    ) -> Result<(), CudaError> {
        let address = to as DevicePtr;
        let (mut side, attribute) = (0u32, CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
        let ask = self.driver.call.cuPointerGetAttribute;
        // SAFETY: the number is valid for the write; any address may be asked about.
        let code = unsafe { ask((&raw mut side).cast(), attribute, address) };
        // The driver knows nothing of memory that is the host's alone.
        if code != 0 || side == CUmemorytype::CU_MEMORYTYPE_HOST as u32 {
            // SAFETY: the caller's contract.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
            return Ok(());
        }
        // SAFETY: the caller's contract.
        unsafe { self.upload_async(address, from.as_ptr(), from.len(), stream) }
    }

    /// Enqueues a copy to the host.
    ///
    /// # Safety
    /// As [`copy_device_async`](Self::copy_device_async), `to` being host memory that nobody
    /// looks at until the stream has done it.
    pub unsafe fn download_async(
        &self,
        to: *mut u8,
        from: DevicePtr,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        let call = self.driver.call.cuMemcpyDtoHAsync_v2;
        // SAFETY: the caller's contract.
        let code = unsafe { call(to.cast(), from, bytes, stream.0.cast()) };
        self.driver.check("cuMemcpyDtoHAsync", code)
    }
}
