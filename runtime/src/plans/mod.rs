//! Builds engine plans into a package.

mod error;
mod stage;

pub use error::BuildError;

use crate::backend::BackendKind;
use crate::nvinfer::{self, Product};
use crate::package::{EngineGraph, Package};
use prost::Message;
use ratplus_graphs::manifest::{Engine, Fallback, Manifest, Target, TensorInfo, WEIGHTS_FILE};
use ratplus_graphs::ops::{ElementType, check_gpu_cache};
use ratplus_graphs::plans::{ComputeTarget, Plan, PlanSet, plan_file};
use ratplus_kernels::cuda::{self, Device};
use ratplus_nvinfer::{ElementKind, Library, Network, NetworkSource, Tensor};
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
pub struct BuildOptions {
    /// Folder with the library; see [`crate::nvinfer`].
    pub tensorrt: Option<PathBuf>,
    /// Where the library of RAT+ plugins is; see [`crate::nvinfer`].
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

/// What plans of a package need for a backend.
pub(crate) struct Needs {
    pub product: Product,
    /// Whether plugins stand for the custom nodes.
    pub plugins: bool,
    /// What the graphs are built for.
    pub graphs: Target,
}

impl Needs {
    /// # Errors
    /// The backend runs no plans, or not those of such a package.
    pub fn of(backend: BackendKind, manifest: &Manifest) -> Result<Self, BuildError> {
        let refused = |reason: &str| {
            Err(BuildError::Refused {
                backend: backend.to_string(),
                reason: reason.into(),
            })
        };
        match (backend.product(), manifest.fallback) {
            (None, _) => refused("it runs the ONNX files; expected tensorrt or tensorrt-rtx"),
            (Some(Product::Rtx), Fallback::None | Fallback::TrtPlugins) => refused(
                "TensorRT for RTX takes no plugins, and the package has bare custom nodes with no \
                 functions to stand for them; export it with `--fallback function` or \
                 `--fallback inline`",
            ),
            (Some(_), _) if manifest.precision.quantization.is_some() => refused(
                "TensorRT has no such products, and the package's weights are block-wise integers of \
                 ONNX Runtime's; export it without --quantize",
            ),
            (Some(product), fallback) => {
                let plugins = product == Product::TensorRt && fallback != Fallback::Inline;
                let shape = manifest.shape();
                match check_gpu_cache(shape.dtype, shape.cache_dtype) {
                    Err(reason) if plugins => refused(&reason),
                    _ => Ok(Self {
                        product,
                        plugins,
                        graphs: if plugins {
                            Target::TensorRt
                        } else {
                            Target::Cuda
                        },
                    }),
                }
            }
        }
    }

    /// What runs the custom nodes.
    pub fn custom_nodes(&self, manifest: &Manifest) -> &'static str {
        match (self.plugins, manifest.fallback) {
            (true, _) => "plugin",
            (false, Fallback::Inline) => "none: standard operators only",
            (false, _) => "function body",
        }
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
        needs: &Needs,
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
            _ => Err(BuildError::Refused {
                backend: backend.to_string(),
                reason: problems.join("\n  "),
            }),
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
    let needs = Needs::of(backend, manifest)?;
    let mut tools = Tools::find(backend, &needs, options)?;
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
        } = graph.map_err(|error| BuildError::Refused {
            backend: backend.to_string(),
            reason: error.to_string(),
        })?;
        progress(BuildProgress {
            engine: onnx,
            index,
            count,
        });
        let began = Instant::now();
        let failed = |source| BuildError::Nvinfer {
            file: onnx.into(),
            source,
        };
        let weights = package.weights_path();
        let model = package.locate_weights(model);
        let source = NetworkSource {
            model: &model.encode_to_vec(),
            path: &weights.with_file_name(onnx),
            plugins: tools.plugins.as_deref(),
            timing_cache: &timing,
            compute_capabilities: &options.compute_capabilities,
        };
        let mut network = Network::parse(&tools.library, &source).map_err(failed)?;
        check_tensors(engine, onnx, &network.tensors())?;
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
        custom_nodes: needs.custom_nodes(manifest),
        plans: built,
        notes,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn checksum(manifest: &Manifest, file: &str) -> String {
    let info = manifest.files.get(file);
    info.map(|info| info.sha256.clone()).unwrap_or_default()
}

/// What TensorRT calls an element type of ours.
pub(crate) fn kind(dtype: ElementType) -> ElementKind {
    match dtype {
        ElementType::F32 => ElementKind::F32,
        ElementType::F16 => ElementKind::F16,
        ElementType::BF16 => ElementKind::BF16,
        ElementType::I64 => ElementKind::I64,
        // `nvinfer1::DataType::kUINT8`.
        ElementType::U8 => ElementKind::Other(5),
    }
}

/// Whether inputs and outputs are the manifest's, in any order.
pub(crate) fn check_tensors(
    engine: &Engine,
    file: &str,
    found: &[Tensor],
) -> Result<(), BuildError> {
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
    match problems.is_empty() {
        true => Ok(()),
        false => Err(BuildError::Tensors {
            file: file.into(),
            problems,
        }),
    }
}
