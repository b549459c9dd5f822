//! One run of a node.

use crate::api::{Api, Failure, Tensor};
use crate::parallel::OrtThreads;
use crate::plan::{AttentionPlan, Plan};
use ort_sys::{OrtAllocator, OrtKernelContext, OrtMemoryInfo};
use ratplus_graphs::ops::{self, ElementType, LengthError, Op};
use ratplus_kernels::{
    AttentionParams, Element, ParallelFor, ScanParams, attention_workspace_bytes,
    dilated_attention, recurrence_scan,
};
use std::ops::Range;
use std::ptr::null_mut;

/// Place of `past_length` among both operators' inputs.
const PAST_LENGTH: usize = 5;
/// Place of `seq_length` among both operators' inputs.
const SEQ_LENGTH: usize = 6;

/// Everything one run needs.
pub struct Call<'a> {
    /// The runtime.
    pub api: Api,
    /// The operator.
    pub op: Op,
    /// The running node.
    pub context: *const OrtKernelContext,
    /// CPU memory.
    pub memory: *const OrtMemoryInfo,
    /// Made for the shapes of `inputs`.
    pub plan: &'a Plan,
    /// [`Op::DilatedAttention`] only.
    pub scale: f32,
    /// In the schema's order.
    pub inputs: &'a [Tensor],
    /// In the schema's order.
    pub outputs: &'a [Tensor],
    /// Where to panic.
    #[cfg(feature = "fault-injection")]
    pub fault: &'a crate::fault::Fault,
}

/// Checks the lengths of every slot, before anything is allocated.
///
/// # Errors
/// The first slot whose lengths do not fit.
///
/// # Safety
/// `inputs` have the shapes and types of `plan`.
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

fn length_failure(error: &LengthError) -> Failure {
    Failure::invalid(error.to_string())
}

impl Call<'_> {
    /// Checks that an output shares memory only with the input it replaces, and then exactly.
    ///
    /// # Errors
    /// Two tensors that overlap.
    pub fn check_overlaps(&self) -> Result<(), Failure> {
        let (inputs, outputs) = (self.op.inputs(), self.op.outputs());
        for (o, output) in self.outputs.iter().enumerate() {
            let bytes = span(output);
            for (i, input) in self.inputs.iter().enumerate() {
                let replaces = self.op.aliases().contains(&(i, o));
                if overlap(&bytes, &span(input)) && !(replaces && input.data == output.data) {
                    return Err(overlap_failure(outputs[o].name, inputs[i].name, replaces));
                }
            }
            for (other, earlier) in self.outputs[..o].iter().enumerate() {
                if overlap(&bytes, &span(earlier)) {
                    return Err(overlap_failure(outputs[o].name, outputs[other].name, false));
                }
            }
        }
        Ok(())
    }

    /// Computes the outputs.
    ///
    /// # Errors
    /// Lengths that do not fit, or what ORT reports.
    ///
    /// # Safety
    /// Inputs and outputs are live, with the plan's shapes and element type `T`, and
    /// [`Call::check_overlaps`] has passed.
    pub unsafe fn run<T: Element>(&self) -> Result<(), Failure> {
        // SAFETY: the context is the running node's.
        let threads = unsafe { OrtThreads::new(self.api, self.context) };
        #[cfg(feature = "fault-injection")]
        threads.run(8, &|_| self.fault.trip("task"));
        match &self.plan.attention {
            // SAFETY: the caller's contract.
            None => unsafe { self.scan::<T>(&threads) },
            // SAFETY: as above.
            Some(plan) => unsafe { self.attend::<T>(plan, &threads) },
        }
    }

    /// # Safety
    /// As [`Call::run`].
    unsafe fn scan<T: Element>(&self, threads: &dyn ParallelFor) -> Result<(), Failure> {
        let params = ScanParams::<T> {
            batch: self.plan.batch,
            seq_len: self.plan.seq_len,
            channels: self.plan.channels,
            key: self.input(0),
            value: self.input(1),
            gate: self.input(2),
            state_key: self.input(3),
            state_value: self.input(4),
            past_length: self.input(PAST_LENGTH),
            seq_length: self.input(SEQ_LENGTH),
            gated_key: self.output(0),
            gated_value: self.output(1),
            new_state_key: self.output(2),
            new_state_value: self.output(3),
        };
        // SAFETY: the caller's contract.
        unsafe { recurrence_scan(&params, threads) }.map_err(|e| length_failure(&e))
    }

    /// # Safety
    /// As [`Call::run`].
    unsafe fn attend<T: Element>(
        &self,
        plan: &AttentionPlan,
        threads: &dyn ParallelFor,
    ) -> Result<(), Failure> {
        let (batch, seq_len) = (self.plan.batch, self.plan.seq_len);
        let heads = plan.layout.heads().len();
        let bytes = attention_workspace_bytes::<T>(batch, seq_len, heads, plan.head_dim);
        // SAFETY: the node runs while the workspace lives.
        let workspace = unsafe { Workspace::new(self.api, self.context, self.memory, bytes)? };
        let params = AttentionParams::<T> {
            layout: &plan.layout,
            scale: self.scale,
            batch,
            seq_len,
            head_dim: plan.head_dim,
            query: self.input(0),
            key: self.input(1),
            value: self.input(2),
            past_key: self.input(3),
            past_value: self.input(4),
            past_length: self.input(PAST_LENGTH),
            seq_length: self.input(SEQ_LENGTH),
            cos: self.input(7),
            sin: self.input(8),
            output: self.output(0),
            present_key: self.output(1),
            present_value: self.output(2),
            workspace: workspace.data,
        };
        // SAFETY: the caller's contract; ORT aligns what it allocates to 64 bytes.
        unsafe { dilated_attention(&params, threads) }.map_err(|e| length_failure(&e))
    }

    fn input<T>(&self, index: usize) -> *const T {
        self.inputs[index].data.cast_const().cast()
    }

    fn output<T>(&self, index: usize) -> *mut T {
        self.outputs[index].data.cast()
    }
}

