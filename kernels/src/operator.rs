//! Any operator on a CPU, for one set of shapes.

use crate::isa::Isa;
use crate::parallel::ParallelFor;
use ratplus_graphs::ops::{Definition, Inferred, LengthError, Op, Operator, Ports};
use ratplus_graphs::with_operator;
use std::fmt;

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
            plan: with_operator!(operator, operator => planned(operator, node)),
        }
    }

    /// Bytes of memory that a run needs beside its tensors.
    pub fn workspace_bytes(&self) -> usize {
        self.plan.workspace_bytes()
    }

    /// Computes the outputs. Tensors are in the order of the schema.
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
    ) -> Result<(), CpuError> {
        // SAFETY: forwarded.
        let ran = unsafe { self.plan.run(inputs, outputs, workspace, on) };
        let ports = CpuError::Ports {
            op: self.op,
            inputs: inputs.len(),
            outputs: outputs.len(),
        };
        Ok(ran.ok_or(ports)??)
    }
}

/// A plan whose operator is not told by its type.
trait Run: fmt::Debug + Send + Sync {
    fn workspace_bytes(&self) -> usize;

    /// `None` where there are more or fewer tensors than ports.
    ///
    /// # Safety
    /// As [`CpuKernel::run`].
    unsafe fn run(
        &self,
        inputs: &[*const u8],
        outputs: &[*mut u8],
        workspace: *mut u8,
        on: Processor<'_>,
    ) -> Option<Result<(), LengthError>>;
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
    ) -> Option<Result<(), LengthError>> {
        let inputs = Ports::from_list(inputs.iter().copied())?;
        let outputs = Ports::from_list(outputs.iter().copied())?;
        // SAFETY: forwarded.
        Some(unsafe { O::run(&self.0, &inputs, &outputs, workspace, on) })
    }
}
