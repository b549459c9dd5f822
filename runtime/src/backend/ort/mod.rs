//! ONNX Runtime, on the CPU and on a GPU.

pub(super) mod cuda;

use super::layout::{Field, Layout};
use super::profile::Profile;
use super::profile_file::{ProfileFile, ProfileFolder};
use super::session::Plan;
use super::{BackendError, BackendKind, EngineImplementations, OperatorTime};
use crate::ort_library;
use crate::package::{EngineGraph, Package};
use crate::raw::{
    Api, Binding, Builder, EMULATED, KernelRun, KernelWatch, Memory, OrtError, OrtSession,
    Prepacked, Value,
};
use cuda::{Gpu, cuda_error};
use half::{bf16, f16};
use prost::Message;
use ratplus_graphs::manifest::{
    Fallback, INPUT_IDS, LOGITS, PAST_LENGTH, SEQ_LENGTH, Target, WEIGHTS_FILE, state_tensors,
};
use ratplus_graphs::model::add_outputs;
use ratplus_graphs::ops::ElementType;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, ThreadId};

struct Engine {
    file: String,
    /// Reading side 0 or side 1; one where the update is in place. Dropped before the session.
    bindings: Vec<Binding>,
    session: OrtSession,
    /// Threads that have recorded their CUDA graph; `None` where there is none to record.
    recorded: Option<Vec<ThreadId>>,
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

pub(super) struct OrtDriver {
    engines: Vec<Engine>,
    layout: Layout,
    memory: Memory,
    /// The side that holds the current state.
    side: usize,
    in_place: bool,
    gpu: Option<Gpu>,
    implementations: Vec<EngineImplementations>,
}

/// What all sessions of a package share.
struct Shared<'a> {
    api: &'static Api,
    package: &'a Package,
    plan: &'a Plan,
    operators: Option<PathBuf>,
    weights: Vec<(&'a str, Arc<Value>)>,
    prepacked: Option<Arc<Prepacked>>,
    /// One per field.
    values: Vec<Arc<Value>>,
}

impl OrtDriver {
    pub fn open(package: &Package, plan: &Plan) -> Result<Self, BackendError> {
        let library = |source| BackendError::Library {
            backend: plan.kind,
            source,
        };
        let (runtime, api) = ort_library::load(plan.onnxruntime.as_deref()).map_err(library)?;
        let custom = plan.manifest.fallback != Fallback::Inline;
        let kernels = custom && plan.kind != BackendKind::OrtFallback;
        let operators = kernels
            .then(|| ort_library::operators(plan.operators.as_deref()).map_err(library))
            .transpose()?;
        let gpu = match &operators {
            Some(operators) if plan.kind == BackendKind::OrtCuda => {
                Some(Gpu::open(plan.device, &runtime, api, operators)?)
            }
            _ => None,
        };
        let failed = |error: OrtError| ort_error(WEIGHTS_FILE, error);
        let layout = Layout::new(plan, kernels);
        let (memory, weights, prepacked) = match &gpu {
            None => (
                Memory::new(layout.buffers.iter().map(|(bytes, _)| *bytes)),
                map_weights(api, package).map_err(failed)?,
                Some(Arc::new(Prepacked::new(api).map_err(failed)?)),
            ),
            Some(gpu) => {
                let buffers = layout.buffers.iter().copied();
                let memory = Memory::on_device(gpu.device, gpu.ordinal, buffers);
                let failed = |error| cuda_error("the sequences", "allocating their state", error);
                let memory = memory.map_err(failed)?;
                (memory, gpu.upload_weights(api, package)?, None)
            }
        };
        let fields = layout.fields.iter();
        let values = fields
            .map(|field| {
                let Field {
                    tensor,
                    buffer,
                    offset,
                } = field;
                Value::of_buffer(api, &memory, *buffer, *offset, tensor).map(Arc::new)
            })
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let shared = Shared {
            api,
            package,
            plan,
            operators,
            weights,
            prepacked,
            values,
        };
        let mut driver = Self {
            engines: Vec::new(),
            layout,
            memory,
            side: 0,
            in_place: kernels,
            gpu,
            implementations: Vec::new(),
        };
        for position in 0..plan.engines.len() {
            driver.add_engine(&shared, position)?;
        }
        Ok(driver)
    }

