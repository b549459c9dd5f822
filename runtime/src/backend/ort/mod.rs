//! ONNX Runtime, on the CPU and on a GPU.

pub(super) mod cuda;

use super::buffers::{Buffers, SEQUENCES, UPLOAD};
use super::builder::Opening;
use super::driver::{Driver, StepInputs};
use super::error::failed;
use super::implementation::EngineNodes;
use super::layout::{Bound, Layout};
use super::profile::Profile;
use super::profile_file::{ProfileFile, ProfileFolder};
use super::{BackendError, BackendKind, EngineImplementations, OperatorTime};
use crate::ort_library::{self, LibraryError, OnnxRuntime};
use crate::raw::{Binding, KernelWatch, Memory, Model, NodeKernel, OrtSession, Value, Weights};
use cuda::Gpu;
use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::PrepackedWeights;
use ratplus_graphs::ops::check_gpu_cache;
use ratplus_graphs::package::{Fallback, WEIGHTS_FILE};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, ThreadId};

struct Engine {
    file: String,
    /// Those of [`Buffers::bindings`]. Dropped before the session.
    bindings: Vec<Binding>,
    session: OrtSession,
    /// The thread that ran last, which has recorded its CUDA graph; `None` where there is none to record.
    recorded: Option<ThreadId>,
    /// Written by the session since it was made.
    profile: Option<ProfileFile>,
}

impl Engine {
    /// Ends its session's profile; `None` where it has none.
    fn end_profile(&mut self) -> Option<Result<Profile, String>> {
        let file = self.profile.take()?;
        let ended = self.session.end_profiling();
        let read = ended.map_err(|error| error.to_string()).and_then(|()| {
            let profile = file.read().map_err(|error| error.to_string())?;
            Profile::read(&profile)
        });
        Some(read)
    }
}

struct OrtDriver {
    /// By position: what an engine is made of, and the engine once it is opened.
    engines: Vec<(Source, Option<Engine>)>,
    shared: Shared,
    buffers: Buffers,
    implementations: Vec<EngineImplementations>,
}

/// What an engine is made of.
struct Source {
    model: Model,
    nodes: EngineNodes,
    /// Whether a CUDA graph is recorded of it.
    recorded: bool,
}

/// What all sessions of a package share.
struct Shared {
    kind: BackendKind,
    environment: Environment,
    operators: Option<PathBuf>,
    weights: Arc<Weights>,
    prepacked: Option<PrepackedWeights>,
    gpu: Option<Gpu>,
    threads: Option<usize>,
    passive_wait: bool,
    /// Whether every session writes a profile, to its end.
    profile: bool,
}

/// Whether ONNX Runtime runs such a package so.
pub(super) fn check(opening: &Opening<'_>) -> Result<(), BackendError> {
    let (kind, manifest) = (opening.kind, opening.manifest());
    let reason = match (kind, manifest.fallback) {
        (_, Fallback::TrtPlugins) => {
            "the package is for TensorRT, or ONNX Runtime's TensorRT provider in a program of yours; \
             export it with `fallback: function`"
        }
        (BackendKind::OrtFallback, Fallback::None) => {
            "the package has bare custom nodes and no functions to fall back to; export it with \
             `fallback: function`, or use `ort-cpu`"
        }
        (BackendKind::OrtCuda, Fallback::Inline) => {
            "the package has standard operators only, and no nodes for the CUDA kernels; export it \
             with `fallback: function`"
        }
        _ => "",
    };
    if !reason.is_empty() {
        return Err(opening.unavailable(reason));
    }
    if kind == BackendKind::OrtCuda {
        let shape = manifest.shape();
        let fits = check_gpu_cache(shape.dtype, shape.cache_dtype);
        fits.map_err(|reason| opening.unavailable(reason))?;
    }
    Ok(())
}

