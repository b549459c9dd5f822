//! ONNX Runtime, on the CPU and on a GPU.

pub(super) mod cuda;

use super::buffers::{Buffers, SEQUENCES, UPLOAD};
use super::builder::Opening;
use super::driver::{Driver, StepInputs};
use super::error::failed;
use super::layout::{Bound, Layout};
use super::profile::Profile;
use super::profile_file::{ProfileFile, ProfileFolder};
use super::{BackendError, BackendKind, EngineImplementations, OperatorTime};
use crate::ort_library::{self, LibraryError, OnnxRuntime};
use crate::package::EngineGraph;
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
    engines: Vec<Engine>,
    buffers: Buffers,
    gpu: Option<Gpu>,
    implementations: Vec<EngineImplementations>,
}

/// What all sessions of a package share.
struct Shared<'a> {
    runtime: Arc<OnnxRuntime>,
    environment: Environment,
    opening: &'a Opening<'a>,
    operators: Option<PathBuf>,
    weights: Arc<Weights>,
    prepacked: Option<PrepackedWeights>,
}

/// Whether ONNX Runtime runs such a package so.
fn check(opening: &Opening<'_>) -> Result<(), BackendError> {
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
    let shared = Shared {
        runtime,
        environment,
        opening,
        operators,
        weights,
        prepacked,
    };
    let mut driver = OrtDriver {
        engines: Vec::new(),
        buffers: Buffers::new(layout, memory, true),
        gpu,
        implementations: Vec::new(),
    };
    for position in 0..opening.engines.len() {
        driver.add_engine(&shared, position)?;
    }
    Ok(Box::new(driver))
}

impl OrtDriver {
    /// Builds the engine at `position` of the plan and binds it. One that decodes or is timed is run once
    /// on idle slots, and so is every one on a GPU.
    fn add_engine(&mut self, shared: &Shared<'_>, position: usize) -> Result<(), BackendError> {
        let opening = shared.opening;
        let graph = opening.graph(position, opening.target())?;
        let file = graph.file;
        let _span = tracing::debug_span!("build", file).entered();
        // On a GPU it also shows where standard nodes ran.
        let kept = opening.options.inspection.profile;
        let profiled = kept || self.gpu.is_some();
        let folder = profiled.then(ProfileFolder::make).transpose();
        let (folder, mut without) = match folder {
            Ok(folder) => (folder, None),
            Err(reason) => (None, Some(reason)),
        };
        let prefix = folder.as_ref().map(ProfileFolder::prefix);
        // A graph is of one place.
        let all = opening.engines[position].batch == opening.manifest().batch;
        let recorded = self.gpu.is_some() && graph.engine.seq_len == 1 && all;
        let recorded = recorded && !opening.options.cuda.without_graph;
        let build = || self.build(shared, position, &graph, prefix.as_deref(), recorded);
        let (session, kernels) = watched(shared.operators.as_deref(), build)?;
        let places = self.buffers.bindings(position);
        let bindings = places
            .map(|(slot, side)| self.bind(&session, position, slot, side))
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
        self.engines.push(Engine {
            file: file.into(),
            bindings,
            session,
            recorded: recorded.then(|| thread::current().id()),
            profile,
        });
        if profiled || graph.engine.seq_len == 1 {
            self.run_idle(position)?;
        }
        if kept {
            return Ok(());
        }
        let profile = without
            .map(Err)
            .or_else(|| self.engines[position].end_profile());
        let seen = EngineImplementations::of_session(opening.kind, &graph, &kernels, profile)?;
        self.implementations.push(seen);
        Ok(())
    }

