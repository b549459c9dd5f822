//! Packages in ONNX Runtime.

use super::super::Release;
use super::super::table::{
    OLDEST_ONNX_RUNTIME, ONNX_RUNTIME_BLOCKS, ONNX_RUNTIME_CUDA, ONNX_RUNTIME_CUDA_BYTES,
    ONNX_RUNTIME_LARGE_PLUGINS, ONNX_RUNTIME_PLUGINS, ONNX_RUNTIME_READS, reads,
};
use super::{Findings, versions};
use crate::ops::check_gpu_cache;
use crate::package::{CustomNodes, Fallback, Manifest, Target, WEIGHTS_FILE};
use crate::precision::IntegerLayout;

/// What has the integers of one form read by every release.
const OTHER_INTEGERS: &str = "export with `fallback: function`, whose integers need no more";

pub(super) fn find(manifest: &Manifest, release: Release, found: &mut Findings) {
    let ((major, minor), version) = (OLDEST_ONNX_RUNTIME, release.version);
    if version < OLDEST_ONNX_RUNTIME {
        let why = match manifest.fallback {
            Fallback::Inline => {
                "no session of ours opens in an older one, and what that reads has not been looked at"
            }
            _ => {
                "the first whose custom operators have shape inference, without which libratplus_ort.so refuses it"
            }
        };
        found.misfit(
            "release",
            format!("expected {major}.{minor} or later: {why}"),
        );
        return;
    }
    versions(
        manifest,
        release,
        reads(ONNX_RUNTIME_READS, version),
        OTHER_INTEGERS,
        found,
    );
    let (major, minor) = ONNX_RUNTIME_BLOCKS;
    if manifest.precision.layout() == Some(IntegerLayout::Dequantized) {
        match version >= ONNX_RUNTIME_BLOCKS {
            true => found.fits(
                "integers",
                "read by block-wise DequantizeLinear of opset 21",
            ),
            false => found.misfit(
                "integers",
                format!(
                    "block-wise DequantizeLinear is there from {major}.{minor} on; {OTHER_INTEGERS}"
                ),
            ),
        }
    }
    let targets = targets(manifest);
    if !targets.contains(&Target::Portable) {
        return only_tensorrt(manifest, version, found);
    }
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
    cuda(manifest, version, found);
    if targets.contains(&Target::TensorRt) {
        let (verdict, text) = tensorrt_provider(manifest, version);
        match verdict {
            true => found.fits(TENSORRT_PROVIDER, text),
            false => found.note(TENSORRT_PROVIDER, text),
        }
    }
}

/// Whether the portable graphs of a package run without the library of RAT+ operators, in a release that
/// runs the package.
pub fn runs_functions(manifest: &Manifest) -> bool {
    let nodes = Target::Portable.custom_nodes(manifest.fallback);
    targets(manifest).contains(&Target::Portable) && nodes != CustomNodes::Bare
}

/// The provider that takes the cuda files.
fn cuda(manifest: &Manifest, version: (u32, u32), found: &mut Findings) {
    let shape = manifest.shape();
    let quantization = manifest.precision.quantization;
    let bytes = quantization.is_some_and(|of| of.bits == 8 && of.layout == IntegerLayout::Product);
    let note = |(major, minor): (u32, u32), what: &str| {
        format!("{what} from {major}.{minor} on; CPUs need no more")
    };
    if manifest.fallback == Fallback::Inline {
        return;
    }
    if version < ONNX_RUNTIME_CUDA {
        found.note(
            "CUDA",
            note(
                ONNX_RUNTIME_CUDA,
                "its provider takes kernels of the library",
            ),
        );
    } else if bytes && version < ONNX_RUNTIME_CUDA_BYTES {
        found.note(
            "CUDA",
            note(
                ONNX_RUNTIME_CUDA_BYTES,
                "its provider has MatMulNBits of 8 bits",
            ),
        );
    } else if let Err(why) = check_gpu_cache(shape.dtype, shape.cache_dtype) {
        found.note("CUDA", why);
    } else {
        found.fits("CUDA", "the provider has the operators");
    }
}

/// Of a package that only the TensorRT provider runs.
fn only_tensorrt(manifest: &Manifest, version: (u32, u32), found: &mut Findings) {
    match tensorrt_provider(manifest, version) {
        (true, text) => {
            found.fits(TENSORRT_PROVIDER, text);
            found.note(
                "graphs",
                "for that provider and libratplus_trt.so alone; with `fallback: function` others run the package \
                 too",
            );
        }
        (false, text) => found.misfit(
            "graphs",
            format!("the package has graphs for TensorRT alone, whose provider: {text}; export with `fallback: function`"),
        ),
    }
}

fn targets(manifest: &Manifest) -> Vec<Target> {
    manifest
        .fallback
        .targets(&manifest.shape(), &manifest.precision)
}

const TENSORRT_PROVIDER: &str = "TensorRT provider";

/// Whether the provider takes [`Target::TensorRt`]'s graph.
fn tensorrt_provider(manifest: &Manifest, version: (u32, u32)) -> (bool, String) {
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
        "plugins in models of more than 2 GB"
    } else {
        "plugins"
    };
    match version >= (major, minor) {
        true => (true, format!("it takes {of}")),
        false => (false, format!("it takes {of} from {major}.{minor} on")),
    }
}