    /// Builds the engine at `position` of the plan, binds it and runs it once on idle slots.
    fn add_engine(&mut self, shared: &Shared<'_>, position: usize) -> Result<(), BackendError> {
        let Shared { package, plan, .. } = *shared;
        let graph = package.graph(plan.engines[position], target(plan))?;
        let EngineGraph {
            engine: info, file, ..
        } = graph;
        let failed = |error| ort_error(file, error);
        // On a GPU it also shows where standard nodes ran.
        let profiled = plan.profile || self.gpu.is_some();
        let folder = profiled.then(ProfileFolder::make).transpose();
        let (folder, mut without) = match folder {
            Ok(folder) => (folder, None),
            Err(reason) => (None, Some(reason)),
        };
        let prefix = folder.as_ref().map(ProfileFolder::prefix);
        let recorded = self.gpu.is_some() && info.seq_len == 1 && !plan.without_cuda_graph;
        let session = self.build(shared, position, &graph, prefix.as_deref(), recorded)?;
        let sides: &[usize] = if self.in_place { &[0] } else { &[0, 1] };
        let bindings = sides
            .iter()
            .map(|&side| self.bind(&session, shared, position, side))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let profile = folder.map(ProfileFolder::into_file).transpose();
        let profile = profile.unwrap_or_else(|error| {
            without = Some(error.to_string());
            None
        });
        if let Some(message) = without.take_if(|_| plan.profile) {
            let file = file.into();
            return Err(BackendError::Profile { file, message });
        }
        self.engines.push(Engine {
            file: file.into(),
            bindings,
            session,
            recorded: recorded.then(Vec::new),
            profile,
        });
        let kernels = self.run_watched(position, shared.operators.as_deref())?;
        if plan.profile {
            return Ok(());
        }
        let profile = without
            .map(Err)
            .or_else(|| self.engines[position].end_profile());
        let seen = EngineImplementations::of_run(plan.kind, &graph, &kernels, profile)?;
        self.implementations.push(seen);
        Ok(())
    }

    /// Runs an engine on idle slots; what kernels of the library `operators` ran in it.
    fn run_watched(
        &mut self,
        engine: usize,
        operators: Option<&Path>,
    ) -> Result<Vec<KernelRun>, BackendError> {
        let Some(operators) = operators else {
            return self.run_idle(engine).map(|()| Vec::new());
        };
        let watch = KernelWatch::of(operators).map_err(|reason| BackendError::Operators {
            path: operators.into(),
            reason,
        })?;
        let (ran, kernels) = watch.during(|| self.run_idle(engine));
        ran.map(|()| kernels)
    }

    /// What the operators of each engine took, without its idle run.
    pub fn end_profile(self) -> Result<Vec<(String, Vec<OperatorTime>)>, BackendError> {
        let times = self.engines.into_iter().map(|mut engine| {
            let profile = engine.end_profile().unwrap_or_else(|| Err("none".into()));
            match profile {
                Ok(profile) => Ok((engine.file, profile.operators(1))),
                Err(message) => Err(BackendError::Profile {
                    file: engine.file,
                    message,
                }),
            }
        });
        times.collect()
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
        let Shared { package, plan, .. } = *shared;
        let EngineGraph { file, model, .. } = *graph;
        let failed = |error| ort_error(file, error);
        let mut builder = Builder::new(shared.api)
            .and_then(|builder| builder.threads(plan.threads.unwrap_or(0)))
            .map_err(failed)?;
        if let Some(prefix) = profile {
            builder = builder.profile(prefix).map_err(failed)?;
        }
        if plan.passive_wait {
            builder = builder.passive_wait().map_err(failed)?;
        }
        if let Some(prepacked) = &shared.prepacked {
            builder = builder.prepacked(prepacked.clone());
        }
        if let Some(gpu) = &self.gpu {
            builder = builder.cuda(gpu.ordinal, recorded).map_err(failed)?;
        }
        if let Some(operators) = &shared.operators {
            builder = builder.register(operators).map_err(failed)?;
        }
        // Weights in place and, on the CPU, one packed copy for all engines; without either, every
        // session holds its own. The CPU's sessions fold casts of f16 and bf16 weights into f32.
        for (name, value) in &shared.weights {
            builder = builder.initializer(name, value.clone()).map_err(failed)?;
        }
        if shared.api.memory_models_have_external_data()
            && let Some(folder) = package.weights_path().parent()
        {
            let mut model = package.locate_weights(model);
            add_outputs(&mut model, &plan.taps[position]);
            builder
                .external_data_folder(folder)
                .and_then(|builder| builder.build(&model.encode_to_vec()))
        } else if plan.taps[position].is_empty() {
            builder.build_from_file(&package.dir().join(file))
        } else {
            return Err(BackendError::Unavailable {
                backend: plan.kind.to_string(),
                reason: "extra outputs need ONNX Runtime 1.21 or later".into(),
            });
        }
        .map_err(failed)
    }

    fn bind(
        &self,
        session: &OrtSession,
        shared: &Shared<'_>,
        position: usize,
        side: usize,
    ) -> Result<Binding, OrtError> {
        let Shared { plan, values, .. } = shared;
        let layout = &self.layout;
        let inputs = layout.inputs[position];
        let mut binding = Binding::new(session)?;
        binding.input(INPUT_IDS, &values[inputs.input_ids])?;
        binding.input(PAST_LENGTH, &values[inputs.past_length])?;
        binding.input(SEQ_LENGTH, &values[inputs.seq_length])?;
        binding.output(LOGITS, &values[layout.logits[position]])?;
        let names = state_tensors(&plan.manifest.model, &plan.manifest.shape());
        for ((past, present, _), sides) in names.iter().zip(&layout.states) {
            binding.input(past, &values[sides[side]])?;
            binding.output(present, &values[sides[1 - side]])?;
        }
        for ((name, _), &tap) in plan.taps[position].iter().zip(&layout.taps[position]) {
            binding.output(name, &values[tap])?;
        }
        Ok(binding)
    }

