//! Builds engine plans into a package.

mod error;
mod stage;

pub use error::BuildError;

use ratplus_graphs::package::{Fallback, Manifest, Target, WEIGHTS_FILE};
use ratplus_graphs::plans::{
    ComputeTarget, Plan, PlanSet, TimingCache, plan_file, timing_cache_file,
};
use ratplus_kernels::cuda::{self, Device};
pub use ratplus_nvinfer::{BuildSettings, HardwareCompatibility};
use ratplus_nvinfer::{Library, Network, NetworkSource};
use ratplus_runtime::backend::{
    BackendKind, PlanRequirements, check_tensors, input_shapes, inspect_plan,
};
use ratplus_runtime::nvinfer::{self, NvinferError, Product};
use ratplus_runtime::package::{OpenedPlan, Package, PackageError, PlanTarget};
use serde::Serialize;
use stage::Stage;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

/// GPUs that TensorRT for RTX builds for where it is told nothing.
const RTX_TARGETS: [((u32, u32), bool); 4] = [
    ((8, 0), false),
    ((8, 6), false),
    ((8, 9), false),
    ((12, 0), true),
];

/// How plans are built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuildOptions {
    /// Folder with the library; see [`ratplus_runtime::nvinfer`].
    pub tensorrt: Option<PathBuf>,
    /// Where the library of RAT+ plugins is; see [`ratplus_runtime::nvinfer`].
    pub plugins: Option<PathBuf>,
    /// TensorRT only: number of the GPU to build for.
    pub device: i32,
    /// TensorRT for RTX only: compute capabilities to build for; none are the library's usual ones.
    pub compute_capabilities: Vec<(u32, u32)>,
    /// A plan, and a copy of the weights, for each engine, where one plan could hold all: each is then
    /// built for its own sizes alone.
    pub split_engines: bool,
    /// What TensorRT is told.
    pub settings: BuildSettings,
}

/// A plan that is about to be built.
#[derive(Clone, Copy, Debug)]
pub struct BuildProgress<'a> {
    /// Its ONNX file.
    pub engine: &'a str,
    /// How many came before it.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

/// A plan that was built.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BuiltPlan {
    /// The ONNX file that it was built from.
    pub engine: String,
    /// The package's engines that it holds.
    pub engines: Vec<String>,
    /// Its file, from the package's folder on.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// How long of it the parser took.
    pub parse_seconds: f64,
    /// How long of it the builder took.
    pub build_seconds: f64,
}

/// What TensorRT measured as it built.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct TimingReport {
    /// Its file, from the package's folder on.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// Bytes of what earlier builds had measured: of this package, then of others on this machine.
    pub earlier_bytes: [u64; 2],
}

/// What a build did.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BuildReport {
    /// Who runs the plans.
    pub backend: &'static str,
    /// Version of the library that built them.
    pub library: String,
    /// Its file.
    pub path: PathBuf,
    /// GPUs that they are for.
    pub compute_capabilities: Vec<ComputeTarget>,
    /// What runs the custom nodes.
    pub custom_nodes: &'static str,
    /// Engines in the manifest's order.
    pub plans: Vec<BuiltPlan>,
    /// TensorRT only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timing_cache: Option<TimingReport>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// How long all of it took.
    pub seconds: f64,
}

/// What runs the custom nodes.
fn custom_nodes(requirements: PlanRequirements, manifest: &Manifest) -> &'static str {
    match (requirements.plugins, manifest.fallback) {
        (true, _) => "plugin",
        (false, Fallback::Inline) => "none: standard operators only",
        (false, _) => "function body",
    }
}

/// What builds.
struct Tools {
    library: Library,
    plugins: Option<PathBuf>,
    targets: Vec<ComputeTarget>,
    timing_cache: Option<PathBuf>,
    /// TensorRT's, which builds on it.
    device: Option<&'static Device>,
}

