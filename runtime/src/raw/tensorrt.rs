//! Runs of an engine plan over memory that is bound once.

use super::memory::{Buffer, Memory};
use ratplus_kernels::cuda::{CudaError, Device, Graph, OwnedStream};
use ratplus_nvinfer::{Context, ElementKind, Engine, NvinferError, Tensor};
use std::sync::Arc;

/// Where a tensor lies: its name, buffer and first byte.
pub(crate) type Place<'a> = (&'a str, usize, usize);

/// The error of a call of the driver's.
fn cuda(what: &str) -> impl Fn(CudaError) -> String {
    move |error| format!("{what}: {error}")
}

fn words(error: NvinferError) -> String {
    error.to_string()
}

/// An execution context, the memory of its tensors and the CUDA graph that it was recorded in.
pub(crate) struct PlanRun {
    /// First, as it has addresses of what follows.
    graph: Option<Graph>,
    context: Context,
    /// Addresses of all tensors, once for each place that it may run at.
    places: Vec<Vec<(String, u64)>>,
    /// The place whose addresses the context has.
    bound: usize,
    buffers: Arc<[Buffer]>,
    stream: Arc<OwnedStream>,
    device: &'static Device,
}

impl PlanRun {
    /// Finds every tensor of `engine` in `memory`, once for each of `places`, and binds the first.
    pub fn new<'a>(
        engine: &Engine,
        memory: &Memory,
        places: impl Iterator<Item = Vec<Place<'a>>>,
        stream: &Arc<OwnedStream>,
        device: &'static Device,
    ) -> Result<Self, String> {
        let buffers = memory.shared().clone();
        let tensors = engine.tensors();
        let found = places.map(|places| {
            let address = |tensor: &Tensor| {
                let place = places.iter().find(|(name, ..)| *name == tensor.name);
                let bytes = bytes(tensor);
                let fits = |&(_, buffer, offset): &Place<'_>| {
                    let end = bytes.and_then(|bytes| bytes.checked_add(offset))?;
                    let buffer = buffers.get(buffer)?;
                    (end <= buffer.bytes()).then_some(buffer.address() as u64 + offset as u64)
                };
                let Some(address) = place.and_then(fits) else {
                    // Engines are compared with the manifest before.
                    panic!("`{}` has a place in memory that holds it", tensor.name);
                };
                (tensor.name.clone(), address)
            };
            tensors.iter().map(address).collect()
        });
        let mut run = Self {
            graph: None,
            context: engine.context().map_err(words)?,
            places: found.collect(),
            bound: 0,
            buffers: buffers.clone(),
            stream: stream.clone(),
            device,
        };
        run.bind(0)?;
        Ok(run)
    }

    fn bind(&mut self, place: usize) -> Result<(), String> {
        self.bound = place;
        for (name, address) in &self.places[place] {
            // SAFETY: `new` has found room for the whole tensor at the address, in buffers that live as
            // long as this value, which has no work under way when it is dropped or bound anew.
            unsafe { self.context.bind(name, *address) }.map_err(words)?;
        }
        Ok(())
    }

    /// Runs once at a place and waits for it. Makes the GPU the calling thread's current one.
    pub fn run(&mut self, place: usize, memory: &mut Memory) -> Result<(), String> {
        self.check(memory);
        if place != self.bound {
            self.bind(place)?;
        }
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

    /// Records a run at its one place, which later runs repeat. The context has run before.
    pub fn record(&mut self, memory: &mut Memory) -> Result<(), String> {
        self.check(memory);
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

    fn enqueue(&mut self) -> Result<(), String> {
        // SAFETY: the stream is live, its GPU's context was just made current, every tensor is
        // bound, and callers borrow the memory mutably until the stream has done the work.
        unsafe { self.context.enqueue(self.stream.stream().0) }.map_err(words)
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
