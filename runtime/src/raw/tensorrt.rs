//! Runs of an engine plan over memory that is bound once.

use super::memory::{Buffer, Memory};
use ratplus_kernels::cuda::{CudaError, Device, DeviceMemory, Graph, OwnedStream, Stream};
use ratplus_nvinfer::{
    Context, ContextOptions, ElementKind, Engine, InputShape, NvinferError, PlanSource, Refit,
    Runtime, Tensor,
};
use std::ffi::c_void;
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

/// Opens a plan, which TensorRT reads a part at a time; a stripped one with its model's weights.
pub(crate) fn open_plan(
    runtime: &Runtime,
    device: &'static Device,
    bytes: &[u8],
    cache: &[u8],
    host_code: bool,
    refit: Option<Refit<'_>>,
) -> Result<Engine, NvinferError> {
    let copy = |to: *mut c_void, from: &[u8], stream| {
        // SAFETY: TensorRT has room for what it asks for; the plan outlives the opening, and TensorRT made
        // its device's context current.
        unsafe { device.copy_anywhere(to.cast(), from, Stream(stream)) }.is_ok()
    };
    runtime.open(&PlanSource {
        bytes,
        copy: &copy,
        host_code,
        cache,
        refit,
    })
}

/// What contexts of one stream are made with.
pub(crate) struct Shared {
    pub device: &'static Device,
    pub stream: Arc<OwnedStream>,
    /// Of all contexts: no two run at once.
    pub scratch: Arc<DeviceMemory>,
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
    _scratch: Arc<DeviceMemory>,
    device: &'static Device,
}

impl PlanRun {
    /// A context for one of `engine`'s profiles, whose inputs have these shapes; TensorRT for RTX records
    /// its runs where `graph` says so.
    pub fn context(
        engine: &Engine,
        profile: usize,
        inputs: &[InputShape],
        graph: bool,
        shared: &Shared,
    ) -> Result<Context, NvinferError> {
        let options = ContextOptions {
            profile,
            inputs,
            graph,
            stream: shared.stream.stream().0,
        };
        // SAFETY: the stream is live and of the device that the engine was opened on.
        let mut context = unsafe { engine.context(&options)? };
        let scratch = &shared.scratch;
        // SAFETY: the memory lives as long as the `PlanRun` that the context becomes part of; all runs are
        // in one stream.
        unsafe { context.set_scratch(scratch.address(), scratch.bytes()) };
        Ok(context)
    }

    /// Finds every tensor of `context` in `memory`, once for each of `places`, and binds the first.
    pub fn new<'a>(
        context: Context,
        memory: &Memory,
        places: impl Iterator<Item = Vec<Place<'a>>>,
        shared: &Shared,
    ) -> Result<Self, String> {
        let buffers = memory.shared().clone();
        let tensors = context.tensors();
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
            context,
            places: found.collect(),
            bound: 0,
            buffers: buffers.clone(),
            stream: shared.stream.clone(),
            _scratch: shared.scratch.clone(),
            device: shared.device,
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