impl Tools {
    /// # Errors
    /// Everything that is missing.
    fn find(
        backend: BackendKind,
        needs: PlanRequirements,
        manifest: &Manifest,
        options: &BuildOptions,
    ) -> Result<Self, BuildError> {
        let mut problems = Vec::new();
        let (settings, full) = (&options.settings, needs.product == Product::TensorRt);
        let hardware = settings.hardware_compatibility;
        let misplaced = [
            (
                "compute_capabilities",
                full && !options.compute_capabilities.is_empty(),
                "tensorrt-rtx only: tensorrt builds for the GPU that it runs on",
            ),
            (
                "version_compatible",
                !full && settings.version_compatible,
                "tensorrt only",
            ),
            (
                "hardware_compatibility",
                !full && hardware.is_some(),
                "tensorrt only",
            ),
            (
                "strip_weights",
                !full && settings.strip_weights,
                "tensorrt only: TensorRT for RTX was seen to build no such plans without a GPU",
            ),
        ];
        if settings.strip_weights && manifest.precision.quantization.is_some() {
            problems.push(
                "`strip_weights`: expected a package without integer weights, found one with; leave it out, or \
                 export without `quantization`"
                    .into(),
            );
        }
        let misplaced = misplaced.into_iter().filter(|(_, given, _)| *given);
        problems.extend(misplaced.map(|(field, _, whose)| format!("`{field}` is for {whose}")));
        let library = nvinfer::open(needs.product, options.tensorrt.as_deref());
        let library = library.and_then(|library| {
            library.can_build()?;
            if settings.strip_weights {
                library.can_refit()?;
            }
            Ok(library)
        });
        let library = library.map_err(|error| problems.push(error.to_string()));
        let plugins = needs.plugins.then(|| {
            let plugins = nvinfer::plugins(options.plugins.as_deref());
            plugins.map_err(|error| problems.push(error.to_string()))
        });
        let (targets, timing_cache, device) = match needs.product {
            Product::Rtx => (RTX_TARGETS.map(target).to_vec(), None, None),
            Product::TensorRt => match Device::open(options.device) {
                Ok(device) => {
                    let (major, minor) = device.limits().compute_capability;
                    let cache = cuda::cache_folder().map(|folder| {
                        let version = library.as_ref().map(Library::version);
                        let version = version.unwrap_or_default();
                        folder.join(format!("tensorrt-{version}-sm_{major}{minor}.timing"))
                    });
                    let target = match settings.hardware_compatibility {
                        Some(HardwareCompatibility::AmperePlus) => target(((8, 0), true)),
                        _ => ComputeTarget::only((major, minor)),
                    };
                    (vec![target], cache, Some(device))
                }
                Err(error) => {
                    problems.push(format!("the GPU that the plans are built on: {error}"));
                    (Vec::new(), None, None)
                }
            },
        };
        match (library, plugins.transpose()) {
            (Ok(library), Ok(plugins)) if problems.is_empty() => Ok(Self {
                library,
                plugins,
                targets,
                timing_cache,
                device,
            }),
            _ => Err(BuildError::refused(backend, problems.join("\n  "))),
        }
    }

    /// What was measured when the package's plans were built before.
    fn timing_of(
        &self,
        package: &Package,
        needs: PlanRequirements,
    ) -> Result<Option<OpenedPlan>, PackageError> {
        let Some(device) = self.device else {
            return Ok(None);
        };
        let library = self.library.version();
        package.timing_cache(&PlanTarget {
            backend: BackendKind::TensorRt.name(),
            graphs: needs.graphs,
            library: &library,
            compute_capability: Some(device.limits().compute_capability),
        })
    }

    /// The library's words about what it was set to, over what it does unasked.
    fn note_targets(&mut self, network: &Network) {
        let set = network.compute_capabilities();
        if !set.is_empty() {
            self.targets = set.into_iter().map(ComputeTarget::only).collect();
        }
    }
}

fn target((capability, and_later): ((u32, u32), bool)) -> ComputeTarget {
    ComputeTarget {
        capability,
        and_later,
    }
}