    pub fn implementations(&self) -> &[EngineImplementations] {
        &self.implementations
    }

    pub fn make_resident(&mut self) {
        self.memory.make_resident();
    }

    pub fn in_place(&self) -> bool {
        self.in_place
    }

    pub fn state_bytes(&self, index: usize) -> usize {
        self.layout.state_bytes(index)
    }

    pub fn run(
        &mut self,
        engine: usize,
        input_ids: &[i64],
        past_length: &[i64],
        seq_length: &[i64],
    ) -> Result<(), BackendError> {
        // A graph is recorded by running the model more than once, which only idle slots bear.
        let thread = thread::current().id();
        let recorded = self.engines[engine].recorded.as_ref();
        if recorded.is_some_and(|threads| !threads.contains(&thread)) {
            self.run_idle(engine)?;
        }
        self.run_once(engine, input_ids, past_length, seq_length)?;
        let outputs = [self.layout.logits[engine]];
        let outputs = outputs.iter().chain(&self.layout.taps[engine]);
        for &field in outputs {
            let copied = self.memory.download(self.layout.fields[field].buffer);
            let file = &self.engines[engine].file;
            copied.map_err(|error| cuda_error(file, "copying results from the GPU", error))?;
        }
        Ok(())
    }

    /// A run that leaves every state as it is, whatever runs it.
    fn run_idle(&mut self, engine: usize) -> Result<(), BackendError> {
        let (ids, lengths) = self.layout.idle_inputs(engine);
        self.run_once(engine, &ids, &lengths, &lengths)?;
        if let Some(threads) = &mut self.engines[engine].recorded {
            threads.push(thread::current().id());
        }
        Ok(())
    }

    fn run_once(
        &mut self,
        engine: usize,
        input_ids: &[i64],
        past_length: &[i64],
        seq_length: &[i64],
    ) -> Result<(), BackendError> {
        let inputs = self.layout.inputs[engine];
        let (layout, memory) = (&self.layout, &mut self.memory);
        layout.write_inputs(memory, engine, input_ids, past_length, seq_length);
        let Engine {
            file,
            bindings,
            session,
            ..
        } = &self.engines[engine];
        self.memory
            .upload(inputs.buffer)
            .map_err(|error| cuda_error(file, "copying tokens to the GPU", error))?;
        let binding = &bindings[if self.in_place { 0 } else { self.side }];
        let ran = session.run(binding, &mut self.memory);
        let finished = self.gpu.as_ref().map_or(Ok(()), |gpu| gpu.finish(file));
        ran.map_err(|error| ort_error(file, error))?;
        finished?;
        self.side = 1 - self.side;
        Ok(())
    }

    fn numbers<T: crate::raw::Plain>(&self, field: usize) -> &[T] {
        let Field {
            tensor,
            buffer,
            offset,
        } = &self.layout.fields[field];
        self.memory.slice(*buffer, *offset, tensor.elements())
    }

    pub fn logits(&self, engine: usize) -> &[f32] {
        self.numbers(self.layout.logits[engine])
    }

    pub fn tap(&self, engine: usize, tap: usize) -> Cow<'_, [f32]> {
        let field = self.layout.taps[engine][tap];
        let widen = |convert: fn(u16) -> f32| {
            let bits = self.numbers::<u16>(field);
            Cow::Owned(bits.iter().map(|&bits| convert(bits)).collect())
        };
        match self.layout.fields[field].tensor.dtype {
            ElementType::F16 => widen(|bits| f16::from_bits(bits).to_f32()),
            ElementType::BF16 => widen(|bits| bf16::from_bits(bits).to_f32()),
            _ => Cow::Borrowed(self.numbers(field)),
        }
    }
}

/// What the graphs are built for that the backend runs.
fn target(plan: &Plan) -> Target {
    match plan.kind {
        BackendKind::OrtCpu if plan.manifest.fallback != Fallback::Inline => Target::Cpu,
        // The CPU, where the emulator's products run, has none in bf16.
        BackendKind::OrtCuda if !(EMULATED && plan.manifest.dtype == ElementType::BF16) => {
            Target::Cuda
        }
        _ => Target::Portable,
    }
}

/// Every stored tensor as it lies in the file.
fn map_weights<'a>(
    api: &'static Api,
    package: &'a Package,
) -> Result<Vec<(&'a str, Arc<Value>)>, OrtError> {
    let stored = package.stored_tensors().iter();
    stored
        .map(|stored| {
            let offset = stored.offset as usize;
            let value = Value::of_map(api, package.weights_map(), offset, &stored.tensor)?;
            Ok((stored.name.as_str(), Arc::new(value)))
        })
        .collect()
}

fn ort_error(file: &str, error: OrtError) -> BackendError {
    BackendError::Ort {
        file: file.into(),
        call: error.call,
        message: error.message,
    }
}
