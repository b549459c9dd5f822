//! ONNX Runtime on the CPU.

use super::session::Plan;
use super::{BackendError, BackendKind, EngineImplementations};
use crate::ort_library;
use crate::package::Package;
use crate::raw::{Api, Binding, Builder, Memory, OrtError, OrtSession, Prepacked, Value};
use half::{bf16, f16};
use prost::Message;
use ratplus_graphs::manifest::{
    Fallback, INPUT_IDS, LOGITS, LogitsMode, Manifest, PAST_LENGTH, SEQ_LENGTH, WEIGHTS_FILE,
    state_tensors,
};
use ratplus_graphs::model::add_outputs;
use ratplus_graphs::onnx::ModelProto;
use ratplus_graphs::ops::{ElementType, TensorType};
use std::borrow::Cow;
use std::sync::Arc;

/// Where everything lies in [`Memory`].
struct Layout {
    tensors: Vec<TensorType>,
    past_length: usize,
    seq_length: usize,
    /// One per engine.
    input_ids: Vec<usize>,
    /// One per engine; the same buffer where the shapes agree.
    logits: Vec<usize>,
    /// Per engine, one per extra output.
    taps: Vec<Vec<usize>>,
    /// Per state, both sides; equal where the update is in place.
    states: Vec<[usize; 2]>,
}

impl Layout {
    fn new(plan: &Plan, in_place: bool) -> Self {
        let manifest = &plan.manifest;
        let mut tensors = Vec::new();
        let mut add = |tensor: TensorType| {
            tensors.push(tensor);
            tensors.len() - 1
        };
        let lengths = TensorType::new(ElementType::I64, [manifest.batch]);
        let (past_length, seq_length) = (add(lengths.clone()), add(lengths));
        let mut shared = None;
        let (mut input_ids, mut logits, mut taps) = (Vec::new(), Vec::new(), Vec::new());
        for (&index, extra) in plan.engines.iter().zip(&plan.taps) {
            let seq_len = manifest.engines[index].seq_len;
            input_ids.push(add(TensorType::new(
                ElementType::I64,
                [manifest.batch, seq_len],
            )));
            let tensor = logits_tensor(manifest, seq_len);
            logits.push(match manifest.logits {
                LogitsMode::Last => *shared.get_or_insert_with(|| add(tensor)),
                LogitsMode::All => add(tensor),
            });
            taps.push(
                extra
                    .iter()
                    .map(|(_, tensor)| add(tensor.clone()))
                    .collect(),
            );
        }
        let states = state_tensors(&manifest.model, &manifest.shape())
            .into_iter()
            .map(|(_, _, tensor)| {
                let first = add(tensor.clone());
                [first, if in_place { first } else { add(tensor) }]
            })
            .collect();
        Self {
            tensors,
            past_length,
            seq_length,
            input_ids,
            logits,
            taps,
            states,
        }
    }
}

fn logits_tensor(manifest: &Manifest, seq_len: usize) -> TensorType {
    let (batch, vocab_size) = (manifest.batch, manifest.model.vocab_size);
    match manifest.logits {
        LogitsMode::Last => TensorType::new(ElementType::F32, [batch, vocab_size]),
        LogitsMode::All => TensorType::new(ElementType::F32, [batch, seq_len, vocab_size]),
    }
}

struct Engine {
    file: String,
    /// Reading side 0 or side 1; one where the update is in place. Dropped before the session.
    bindings: Vec<Binding>,
    session: OrtSession,
}

pub(super) struct OrtDriver {
    engines: Vec<Engine>,
    layout: Layout,
    memory: Memory,
    /// The side that holds the current state.
    side: usize,
    in_place: bool,
    implementations: Vec<EngineImplementations>,
}

/// What all sessions of a package share.
struct Shared<'a> {
    api: &'static Api,
    package: &'a Package,
    plan: &'a Plan,
    operators: Option<std::path::PathBuf>,
    weights: Vec<(&'a str, Arc<Value>)>,
    prepacked: Arc<Prepacked>,
}