/// Builds the plans of `package` for `backend` and writes the plans below its folder. The
/// manifest, which names them, is replaced last: until then, and after any error, the package is
/// as it was.
///
/// # Errors
/// Everything that is missing here; an engine that TensorRT refuses, with its words; a file that
/// cannot be written.
pub fn build(
    package: &Package,
    backend: BackendKind,
    options: &BuildOptions,
    progress: &mut dyn FnMut(BuildProgress<'_>),
) -> Result<BuildReport, BuildError> {
    let start = Instant::now();
    let manifest = package.manifest();
    let needs = PlanRequirements::of(backend, manifest);
    let needs = needs.map_err(|reason| BuildError::refused(backend, reason))?;
    let mut tools = Tools::find(backend, needs, manifest, options)?;
    let mut stage = Stage::new(package, backend.name())?;
    let mut notes = Vec::new();
    let of_package = tools.timing_of(package, needs).unwrap_or_else(|error| {
        notes.push(format!("its timing cache is not used: {error}"));
        None
    });
    let of_machine = tools.timing_cache.as_ref();
    let of_machine = of_machine.and_then(|path| std::fs::read(path).ok());
    let of_machine = of_machine.unwrap_or_default();
    let earlier: [&[u8]; 2] = [of_package.as_deref().unwrap_or_default(), &of_machine];
    let mut timing = Vec::new();
    let (mut plans, mut built) = (Vec::new(), Vec::new());
    let groups = groups(manifest, needs.graphs, options.split_engines);
    let (engines, count) = (&manifest.engines, groups.len());
    for (index, group) in groups.into_iter().enumerate() {
        let graph = package.graph(group.start, needs.graphs);
        let graph = graph.map_err(|error| BuildError::refused(backend, error))?;
        let (onnx, model) = (graph.file, &graph.model);
        progress(BuildProgress {
            engine: onnx,
            index,
            count,
        });
        let began = Instant::now();
        let failed = |error: NvinferError| BuildError::engine(onnx, error);
        let weights = package.weights_path();
        let engines = &engines[group];
        let profiles: Vec<_> = match needs.graphs.has_open_sizes() {
            true => engines.iter().map(input_shapes).collect(),
            false => Vec::new(),
        };
        let latest = [&timing[..]];
        let source = NetworkSource {
            model: &package.encode(model, &[]),
            path: &weights.with_file_name(onnx),
            plugins: tools.plugins.as_deref(),
            timing_caches: match timing.is_empty() {
                true => &earlier,
                // It holds them.
                false => &latest,
            },
            compute_capabilities: &options.compute_capabilities,
            profiles: &profiles,
            detailed: needs.plugins,
            settings: &options.settings,
        };
        let mut network = Network::parse(&tools.library, &source).map_err(failed)?;
        let parse_seconds = began.elapsed().as_secs_f64();
        for engine in engines {
            check_tensors(engine, &network.tensors(), true).map_err(|problems| {
                let problems = problems.join("\n  ");
                let reason = format!("TensorRT's tensors are not the manifest's:\n  {problems}");
                BuildError::engine(onnx, reason)
            })?;
        }
        tools.note_targets(&network);
        let building = Instant::now();
        let plan = network.build().map_err(failed)?;
        let build_seconds = building.elapsed().as_secs_f64();
        if let Some(cache) = network.timing_cache().map_err(failed)? {
            timing = cache.to_vec();
        }
        // It and the opened plan would be in memory at one time.
        drop(network);
        if let (Some(plugins), Some(device)) = (&tools.plugins, tools.device) {
            let host_code = options.settings.version_compatible;
            inspect_plan(&tools.library, plugins, device, &plan, host_code, manifest).map_err(|problems| {
                let problems = problems.join("\n  ");
                let reason = format!(
                    "TensorRT built a plan that copies states at every step; another `optimization_level` or \
                     release may not:\n  {problems}"
                );
                BuildError::engine(onnx, reason)
            })?;
        }
        let names: Vec<_> = engines.iter().map(|engine| engine.name.clone()).collect();
        let info = stage.write(&plan, |info| plan_file(&names, info))?;
        let file = plan_file(&names, &info);
        built.push(BuiltPlan {
            engine: onnx.into(),
            engines: names.clone(),
            file: stage.name_of(&file),
            bytes: info.bytes,
            seconds: began.elapsed().as_secs_f64(),
            parse_seconds,
            build_seconds,
        });
        plans.push(Plan {
            engines: names,
            file,
            info,
            onnx_blake3: checksum(manifest, onnx),
        });
    }
    let timing_cache = match timing.is_empty() {
        true => None,
        false => {
            let info = stage.write(&timing, timing_cache_file)?;
            let file = timing_cache_file(&info);
            Some(TimingCache { file, info })
        }
    };
    let reported = timing_cache.as_ref().map(|cache| TimingReport {
        file: stage.name_of(&cache.file),
        bytes: cache.info.bytes,
        earlier_bytes: earlier.map(|cache| cache.len() as u64),
    });
    let set = PlanSet {
        library: tools.library.version(),
        version_compatible: options.settings.version_compatible,
        stripped: options.settings.strip_weights,
        tool: concat!("ratplus ", env!("CARGO_PKG_VERSION")).into(),
        compute_capabilities: tools.targets.clone(),
        weights_blake3: checksum(manifest, WEIGHTS_FILE),
        plans,
        timing_cache,
    };
    stage.publish(set)?;
    if let Some(path) = tools.timing_cache.filter(|_| !timing.is_empty())
        && let Err(error) = stage::write_cache(&path, &timing)
    {
        notes.push(format!(
            "the timing cache was kept in the package alone: {error}"
        ));
    }
    Ok(BuildReport {
        backend: backend.name(),
        library: tools.library.version(),
        path: tools.library.path().into(),
        compute_capabilities: tools.targets,
        custom_nodes: custom_nodes(needs, manifest),
        plans: built,
        timing_cache: reported,
        notes,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Which of the manifest's engines a plan is built of: all of one graph, or each alone.
fn groups(manifest: &Manifest, graphs: Target, split: bool) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    for (index, engine) in manifest.engines.iter().enumerate() {
        let file = |index: usize| manifest.engines[index].file(graphs);
        match groups.last_mut() {
            Some(group) if !split && file(group.start) == engine.file(graphs) => group.end += 1,
            _ => groups.push(index..index + 1),
        }
    }
    groups
}

/// Host memory that building takes, about: the weights' file, the weights as the parser reads them, the
/// builder's copy and the plan.
pub fn host_memory_bytes(package: &Package) -> u64 {
    4 * package.weights().len() as u64
}

fn checksum(manifest: &Manifest, file: &str) -> String {
    let info = manifest.files.get(file);
    info.map(|info| info.blake3.clone()).unwrap_or_default()
}
