//! Memory for the time of one run.

use crate::api::{Api, Api18, Failure};
use ort_sys::{OrtAllocator, OrtKernelContext, OrtMemoryInfo};
use std::ptr::null_mut;

/// Memory of an arena of ORT's, given back when dropped.
pub struct Workspace {
    api: Api,
    allocator: *mut OrtAllocator,
    /// First byte; null where nothing was asked for.
    pub data: *mut u8,
}

impl Workspace {
    /// `bytes` bytes of `allocator`; nothing for 0.
    ///
    /// # Safety
    /// `allocator` outlives the result.
    pub unsafe fn allocate(
        api: Api,
        allocator: *mut OrtAllocator,
        bytes: usize,
    ) -> Result<Self, Failure> {
        let mut data = null_mut();
        if bytes > 0 {
            // SAFETY: the caller's contract.
            unsafe { api.allocate(allocator, bytes, &mut data)? };
        }
        Ok(Self {
            api,
            allocator,
            data: data.cast(),
        })
    }

    /// `bytes` bytes of device memory for work in a node's stream; nothing for 0. The work may go
    /// on when the result is dropped.
    ///
    /// # Safety
    /// `context` is a running node's that has a stream, and `allocator`, which outlives the
    /// result, its provider's; `memory` is the allocator's.
    pub unsafe fn in_stream(
        api: Api18,
        context: *const OrtKernelContext,
        memory: *const OrtMemoryInfo,
        allocator: *mut OrtAllocator,
        bytes: usize,
    ) -> Result<Self, Failure> {
        let mut data = null_mut();
        if bytes > 0 {
            // SAFETY: the caller's contract.
            data = unsafe { api.stream_memory(context, memory, bytes)? };
        }
        Ok(Self {
            api: api.api(),
            allocator,
            data: data.cast(),
        })
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if !self.data.is_null() {
            // A failure to free has nobody to report to.
            // SAFETY: the memory is the allocator's, and freed once.
            let _ = unsafe { self.api.free(self.allocator, self.data.cast()) };
        }
    }
}

/// The allocator of one run, given back when dropped.
pub struct RunAllocator {
    api: Api,
    /// Live as long as `self`.
    pub allocator: *mut OrtAllocator,
}

impl RunAllocator {
    /// # Safety
    /// `context` is a running node's, and `memory` its provider's.
    pub unsafe fn new(
        api: Api,
        context: *const OrtKernelContext,
        memory: *const OrtMemoryInfo,
    ) -> Result<Self, Failure> {
        let mut allocator = null_mut();
        // SAFETY: the caller's contract.
        unsafe { api.context_allocator(context, memory, &mut allocator)? };
        Ok(Self { api, allocator })
    }
}

impl Drop for RunAllocator {
    fn drop(&mut self) {
        // SAFETY: it is ours.
        unsafe { self.api.release_allocator(self.allocator) };
    }
}
