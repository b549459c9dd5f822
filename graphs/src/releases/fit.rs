//! Whether a package fits a release, and what an export would have to change.

use super::table::{
    LAST_TRITON, OLDEST_ONNX_RUNTIME, OLDEST_TENSORRT, ONNX_RUNTIME_CUDA,
    ONNX_RUNTIME_LARGE_PLUGINS, ONNX_RUNTIME_PLUGINS, ONNX_RUNTIME_READS,
    TENSORRT_PLUGINS_BY_ATTRIBUTE, TENSORRT_READS, TENSORRT_RTX_READS, TRITON_ONNX_RUNTIME, at,
    reads,
};
use super::{Host, Release};
use crate::ops::{ElementType, check_gpu_cache};
use crate::package::{CustomNodes, Fallback, Manifest, Target, WEIGHTS_FILE, state_tensors};
use crate::precision::IntegerLayout;
use serde::Serialize;

/// What a finding says of the package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It fits.
    Fits,
    /// It fits with something to know or to do.
    Note,
    /// The release does not run it.
    Misfit,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The verdict.
    pub verdict: Verdict,
    /// What was looked at.
    pub subject: &'static str,
    /// Expected and found; of a misfit, the option of an export that changes it, where there is one.
    pub text: String,
}

/// Findings as they are made.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, verdict: Verdict, subject: &'static str, text: impl Into<String>) {
        let text = text.into();
        self.0.push(Finding {
            verdict,
            subject,
            text,
        });
    }

    fn fits(&mut self, subject: &'static str, text: impl Into<String>) {
        self.add(Verdict::Fits, subject, text);
    }

    fn note(&mut self, subject: &'static str, text: impl Into<String>) {
        self.add(Verdict::Note, subject, text);
    }

    fn misfit(&mut self, subject: &'static str, text: impl Into<String>) {
        self.add(Verdict::Misfit, subject, text);
    }
}

/// Everything that decides whether `release` runs the package, from its manifest alone.
///
/// # Errors
/// Nothing is known of the release.
pub fn findings(manifest: &Manifest, release: Release) -> Result<Vec<Finding>, String> {
    let mut found = Findings::default();
    match release.host {
        Host::OnnxRuntime => onnx_runtime(manifest, release, &mut found),
        Host::TensorRt | Host::TensorRtRtx => tensorrt(manifest, release, &mut found),
        Host::Triton => triton(manifest, release, &mut found)?,
    }
    Ok(found.0)
}

/// What the graphs are built for that plans of a package are built from: [`Target::TensorRt`] with plugins,
/// else [`Target::Cuda`]. `rtx` is for TensorRT for RTX.
///
/// # Errors
/// There are no plans of such a package: why, and what to do.
pub fn plan_graphs(manifest: &Manifest, rtx: bool) -> Result<Target, String> {
    let bare = matches!(manifest.fallback, Fallback::None | Fallback::TrtPlugins);
    if rtx && bare {
        return Err(
            "TensorRT for RTX takes no plugins, and the package has bare custom nodes with no functions to \
             stand for them; export it with `fallback: function` or `fallback: inline`"
                .to_owned(),
        );
    }
    if manifest.precision.layout() == Some(IntegerLayout::Product) {
        return Err(
            "the package's weights are block-wise integers of ONNX Runtime's product, which TensorRT has \
             not; export it with `fallback: trt-plugins`, or `fallback: inline` for TensorRT for RTX"
                .to_owned(),
        );
    }
    if rtx || manifest.fallback == Fallback::Inline {
        return Ok(Target::Cuda);
    }
    let shape = manifest.shape();
    check_gpu_cache(shape.dtype, shape.cache_dtype)?;
    Ok(Target::TensorRt)
}

