//! Engine plans of TensorRT and of TensorRT for RTX.

use super::layout::{Field, Layout};
use super::session::Plan;
use super::{BackendError, BackendKind, EngineImplementations, Implementation};
use crate::nvinfer::{self, Library};
use crate::package::{OpenedPlan, Package, PlanTarget};
use crate::plans::{Needs, check_tensors};
use crate::raw::{DeviceErrors, Memory, Place, PlanError, PlanRun};
use ratplus_graphs::manifest::{
    Fallback, INPUT_IDS, LOGITS, Manifest, PAST_LENGTH, SEQ_LENGTH, Target, state_tensors,
};
use ratplus_kernels::cuda::{CudaError, Device, OwnedStream};
use ratplus_nvinfer::Runtime;
use std::path::PathBuf;
use std::sync::Arc;

struct Engine {
    file: String,
    /// Reading side 0 or side 1; one where the update is in place.
    runs: Vec<PlanRun>,
}

pub(super) struct TensorRtDriver {
    engines: Vec<Engine>,
    layout: Layout,
    memory: Memory,
    /// The side that holds the current state.
    side: usize,
    in_place: bool,
    errors: Option<DeviceErrors>,
    implementations: Vec<EngineImplementations>,
}

/// What this machine has to have.
struct Machine {
    library: Library,
    plugins: Option<(PathBuf, DeviceErrors)>,
    device: &'static Device,
    /// What the graphs were built for.
    graphs: Target,
}

impl Machine {
    /// # Errors
    /// Everything that is missing, the plans among it.
    fn find(package: &Package, plan: &Plan) -> Result<(Self, Vec<OpenedPlan>), BackendError> {
        let unavailable = |reason| BackendError::Unavailable {
            backend: plan.kind.to_string(),
            reason,
        };
        let needs = Needs::of(plan.kind, &plan.manifest);
        let needs = needs.map_err(|error| unavailable(error.reason()))?;
        let mut problems = Vec::new();
        let library = nvinfer::open(needs.product, plan.tensorrt.as_deref());
        let library = library.map_err(|error| problems.push(error.to_string()));
        let plugins = needs.plugins.then(|| {
            let path = nvinfer::plugins(plan.plugins.as_deref());
            let path = path.map_err(|error| problems.push(error.to_string()))?;
            let errors = DeviceErrors::of(&path).map_err(|reason| {
                problems.push(format!(
                    "the RAT+ plugin library `{}`: {reason}; build it again (`cargo build \
                     --release -p ratplus-tensorrt`)",
                    path.display()
                ));
            })?;
            Ok::<_, ()>((path, errors))
        });
        let device = Device::open(plan.device).map_err(|error| problems.push(error.to_string()));
        let version = library.as_ref().map(Library::version).ok();
        let capability = device.map(|device| device.limits().compute_capability);
        let name = plan.kind.name();
        let recorded = plan.manifest.plans.get(name);
        let target = PlanTarget {
            backend: name,
            graphs: needs.graphs,
            // A library that is missing is a problem by itself.
            library: match (&version, recorded) {
                (Some(version), _) => version,
                (None, Some(set)) => &set.library,
                (None, None) => "",
            },
            compute_capability: capability.ok(),
        };
        let plans = package.plans(&target);
        let plans = plans.map_err(|error| problems.extend(error.problems));
        match (library, plugins.transpose(), device, plans) {
            (Ok(library), Ok(plugins), Ok(device), Ok(plans)) if problems.is_empty() => {
                let machine = Self {
                    library,
                    plugins,
                    device,
                    graphs: needs.graphs,
                };
                Ok((machine, plans))
            }
            _ => Err(unavailable(problems.join("\n  "))),
        }
    }
}

impl TensorRtDriver {
    pub fn open(package: &Package, plan: &Plan) -> Result<Self, BackendError> {
        if let Some((name, _)) = plan.taps.iter().flatten().next() {
            return Err(BackendError::Option {
                option: "extra_outputs",
                expected: format!("none: the plans of {} have no others", plan.kind),
                found: name.clone(),
            });
        }
        let (machine, plans) = Machine::find(package, plan)?;
        let in_place = machine.plugins.is_some();
        let layout = Layout::new(plan, in_place);
        let buffers = layout.buffers.iter().copied();
        let memory = Memory::on_device(machine.device, plan.device, buffers);
        let memory = memory.map_err(cuda("the sequences", "allocating their state"))?;
        let stream = machine.device.stream();
        let stream = stream.map_err(cuda("the sequences", "making a stream"))?;
        let plugins = machine.plugins.as_ref().map(|(path, _)| path.as_path());
        let failed = |source| BackendError::Nvinfer {
            file: plan.kind.to_string(),
            source: Box::new(source),
        };
        let runtime = Runtime::new(&machine.library, plugins).map_err(failed)?;
        let mut driver = Self {
            engines: Vec::new(),
            layout,
            memory,
            side: 0,
            in_place,
            errors: machine.plugins.map(|(_, errors)| errors),
            implementations: Vec::new(),
        };
        let stream = Arc::new(stream);
        for position in 0..plan.engines.len() {
            let opened = &plans[plan.engines[position]];
            driver.add_engine(plan, position, opened, &runtime, &stream, machine.device)?;
            let graph = package.graph(plan.engines[position], machine.graphs)?;
            let by = implementation(plan.kind, &plan.manifest);
            let seen = EngineImplementations::uniform(&graph, &by);
            driver.implementations.push(seen);
        }
        Ok(driver)
    }

