//! A build without CUDA: there is no GPU, no memory of one and nothing that fails there.

/// What a call of the driver would fail with.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {}

pub enum Device {}

pub enum DeviceMemory {}

pub enum PinnedMemory {}

impl Device {
    /// # Errors
    /// Nothing but: callers have refused what needs one.
    pub fn open(_: i32) -> Result<&'static Self, String> {
        Err("this build has no CUDA".into())
    }

    pub fn synchronize(&self) -> Result<(), CudaError> {
        match *self {}
    }

    pub fn allocate(&'static self, _: usize) -> Result<DeviceMemory, CudaError> {
        match *self {}
    }

    pub fn allocate_pinned(&'static self, _: usize) -> Result<PinnedMemory, CudaError> {
        match *self {}
    }
}

impl DeviceMemory {
    pub fn address(&self) -> u64 {
        match *self {}
    }

    pub fn bytes(&self) -> usize {
        match *self {}
    }

    pub fn upload(&self, _: &[u8]) -> Result<(), CudaError> {
        match *self {}
    }

    pub fn download(&self, _: &mut [u8]) -> Result<(), CudaError> {
        match *self {}
    }

    pub fn upload_at(&self, _: usize, _: &[u8]) -> Result<(), CudaError> {
        match *self {}
    }

    pub fn download_at(&self, _: usize, _: &mut [u8]) -> Result<(), CudaError> {
        match *self {}
    }

    pub fn copy_at(&self, _: usize, _: &Self, _: usize, _: usize) -> Result<(), CudaError> {
        match *self {}
    }
}

impl PinnedMemory {
    pub fn as_ptr(&self) -> *mut u8 {
        match *self {}
    }

    pub fn bytes(&self) -> usize {
        match *self {}
    }

    pub fn as_slice(&self) -> &[u8] {
        match *self {}
    }
}