/// Holds the opset and the IR version of the package's files to what a release reads.
fn versions(
    manifest: &Manifest,
    release: Release,
    known: Option<(i64, i64)>,
    found: &mut Findings,
) {
    let Some((opset, ir)) = known else {
        found.note("opset", format!("what {release} reads is not known"));
        return;
    };
    let layout = manifest.precision.layout().unwrap_or_default();
    let (least, _) = layout.onnx_versions();
    let remedy = if least > opset {
        "export with `fallback: function`, whose integers need no more".to_owned()
    } else {
        format!("export with `opset: {opset}`")
    };
    let subjects = [
        ("opset", manifest.opset, opset),
        ("IR version", manifest.ir_version, ir),
    ];
    for (subject, has, most) in subjects {
        if has > most {
            found.misfit(
                subject,
                format!("expected at most {most}, which {release} is known to read, found {has}; {remedy}"),
            );
        } else if most != i64::MAX {
            found.fits(subject, format!("{has}; {release} reads {most}"));
        }
    }
}

fn onnx_runtime(manifest: &Manifest, release: Release, found: &mut Findings) {
    let (oldest, version) = (OLDEST_ONNX_RUNTIME, release.version);
    if version < oldest {
        found.misfit(
            "release",
            format!("expected {}.{} or later", oldest.0, oldest.1),
        );
        return;
    }
    let targets = targets(manifest);
    if !targets.contains(&Target::Portable) {
        found.misfit(
            "graphs",
            "the package has graphs for TensorRT alone; export with `fallback: function`",
        );
        return;
    }
    versions(manifest, release, reads(ONNX_RUNTIME_READS, version), found);
    match Target::Portable.custom_nodes(manifest.fallback) {
        CustomNodes::WithFunctions => found.fits(
            "graphs",
            "custom nodes with functions: with libratplus_ort.so and without it",
        ),
        CustomNodes::Inline => {
            found.fits("graphs", "standard operators only: no library is needed")
        }
        _ => found.note(
            "graphs",
            "bare custom nodes: libratplus_ort.so has to be registered with every session; with \
             `fallback: function` the files run without it too",
        ),
    }
    let shape = manifest.shape();
    if !shape.is_f32() {
        found.fits(
            "types",
            format!(
                "{}: portable and cpu files compute in f32 between roundings, as the CPU provider has no \
                 such arithmetic; cuda files in the type itself",
                shape.types()
            ),
        );
    }
    if manifest.fallback != Fallback::Inline {
        let (major, minor) = ONNX_RUNTIME_CUDA;
        if version < ONNX_RUNTIME_CUDA {
            found.note(
                "CUDA",
                format!("kernels for its provider need {major}.{minor}; CPUs do not"),
            );
        } else if let Err(why) = check_gpu_cache(shape.dtype, shape.cache_dtype) {
            found.note("CUDA", why);
        } else {
            found.fits("CUDA", "the provider has the operators");
        }
    }
    if targets.contains(&Target::TensorRt) {
        tensorrt_provider(manifest, version, found);
    }
}

fn targets(manifest: &Manifest) -> Vec<Target> {
    manifest
        .fallback
        .targets(&manifest.shape(), &manifest.precision)
}

/// The provider that takes [`Target::TensorRt`]'s graph.
fn tensorrt_provider(manifest: &Manifest, version: (u32, u32), found: &mut Findings) {
    let weights = manifest
        .files
        .get(WEIGHTS_FILE)
        .map_or(0, |file| file.bytes);
    let large = weights > 2 << 30;
    let (major, minor) = match large {
        true => ONNX_RUNTIME_LARGE_PLUGINS,
        false => ONNX_RUNTIME_PLUGINS,
    };
    let of = if large {
        "models of more than 2 GB"
    } else {
        "plugins"
    };
    match version >= (major, minor) {
        true => found.fits("TensorRT provider", format!("it takes {of}")),
        false => found.note(
            "TensorRT provider",
            format!("it takes {of} from {major}.{minor} on"),
        ),
    }
}