pub(super) fn open(opening: &Opening<'_>) -> Result<Box<dyn Driver>, BackendError> {
    check(opening)?;
    let (kind, options) = (opening.kind, opening.options);
    let package = options.package;
    let library = |error: LibraryError| opening.unavailable(error.to_string());
    let found = ort_library::load(options.ort.library.as_deref()).map_err(library)?;
    let (runtime, environment) = found;
    let manifest = opening.manifest();
    let kernels = manifest.fallback != Fallback::Inline && kind != BackendKind::OrtFallback;
    let operators = kernels
        .then(|| ort_library::operators(options.ort.operators.as_deref()).map_err(library))
        .transpose()?;
    let gpu = match &operators {
        Some(operators) if kind == BackendKind::OrtCuda => {
            let ordinal = options.cuda.device;
            Some(Gpu::open(ordinal, &runtime, &environment, operators)?)
        }
        _ => None,
    };
    let layout = Layout::new(manifest, &opening.engines, true, gpu.is_some());
    let (memory, weights, prepacked) = match &gpu {
        None => (
            Memory::new(layout.buffers.iter().map(|(bytes, _)| *bytes)),
            Weights::of_map(package.weights_map(), package.stored_tensors())
                .map(Arc::new)
                .map_err(failed(WEIGHTS_FILE, ORT))?,
            Some(PrepackedWeights::new()),
        ),
        Some(gpu) => {
            let buffers = layout.buffers.iter().copied();
            let memory = Memory::on_device(gpu.device, gpu.ordinal, &gpu.stream, buffers);
            let memory = memory.map_err(failed(SEQUENCES, "allocating their state"))?;
            (memory, gpu.upload_weights(package)?, None)
        }
    };
    let sources = (0..opening.engines.len())
        .map(|position| Ok((prepare(opening, position, &runtime, gpu.is_some())?, None)));
    let mut driver = OrtDriver {
        engines: sources.collect::<Result<_, BackendError>>()?,
        buffers: Buffers::new(layout, memory, true),
        implementations: Vec::new(),
        shared: Shared {
            kind,
            environment,
            operators,
            weights,
            prepacked,
            gpu,
            threads: options.threads,
            passive_wait: options.ort.passive_wait,
            profile: options.inspection.profile,
        },
    };
    // One shows whether the libraries have what the package needs. On a GPU a first run takes seconds.
    let up_front = options.up_front || driver.shared.gpu.is_some();
    let mut engines = opening.engines.iter();
    let first = engines.rposition(|engine| engine.seq_len == 1);
    for position in 0..opening.engines.len() {
        if up_front || position == first.unwrap_or(0) {
            driver.engine(position)?;
        }
    }
    Ok(Box::new(driver))
}

/// What the engine at `position` is made of.
fn prepare(
    opening: &Opening<'_>,
    position: usize,
    runtime: &OnnxRuntime,
    on_gpu: bool,
) -> Result<Source, BackendError> {
    let (options, package) = (opening.options, opening.options.package);
    let (engine, manifest) = (&opening.engines[position], opening.manifest());
    let graph = opening.graph(position, opening.target())?;
    let mut taps = engine.taps.clone();
    for slots in taps
        .iter_mut()
        .flat_map(|(_, tensor)| tensor.shape.first_mut())
    {
        *slots = *slots / manifest.batch * engine.batch;
    }
    let folder = package.weights_path().parent();
    let model = match folder.filter(|_| runtime.memory_models_have_external_data()) {
        Some(folder) => Model::Content(package.encode(&graph.model, &taps), folder.into()),
        None if taps.is_empty() => Model::File(package.dir().join(graph.file)),
        None => {
            return Err(opening.unavailable("extra outputs need ONNX Runtime 1.21 or later"));
        }
    };
    // A graph is of one place.
    let recorded = on_gpu && engine.seq_len == 1 && engine.batch == manifest.batch;
    Ok(Source {
        model,
        nodes: EngineNodes::of(&graph),
        recorded: recorded && !options.cuda.without_graph,
    })
}

