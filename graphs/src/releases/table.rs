//! The facts, each with its source.

use super::{Host, Release};

/// Since that release a runtime reads models up to an opset, and up to an IR version.
pub(super) type Reads = ((u32, u32), i64, i64);

/// Minor versions of a major one, from the first to the last.
type Minors = (u32, u32, u32);

/// The releases of each runtime that something is known of; what was not released is not listed. ONNX
/// Runtime's before [`OLDEST_ONNX_RUNTIME`] are known not to do.
const ONNX_RUNTIME: &[Minors] = &[(1, 0, 32)];
/// By PyPI's list of tensorrt-cu12, 2026-11-29.
const TENSORRT: &[Minors] = &[(10, 0, 16), (11, 0, 4)];
const TENSORRT_RTX: &[Minors] = &[(1, 7, 7)];
/// Those of [`TRITON_ONNX_RUNTIME`]: years and months.
const TRITON: &[Minors] = &[(24, 4, 12), (25, 1, 12), (26, 1, 8)];

/// Whether anything is known of a release.
///
/// # Errors
/// Nothing is: which ones are known, and for Triton's what to name instead.
pub(super) fn known(release: Release) -> Result<(), String> {
    let (table, instead) = match release.host {
        Host::OnnxRuntime => (ONNX_RUNTIME, ""),
        Host::TensorRt => (TENSORRT, ""),
        Host::TensorRtRtx => (TENSORRT_RTX, ""),
        Host::Triton => (
            TRITON,
            "; where its ONNX Runtime is known, name that with ort=VERSION",
        ),
    };
    let (major, minor) = release.version;
    let within = |&(known, first, last): &Minors| known == major && (first..=last).contains(&minor);
    if table.iter().any(within) {
        return Ok(());
    }
    let shown = |major, minor| {
        let version = (major, minor);
        Release { version, ..release }.number()
    };
    let known = table
        .iter()
        .map(|&(major, first, last)| match first == last {
            true => shown(major, first),
            false => format!("{} to {}", shown(major, first), shown(major, last)),
        });
    let known: Vec<_> = known.collect();
    Err(format!(
        "{release}: nothing is known of that release; expected one of {}{instead}",
        known.join(", ")
    ))
}

/// Oldest ONNX Runtime that the library of RAT+ operators works in: the first with shape inference for
/// custom operators.
pub const OLDEST_ONNX_RUNTIME: (u32, u32) = (1, 17);
/// First ONNX Runtime in which it has kernels for CUDA: the first with in-place outputs.
pub(super) const ONNX_RUNTIME_CUDA: (u32, u32) = (1, 18);
/// First ONNX Runtime whose TensorRT provider takes plugins of our kind (V3).
pub(super) const ONNX_RUNTIME_PLUGINS: (u32, u32) = (1, 22);
/// First ONNX Runtime whose TensorRT provider takes models of more than 2 GB, by `trt_load_user_initializer`
/// and with TensorRT 10.13.
pub(super) const ONNX_RUNTIME_LARGE_PLUGINS: (u32, u32) = (1, 23);

/// First ONNX Runtime in which `DequantizeLinear` has blocks, in int4 and in int8: found with a model of one
/// such node and a product in the wheels of 1.18.1, 1.19.2 and 1.20.1, 2026-11-29. 1.18 reads the opset.
pub(super) const ONNX_RUNTIME_BLOCKS: (u32, u32) = (1, 19);
/// First ONNX Runtime whose provider for CUDA has `MatMulNBits` of 8 bits, which graphs for GPUs have: pull
/// request 24509 of microsoft/onnxruntime. Graphs for CPUs have none of 8 bits: that of f32 rows is there
/// from 1.23 on (found with models of one node in the wheels of 1.17, 1.20 to 1.25).
pub(super) const ONNX_RUNTIME_CUDA_BYTES: (u32, u32) = (1, 22);

/// Found with models of one node in the wheels of PyPI, 2026-11-29: of each release named, and of 1.22, 1.27
/// and 1.28. Others read what the one before them does, at least.
pub(super) const ONNX_RUNTIME_READS: &[Reads] = &[
    ((1, 17), 20, 9),
    ((1, 18), 21, 10),
    ((1, 21), 22, 10),
    ((1, 23), 23, 11),
    ((1, 24), 25, 13),
    ((1, 26), 26, 13),
    ((1, 32), 28, 14),
];

/// First TensorRT with the interfaces that the plugins implement, aliased input and output among them.
pub const OLDEST_TENSORRT: (u32, u32) = (10, 3);
/// First TensorRT that takes a plugin for a node that a function of its name stands beside, when the node
/// names the plugin's namespace and version; before, its parser has to be told.
pub(super) const TENSORRT_PLUGINS_BY_ATTRIBUTE: (u32, u32) = (10, 15);

/// docs/operators.md of onnx-tensorrt at 10.0 and 10.15. Its parser states no IR version.
pub(super) const TENSORRT_READS: &[Reads] = &[((10, 0), 20, i64::MAX), ((10, 15), 24, i64::MAX)];

/// Built here with 1.7; nothing is published.
pub(super) const TENSORRT_RTX_READS: &[Reads] = &[((1, 7), 21, i64::MAX)];

/// Since one release, another.
type Since = ((u32, u32), (u32, u32));

/// The ONNX Runtime of Triton's containers, from a release on: docs/introduction/compatibility.md of
/// triton-inference-server/server, up to 26.08.
pub(super) const TRITON_ONNX_RUNTIME: &[Since] = &[
    ((24, 4), (1, 17)),
    ((24, 5), (1, 18)),
    ((24, 9), (1, 19)),
    ((24, 12), (1, 20)),
    ((25, 3), (1, 21)),
    ((25, 5), (1, 22)),
    ((25, 8), (1, 23)),
    ((26, 2), (1, 24)),
    ((26, 7), (1, 27)),
    ((26, 8), (1, 28)),
];
/// First container with the backend API of our backend: 2.51.0 of the server, where it was tried.
pub(super) const TRITON_BACKEND: (u32, u32) = (24, 10);

/// The entry of the newest release that is no newer than `version`.
pub(super) fn at(table: &[Since], version: (u32, u32)) -> Option<(u32, u32)> {
    let known = table.iter().rev().find(|(since, _)| *since <= version);
    known.map(|(_, value)| *value)
}

/// What that release reads: (opset, IR).
pub(super) fn reads(table: &[Reads], version: (u32, u32)) -> Option<(i64, i64)> {
    let known = table.iter().rev().find(|(since, ..)| *since <= version);
    known.map(|&(_, opset, ir)| (opset, ir))
}