    /// Opens the plan at `position`, binds it and runs it once on idle slots for each side.
    fn add_engine(
        &mut self,
        plan: &Plan,
        position: usize,
        opened: &OpenedPlan,
        runtime: &Runtime,
        stream: &Arc<OwnedStream>,
        device: &'static Device,
    ) -> Result<(), BackendError> {
        let file = &opened.file;
        let info = &plan.manifest.engines[plan.engines[position]];
        let failed = |source| BackendError::Nvinfer {
            file: file.clone(),
            source: Box::new(source),
        };
        let refused = |reason| BackendError::Unavailable {
            backend: plan.kind.to_string(),
            reason,
        };
        let again = format!(
            "run `ratplus build --backend {}` again on this machine",
            plan.kind
        );
        let unfit = runtime.unfit(opened).map_err(failed)?;
        if !unfit.is_empty() {
            return Err(refused(format!(
                "{file}: TensorRT refuses it here: {}; {again}",
                unfit.join(", ")
            )));
        }
        let engine = runtime.open(opened).map_err(failed)?;
        check_tensors(info, file, &engine.tensors())
            .map_err(|error| refused(format!("{error}; {again}")))?;
        let states = state_tensors(&plan.manifest.model, &plan.manifest.shape());
        if self.in_place {
            for (past, present, _) in &states {
                let alias = engine.alias(present);
                if alias.as_ref().is_some_and(|input| input != past) {
                    return Err(refused(format!(
                        "{file}: output `{present}`: expected to share memory with `{past}`, found \
                         {alias:?}; {again}"
                    )));
                }
            }
        }
        let layout = &self.layout;
        let at = |field: usize| {
            let Field { buffer, offset, .. } = layout.fields[field];
            (buffer, offset)
        };
        let place = |name, field| -> Place<'_> {
            let (buffer, offset) = at(field);
            (name, buffer, offset)
        };
        let inputs = layout.inputs[position];
        let mut runs = Vec::new();
        let sides: &[usize] = if self.in_place { &[0] } else { &[0, 1] };
        for &side in sides {
            let mut places = vec![
                place(INPUT_IDS, inputs.input_ids),
                place(PAST_LENGTH, inputs.past_length),
                place(SEQ_LENGTH, inputs.seq_length),
                place(LOGITS, layout.logits[position]),
            ];
            for ((past, present, _), fields) in states.iter().zip(&layout.states) {
                places.push(place(past, fields[side]));
                places.push(place(present, fields[1 - side]));
            }
            let run = PlanRun::new(&engine, &self.memory, &places, stream, device);
            runs.push(run.map_err(|error| plan_error(file, error))?);
        }
        self.engines.push(Engine {
            file: file.clone(),
            runs,
        });
        for _ in sides {
            self.run_idle(position)?;
        }
        if plan.kind == BackendKind::TensorRt && info.seq_len == 1 && !plan.without_cuda_graph {
            let Engine { file, runs } = &mut self.engines[position];
            for run in runs {
                run.record(&mut self.memory)
                    .map_err(|error| plan_error(file, error))?;
            }
        }
        Ok(())
    }

    pub fn implementations(&self) -> &[EngineImplementations] {
        &self.implementations
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
        self.run_once(engine, input_ids, past_length, seq_length)?;
        let logits = self.layout.fields[self.layout.logits[engine]].buffer;
        let copied = self.memory.download(logits);
        copied.map_err(cuda(
            &self.engines[engine].file,
            "copying logits from the GPU",
        ))
    }

    /// A run that leaves every state as it is.
    fn run_idle(&mut self, engine: usize) -> Result<(), BackendError> {
        let (ids, lengths) = self.layout.idle_inputs(engine);
        self.run_once(engine, &ids, &lengths, &lengths)
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
        let Engine { file, runs } = &mut self.engines[engine];
        let uploaded = self.memory.upload(inputs.buffer);
        uploaded.map_err(cuda(file, "copying tokens to the GPU"))?;
        let run = &mut runs[if self.in_place { 0 } else { self.side }];
        let ran = run.run(&mut self.memory);
        // Also after a failed run: the next one's errors are its own.
        let message = self.errors.and_then(DeviceErrors::take);
        ran.map_err(|error| plan_error(file, error))?;
        if let Some(message) = message {
            return Err(BackendError::Device {
                file: file.clone(),
                message,
            });
        }
        self.side = 1 - self.side;
        Ok(())
    }

    pub fn logits(&self, engine: usize) -> &[f32] {
        let Field {
            tensor,
            buffer,
            offset,
        } = &self.layout.fields[self.layout.logits[engine]];
        self.memory.slice(*buffer, *offset, tensor.elements())
    }
}

/// What runs the custom nodes of plans: the builder fails rather than take another.
fn implementation(kind: BackendKind, manifest: &Manifest) -> Implementation {
    match (kind, manifest.fallback) {
        (BackendKind::TensorRt, Fallback::Function | Fallback::None | Fallback::TrtPlugins) => {
            Implementation::Plugin
        }
        _ => Implementation::FunctionBody,
    }
}

fn plan_error(file: &str, error: PlanError) -> BackendError {
    match error {
        PlanError::Nvinfer(source) => BackendError::Nvinfer {
            file: file.into(),
            source: Box::new(source),
        },
        PlanError::Cuda(what, source) => cuda(file, what)(source),
    }
}

fn cuda(file: &str, what: &'static str) -> impl FnOnce(CudaError) -> BackendError {
    let file = file.to_owned();
    move |source| BackendError::Cuda {
        file,
        what,
        source: Box::new(source),
    }
}
