//! Any operator on a CPU, for one set of shapes.

use crate::isa::Isa;
use crate::parallel::ParallelFor;
use ratplus_graphs::ops::{
    Axis, Definition, Inferred, LengthError, Op, Operator, Ports, TensorType, check_lengths,
};
use ratplus_graphs::with_operator;
use std::{fmt, slice};

/// Where an operator runs.
#[derive(Clone, Copy)]
pub struct Processor<'a> {
    /// Instructions to compute with, one of [`Isa::available`].
    pub isa: Isa,
    /// Threads to share the work.
    pub threads: &'a dyn ParallelFor,
}

/// What computes an operator on a CPU.
pub trait CpuKernel: Definition {
    /// What the sizes and types of a node decide.
    type Plan: fmt::Debug + Send + Sync;

    /// A plan for a node of these sizes and types.
    fn plan(&self, node: &Inferred) -> Self::Plan;

    /// Bytes of memory that a run needs beside its tensors; may be 0.
    fn workspace_bytes(plan: &Self::Plan) -> usize;

    /// Computes the outputs; allocates nothing in its steady state.
    ///
    /// # Errors
    /// A slot's lengths are out of range; nothing was written.
    ///
    /// # Safety
    /// Every pointer is aligned and valid for its tensor, dense and row-major, and `workspace`,
    /// aligned to 64, for [`workspace_bytes`](Self::workspace_bytes). Outputs and workspace overlap
    /// neither one another nor any input, except that an output may be exactly the input that
    /// [`Schema::aliases`](ratplus_graphs::ops::Schema::aliases) pairs it with.
    unsafe fn run(
        plan: &Self::Plan,
        inputs: &Self::Inputs<*const u8>,
        outputs: &Self::Outputs<*mut u8>,
        workspace: *mut u8,
        on: Processor<'_>,
    ) -> Result<(), LengthError>;
}

/// What a node of a graph runs.
#[derive(Debug)]
pub struct CpuPlan {
    op: Op,
    node: Box<Inferred>,
    plan: Box<dyn Run>,
}

/// Why nothing was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// A slot's lengths are out of range.
    #[error(transparent)]
    Lengths(#[from] LengthError),
    /// There are more or fewer tensors than the schema's ports.
    #[error("{op}: expected one tensor a port, found {inputs} inputs and {outputs} outputs")]
    Ports {
        /// The operator.
        op: Op,
        /// How many were given.
        inputs: usize,
        /// How many were given.
        outputs: usize,
    },
}

impl CpuPlan {
    /// A plan for a node of these sizes and types, as [`Operator::infer`] tells them.
    pub fn new(operator: &Operator, node: &Inferred) -> Self {
        fn planned<O: CpuKernel>(operator: &O, node: &Inferred) -> Box<dyn Run> {
            Box::new(Planned::<O>(operator.plan(node)))
        }
        Self {
            op: operator.op(),
            node: Box::new(node.clone()),
            plan: with_operator!(operator, operator => planned(operator, node)),
        }
    }

    /// Bytes of memory that a run needs beside its tensors.
    pub fn workspace_bytes(&self) -> usize {
        self.plan.workspace_bytes()
    }

    /// Computes the outputs. Tensors are in the order of the schema.
    ///
    /// A slot whose lengths do not fit is idle: it keeps its state, and the others run. Its rows of
    /// the other outputs are NaN, and the first such slot is what is returned.
    ///
    /// # Errors
    /// Nothing was written.
    ///
    /// # Safety
    /// As [`CpuKernel::run`].
    pub unsafe fn run(
        &self,
        inputs: &[*const u8],
        outputs: &[*mut u8],
        workspace: *mut u8,
        on: Processor<'_>,
    ) -> Result<Option<LengthError>, CpuError> {
        let schema = self.op.schema();
        if (inputs.len(), outputs.len()) != (schema.inputs.len(), schema.outputs.len()) {
            return Err(CpuError::Ports {
                op: self.op,
                inputs: inputs.len(),
                outputs: outputs.len(),
            });
        }
        // SAFETY: forwarded.
        let ran = unsafe { self.plan.run(inputs, outputs, workspace, on) };
        let Err(error) = ran else { return Ok(None) };
        let places = schema.input("past_length").zip(schema.input("seq_length"));
        let Some((past_at, seq_at)) = places else {
            return Err(error.into());
        };
        let dims = &self.node.dims;
        // SAFETY: i64 [B].
        let [mut past, mut seq] = [past_at, seq_at].map(|place| unsafe {
            slice::from_raw_parts(inputs[place].cast::<i64>(), dims[Axis::Batch]).to_vec()
        });
        let mut idle = Vec::new();
        while let Err(LengthError { slot, .. }) =
            check_lengths(&past, &seq, dims[Axis::SeqLen], dims.get(Axis::MaxSeqLen))
        {
            (past[slot], seq[slot]) = (0, 0);
            idle.push(slot);
        }
        let mut inputs = inputs.to_vec();
        (inputs[past_at], inputs[seq_at]) = (past.as_ptr().cast(), seq.as_ptr().cast());
        // SAFETY: forwarded; the lengths live until it is done.
        unsafe { self.plan.run(&inputs, outputs, workspace, on) }?;
        for (place, tensor) in self.node.outputs.iter().enumerate() {
            if schema.aliases.iter().all(|&(_, output)| output != place) {
                for &slot in &idle {
                    // SAFETY: the tensor is of this type.
                    unsafe { fill_with_nan(outputs[place], tensor, slot) };
                }
            }
        }
        Ok(Some(error))
    }
}

/// Makes a slot of a tensor NaN.
///
/// # Safety
/// `data` points to a tensor of this type that may be written.
unsafe fn fill_with_nan(data: *mut u8, tensor: &TensorType, slot: usize) {
    let bytes = tensor.slots(slot..slot + 1);
    // SAFETY: the caller's contract.
    let bytes = unsafe { slice::from_raw_parts_mut(data.add(bytes.start), bytes.len()) };
    // All bits set are a NaN in f32, f16 and bf16.
    bytes.fill(0xff);
}

/// A plan whose operator is not told by its type.
trait Run: fmt::Debug + Send + Sync {
    fn workspace_bytes(&self) -> usize;

    /// Nothing where there are more or fewer tensors than ports.
    ///
    /// # Safety
    /// As [`CpuKernel::run`].
    unsafe fn run(
        &self,
        inputs: &[*const u8],
        outputs: &[*mut u8],
        workspace: *mut u8,
        on: Processor<'_>,
    ) -> Result<(), LengthError>;
}

/// The plan of an operator.
struct Planned<O: CpuKernel>(O::Plan);

impl<O: CpuKernel> fmt::Debug for Planned<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<O: CpuKernel> Run for Planned<O> {
    fn workspace_bytes(&self) -> usize {
        O::workspace_bytes(&self.0)
    }

    unsafe fn run(
        &self,
        inputs: &[*const u8],
        outputs: &[*mut u8],
        workspace: *mut u8,
        on: Processor<'_>,
    ) -> Result<(), LengthError> {
        let inputs = Ports::from_list(inputs.iter().copied());
        let outputs = Ports::from_list(outputs.iter().copied());
        let (Some(inputs), Some(outputs)) = (inputs, outputs) else {
            return Ok(());
        };
        // SAFETY: forwarded.
        unsafe { O::run(&self.0, &inputs, &outputs, workspace, on) }
    }
}
