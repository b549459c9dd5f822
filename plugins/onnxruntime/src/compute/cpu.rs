//! Runs on ORT's threads.

use super::workspace::{RunAllocator, Workspace};
use super::{Call, PAST_LENGTH, SEQ_LENGTH};
use crate::api::{Api, Failure, Tensor};
use crate::parallel::OrtThreads;
use crate::plan::{AttentionPlan, Plan};
use ort_sys::{OrtAllocatorType, OrtMemType, OrtMemoryInfo};
use ratplus_graphs::ops::{self, ElementType, LengthError};
use ratplus_kernels::{
    AttentionParams, Element, Isa, ParallelFor, ScanParams, attention_workspace_bytes,
    dilated_attention_on, recurrence_scan_on,
};
use std::ptr::null_mut;

/// A node on the CPU.
pub struct Cpu {
    api: Api,
    /// Host memory, as ORT describes it.
    memory: *mut OrtMemoryInfo,
}

// SAFETY: `memory` is constant and only read.
unsafe impl Send for Cpu {}
// SAFETY: as above.
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
    /// Lengths that do not fit, or what ORT reports.
    ///
    /// # Safety
    /// As [`Processor::run`](super::Processor::run).
    pub unsafe fn run(&self, call: &Call<'_>) -> Result<(), Failure> {
        // SAFETY: the caller's contract.
        unsafe {
            match call.types.element {
                ElementType::F16 => self.run_as::<half::f16>(call),
                ElementType::BF16 => self.run_as::<half::bf16>(call),
                ElementType::F32 | ElementType::I64 | ElementType::U8 => self.run_as::<f32>(call),
            }
        }
    }

    /// # Safety
    /// As [`Cpu::run`], with `T` the call's.
    unsafe fn run_as<T: Element>(&self, call: &Call<'_>) -> Result<(), Failure> {
        // SAFETY: the context is the running node's.
        let threads = unsafe { OrtThreads::new(call.api, call.context) };
        #[cfg(feature = "fault-injection")]
        threads.run(8, &|_| {
            call.fault.trip("task");
            // SAFETY: for sanitizers to find.
            unsafe { call.fault.race("race_in_task") };
        });
        match &call.plan.attention {
            // SAFETY: the caller's contract.
            None => unsafe { scan::<T>(call, &threads) },
            // SAFETY: as above.
            Some(plan) => unsafe {
                match call.types.cache {
                    ElementType::F16 => self.attend::<T, half::f16>(call, plan, &threads),
                    ElementType::BF16 => self.attend::<T, half::bf16>(call, plan, &threads),
                    ElementType::F32 | ElementType::I64 | ElementType::U8 => {
                        self.attend::<T, f32>(call, plan, &threads)
                    }
                }
            },
        }
    }

    /// # Safety
    /// As [`Cpu::run_as`], with `C` the call's.
    unsafe fn attend<T: Element, C: Element>(
        &self,
        call: &Call<'_>,
        plan: &AttentionPlan,
        threads: &dyn ParallelFor,
    ) -> Result<(), Failure> {
        let (batch, seq_len) = (call.plan.batch, call.plan.seq_len);
        let bytes = attention_workspace_bytes::<T, C>(&plan.layout, batch, seq_len, plan.head_dim);
        // SAFETY: the node runs while the allocator lives.
        let arena = unsafe { RunAllocator::new(call.api, call.context, self.memory)? };
        // SAFETY: the arena outlives the workspace.
        let workspace = unsafe { Workspace::allocate(call.api, arena.allocator, bytes)? };
        let params = AttentionParams::<T, C> {
            layout: &plan.layout,
            scale: plan.scale,
            batch,
            seq_len,
            head_dim: plan.head_dim,
            query: input(call, 0),
            key: input(call, 1),
            value: input(call, 2),
            past_key: input(call, 3),
            past_value: input(call, 4),
            past_length: input(call, PAST_LENGTH),
            seq_length: input(call, SEQ_LENGTH),
            cos: input(call, 7),
            sin: input(call, 8),
            output: output(call, 0),
            present_key: output(call, 1),
            present_value: output(call, 2),
            workspace: workspace.data,
        };
        // SAFETY: the caller's contract; ORT aligns what it allocates to 64 bytes.
        unsafe { dilated_attention_on(isa(), &params, threads) }.map_err(|e| length_failure(&e))
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        // SAFETY: it is ours.
        unsafe { self.api.release_memory(self.memory) };
    }
}

/// Checks the lengths of every slot, before anything is allocated.
///
/// # Errors
/// The first slot whose lengths do not fit.
///
/// # Safety
/// `inputs` have the shapes and types of `plan` and are in host memory.
pub unsafe fn check_lengths(plan: &Plan, inputs: &[Tensor]) -> Result<(), Failure> {
    let max_seq_len = plan
        .attention
        .as_ref()
        .map(|plan| plan.layout.max_seq_len());
    // SAFETY: both are i64 [B], which the plan found; B is not 0.
    let (past, seq) = unsafe {
        (
            std::slice::from_raw_parts(inputs[PAST_LENGTH].data.cast_const().cast(), plan.batch),
            std::slice::from_raw_parts(inputs[SEQ_LENGTH].data.cast_const().cast(), plan.batch),
        )
    };
    ops::check_lengths(past, seq, plan.seq_len, max_seq_len).map_err(|e| length_failure(&e))
}

/// The instruction set to compute with.
fn isa() -> Isa {
    #[cfg(feature = "fault-injection")]
    return crate::fault::isa();
    #[cfg(not(feature = "fault-injection"))]
    Isa::best()
}

fn length_failure(error: &LengthError) -> Failure {
    Failure::invalid(error.to_string())
}

/// # Safety
/// As [`Cpu::run_as`].
unsafe fn scan<T: Element>(call: &Call<'_>, threads: &dyn ParallelFor) -> Result<(), Failure> {
    let params = ScanParams::<T> {
        batch: call.plan.batch,
        seq_len: call.plan.seq_len,
        channels: call.plan.channels,
        key: input(call, 0),
        value: input(call, 1),
        gate: input(call, 2),
        state_key: input(call, 3),
        state_value: input(call, 4),
        past_length: input(call, PAST_LENGTH),
        seq_length: input(call, SEQ_LENGTH),
        gated_key: output(call, 0),
        gated_value: output(call, 1),
        new_state_key: output(call, 2),
        new_state_value: output(call, 3),
    };
    // SAFETY: the caller's contract.
    unsafe { recurrence_scan_on(isa(), &params, threads) }.map_err(|e| length_failure(&e))
}

fn input<T>(call: &Call<'_>, index: usize) -> *const T {
    call.inputs[index].data.cast_const().cast()
}

fn output<T>(call: &Call<'_>, index: usize) -> *mut T {
    call.outputs[index].data.cast()
}
