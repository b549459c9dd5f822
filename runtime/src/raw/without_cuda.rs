//! A build without CUDA: there is no GPU, no memory of one and nothing that fails there.

use std::ffi::c_void;

/// What a call of the driver would fail with.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {}

pub enum Device {}

pub enum DeviceMemory {}

pub enum PinnedMemory {}

pub enum OwnedStream {}

/// A stream of the driver's.
#[derive(Clone, Copy)]
pub struct Stream(pub *mut c_void);

impl Device {
    /// # Errors
    /// Nothing but: callers have refused what needs one.
    pub fn open(_: i32) -> Result<&'static Self, String> {
        Err("this build has no CUDA".into())
    }

    pub fn stream(&'static self) -> Result<OwnedStream, CudaError> {
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

    /// # Safety
    /// There is none to call it on.
    pub unsafe fn upload_in(
        &self,
        _: &OwnedStream,
        _: usize,
        _: *const u8,
        _: usize,
    ) -> Result<(), CudaError> {
        match *self {}
    }

    /// # Safety
    /// There is none to call it on.
    pub unsafe fn download_in(
        &self,
        _: &OwnedStream,
        _: usize,
        _: *mut u8,
        _: usize,
    ) -> Result<(), CudaError> {
        match *self {}
    }

    /// # Safety
    /// There is none to call it on.
    pub unsafe fn copy_in(
        &self,
        _: &OwnedStream,
        _: usize,
        _: &Self,
        _: usize,
        _: usize,
    ) -> Result<(), CudaError> {
        match *self {}
    }
}

impl OwnedStream {
    pub fn stream(&self) -> Stream {
        match *self {}
    }

    pub fn synchronize(&self) -> Result<(), CudaError> {
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
}
