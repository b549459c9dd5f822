//! One run of a node, on the processor that its provider stands for.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod search;
mod workspace;

pub use cpu::Cpu;
#[cfg(feature = "cuda")]
pub use cuda::Cuda;
#[cfg(feature = "cuda")]
pub use search::search_around;

use crate::api::{Api, Failure, Tensor};
use crate::plan::Plan;
use ort_sys::OrtKernelContext;
use ratplus_graphs::ops::{ElementType, Op, Operator};
use ratplus_kernels::CpuPlan;
#[cfg(feature = "cuda")]
use ratplus_kernels::cuda::OperatorPlan;
use std::ops::Range;

/// Whether the CUDA operators take the place of the CPU's and run in the emulator. For tests only.
pub const EMULATED: bool = cfg!(feature = "cuda-emulation");

/// Where a node runs, and what that takes for the node's whole life.
pub enum Processor {
    /// ORT's threads.
    Cpu(Cpu),
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(Cuda),
}

/// A plan and what computes it.
pub struct Prepared {
    /// What the shapes decide.
    pub plan: Plan,
    kernels: Kernels,
}

/// What one processor runs.
enum Kernels {
    Cpu(CpuPlan),
    #[cfg(feature = "cuda")]
    Cuda(OperatorPlan),
}

impl Processor {
    /// Gets ready for runs of these shapes.
    ///
    /// # Errors
    /// The GPU has no kernels for them.
    pub fn prepare(&self, operator: &Operator, plan: Plan) -> Result<Prepared, Failure> {
        let kernels = match self {
            Self::Cpu(_) => Kernels::Cpu(CpuPlan::new(operator, &plan.node)),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => Kernels::Cuda(cuda.prepare(operator, &plan)?),
        };
        Ok(Prepared { plan, kernels })
    }

    /// Computes the outputs. A GPU may still be at it afterwards.
    ///
    /// Slots whose lengths do not fit are idle and told of by
    /// [`RatplusTakeDeviceError`](crate::RatplusTakeDeviceError).
    ///
    /// # Errors
    /// What ORT or the driver reports.
    ///
    /// # Safety
    /// Inputs and outputs are live on this processor, with the shapes of `prepared`, made for
    /// this processor; [`Call::check_overlaps`] has passed.
    pub unsafe fn run(&self, call: &Call<'_>, prepared: &Prepared) -> Result<(), Failure> {
        match (self, &prepared.kernels) {
            // SAFETY: the caller's contract, on a CPU.
            (Self::Cpu(cpu), Kernels::Cpu(plan)) => unsafe { cpu.run(call, plan) },
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's contract, on a GPU.
            (Self::Cuda(cuda), Kernels::Cuda(launch)) => unsafe { cuda.run(call, launch) },
            #[cfg(feature = "cuda")]
            _ => Err(Failure::invalid("a plan made for another processor")),
        }
    }
}

/// Everything one run needs.
pub struct Call<'a> {
    /// The runtime.
    pub api: Api,
    /// What messages call the node.
    pub name: &'a str,
    /// The operator.
    pub op: Op,
    /// The running node.
    pub context: *const OrtKernelContext,
    /// In the schema's order.
    pub inputs: &'a [Tensor],
    /// In the schema's order.
    pub outputs: &'a [Tensor],
    /// Where to panic.
    #[cfg(feature = "fault-injection")]
    pub fault: &'a crate::fault::Fault,
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
                let replaces = self.op.schema().aliases.contains(&(i, o));
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
}

/// What `address` makes of each tensor, in `to`.
fn gathered<'a, T>(tensors: &[Tensor], to: &'a mut [T], address: fn(&Tensor) -> T) -> &'a mut [T] {
    let to = &mut to[..tensors.len()];
    for (to, tensor) in to.iter_mut().zip(tensors) {
        *to = address(tensor);
    }
    to
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_in_common_overlap() {
        assert!(overlap(&(0..4), &(3..5)));
        assert!(overlap(&(0..4), &(1..2)));
        assert!(!overlap(&(0..4), &(4..5)));
        assert!(!overlap(&(2..2), &(0..4)));
    }
}
