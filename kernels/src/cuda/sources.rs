//! What build.rs made of kernels/cuda: sources, embedded code, and what the code needs.

use std::ffi::CStr;

/// One of [`UNITS`](super::units::UNITS).
pub(super) struct Image {
    /// Its text.
    pub source: &'static str,
    /// Its code for all architectures of [`TOOLKIT`], where nvcc was there.
    pub embedded: Option<&'static [u8]>,
}

/// A file that units include.
pub(super) struct Header {
    /// Its name in `#include`.
    pub name: &'static CStr,
    /// Its text.
    pub text: &'static str,
}

/// The compiler of the embedded code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Toolkit {
    /// Version of nvcc.
    pub version: &'static str,
    /// What it compiled for, as in `sm_90a`.
    pub architectures: &'static [&'static str],
}

/// What one kernel needs on one architecture, as its compiler reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// As in `sm_90a`.
    pub architecture: &'static str,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
    /// Local memory of a thread.
    pub stack_bytes: u32,
    /// Registers written to local memory, in bytes of instructions.
    pub spill_store_bytes: u32,
    /// Registers read back from local memory.
    pub spill_load_bytes: u32,
}

/// Bytes where the driver wants code to start.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
