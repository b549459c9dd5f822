//! Runs on ORT's threads.

use super::workspace::{RunAllocator, Workspace};
use super::{Call, gathered};
use crate::api::{Api, Failure};
use crate::kernel::{MAX_INPUTS, MAX_OUTPUTS};
use crate::parallel::OrtThreads;
use ort_sys::{OrtAllocatorType, OrtMemType, OrtMemoryInfo};
#[cfg(feature = "fault-injection")]
use ratplus_kernels::ParallelFor;
use ratplus_kernels::{CpuPlan, Isa, Processor};
use std::ptr::{null, null_mut};

/// A node on the CPU.
pub struct Cpu {
    api: Api,
    /// Host memory, as ORT describes it.
    memory: *mut OrtMemoryInfo,
}

// SAFETY: the description is this node's own and may be released on any thread.
unsafe impl Send for Cpu {}
// SAFETY: the description does not change once made; runs only read it.
unsafe impl Sync for Cpu {}

impl Cpu {
    /// # Errors
    /// What ORT reports.
    pub fn new(api: Api) -> Result<Self, Failure> {
        let mut memory = null_mut();
        let (arena, default) = (
            OrtAllocatorType::OrtArenaAllocator,
            OrtMemType::OrtMemTypeDefault,
        );
        // SAFETY: `memory` receives the description, which `drop` releases.
        unsafe { api.cpu_memory(arena, default, &mut memory)? };
        Ok(Self { api, memory })
    }

    /// Computes the outputs.
    ///
    /// # Errors
    /// What ORT reports.
    ///
    /// # Safety
    /// As [`Processor::run`](super::Processor::run), with `plan` made for the call's shapes.
    pub unsafe fn run(&self, call: &Call<'_>, plan: &CpuPlan) -> Result<(), Failure> {
        // SAFETY: the context is the running node's.
        let threads = unsafe { OrtThreads::new(call.api, call.context) };
        #[cfg(feature = "fault-injection")]
        threads.run(8, &|_| {
            call.fault.trip("task");
            // SAFETY: for sanitizers to find.
            unsafe { call.fault.race("race_in_task") };
        });
        let (mut inputs, mut outputs) = ([null(); MAX_INPUTS], [null_mut(); MAX_OUTPUTS]);
        let inputs = gathered(call.inputs, &mut inputs, |it| it.data.cast_const().cast());
        let outputs = gathered(call.outputs, &mut outputs, |it| it.data.cast());
        let run = |workspace| {
            let on = Processor {
                isa: isa(),
                threads: &threads,
            };
            // SAFETY: the caller's contract; ORT aligns what it allocates to 64 bytes.
            let ran = unsafe { plan.run(inputs, outputs, workspace, on) };
            let idle = ran.map_err(|error| Failure::invalid(error.to_string()))?;
            if let Some(error) = idle {
                crate::told::tell(format!(
                    "{}: {error}; the slot counted as idle: its state stayed as it was, and its rows are NaN",
                    call.name
                ));
            }
            Ok(())
        };
        let bytes = plan.workspace_bytes();
        if bytes == 0 {
            return run(null_mut());
        }
        // SAFETY: the node runs while the allocator lives.
        let arena = unsafe { RunAllocator::new(call.api, call.context, self.memory)? };
        // SAFETY: the arena outlives the workspace.
        let workspace = unsafe { Workspace::allocate(call.api, arena.allocator, bytes)? };
        run(workspace.data)
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        // SAFETY: it is ours.
        unsafe { self.api.release_memory(self.memory) };
    }
}

/// The instruction set to compute with.
fn isa() -> Isa {
    #[cfg(feature = "fault-injection")]
    return crate::fault::isa();
    #[cfg(not(feature = "fault-injection"))]
    Isa::best()
}
