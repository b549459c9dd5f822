//! Runs of an engine plan over memory that is bound once.

use super::memory::{Buffer, Memory};
use ratplus_kernels::cuda::{CudaError, Device, Graph, OwnedStream};
use ratplus_nvinfer::{Context, ElementKind, Engine, NvinferError, Tensor};
use std::sync::Arc;

/// Where a tensor lies: its name, buffer and first byte.
pub(crate) type Place<'a> = (&'a str, usize, usize);

/// Why a plan did not run.
#[derive(Debug)]
pub(crate) enum PlanError {
    /// TensorRT failed.
    Nvinfer(NvinferError),
    /// The driver failed.
    Cuda(&'static str, CudaError),
}

impl From<NvinferError> for PlanError {
    fn from(error: NvinferError) -> Self {
        Self::Nvinfer(error)
    }
}

/// An execution context, the memory of its tensors and the CUDA graph that it was recorded in.
pub(crate) struct PlanRun {
    /// First, as it has addresses of what follows.
    graph: Option<Graph>,
    context: Context,
    buffers: Arc<[Buffer]>,
    stream: Arc<OwnedStream>,
    device: &'static Device,
}

impl PlanRun {
    /// Binds every tensor of `engine` to its place in `memory`.
    pub fn new(
        engine: &Engine,
        memory: &Memory,
        places: &[Place<'_>],
        stream: &Arc<OwnedStream>,
        device: &'static Device,
    ) -> Result<Self, PlanError> {
        let mut context = engine.context()?;
        let buffers = memory.shared().clone();
        for tensor in engine.tensors() {
            let place = places.iter().find(|(name, ..)| *name == tensor.name);
            let bytes = bytes(&tensor);
            let fits = |&(_, buffer, offset): &Place<'_>| {
                let end = bytes.and_then(|bytes| bytes.checked_add(offset))?;
                let buffer = buffers.get(buffer)?;
                (end <= buffer.bytes()).then_some((buffer, offset))
            };
            let Some((buffer, offset)) = place.and_then(fits) else {
                // Engines are compared with the manifest before.
                panic!("`{}` has a place in memory that holds it", tensor.name);
            };
            let address = buffer.address() as usize + offset;
            // SAFETY: the place holds the whole tensor, device memory starts at multiples of 256
            // and so do places in it; the buffers live as long as this value, which has no work
            // under way when it is dropped.
            unsafe { context.bind(&tensor.name, address as u64)? };
        }
        Ok(Self {
            graph: None,
            context,
            buffers,
            stream: stream.clone(),
            device,
        })
    }

    /// Runs once and waits for it. Makes the GPU the calling thread's current one.
    pub fn run(&mut self, memory: &mut Memory) -> Result<(), PlanError> {
        self.check(memory);
        let cuda = |what| move |error| PlanError::Cuda(what, error);
        self.device
            .make_current()
            .map_err(cuda("making the GPU current"))?;
        let enqueued = match &mut self.graph {
            // SAFETY: `memory` is borrowed mutably until the stream has done the work, and it is
            // the memory that was bound when the graph was recorded.
            Some(graph) => unsafe { graph.launch(self.stream.stream()) }
                .map_err(cuda("launching the CUDA graph")),
            None => self.enqueue(),
        };
        // Whatever was enqueued before an error has to end before memory is given back.
        let waited = self.stream.synchronize();
        enqueued?;
        waited.map_err(cuda("waiting for the run"))
    }

    /// Records a run, which later runs repeat. The context has run before.
    pub fn record(&mut self, memory: &mut Memory) -> Result<(), PlanError> {
        self.check(memory);
        let cuda = |what| move |error| PlanError::Cuda(what, error);
        self.device
            .make_current()
            .map_err(cuda("making the GPU current"))?;
        let stream = self.stream.clone();
        let capture = stream
            .capture()
            .map_err(cuda("starting to record a CUDA graph"))?;
        self.enqueue()?;
        let graph = capture.end();
        self.graph = Some(graph.map_err(cuda("recording a CUDA graph"))?);
        Ok(())
    }

    fn enqueue(&mut self) -> Result<(), PlanError> {
        // SAFETY: the stream is live, its GPU's context was just made current, every tensor is
        // bound, and callers borrow the memory mutably until the stream has done the work.
        unsafe { self.context.enqueue(self.stream.stream().0)? };
        Ok(())
    }

    fn check(&self, memory: &Memory) {
        assert!(
            Arc::ptr_eq(&self.buffers, memory.shared()),
            "a plan runs over the memory that it was bound to"
        );
    }
}

fn bytes(tensor: &Tensor) -> Option<usize> {
    let size = match tensor.kind {
        ElementKind::F32 => 4,
        ElementKind::F16 | ElementKind::BF16 => 2,
        ElementKind::I64 => 8,
        ElementKind::Other(_) => return None,
    };
    tensor.shape.iter().try_fold(size, |bytes: usize, &length| {
        bytes.checked_mul(usize::try_from(length).ok()?)
    })
}
