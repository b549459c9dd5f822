//! Packages in Triton Inference Server.

use super::super::table::{TRITON_BACKEND, TRITON_ONNX_RUNTIME, at};
use super::super::{Host, Release};
use super::{Findings, onnx_runtime};
use crate::package::{Manifest, state_tensors};

pub(super) fn find(manifest: &Manifest, release: Release, found: &mut Findings) {
    // Of a known release it is known.
    let Some(version) = at(TRITON_ONNX_RUNTIME, release.version) else {
        return;
    };
    let host = Host::OnnxRuntime;
    let runtime = Release { host, version };
    found.fits("release", format!("its onnxruntime backend is {runtime}"));
    onnx_runtime::find(manifest, runtime, found);
    state_order(manifest, found);
    found.note(
        "plans",
        "its tensorrt backend runs plans of its own release only: check that with tensorrt=VERSION, and build \
         with it",
    );
    let of_its_own = "it has an ONNX Runtime of its own: check that with ort=VERSION";
    match release.version >= TRITON_BACKEND {
        true => found.fits(
            OUR_BACKEND,
            format!("libtriton_ratplus.so loads; {of_its_own}"),
        ),
        false => {
            let host = Host::Triton;
            let first = Release {
                host,
                version: TRITON_BACKEND,
            };
            found.note(
                OUR_BACKEND,
                format!("libtriton_ratplus.so loads in {first} and later; {of_its_own}"),
            );
        }
    }
}

const OUR_BACKEND: &str = "ratplus backend";

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
