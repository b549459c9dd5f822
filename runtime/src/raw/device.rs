//! Memory of NVIDIA GPUs.

pub use ratplus_kernels::cuda::{
    CudaError, Device, DeviceMemory, OwnedStream, PinnedMemory, Stream,
};
