//! Engine plans of TensorRT and of TensorRT for RTX.

use super::buffers::{Buffers, SEQUENCES, UPLOAD};
use super::builder::Opening;
use super::driver::{Driver, StepInputs};
use super::error::{failed, run_error};
use super::layout::{ALIGNMENT, Layout};
use super::{BackendError, BackendKind, EngineImplementations, Implementation};
use crate::nvinfer::{self, Library, Product};
use crate::package::{OpenedPlan, PlanTarget};
use crate::raw::{Device, Memory, Place, PlanRun};
use ratplus_graphs::none_wrong;
use ratplus_graphs::ops::{ElementType, check_gpu_cache};
use ratplus_graphs::package::{Engine as EngineInfo, Fallback, Manifest, Target, TensorInfo};
use ratplus_graphs::precision::IntegerLayout;
use ratplus_kernels::cuda::OwnedStream;
use ratplus_nvinfer::{ElementKind, Runtime, Tensor};
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

/// What plans of a package require of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanRequirements {
    /// The library that builds and runs them.
    pub product: Product,
    /// Whether plugins stand for the custom nodes.
    pub plugins: bool,
    /// What the graphs are built for.
    pub graphs: Target,
}

impl PlanRequirements {
    /// # Errors
    /// The backend runs no plans, or not those of such a package: why, and what to do.
    pub fn of(backend: BackendKind, manifest: &Manifest) -> Result<Self, String> {
        match (nvinfer::product(backend), manifest.fallback) {
            (None, _) => {
                Err("it runs the ONNX files; expected tensorrt or tensorrt-rtx".to_owned())
            }
            (Some(Product::Rtx), Fallback::None | Fallback::TrtPlugins) => Err(
                "TensorRT for RTX takes no plugins, and the package has bare custom nodes with no \
                 functions to stand for them; export it with `fallback: function` or \
                 `fallback: inline`"
                    .to_owned(),
            ),
            (Some(_), _) if manifest.precision.layout() == Some(IntegerLayout::Product) => Err(
                "the package's weights are block-wise integers of ONNX Runtime's product, which TensorRT has \
                 not; export it with `fallback: trt-plugins`, or `fallback: inline` for TensorRT for RTX"
                    .to_owned(),
            ),
            (Some(product), fallback) => {
                let plugins = product == Product::TensorRt && fallback != Fallback::Inline;
                let shape = manifest.shape();
                if plugins {
                    check_gpu_cache(shape.dtype, shape.cache_dtype)?;
                }
                let graphs = if plugins { Target::TensorRt } else { Target::Cuda };
                Ok(Self {
                    product,
                    plugins,
                    graphs,
                })
            }
        }
    }
}

/// What TensorRT calls an element type of ours.
fn kind(dtype: ElementType) -> ElementKind {
    match dtype {
        ElementType::F32 => ElementKind::F32,
        ElementType::F16 => ElementKind::F16,
        ElementType::BF16 => ElementKind::BF16,
        ElementType::I64 => ElementKind::I64,
        // `nvinfer1::DataType`'s numbers.
        ElementType::U8 => ElementKind::Other(5),
        ElementType::I8 => ElementKind::Other(2),
        ElementType::I4 => ElementKind::Other(9),
    }
}

/// Whether inputs and outputs are the manifest's, in any order.
///
/// # Errors
/// A line for each tensor that is missing, other than expected, or unknown.
pub fn check_tensors(engine: &EngineInfo, found: &[Tensor]) -> Result<(), Vec<String>> {
    let show = |kind: ElementKind, shape: &[i64]| format!("{kind}{shape:?}");
    let mut problems = Vec::new();
    let sides = [(true, &engine.inputs), (false, &engine.outputs)];
    for (input, expected) in sides {
        let what = if input { "input" } else { "output" };
        for TensorInfo { name, tensor } in expected {
            let shape: Vec<_> = tensor.shape.iter().map(|&size| size as i64).collect();
            let wanted = show(kind(tensor.dtype), &shape);
            let same = |found: &&Tensor| found.name == *name && found.input == input;
            match found.iter().find(same) {
                None => problems.push(format!("{what} `{name}`: expected {wanted}, found none")),
                Some(found) if show(found.kind, &found.shape) != wanted => problems.push(format!(
                    "{what} `{name}`: expected {wanted}, found {}",
                    show(found.kind, &found.shape)
                )),
                Some(_) => (),
            }
        }
        let known = |name: &str| expected.iter().any(|expected| expected.name == name);
        let found = found.iter().filter(|found| found.input == input);
        problems.extend(
            found
                .filter(|found| !known(&found.name))
                .map(|found| format!("{what} `{}`: expected none of that name", found.name)),
        );
    }
    none_wrong(problems)
}

