//! Engine plans of TensorRT and of TensorRT for RTX.

use super::buffers::{Buffers, SEQUENCES, UPLOAD};
use super::builder::{OpenedEngine, Opening};
use super::driver::{Driver, StepInputs};
use super::error::{failed, run_error};
use super::implementation::EngineNodes;
use super::layout::{ALIGNMENT, Layout};
use super::plan::{PlanRequirements, check_in_place, check_tensors, input_shapes};
use super::{BackendError, BackendKind, EngineImplementations, Implementation};
use crate::nvinfer::{self, Library, Product};
use crate::package::{EngineGraph, OpenedPlan, PlanTarget};
use crate::raw::{Device, Memory, Place, PlanRun, Shared, open_plan};
use ratplus_graphs::package::{Fallback, Manifest, Target};
use ratplus_graphs::plans::{BUILDING_PREFIX, plan_cache};
use ratplus_nvinfer::{Refit, Runtime};
use std::borrow::Cow;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
        let name = opening.kind.name();
        let recorded = manifest.plans.get(name);
        let able = library.and_then(|library| match recorded.is_some_and(|set| set.stripped) {
            true => library.can_refit().map(|()| library),
            false => Ok(library),
        });
        let library = able.map_err(|error| problems.push(error.to_string()));
        let plugins = needs.plugins.then(|| {
            let path = nvinfer::plugins(options.tensorrt.plugins.as_deref());
            path.map_err(|error| problems.push(error.to_string()))
        });
        let device =
            Device::open(options.cuda.device).map_err(|error| problems.push(error.to_string()));
        let version = library.as_ref().map(Library::version).ok();
        let capability = device.map(|device| device.limits().compute_capability);
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

/// Whether the package has plans for it, of whatever library and GPU.
pub(super) fn check(opening: &Opening<'_>) -> Result<(), BackendError> {
    let checked = PlanRequirements::of(opening.kind, opening.manifest())
        .and_then(|_| opening.options.package.plan_set(opening.kind.name()));
    checked
        .map(drop)
        .map_err(|reason| opening.unavailable(reason))
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
    let (manifest, device) = (opening.manifest(), machine.device);
    let in_place = machine.plugins.is_some();
    let layout = Layout::new(manifest, &opening.engines, in_place, true);
    let buffers = layout.buffers.iter().copied();
    let stream = device.stream();
    let stream = Arc::new(stream.map_err(failed(SEQUENCES, "making a stream"))?);
    let ordinal = opening.options.cuda.device;
    let memory = Memory::on_device(device, ordinal, &stream, buffers);
    let memory = memory.map_err(failed(SEQUENCES, "allocating their state"))?;
    let current = device.make_current();
    current.map_err(failed(SEQUENCES, "making the GPU current"))?;
    let runtime = Runtime::new(&machine.library, machine.plugins.as_deref());
    let runtime = runtime.map_err(run_error(opening.kind.name()))?;
    // The package's own check has a plan for every engine.
    let set = manifest.plans.get(opening.kind.name());
    let place = |engine: &OpenedEngine| {
        let name = &manifest.engines[engine.index].name;
        set.and_then(|set| set.place(name)).unwrap_or_default()
    };
    let host_code = set.is_some_and(|set| set.version_compatible);
    let stripped = set.is_some_and(|set| set.stripped);
    let mut engines: Vec<Option<PlanEngine>> = plans.iter().map(|_| None).collect();
    let mut scratch = 0;
    for (position, engine) in opening.engines.iter().enumerate() {
        let (plan, profile) = place(engine);
        let engine = match &mut engines[plan] {
            Some(engine) => engine,
            none => {
                // The model that it was built from.
                let weights = stripped.then(|| opening.graph(position, machine.graphs));
                none.insert(PlanEngine::open(
                    opening,
                    &plans[plan],
                    &runtime,
                    &machine,
                    host_code,
                    weights.transpose()?.as_ref(),
                )?)
            }
        };
        scratch = engine.engine.scratch_bytes(profile).max(scratch);
    }
    let scratch = device.allocate(scratch);
    let shared = Shared {
        device,
        stream,
        scratch: Arc::new(scratch.map_err(failed("the plans", "allocating their scratch memory"))?),
    };
    let mut driver = TensorRtDriver {
        engines: Vec::new(),
        buffers: Buffers::new(layout, memory, in_place),
        implementations: Vec::new(),
    };
    for (position, engine) in opening.engines.iter().enumerate() {
        let (plan, profile) = place(engine);
        let graph = opening.graph(position, machine.graphs)?;
        if let Some(engine) = &engines[plan] {
            driver.add_engine(opening, position, engine, profile, &shared)?;
        }
        let by = implementation(opening.kind, manifest);
        let seen = EngineImplementations::uniform(EngineNodes::of(&graph), &by);
        driver.implementations.push(seen);
    }
    for engine in engines.iter().flatten() {
        engine.keep_cache();
    }
    Ok(Box::new(driver))
}

/// A plan that TensorRT has opened.
struct PlanEngine {
    /// Its file, from the package's folder on.
    file: String,
    engine: ratplus_nvinfer::Engine,
    /// Beside it, and as it was found: what TensorRT for RTX has compiled for this GPU.
    cache: (PathBuf, Vec<u8>),
}