impl OrtDriver {
    pub fn open(package: &Package, plan: &Plan) -> Result<Self, BackendError> {
        let library = |source| BackendError::Library {
            backend: plan.kind,
            source,
        };
        let (_, api) = ort_library::load(plan.onnxruntime.as_deref()).map_err(library)?;
        let custom = plan.manifest.fallback != Fallback::Inline;
        let kernels = custom && plan.kind == BackendKind::OrtCpu;
        let operators = kernels
            .then(|| ort_library::operators(plan.operators.as_deref()).map_err(library))
            .transpose()?;
        let failed = |error: OrtError| ort_error(WEIGHTS_FILE, error);
        let weights = package
            .stored_tensors()
            .iter()
            .map(|stored| {
                let offset = stored.offset as usize;
                let value = Value::of_map(api, package.weights_map(), offset, &stored.tensor)?;
                Ok((stored.name.as_str(), Arc::new(value)))
            })
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let shared = Shared {
            api,
            package,
            plan,
            operators,
            weights,
            prepacked: Arc::new(Prepacked::new(api).map_err(failed)?),
        };
        let layout = Layout::new(plan, kernels);
        let memory = Memory::new(layout.tensors.iter().map(TensorType::bytes));
        let values = layout
            .tensors
            .iter()
            .enumerate()
            .map(|(index, tensor)| Value::of_buffer(api, &memory, index, tensor).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        let mut driver = Self {
            engines: Vec::new(),
            layout,
            memory,
            side: 0,
            in_place: kernels,
            implementations: Vec::new(),
        };
        for position in 0..plan.engines.len() {
            driver.add_engine(&shared, position, &values)?;
        }
        Ok(driver)
    }

    /// Builds the engine at `position` of the plan, binds it and runs it once on idle slots.
    fn add_engine(
        &mut self,
        shared: &Shared<'_>,
        position: usize,
        values: &[Arc<Value>],
    ) -> Result<(), BackendError> {
        let Shared { package, plan, .. } = *shared;
        let index = plan.engines[position];
        let Some((info, model)) = package.engines().nth(index) else {
            return Err(BackendError::Unavailable {
                backend: plan.kind.to_string(),
                reason: format!("the package has no engine {index}"),
            });
        };
        let profile_error = |error: &dyn std::fmt::Display| BackendError::Profile {
            file: info.file.clone(),
            message: error.to_string(),
        };
        let failed = |error| ort_error(&info.file, error);
        let folder = tempfile::Builder::new()
            .prefix("ratplus-profile-")
            .tempdir()
            .map_err(|error| profile_error(&error))?;
        let session = {
            let mut builder = Builder::new(shared.api)
                .and_then(|builder| builder.threads(plan.threads.unwrap_or(0)))
                .and_then(|builder| builder.profile(&folder.path().join("run")))
                .map_err(failed)?
                .prepacked(shared.prepacked.clone());
            if let Some(operators) = &shared.operators {
                builder = builder.register(operators).map_err(failed)?;
            }
            // Weights in place and one packed copy for all engines; without either, every session
            // holds its own. Casts of f16 and bf16 weights are folded into f32 by each session.
            for (name, value) in &shared.weights {
                builder = builder.initializer(name, value.clone()).map_err(failed)?;
            }
            let weights = package.weights_path();
            if shared.api.memory_models_have_external_data()
                && let (Some(folder), Some(name)) = (weights.parent(), weights.file_name())
            {
                let mut model = model.clone();
                add_outputs(&mut model, &plan.taps[position]);
                locate_weights(&mut model, &name.to_string_lossy());
                builder
                    .external_data_folder(folder)
                    .and_then(|builder| builder.build(&model.encode_to_vec()))
            } else if plan.taps[position].is_empty() {
                builder.build_from_file(&package.dir().join(&info.file))
            } else {
                return Err(BackendError::Unavailable {
                    backend: plan.kind.to_string(),
                    reason: "extra outputs need ONNX Runtime 1.21 or later".into(),
                });
            }
            .map_err(failed)?
        };
        let sides: &[usize] = if self.in_place { &[0] } else { &[0, 1] };
        let bindings = sides
            .iter()
            .map(|&side| self.bind(&session, plan, position, side, values))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        self.engines.push(Engine {
            file: info.file.clone(),
            bindings,
            session,
        });
        // Idle slots: the state stays as it is, whatever ran.
        let zeros = vec![0; plan.manifest.batch * info.seq_len];
        let idle = vec![0; plan.manifest.batch];
        self.run(position, &zeros, &idle, &idle)?;
        let engine = &self.engines[position];
        let file = engine.session.end_profiling().map_err(failed)?;
        let profile = std::fs::read(file).map_err(|error| profile_error(&error))?;
        let seen = EngineImplementations::from_profile(plan.kind, info, model, &profile)?;
        self.implementations.push(seen);
        Ok(())
    }

    fn bind(
        &self,
        session: &OrtSession,
        plan: &Plan,
        position: usize,
        side: usize,
        values: &[Arc<Value>],
    ) -> Result<Binding, OrtError> {
        let layout = &self.layout;
        let mut binding = Binding::new(session)?;
        binding.input(INPUT_IDS, &values[layout.input_ids[position]])?;
        binding.input(PAST_LENGTH, &values[layout.past_length])?;
        binding.input(SEQ_LENGTH, &values[layout.seq_length])?;
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

    pub fn in_place(&self) -> bool {
        self.in_place
    }

    pub fn state_bytes(&self, index: usize) -> usize {
        self.layout.tensors[self.layout.states[index][0]].bytes()
    }

    pub fn run(
        &mut self,
        engine: usize,
        input_ids: &[i64],
        past_length: &[i64],
        seq_length: &[i64],
    ) -> Result<(), BackendError> {
        let Layout {
            input_ids: ids,
            past_length: past,
            seq_length: seq,
            ..
        } = &self.layout;
        for (index, data) in [
            (ids[engine], input_ids),
            (*past, past_length),
            (*seq, seq_length),
        ] {
            self.memory
                .slice_mut(index, data.len())
                .copy_from_slice(data);
        }
        let Engine {
            file,
            bindings,
            session,
        } = &self.engines[engine];
        let binding = &bindings[if self.in_place { 0 } else { self.side }];
        session
            .run(binding, &mut self.memory)
            .map_err(|error| ort_error(file, error))?;
        self.side = 1 - self.side;
        Ok(())
    }

    pub fn logits(&self, engine: usize) -> &[f32] {
        let index = self.layout.logits[engine];
        self.memory
            .slice(index, self.layout.tensors[index].elements())
    }

    pub fn tap(&self, engine: usize, tap: usize) -> Cow<'_, [f32]> {
        let index = self.layout.taps[engine][tap];
        let tensor = &self.layout.tensors[index];
        let count = tensor.elements();
        let widen = |convert: fn(u16) -> f32| {
            let bits = self.memory.slice::<u16>(index, count);
            Cow::Owned(bits.iter().map(|&bits| convert(bits)).collect())
        };
        match tensor.dtype {
            ElementType::F16 => widen(|bits| f16::from_bits(bits).to_f32()),
            ElementType::BF16 => widen(|bits| bf16::from_bits(bits).to_f32()),
            _ => Cow::Borrowed(self.memory.slice(index, count)),
        }
    }
}

/// Names the weights by their real file: in a model hub's cache it is another than the package's,
/// and ONNX Runtime refuses links that lead out of the folder it was given.
fn locate_weights(model: &mut ModelProto, name: &str) {
    let tensors = model
        .graph
        .iter_mut()
        .flat_map(|graph| &mut graph.initializer);
    for entry in tensors.flat_map(|tensor| &mut tensor.external_data) {
        if entry.key == "location" {
            entry.value = name.into();
        }
    }
}

fn ort_error(file: &str, error: OrtError) -> BackendError {
    BackendError::Ort {
        file: file.into(),
        call: error.call,
        message: error.message,
    }
}