struct Engine {
    file: String,
    /// One for all of [`Buffers::bindings`], or one each.
    runs: Vec<PlanRun>,
}

struct TensorRtDriver {
    engines: Vec<Engine>,
    buffers: Buffers,
    implementations: Vec<EngineImplementations>,
}

/// What this machine has to have.
struct Machine {
    library: Library,
    plugins: Option<PathBuf>,
    device: &'static Device,
    /// What the graphs were built for.
    graphs: Target,
}

impl Machine {
    /// # Errors
    /// Everything that is missing, the plans among it.
    fn find(opening: &Opening<'_>) -> Result<(Self, Vec<OpenedPlan>), BackendError> {
        let (manifest, options) = (opening.manifest(), opening.options);
        let needs = PlanRequirements::of(opening.kind, manifest);
        let needs = needs.map_err(|reason| opening.unavailable(reason))?;
        let mut problems = Vec::new();
        let library = nvinfer::open(needs.product, options.tensorrt.library.as_deref());
        let library = library.map_err(|error| problems.push(error.to_string()));
        let plugins = needs.plugins.then(|| {
            let path = nvinfer::plugins(options.tensorrt.plugins.as_deref());
            path.map_err(|error| problems.push(error.to_string()))
        });
        let device =
            Device::open(options.cuda.device).map_err(|error| problems.push(error.to_string()));
        let version = library.as_ref().map(Library::version).ok();
        let capability = device.map(|device| device.limits().compute_capability);
        let name = opening.kind.name();
        let recorded = manifest.plans.get(name);
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
        let plans = options.package.plans(&target);
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
            _ => Err(opening.unavailable(problems.join("\n  "))),
        }
    }
}

pub(super) fn open(opening: &Opening<'_>) -> Result<Box<dyn Driver>, BackendError> {
    let mut taps = opening.engines.iter().flat_map(|engine| &engine.taps);
    if let Some((name, _)) = taps.next() {
        return Err(BackendError::Option {
            option: "extra_outputs",
            expected: format!("none: the plans of {} have no others", opening.kind),
            found: name.clone(),
        });
    }
    let (machine, plans) = Machine::find(opening)?;
    let in_place = machine.plugins.is_some();
    let layout = Layout::new(opening.manifest(), &opening.engines, in_place, true);
    let buffers = layout.buffers.iter().copied();
    let stream = machine.device.stream();
    let stream = Arc::new(stream.map_err(failed(SEQUENCES, "making a stream"))?);
    let ordinal = opening.options.cuda.device;
    let memory = Memory::on_device(machine.device, ordinal, &stream, buffers);
    let memory = memory.map_err(failed(SEQUENCES, "allocating their state"))?;
    let runtime = Runtime::new(&machine.library, machine.plugins.as_deref());
    let runtime = runtime.map_err(run_error(opening.kind.name()))?;
    let mut driver = TensorRtDriver {
        engines: Vec::new(),
        buffers: Buffers::new(layout, memory, in_place),
        implementations: Vec::new(),
    };
    for (position, engine) in opening.engines.iter().enumerate() {
        let plan = &plans[engine.index];
        let graph = opening.graph(position, machine.graphs)?;
        driver.add_engine(opening, position, plan, &runtime, &stream, machine.device)?;
        let by = implementation(opening.kind, opening.manifest());
        let seen = EngineImplementations::uniform(&graph, &by);
        driver.implementations.push(seen);
    }
    Ok(Box::new(driver))
}