    /// The session of an engine, with everything that it shares with the others.
    fn build(
        &self,
        shared: &Shared<'_>,
        position: usize,
        graph: &EngineGraph<'_>,
        profile: Option<&Path>,
        recorded: bool,
    ) -> Result<OrtSession, BackendError> {
        let opening = shared.opening;
        let (options, package) = (opening.options, opening.options.package);
        let engine = &opening.engines[position];
        let mut taps = engine.taps.clone();
        for slots in taps
            .iter_mut()
            .flat_map(|(_, tensor)| tensor.shape.first_mut())
        {
            *slots = *slots / opening.manifest().batch * engine.batch;
        }
        let EngineGraph { file, model, .. } = *graph;
        let folder = package.weights_path().parent();
        let model = match folder.filter(|_| shared.runtime.memory_models_have_external_data()) {
            Some(folder) => Model::Content(package.encode(model, &taps), folder.into()),
            None if taps.is_empty() => Model::File(package.dir().join(file)),
            None => {
                return Err(opening.unavailable("extra outputs need ONNX Runtime 1.21 or later"));
            }
        };
        let build = || {
            let mut builder = Session::builder(&shared.environment)?
                .with_inter_threads(1)?
                .with_intra_threads(options.threads.unwrap_or(0))?;
            if let Some(prefix) = profile {
                builder = builder.with_profiling(prefix)?;
            }
            if options.ort.passive_wait {
                builder = builder.with_intra_op_spinning(false)?;
            }
            if let Some(prepacked) = &shared.prepacked {
                builder = builder.with_prepacked_weights(prepacked)?;
            }
            if let Some(gpu) = &self.gpu {
                builder = gpu.run_sessions(builder, recorded)?;
            }
            if let Some(operators) = &shared.operators {
                builder = builder.with_operator_library(operators)?;
            }
            // Weights in place and, on the CPU, one packed copy for all engines; without either, every
            // session holds its own. The CPU's sessions fold casts of f16 and bf16 weights into f32.
            OrtSession::new(builder, &shared.weights, model)
        };
        build().map_err(failed(file, ORT))
    }

    fn bind(
        &self,
        session: &OrtSession,
        engine: usize,
        slot: usize,
        side: usize,
    ) -> ort::Result<Binding> {
        let mut binding = Binding::new(session)?;
        for bound in self.buffers.layout.bound(engine, slot, side) {
            let Bound {
                name,
                output,
                field,
            } = bound;
            let memory = &self.buffers.memory;
            let value = Value::new(memory, field.buffer, field.offset, &field.tensor)?;
            match output {
                true => binding.output(name, &value)?,
                false => binding.input(name, &value)?,
            }
        }
        Ok(binding)
    }

    /// A run that leaves every state as it is, whatever runs it.
    fn run_idle(&mut self, engine: usize) -> Result<(), BackendError> {
        let given = self.buffers.give_idle(engine);
        given.map_err(failed(&self.engines[engine].file, UPLOAD))?;
        self.run_binding(engine, 0)?;
        if let Some(last) = &mut self.engines[engine].recorded {
            *last = thread::current().id();
        }
        Ok(())
    }

    fn run_binding(&mut self, engine: usize, binding: usize) -> Result<(), BackendError> {
        let Engine {
            file,
            bindings,
            session,
            ..
        } = &mut self.engines[engine];
        let ran = session.run(&bindings[binding], &mut self.buffers.memory);
        let finished = self.gpu.as_ref().map_or(Ok(()), |gpu| gpu.finish(file));
        ran.map_err(failed(file, ORT))?;
        finished
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
        // A graph is recorded by running the model more than once, which only idle slots bear.
        let recorded = self.engines[engine].recorded;
        if recorded.is_some_and(|last| last != thread::current().id()) {
            self.run_idle(engine)?;
        }
        let binding = self.buffers.begin(engine, slot, inputs);
        let binding = binding.map_err(failed(&self.engines[engine].file, UPLOAD))?;
        self.run_binding(engine, binding)?;
        self.buffers.end(engine, slot);
        let fetched = self.buffers.fetch(engine, slot);
        let file = &self.engines[engine].file;
        fetched.map_err(failed(file, "copying results from the GPU"))
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
        bytes: &mut [u8],
    ) -> Result<(), BackendError> {
        self.buffers.read_state(state, slot, bytes)
    }

    fn write_state(&mut self, state: usize, slot: usize, bytes: &[u8]) -> Result<(), BackendError> {
        self.buffers.write_state(state, slot, bytes)
    }

    fn make_resident(&mut self) {
        self.buffers.memory.make_resident();
    }

    /// What the operators of each engine took, without its idle run.
    fn end_profile(self: Box<Self>) -> Result<Vec<(String, Vec<OperatorTime>)>, BackendError> {
        let times = self.engines.into_iter().filter_map(|mut engine| {
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