impl PlanEngine {
    fn open(
        opening: &Opening<'_>,
        plan: &OpenedPlan,
        runtime: &Runtime,
        machine: &Machine,
        host_code: bool,
        weights: Option<&EngineGraph<'_>>,
    ) -> Result<Self, BackendError> {
        let file = &plan.file;
        let _span = tracing::debug_span!("open", file).entered();
        let unfit = runtime.unfit(plan).map_err(run_error(file))?;
        if !unfit.is_empty() {
            let why = format!("TensorRT refuses it here: {}", unfit.join(", "));
            return Err(refused(opening, file, why));
        }
        let package = opening.options.package;
        let path = package.dir().join(plan_cache(file));
        // Without one, everything is compiled.
        let cache = match machine.library.product() {
            Product::Rtx => std::fs::read(&path).unwrap_or_default(),
            Product::TensorRt => Vec::new(),
        };
        let weights = weights.map(|graph| {
            let model = package.encode(&graph.model, &[]);
            (model, package.weights_path().with_file_name(graph.file))
        });
        let refit = weights.as_ref().map(|(model, path)| Refit { model, path });
        let engine = open_plan(runtime, machine.device, plan, &cache, host_code, refit);
        let engine = engine.map_err(run_error(file))?;
        if machine.plugins.is_some() {
            let layers = engine.inspect().map_err(run_error(file))?;
            check_in_place(&layers, opening.manifest()).map_err(|problems| {
                let problems = problems.join("\n  ");
                refused(
                    opening,
                    file,
                    format!("a state would be copied at every step:\n  {problems}"),
                )
            })?;
        }
        Ok(Self {
            file: file.clone(),
            engine,
            cache: (path, cache),
        })
    }

    /// Keeps what was compiled for the next start.
    fn keep_cache(&self) {
        let (path, before) = &self.cache;
        let kept = self.engine.cache().map_err(|error| error.to_string());
        let kept = kept.and_then(|now| match now.is_empty() || *now == **before {
            true => Ok(()),
            false => write_whole(path, &now).map_err(|error| error.to_string()),
        });
        if let Err(error) = kept {
            tracing::warn!(path = %path.display(), error, "what was compiled is not kept");
        }
    }
}

/// [`check_in_place`] of a plan that was just built for `device`, opened with these plugins.
///
/// # Errors
/// As there; it does not open.
pub fn inspect_plan(
    library: &Library,
    plugins: &Path,
    device: &'static Device,
    plan: &[u8],
    host_code: bool,
    manifest: &Manifest,
) -> Result<(), Vec<String>> {
    let words = |error: &dyn Display| vec![error.to_string()];
    device.make_current().map_err(|error| words(&error))?;
    let runtime = Runtime::new(library, Some(plugins)).map_err(|error| words(&error))?;
    // Layers are told without weights too.
    let engine = open_plan(&runtime, device, plan, &[], host_code, None);
    let layers = engine.and_then(|engine| engine.inspect());
    check_in_place(&layers.map_err(|error| words(&error))?, manifest)
}

/// Replaces a file among the plans by a whole one.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!("{BUILDING_PREFIX}{}-{name}", std::process::id()));
    let written = std::fs::write(&beside, bytes).and_then(|()| std::fs::rename(&beside, path));
    written.inspect_err(|_| drop(std::fs::remove_file(&beside)))
}

/// A plan that has to be built again.
fn refused(opening: &Opening<'_>, file: &str, reason: impl Display) -> BackendError {
    opening.unavailable(format!(
        "{file}: {reason}; run `ratplus build` with `backends: {}` again on this machine",
        opening.kind
    ))
}

impl TensorRtDriver {
    /// Makes the contexts of a plan's profile, binds them and runs each once on idle slots for each of its
    /// bindings.
    fn add_engine(
        &mut self,
        opening: &Opening<'_>,
        position: usize,
        plan: &PlanEngine,
        profile: usize,
        shared: &Shared,
    ) -> Result<(), BackendError> {
        let PlanEngine { file, engine, .. } = plan;
        let info = &opening.manifest().engines[opening.engines[position].index];
        let _span = tracing::debug_span!("build", file, engine = info.name).entered();
        let Buffers { layout, memory, .. } = &self.buffers;
        let places = |(slot, side)| {
            let bound = layout.bound(position, slot, side);
            let places = bound.map(|bound| (bound.name, bound.field.buffer, bound.field.offset));
            places.collect::<Vec<_>>()
        };
        let graph = info.seq_len == 1 && !opening.options.cuda.without_graph;
        let bindings: Vec<_> = self.buffers.bindings(position).map(places).collect();
        if let Some(problem) = unaligned(layout, &bindings) {
            return Err(opening.unavailable(format!("{file}: {problem}")));
        }
        let count = bindings.len();
        let inputs = input_shapes(info);
        let mut runs = Vec::new();
        // A graph has the addresses of one place; a context can be bound to any.
        for places in bindings.chunks(if graph { 1 } else { count }) {
            let context = PlanRun::context(engine, profile, &inputs, graph, shared);
            let context = context.map_err(run_error(file))?;
            check_tensors(info, &context.tensors(), false).map_err(|problems| {
                let problems = problems.join("\n  ");
                let why = format!("TensorRT's tensors are not the manifest's:\n  {problems}");
                refused(opening, file, why)
            })?;
            let run = PlanRun::new(context, memory, places.iter().cloned(), shared);
            runs.push(run.map_err(run_error(file))?);
        }
        self.engines.push(Engine {
            file: file.clone(),
            runs,
        });
        let given = self.buffers.give_idle(position);
        given.map_err(failed(file, UPLOAD))?;
        for binding in 0..count {
            self.run_binding(position, binding)?;
        }
        // TensorRT for RTX records its runs itself.
        if graph && opening.kind == BackendKind::TensorRt {
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
