//! Runs on a GPU, in the stream of ORT's CUDA provider.

use super::workspace::Workspace;
use super::{Call, EMULATED, gathered};
use crate::api::{Api18, Failure, Tensor};
use crate::kernel::{MAX_INPUTS, MAX_OUTPUTS};
use crate::plan::Plan;
use ort_sys::{OrtAllocator, OrtErrorCode, OrtKernelInfo, OrtMemoryInfo};
use ratplus_graphs::ops::Operator;
use ratplus_kernels::cuda::{
    CudaError, Device, DevicePtr, NodeNumber, OperatorPlan, PlanError, Stream, register_node,
};
use std::ptr::{null, null_mut};

/// A node on a GPU.
pub struct Cuda {
    arena: Arena,
    device: &'static Device,
    node: NodeNumber,
}

impl Cuda {
    /// A node of the device that its provider uses. The CUDA driver is loaded here, where ORT has
    /// not done so.
    ///
    /// # Errors
    /// There is no driver or no such device.
    ///
    /// # Safety
    /// `info` is the one ORT passes to `CreateKernelV2`.
    pub unsafe fn new(
        api: Api18,
        name: String,
        info: *const OrtKernelInfo,
    ) -> Result<Self, Failure> {
        #[cfg(feature = "cuda-emulation")]
        ratplus_cuda_emulator::load()
            .map_err(Failure::invalid)?
            .set_pageable_memory(true);
        // SAFETY: the caller's contract.
        let (arena, ordinal) = unsafe { Arena::new(api, info)? };
        let device = Device::open(ordinal).map_err(cuda_failure)?;
        Ok(Self {
            arena,
            device,
            node: register_node(device, name),
        })
    }

    /// Chooses and loads the kernels for the shapes of `plan`.
    ///
    /// # Errors
    /// There are none for this device or these sizes.
    pub fn prepare(&self, operator: &Operator, plan: &Plan) -> Result<OperatorPlan, Failure> {
        OperatorPlan::new(self.device, operator, &plan.types).map_err(|error| match error {
            PlanError::Cuda(error) => cuda_failure(error),
            error => Failure::invalid(error.to_string()),
        })
    }

    /// Puts the node's work into the stream. Lengths are in device memory: kernels check them, and
    /// [`RatplusTakeDeviceError`](crate::RatplusTakeDeviceError) tells what they found.
    ///
    /// # Errors
    /// What ORT or the driver reports.
    ///
    /// # Safety
    /// As [`Processor::run`](super::Processor::run), with `launch` made for the call's shapes.
    pub unsafe fn run(&self, call: &Call<'_>, launch: &OperatorPlan) -> Result<(), Failure> {
        if EMULATED {
            // A GPU's provider has done it on its threads.
            self.device.make_current().map_err(cuda_failure)?;
        }
        #[cfg(feature = "fault-injection")]
        call.fault.trip("task");
        let bytes = launch.workspace_bytes();
        let mut stream = null_mut();
        // SAFETY: the context is the running node's, and the arena its provider's. Memory that
        // goes back at the end is used by later work of the same stream only, and the emulator
        // is done by then.
        let workspace = unsafe {
            if EMULATED {
                Workspace::allocate(self.arena.api.api(), self.arena.allocator, bytes)?
            } else {
                call.api.context_stream(call.context, &mut stream)?;
                self.arena.in_stream(call, bytes)?
            }
        };
        let (memory, node) = (workspace.data.addr() as DevicePtr, self.node.get());
        let stream = Stream(stream);
        let address = |tensor: &Tensor| tensor.data.addr() as DevicePtr;
        let (mut inputs, mut outputs) = ([0; MAX_INPUTS], [0; MAX_OUTPUTS]);
        let inputs = gathered(call.inputs, &mut inputs, address);
        let outputs = gathered(call.outputs, &mut outputs, address);
        // SAFETY: the caller's contract; the workspace has the plan's size, and its memory
        // belongs to this stream.
        let launched = unsafe { launch.launch(inputs, outputs, memory, node, stream) };
        launched.map_err(cuda_failure)?;
        #[cfg(feature = "fault-injection")]
        call.fault.trip("launched");
        Ok(())
    }
}

fn cuda_failure(error: CudaError) -> Failure {
    let code = match error {
        CudaError::Unsupported { .. } => OrtErrorCode::ORT_INVALID_ARGUMENT,
        _ => OrtErrorCode::ORT_EP_FAIL,
    };
    Failure::new(code, error.to_string())
}

/// The memory of a node's provider.
struct Arena {
    api: Api18,
    allocator: *mut OrtAllocator,
    /// The allocator's.
    memory: *const OrtMemoryInfo,
}

// SAFETY: ORT's allocators belong to no thread, and the description lives as long as its allocator.
unsafe impl Send for Arena {}
// SAFETY: ORT's allocators lock themselves, and the description does not change.
unsafe impl Sync for Arena {}

impl Arena {
    /// The arena, and the number of its device.
    ///
    /// # Safety
    /// `info` is live.
    unsafe fn new(api: Api18, info: *const OrtKernelInfo) -> Result<(Self, i32), Failure> {
        let mut arena = Self {
            api,
            // SAFETY: the caller's contract; `drop` releases it.
            allocator: unsafe { api.info_allocator(info)? },
            memory: null(),
        };
        let mut ordinal = 0;
        // SAFETY: the allocator is live and keeps its description.
        unsafe {
            let api = api.api();
            api.allocator_memory(arena.allocator, &mut arena.memory)?;
            api.memory_device(arena.memory, &mut ordinal)?;
        }
        Ok((arena, ordinal))
    }

    /// # Safety
    /// `call` is a running node's of this arena's provider, which has a stream.
    unsafe fn in_stream(&self, call: &Call<'_>, bytes: usize) -> Result<Workspace, Failure> {
        // SAFETY: the caller's contract.
        unsafe { Workspace::in_stream(self.api, call.context, self.memory, self.allocator, bytes) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the allocator is ours.
        unsafe { self.api.api().release_allocator(self.allocator) };
    }
}