/// Addresses a tensor takes up.
fn span(tensor: &Tensor) -> Range<usize> {
    let start = tensor.data.addr();
    let size = ElementType::from_onnx(tensor.shape.element).map_or(0, ElementType::size);
    let elements: usize = tensor
        .shape
        .dims()
        .iter()
        .map(|&dim| dim as usize)
        .product();
    start..start + elements * size
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    !a.is_empty() && !b.is_empty() && a.start < b.end && b.start < a.end
}

fn overlap_failure(output: &str, other: &str, replaces: bool) -> Failure {
    let expected = if replaces {
        "to be the same buffer or two that do not overlap"
    } else {
        "two buffers that do not overlap"
    };
    Failure::invalid(format!(
        "{output} and {other}: expected {expected}, found a partial or wrong overlap: check what \
         is bound to the session's inputs and outputs"
    ))
}

/// Memory of ORT's arena, given back when dropped.
struct Workspace {
    api: Api,
    allocator: *mut OrtAllocator,
    data: *mut u8,
}

impl Workspace {
    /// `bytes` bytes; nothing for 0.
    ///
    /// # Safety
    /// `context` and `memory` outlive it.
    unsafe fn new(
        api: Api,
        context: *const OrtKernelContext,
        memory: *const OrtMemoryInfo,
        bytes: usize,
    ) -> Result<Self, Failure> {
        let mut workspace = Self {
            api,
            allocator: null_mut(),
            data: null_mut(),
        };
        if bytes > 0 {
            let mut data = null_mut();
            // SAFETY: the caller's contract; `drop` gives back what was had on failure as well.
            unsafe {
                api.context_allocator(context, memory, &mut workspace.allocator)?;
                api.allocate(workspace.allocator, bytes, &mut data)?;
            }
            workspace.data = data.cast();
        }
        Ok(workspace)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // SAFETY: both are ours, and freed once.
        unsafe {
            if !self.data.is_null() {
                // A failure to free has nobody to report to.
                let _ = self.api.free(self.allocator, self.data.cast());
            }
            if !self.allocator.is_null() {
                self.api.release_allocator(self.allocator);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_where_the_schema_has_them() {
        let names = |op: Op| -> (Vec<_>, Vec<_>) {
            (
                op.inputs().iter().map(|port| port.name).collect(),
                op.outputs().iter().map(|port| port.name).collect(),
            )
        };
        for op in Op::ALL {
            assert_eq!(names(op).0[PAST_LENGTH], "past_length");
            assert_eq!(names(op).0[SEQ_LENGTH], "seq_length");
        }
        let (inputs, outputs) = names(Op::RecurrenceScan);
        assert_eq!(
            inputs[..5],
            ["key", "value", "gate", "state_key", "state_value"]
        );
        assert_eq!(
            outputs,
            [
                "gated_key",
                "gated_value",
                "new_state_key",
                "new_state_value"
            ]
        );
        let (inputs, outputs) = names(Op::DilatedAttention);
        assert_eq!(
            inputs[..5],
            ["query", "key", "value", "past_key", "past_value"]
        );
        assert_eq!(inputs[7..], ["cos", "sin"]);
        assert_eq!(outputs, ["output", "present_key", "present_value"]);
    }

    #[test]
    fn only_bytes_in_common_overlap() {
        assert!(overlap(&(0..4), &(3..5)));
        assert!(overlap(&(0..4), &(1..2)));
        assert!(!overlap(&(0..4), &(4..5)));
        assert!(!overlap(&(2..2), &(0..4)));
    }
}