impl Shared {
    /// The session of an engine, with everything that it shares with the others.
    fn build(&self, source: &Source, profile: Option<&Path>) -> Result<OrtSession, BackendError> {
        let build = || {
            let mut builder = Session::builder(&self.environment)?
                .with_inter_threads(1)?
                .with_intra_threads(self.threads.unwrap_or(0))?
                // A plan of a chunk's tensors would lie in the arena beside what the first run left.
                .with_memory_pattern(source.nodes.seq_len == 1)?;
            if let Some(prefix) = profile {
                builder = builder.with_profiling(prefix)?;
            }
            if self.passive_wait {
                builder = builder.with_intra_op_spinning(false)?;
            }
            if let Some(prepacked) = &self.prepacked {
                builder = builder.with_prepacked_weights(prepacked)?;
            }
            if let Some(gpu) = &self.gpu {
                builder = gpu.run_sessions(builder, source.recorded)?;
            }
            if let Some(operators) = &self.operators {
                builder = builder.with_operator_library(operators)?;
            }
            // Weights in place and, on the CPU, one packed copy for all engines; without either, every
            // session holds its own. The CPU's sessions fold casts of f16 and bf16 weights into f32.
            OrtSession::new(builder, &self.weights, &source.model)
        };
        build().map_err(failed(&source.nodes.file, ORT))
    }
}

impl Engine {
    /// A run that leaves every state as it is, whatever runs it.
    fn run_idle(
        &mut self,
        position: usize,
        buffers: &mut Buffers,
        gpu: Option<&Gpu>,
    ) -> Result<(), BackendError> {
        let given = buffers.give_idle(position);
        given.map_err(failed(&self.file, UPLOAD))?;
        self.run(0, buffers, gpu)?;
        if let Some(last) = &mut self.recorded {
            *last = thread::current().id();
        }
        Ok(())
    }

    fn run(
        &mut self,
        binding: usize,
        buffers: &mut Buffers,
        gpu: Option<&Gpu>,
    ) -> Result<(), BackendError> {
        let ran = self
            .session
            .run(&self.bindings[binding], &mut buffers.memory);
        let finished = gpu.map_or(Ok(()), |gpu| gpu.finish(&self.file));
        ran.map_err(failed(&self.file, ORT))?;
        finished
    }
}

impl Shared {
    /// Builds the engine at `position` and binds it; what runs it, unless it is timed. One that decodes or is
    /// timed is run once on idle slots, and so is every one on a GPU.
    fn open(
        &self,
        position: usize,
        source: &Source,
        buffers: &mut Buffers,
    ) -> Result<(Engine, Option<EngineImplementations>), BackendError> {
        let (nodes, gpu) = (&source.nodes, self.gpu.as_ref());
        let file = nodes.file.as_str();
        let _span = tracing::debug_span!("build", file).entered();
        // On a GPU it also shows where standard nodes ran.
        let kept = self.profile;
        let profiled = kept || gpu.is_some();
        let folder = profiled.then(ProfileFolder::make).transpose();
        let (folder, mut without) = match folder {
            Ok(folder) => (folder, None),
            Err(reason) => (None, Some(reason)),
        };
        let prefix = folder.as_ref().map(ProfileFolder::prefix);
        let build = || self.build(source, prefix.as_deref());
        let (session, kernels) = watched(self.operators.as_deref(), build)?;
        let places = buffers.bindings(position);
        let bindings = places
            .map(|(slot, side)| bind(&session, buffers, position, slot, side))
            .collect::<Result<_, _>>()
            .map_err(failed(file, ORT))?;
        let profile = folder.map(ProfileFolder::into_file).transpose();
        let profile = profile.unwrap_or_else(|error| {
            without = Some(error.to_string());
            None
        });
        if let Some(message) = without.take_if(|_| kept) {
            let file = file.into();
            return Err(BackendError::Profile { file, message });
        }
        let mut engine = Engine {
            file: file.into(),
            bindings,
            session,
            recorded: source.recorded.then(|| thread::current().id()),
            profile,
        };
        if profiled || nodes.seq_len == 1 {
            engine.run_idle(position, buffers, gpu)?;
        }
        if kept {
            return Ok((engine, None));
        }
        let profile = without.map(Err).or_else(|| engine.end_profile());
        let seen = EngineImplementations::of_session(self.kind, nodes, &kernels, profile)?;
        Ok((engine, Some(seen)))
    }
}

fn bind(
    session: &OrtSession,
    buffers: &Buffers,
    engine: usize,
    slot: usize,
    side: usize,
) -> ort::Result<Binding> {
    let mut binding = Binding::new(session)?;
    for bound in buffers.layout.bound(engine, slot, side) {
        let Bound {
            name,
            output,
            field,
        } = bound;
        let memory = &buffers.memory;
        let value = Value::new(memory, field.buffer, field.offset, &field.tensor)?;
        match output {
            true => binding.output(name, &value)?,
            false => binding.input(name, &value)?,
        }
    }
    Ok(binding)
}

