//! The operators on NVIDIA GPUs: devices, kernels and launches over the CUDA driver.
//!
//! The driver is loaded when a [`Device`] is first asked for, and a machine without one gets a
//! [`CudaError`]. Work runs in the calling thread's current context and on the caller's stream;
//! nothing here makes a context, and no state of the process changes but what
//! [`Device::open`] and [`Device::make_current`] say.

mod architecture;
mod block_top_k_attention;
mod cache;
#[cfg(test)]
mod constants;
mod device;
mod dilated_attention;
mod driver;
mod error;
mod flag;
#[cfg(test)]
mod layout;
mod library;
mod limits;
mod memory;
mod nodes;
mod nvrtc;
mod operator;
mod params;
mod program;
mod recurrence_scan;
mod sources;
mod stream;
mod units;
mod workspace;

pub use block_top_k_attention::{BlockTopKPlan, BlockTopKWays};
pub use cache::cache_folder;
pub use device::{Device, DeviceLimits, Function, KernelParams};
pub use dilated_attention::{AttentionMethod, AttentionPlan, AttentionShape};
pub use error::CudaError;
pub use flag::{DeviceError, ErrorFlag};
pub use memory::{DeviceMemory, PinnedMemory};
pub use nodes::{NodeNumber, register_node, take_device_error};
pub use nvrtc::{NvrtcLibrary, add_search_folder, add_search_folders_around, nvrtc};
pub use operator::{CudaKernel, CudaPlan, LaunchBlock, OperatorPlan, PlanError, launch_blocks};
pub use recurrence_scan::{ScanMethod, ScanPlan, ScanShape};
pub use sources::{Resources, Toolkit};
pub use stream::{Capture, Event, Graph, OwnedStream, Stream};

/// An address in device memory.
pub type DevicePtr = u64;

/// The compiler of the embedded code; `None` where none is embedded and NVRTC has to compile.
pub fn toolkit() -> Option<Toolkit> {
    sources::TOOLKIT
}

/// Whether the embedded code runs on devices of a compute capability, be it that the driver
/// compiles it on.
pub fn embedded_covers(compute_capability: (u32, u32)) -> bool {
    let Some(toolkit) = toolkit() else {
        return false;
    };
    let units = sources::UNITS.iter();
    let needed = units.filter(|unit| architecture::lacking(unit, compute_capability).is_none());
    let covered =
        needed.map(|unit| architecture::covers(unit, toolkit.architectures, compute_capability));
    covered.reduce(|all, one| all && one).unwrap_or(false)
}

/// What every embedded kernel needs on every architecture.
pub fn resources() -> &'static [Resources] {
    sources::RESOURCES
}