impl TensorRtDriver {
    /// Opens a plan, binds it and runs it once on idle slots for each of its bindings.
    fn add_engine(
        &mut self,
        opening: &Opening<'_>,
        position: usize,
        opened: &OpenedPlan,
        runtime: &Runtime,
        stream: &Arc<OwnedStream>,
        device: &'static Device,
    ) -> Result<(), BackendError> {
        let file = &opened.file;
        let info = &opening.manifest().engines[opening.engines[position].index];
        let _span = tracing::debug_span!("build", file).entered();
        let refused = |reason: String| {
            opening.unavailable(format!(
                "{file}: {reason}; run `ratplus build` with `backends: {}` again on this machine",
                opening.kind
            ))
        };
        let unfit = runtime.unfit(opened).map_err(run_error(file))?;
        if !unfit.is_empty() {
            return Err(refused(format!(
                "TensorRT refuses it here: {}",
                unfit.join(", ")
            )));
        }
        let engine = runtime.open(opened).map_err(run_error(file))?;
        check_tensors(info, &engine.tensors()).map_err(|problems| {
            refused(format!(
                "TensorRT's tensors are not the manifest's:\n  {}",
                problems.join("\n  ")
            ))
        })?;
        let Buffers {
            layout,
            memory,
            in_place,
            ..
        } = &self.buffers;
        for state in layout.states.iter().filter(|_| *in_place) {
            let alias = engine.alias(&state.present);
            if alias.as_ref().is_some_and(|input| *input != state.past) {
                return Err(refused(format!(
                    "output `{}`: expected to share memory with `{}`, found {alias:?}",
                    state.present, state.past
                )));
            }
        }
        let places = |(slot, side)| {
            let bound = layout.bound(position, slot, side);
            let places = bound.map(|bound| (bound.name, bound.field.buffer, bound.field.offset));
            places.collect::<Vec<_>>()
        };
        let options = opening.options;
        let graph = opening.kind == BackendKind::TensorRt && info.seq_len == 1;
        let graph = graph && !options.cuda.without_graph;
        let bindings: Vec<_> = self.buffers.bindings(position).map(places).collect();
        if let Some(problem) = unaligned(layout, &bindings) {
            return Err(opening.unavailable(format!("{file}: {problem}")));
        }
        let count = bindings.len();
        // A graph has the addresses of one place; a context can be bound to any.
        let bindings = bindings.chunks(if graph { 1 } else { count });
        let runs = bindings.map(|places| {
            let places = places.iter().cloned();
            PlanRun::new(&engine, memory, places, stream, device).map_err(run_error(file))
        });
        let runs = runs.collect::<Result<_, _>>()?;
        self.engines.push(Engine {
            file: file.clone(),
            runs,
        });
        let given = self.buffers.give_idle(position);
        given.map_err(failed(file, UPLOAD))?;
        for binding in 0..count {
            self.run_binding(position, binding)?;
        }
        if graph {
            for run in &mut self.engines[position].runs {
                run.record(&mut self.buffers.memory)
                    .map_err(run_error(file))?;
            }
        }
        Ok(())
    }

    fn run_binding(&mut self, engine: usize, binding: usize) -> Result<(), BackendError> {
        let Engine { file, runs } = &mut self.engines[engine];
        let (run, place) = match runs.len() {
            1 => (0, binding),
            _ => (binding, 0),
        };
        let ran = runs[run].run(place, &mut self.buffers.memory);
        ran.map_err(run_error(file))
    }
}

impl Driver for TensorRtDriver {
    fn implementations(&self) -> &[EngineImplementations] {
        &self.implementations
    }

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
        let binding = self.buffers.begin(engine, slot, inputs);
        let binding = binding.map_err(failed(&self.engines[engine].file, UPLOAD))?;
        self.run_binding(engine, binding)?;
        self.buffers.end(engine, slot);
        let fetched = self.buffers.fetch(engine, slot);
        let file = &self.engines[engine].file;
        fetched.map_err(failed(file, "copying logits from the GPU"))
    }

    fn logits(&self, engine: usize) -> &[f32] {
        self.buffers.logits(engine)
    }

    /// Plans have no such outputs, and none were asked for.
    fn tap(&self, _: usize, _: usize) -> Option<Cow<'_, [f32]>> {
        None
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
}

/// A tensor that TensorRT would refuse where a place has it.
fn unaligned(layout: &Layout, places: &[Vec<Place<'_>>]) -> Option<String> {
    let mut tensors = places.iter().flatten();
    let (name, ..) = tensors.find(|(_, _, offset)| !offset.is_multiple_of(ALIGNMENT))?;
    Some(format!(
        "`{name}`: expected a slot's part to start at a multiple of {ALIGNMENT} bytes, which it does not \
         in a batch of {}; export with `batch: 1`",
        layout.batch
    ))
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