impl OrtDriver {
    /// The engine at `position`, opened by its first use, and what it runs with.
    fn engine(
        &mut self,
        position: usize,
    ) -> Result<(&mut Engine, &mut Buffers, Option<&Gpu>), BackendError> {
        let (earlier, rest) = self.engines.split_at_mut(position);
        let (source, engine) = &mut rest[0];
        let engine = match engine {
            Some(engine) => engine,
            unopened => {
                let (made, seen) = self.shared.open(position, source, &mut self.buffers)?;
                let before = earlier.iter().filter(|(_, engine)| engine.is_some());
                let before = before.count();
                if let Some(seen) = seen {
                    self.implementations.insert(before, seen);
                }
                unopened.insert(made)
            }
        };
        Ok((engine, &mut self.buffers, self.shared.gpu.as_ref()))
    }
}

/// What `build` makes, and the nodes that kernels of the library `operators` run in it.
fn watched<T>(
    operators: Option<&Path>,
    build: impl FnOnce() -> Result<T, BackendError>,
) -> Result<(T, Vec<NodeKernel>), BackendError> {
    let Some(operators) = operators else {
        return build().map(|made| (made, Vec::new()));
    };
    let watch = KernelWatch::of(operators).map_err(|reason| BackendError::Operators {
        path: operators.into(),
        reason,
    })?;
    let (made, kernels) = watch.during(build);
    made.map(|made| (made, kernels))
}

/// Whose words an error has.
const ORT: &str = "ONNX Runtime";

impl Driver for OrtDriver {
    fn implementations(&self) -> &[EngineImplementations] {
        &self.implementations
    }

    /// Kernels and function bodies alike.
    fn in_place(&self) -> bool {
        self.buffers.in_place
    }

    fn slot_bytes(&self, state: usize) -> usize {
        self.buffers.slot_bytes(state)
    }

    fn run(
        &mut self,
        engine: usize,
        slot: usize,
        inputs: StepInputs<'_>,
    ) -> Result<(), BackendError> {
        let position = engine;
        let (engine, buffers, gpu) = self.engine(position)?;
        // A graph is recorded by running the model more than once, which only idle slots bear.
        let last = engine.recorded;
        if last.is_some_and(|last| last != thread::current().id()) {
            engine.run_idle(position, buffers, gpu)?;
        }
        let binding = buffers.begin(position, slot, inputs);
        let binding = binding.map_err(failed(&engine.file, UPLOAD))?;
        engine.run(binding, buffers, gpu)?;
        buffers.end(position, slot);
        let fetched = buffers.fetch(position, slot);
        fetched.map_err(failed(&engine.file, "copying results from the GPU"))
    }

    fn logits(&self, engine: usize) -> &[f32] {
        self.buffers.logits(engine)
    }

    fn tap(&self, engine: usize, index: usize) -> Option<Cow<'_, [f32]>> {
        Some(self.buffers.tap(engine, index))
    }

    fn read_state(
        &mut self,
        state: usize,
        slot: usize,
        at: usize,
        bytes: &mut [u8],
    ) -> Result<(), BackendError> {
        self.buffers.read_state(state, slot, at, bytes)
    }

    fn write_state(
        &mut self,
        state: usize,
        slot: usize,
        at: usize,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        self.buffers.write_state(state, slot, at, bytes)
    }

    fn make_resident(&mut self) {
        self.buffers.memory.make_resident();
    }

    /// What the operators of each engine took, without its idle run.
    fn end_profile(self: Box<Self>) -> Result<Vec<(String, Vec<OperatorTime>)>, BackendError> {
        let times = self.engines.into_iter().filter_map(|(_, engine)| {
            let mut engine = engine?;
            let profile = engine.end_profile()?;
            let file = engine.file;
            Some(match profile {
                Ok(profile) => Ok((file, profile.operators(1))),
                Err(message) => Err(BackendError::Profile { file, message }),
            })
        });
        times.collect()
    }
}