fn tensorrt(manifest: &Manifest, release: Release, found: &mut Findings) {
    let (version, rtx) = (release.version, release.host == Host::TensorRtRtx);
    let (major, minor) = OLDEST_TENSORRT;
    if !rtx && version < OLDEST_TENSORRT && manifest.fallback != Fallback::Inline {
        found.misfit(
            "release",
            format!("the plugins need {major}.{minor} or later; `fallback: inline` needs none"),
        );
    }
    let graphs = match plan_graphs(manifest, rtx) {
        Ok(graphs) => graphs,
        Err(why) => return found.misfit("graphs", why),
    };
    let table = if rtx {
        TENSORRT_RTX_READS
    } else {
        TENSORRT_READS
    };
    versions(manifest, release, reads(table, version), found);
    match (graphs, graphs.custom_nodes(manifest.fallback)) {
        (Target::TensorRt, _) => {
            let (major, minor) = TENSORRT_PLUGINS_BY_ATTRIBUTE;
            let how = match version >= TENSORRT_PLUGINS_BY_ATTRIBUTE {
                true => "by their namespace and version".to_owned(),
                false => format!(
                    "by their names, as no function stands beside them; in other files of the package only from \
                     {major}.{minor} on"
                ),
            };
            found.fits(
                "plugins",
                format!("libratplus_trt.so; the parser finds them {how}"),
            );
            found.fits(
                "states",
                "past and present share memory, as the plugins alias them",
            );
        }
        (_, CustomNodes::Inline) => found.fits("graphs", "standard operators only, no plugins"),
        _ => found.fits(
            "graphs",
            "function bodies of standard operators, no plugins",
        ),
    }
    if graphs != Target::TensorRt {
        found.note(
            "states",
            "past and present have to be two buffers, swapped after each step",
        );
    }
    if [manifest.dtype, manifest.shape().cache_dtype].contains(&ElementType::BF16) {
        found.note(
            "types",
            "bf16 in function bodies and products: GPUs of compute capability 8.0 and later",
        );
    }
    if manifest.precision.layout() == Some(IntegerLayout::Dequantized) {
        found.fits("integers", "read by DequantizeLinear of opset 21");
    }
    let backend = if rtx { "tensorrt-rtx" } else { "tensorrt" };
    if let Some(plans) = manifest.plans.get(backend) {
        let (major, minor) = version;
        let same = plans.library.starts_with(&format!("{major}.{minor}."));
        let later = plans.version_compatible && plans.library.starts_with(&format!("{major}."));
        match same || later {
            true => found.fits("plans", format!("built by {}", plans.library)),
            false => found.note(
                "plans",
                format!("those there were built by {}: build again", plans.library),
            ),
        }
    }
}

fn triton(manifest: &Manifest, release: Release, found: &mut Findings) -> Result<(), String> {
    let runtime =
        at(TRITON_ONNX_RUNTIME, release.version).filter(|_| release.version <= LAST_TRITON);
    let Some(version) = runtime else {
        let first = TRITON_ONNX_RUNTIME
            .first()
            .map_or((0, 0), |(since, _)| *since);
        let [first, last] = [first, LAST_TRITON].map(|(year, month)| format!("{year}.{month:02}"));
        return Err(format!(
            "{release}: its ONNX Runtime is not known, that of {first} to {last} is; name it with ort=VERSION"
        ));
    };
    let host = Host::OnnxRuntime;
    let runtime = Release { host, version };
    found.fits("release", format!("its onnxruntime backend is {runtime}"));
    onnx_runtime(manifest, runtime, found);
    state_order(manifest, found);
    found.note(
        "plans",
        "its tensorrt backend runs plans of its own release only: check that with tensorrt=VERSION, and build \
         with it",
    );
    Ok(())
}

/// Implicit states are paired by the order of their names.
fn state_order(manifest: &Manifest, found: &mut Findings) {
    let states = state_tensors(&manifest.model, &manifest.shape());
    let mut pasts: Vec<_> = states
        .iter()
        .map(|(past, present, _)| (past, present))
        .collect();
    pasts.sort_unstable();
    match pasts.is_sorted_by_key(|(_, present)| *present) {
        true => found.fits("state order", "past and present names sort alike, as they are paired"),
        false => found.misfit(
            "state order",
            "names of past and present sort otherwise, by which Triton would pair them wrongly: name each \
             pair in config.pbtxt",
        ),
    }
}
