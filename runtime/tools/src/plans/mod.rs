//! Builds engine plans into a package.

mod error;
mod stage;

pub use error::BuildError;

use ratplus_graphs::package::{Fallback, Manifest, WEIGHTS_FILE};
use ratplus_graphs::plans::{ComputeTarget, Plan, PlanSet, plan_file};
use ratplus_kernels::cuda::{self, Device};
use ratplus_nvinfer::{Library, Network, NetworkSource};
use ratplus_runtime::backend::{BackendKind, PlanRequirements, check_tensors};
use ratplus_runtime::nvinfer::{self, NvinferError, Product};
use ratplus_runtime::package::{EngineGraph, Package};
use serde::Serialize;
use stage::Stage;
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
}

/// An engine whose plan is about to be built.
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
    /// Its file, from the package's folder on.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
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
    /// In the order of the manifest's engines.
    pub plans: Vec<BuiltPlan>,
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
}

impl Tools {
    /// # Errors
    /// Everything that is missing.
    fn find(
        backend: BackendKind,
        needs: PlanRequirements,
        options: &BuildOptions,
    ) -> Result<Self, BuildError> {
        let mut problems = Vec::new();
        if needs.product == Product::TensorRt && !options.compute_capabilities.is_empty() {
            problems.push(
                "it builds for the GPU that it runs on; compute capabilities are chosen for \
                 tensorrt-rtx only"
                    .into(),
            );
        }
        let library = nvinfer::open(needs.product, options.tensorrt.as_deref());
        let library = library.and_then(|library| library.can_build().map(|()| library));
        let library = library.map_err(|error| problems.push(error.to_string()));
        let plugins = needs.plugins.then(|| {
            let plugins = nvinfer::plugins(options.plugins.as_deref());
            plugins.map_err(|error| problems.push(error.to_string()))
        });
        let (targets, timing_cache) = match needs.product {
            Product::Rtx => (RTX_TARGETS.map(target).to_vec(), None),
            Product::TensorRt => match Device::open(options.device) {
                Ok(device) => {
                    let (major, minor) = device.limits().compute_capability;
                    let cache = cuda::cache_folder().map(|folder| {
                        let version = library.as_ref().map(Library::version);
                        let version = version.unwrap_or_default();
                        folder.join(format!("tensorrt-{version}-sm_{major}{minor}.timing"))
                    });
                    (vec![ComputeTarget::only((major, minor))], cache)
                }
                Err(error) => {
                    problems.push(format!("the GPU that the plans are built on: {error}"));
                    (Vec::new(), None)
                }
            },
        };
        match (library, plugins.transpose()) {
            (Ok(library), Ok(plugins)) if problems.is_empty() => Ok(Self {
                library,
                plugins,
                targets,
                timing_cache,
            }),
            _ => Err(BuildError::refused(backend, problems.join("\n  "))),
        }
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

/// Builds every engine of `package` for `backend` and writes the plans below its folder. The
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
    let mut tools = Tools::find(backend, needs, options)?;
    let mut stage = Stage::new(package, backend.name())?;
    let timing = tools.timing_cache.as_ref();
    let timing = timing.and_then(|path| std::fs::read(path).ok());
    let mut timing = timing.unwrap_or_default();
    let (mut plans, mut built) = (Vec::new(), Vec::new());
    let count = manifest.engines.len();
    for index in 0..count {
        let graph = package.graph(index, needs.graphs);
        let EngineGraph {
            engine,
            file: onnx,
            model,
        } = graph.map_err(|error| BuildError::refused(backend, error))?;
        progress(BuildProgress {
            engine: onnx,
            index,
            count,
        });
        let began = Instant::now();
        let failed = |error: NvinferError| BuildError::engine(onnx, error);
        let weights = package.weights_path();
        let source = NetworkSource {
            model: &package.encode(model, &[]),
            path: &weights.with_file_name(onnx),
            plugins: tools.plugins.as_deref(),
            timing_cache: &timing,
            compute_capabilities: &options.compute_capabilities,
        };
        let mut network = Network::parse(&tools.library, &source).map_err(failed)?;
        check_tensors(engine, &network.tensors()).map_err(|problems| {
            let problems = problems.join("\n  ");
            let reason = format!("TensorRT's tensors are not the manifest's:\n  {problems}");
            BuildError::engine(onnx, reason)
        })?;
        tools.note_targets(&network);
        let plan = network.build().map_err(failed)?;
        if let Some(cache) = network.timing_cache().map_err(failed)? {
            timing = cache.to_vec();
        }
        let info = stage.write(&plan, |info| plan_file(&engine.name, info))?;
        let file = plan_file(&engine.name, &info);
        built.push(BuiltPlan {
            engine: onnx.into(),
            file: stage.name_of(&file),
            bytes: info.bytes,
            seconds: began.elapsed().as_secs_f64(),
        });
        plans.push(Plan {
            engine: engine.name.clone(),
            file,
            info,
            onnx_sha256: checksum(manifest, onnx),
        });
    }
    let set = PlanSet {
        library: tools.library.version(),
        tool: concat!("ratplus ", env!("CARGO_PKG_VERSION")).into(),
        compute_capabilities: tools.targets.clone(),
        weights_sha256: checksum(manifest, WEIGHTS_FILE),
        plans,
    };
    stage.publish(set)?;
    let mut notes = Vec::new();
    if let Some(path) = tools.timing_cache.filter(|_| !timing.is_empty())
        && let Err(error) = stage::write_cache(&path, &timing)
    {
        notes.push(format!(
            "the timing cache was not kept, and the next build measures again: {error}"
        ));
    }
    Ok(BuildReport {
        backend: backend.name(),
        library: tools.library.version(),
        path: tools.library.path().into(),
        compute_capabilities: tools.targets,
        custom_nodes: custom_nodes(needs, manifest),
        plans: built,
        notes,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn checksum(manifest: &Manifest, file: &str) -> String {
    let info = manifest.files.get(file);
    info.map(|info| info.sha256.clone()).unwrap_or_default()
}
