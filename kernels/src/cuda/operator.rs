//! Any operator on one device, for one set of shapes.

use super::{CudaError, Device, DevicePtr, Stream};
use ratplus_graphs::ops::{Definition, Inferred, Op, Operator, Ports, SchemaErrors, TensorType};
use ratplus_graphs::{with_gpu_op, with_gpu_operator};
use std::fmt;

/// What computes an operator on a GPU.
pub trait CudaKernel: Definition {
    /// What its launches need beside addresses.
    type Plan: CudaPlan<Op = Self>;

    /// A plan for a node of these sizes and types. Loads kernels: not allowed while a stream is
    /// captured.
    ///
    /// # Errors
    /// The device has no kernels for them.
    fn plan(&self, device: &'static Device, node: &Inferred) -> Result<Self::Plan, CudaError>;

    /// The blocks of its kernels that ask for shared memory; none by default.
    fn launch_blocks() -> Vec<LaunchBlock> {
        Vec::new()
    }
}

/// An operator's launches for one shape on one device.
pub trait CudaPlan: fmt::Debug + Send + Sync + 'static {
    /// The operator.
    type Op: Definition;

    /// Bytes of device memory that a launch needs beside its tensors, aligned to 256; may be 0.
    fn workspace_bytes(&self) -> usize;

    /// Puts the work into the stream. Slots whose lengths do not fit count as idle and report `node`
    /// in the device's error flag.
    ///
    /// # Errors
    /// A misaligned tensor, or what the driver says.
    ///
    /// # Safety
    /// Every address is valid for its tensor until the work is done, and so is `workspace` for
    /// [`workspace_bytes`](Self::workspace_bytes), which no other run uses meanwhile. Outputs
    /// overlap nothing, except that an output may be exactly the input that
    /// [`Schema::aliases`](ratplus_graphs::ops::Schema::aliases) pairs it with. The device's context
    /// is current.
    unsafe fn launch(
        &self,
        inputs: &<Self::Op as Definition>::Inputs<DevicePtr>,
        outputs: &<Self::Op as Definition>::Outputs<DevicePtr>,
        workspace: DevicePtr,
        node: u32,
        stream: Stream,
    ) -> Result<(), CudaError>;
}

/// A block of a kernel as it is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchBlock {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Its threads.
    pub threads: u32,
    /// Most dynamic shared memory that it is launched with, in bytes.
    pub shared_bytes: usize,
}

/// The blocks of all kernels that ask for shared memory.
pub fn launch_blocks() -> Vec<LaunchBlock> {
    let operators = Op::GPU.into_iter();
    let blocks = operators.flat_map(|op| with_gpu_op!(op, O => O::launch_blocks(), Vec::new()));
    blocks.collect()
}

/// What a node of a graph launches.
pub struct OperatorPlan {
    op: Op,
    plan: Box<dyn Launch>,
}

impl fmt::Debug for OperatorPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.op, self.plan)
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The inputs contradict the schema.
    #[error(transparent)]
    Schema(#[from] SchemaErrors),
    /// The cache has another type than the activations.
    #[error("{0}: {1}")]
    Cache(Op, String),
    /// The operator is for CPUs.
    #[error("{0}: expected an operator with kernels for GPUs; export for the target cuda")]
    NoKernel(Op),
    /// The device has no kernels for them.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

impl OperatorPlan {
    /// A plan for inputs of these types. Loads kernels: not allowed while a stream is captured.
    ///
    /// # Errors
    /// Every contradiction to the schema; else a cache of another type, or a device without kernels
    /// for the sizes.
    pub fn new(
        device: &'static Device,
        operator: &Operator,
        inputs: &[TensorType],
    ) -> Result<Self, PlanError> {
        let node = operator.infer(inputs)?;
        let op = operator.op();
        let types = op.schema().check_gpu_types(node.element, node.cache);
        types.map_err(|reason| PlanError::Cache(op, reason))?;
        let plan = with_gpu_operator!(
            operator,
            operator => planned(operator, device, &node)?,
            return Err(PlanError::NoKernel(op))
        );
        Ok(Self { op, plan })
    }

    /// Bytes of device memory that a launch needs beside its tensors.
    pub fn workspace_bytes(&self) -> usize {
        self.plan.workspace_bytes()
    }

    /// Puts the work into the stream. `inputs` and `outputs` are in the order of the schema; `node`
    /// is what a [`DeviceError`](super::DeviceError) names.
    ///
    /// # Errors
    /// What the driver reports, and a number of tensors that is not the schema's.
    ///
    /// # Safety
    /// As [`CudaPlan::launch`].
    pub unsafe fn launch(
        &self,
        inputs: &[DevicePtr],
        outputs: &[DevicePtr],
        workspace: DevicePtr,
        node: u32,
        stream: Stream,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's contract.
        let launched = unsafe { self.plan.launch(inputs, outputs, workspace, node, stream) };
        launched.unwrap_or_else(|| {
            Err(CudaError::Unsupported {
                what: "tensors".into(),
                expected: format!("those of {}", self.op),
                found: format!("{} inputs and {} outputs", inputs.len(), outputs.len()),
            })
        })
    }

    /// The operator.
    pub fn op(&self) -> Op {
        self.op
    }
}

/// A plan whose operator is not told by its type.
trait Launch: fmt::Debug + Send + Sync {
    fn workspace_bytes(&self) -> usize;

    /// `None` where there are more or fewer tensors than ports.
    ///
    /// # Safety
    /// As [`CudaPlan::launch`].
    unsafe fn launch(
        &self,
        inputs: &[DevicePtr],
        outputs: &[DevicePtr],
        workspace: DevicePtr,
        node: u32,
        stream: Stream,
    ) -> Option<Result<(), CudaError>>;
}

impl<P: CudaPlan> Launch for P {
    fn workspace_bytes(&self) -> usize {
        CudaPlan::workspace_bytes(self)
    }

    unsafe fn launch(
        &self,
        inputs: &[DevicePtr],
        outputs: &[DevicePtr],
        workspace: DevicePtr,
        node: u32,
        stream: Stream,
    ) -> Option<Result<(), CudaError>> {
        let inputs = Ports::from_list(inputs.iter().copied())?;
        let outputs = Ports::from_list(outputs.iter().copied())?;
        // SAFETY: the caller's contract, port by port.
        Some(unsafe { CudaPlan::launch(self, &inputs, &outputs, workspace, node, stream) })
    }
}

fn planned<O: CudaKernel>(
    operator: &O,
    device: &'static Device,
    node: &Inferred,
) -> Result<Box<dyn Launch>, CudaError> {
    Ok(Box::new(operator.plan(device, node)?))
}
