//! Errors that kernels find while they run.

use super::DevicePtr;
use super::driver::Driver;
use super::error::CudaError;
use super::memory::allocate_mapped;
use std::sync::atomic::{AtomicU64, Ordering};

/// Lengths that a kernel refused; the slot counted as idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "node {node}, slot {slot} of the batch: past_length and seq_length do not fit; expected \
     0 <= seq_length <= L and 0 <= past_length <= M - seq_length"
)]
pub struct DeviceError {
    /// `Lengths::node` of the launch.
    pub node: u32,
    /// Index in the batch.
    pub slot: u32,
}

/// Eight bytes that kernels write and the host reads, without any call to the driver: the place
/// that `Lengths::error` points to. The last error written wins.
#[derive(Debug)]
pub struct ErrorFlag {
    host: *mut u64,
    device: DevicePtr,
}

// SAFETY: the word behind the pointer is atomic and never freed.
unsafe impl Send for ErrorFlag {}
// SAFETY: as above.
unsafe impl Sync for ErrorFlag {}

impl ErrorFlag {
    const SET: u64 = 1 << 63;

    /// In the current context, which has to outlive the flag. The eight bytes are never freed.
    pub(super) fn new(driver: &Driver) -> Result<Self, CudaError> {
        let (host, device) = allocate_mapped(driver, size_of::<u64>())?;
        Ok(Self {
            host: host.cast(),
            device,
        })
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: the memory is page-aligned, zeroed when allocated and never freed; the host
        // reaches it through this function only, and a GPU stores all 8 bytes at once.
        unsafe { AtomicU64::from_ptr(self.host) }
    }

    /// The error that a kernel left, once. Errors of work that is still under way come later.
    pub fn take(&self) -> Option<DeviceError> {
        // The usual case writes nothing to a line that a GPU may write.
        if self.word().load(Ordering::Acquire) == 0 {
            return None;
        }
        let word = self.word().swap(0, Ordering::AcqRel);
        (word & Self::SET != 0).then_some(DeviceError {
            node: (word >> 32) as u32 & !(1 << 31),
            slot: word as u32,
        })
    }

    /// Where kernels write it.
    pub fn device_address(&self) -> DevicePtr {
        self.device
    }
}
