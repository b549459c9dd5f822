//! Packages in TensorRT and TensorRT for RTX.

use super::super::table::{
    OLDEST_TENSORRT, TENSORRT_PLUGINS_BY_ATTRIBUTE, TENSORRT_READS, TENSORRT_RTX_READS, reads,
};
use super::super::{Host, Release};
use super::{Findings, versions};
use crate::ops::{ElementType, check_gpu_cache};
use crate::package::{CustomNodes, Fallback, Manifest, Target};
use crate::precision::IntegerLayout;

/// What the graphs are built for that plans of a package are built from: [`Target::TensorRt`] with plugins,
/// else [`Target::Cuda`]. `rtx` is for TensorRT for RTX.
///
/// # Errors
/// There are no plans of such a package: why, and what to do.
pub fn plan_graphs(manifest: &Manifest, rtx: bool) -> Result<Target, String> {
    let bare = matches!(manifest.fallback, Fallback::None | Fallback::TrtPlugins);
    let product = manifest.precision.layout() == Some(IntegerLayout::Product);
    if rtx && bare {
        // Functions have integers that it does not read.
        let remedy = match manifest.precision.quantization {
            Some(_) => "`fallback: inline`",
            None => "`fallback: function` or `fallback: inline`",
        };
        return Err(format!(
            "TensorRT for RTX takes no plugins, and the package has bare custom nodes with no functions to \
             stand for them; export it with {remedy}"
        ));
    }
    if product {
        let remedy = if rtx {
            "`fallback: inline`"
        } else {
            "`fallback: trt-plugins`"
        };
        return Err(format!(
            "the package's weights are block-wise integers of ONNX Runtime's product, which TensorRT has \
             not; export it with {remedy}"
        ));
    }
    if rtx || manifest.fallback == Fallback::Inline {
        return Ok(Target::Cuda);
    }
    let shape = manifest.shape();
    check_gpu_cache(shape.dtype, shape.cache_dtype)?;
    Ok(Target::TensorRt)
}

pub(super) fn find(manifest: &Manifest, release: Release, found: &mut Findings) {
    let (version, rtx) = (release.version, release.host == Host::TensorRtRtx);
    let (major, minor) = OLDEST_TENSORRT;
    if !rtx && version < OLDEST_TENSORRT && manifest.fallback != Fallback::Inline {
        found.misfit(
            "release",
            format!(
                "the plugins need {major}.{minor} or later; export with `fallback: inline`, which needs none"
            ),
        );
    }
    let known = reads(
        if rtx {
            TENSORRT_RTX_READS
        } else {
            TENSORRT_READS
        },
        version,
    );
    let (least, _) = IntegerLayout::Dequantized.onnx_versions();
    if manifest.precision.quantization.is_some() && known.is_none_or(|(opset, _)| opset < least) {
        let later = TENSORRT_READS.iter().find(|(_, opset, _)| *opset >= least);
        let (major, minor) = later.map_or((0, 0), |(since, ..)| *since);
        return found.misfit(
            "integers",
            format!(
                "those that TensorRT reads are of opset {least}, which it has from {major}.{minor} on; export \
                 without `quantization`"
            ),
        );
    }
    let graphs = match plan_graphs(manifest, rtx) {
        Ok(graphs) => graphs,
        Err(why) => return found.misfit("graphs", why),
    };
    versions(manifest, release, known, "", found);
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
