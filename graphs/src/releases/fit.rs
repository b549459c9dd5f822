//! Whether a package fits a release, and what an export would have to change.

mod onnx_runtime;
mod tensorrt;
mod triton;

pub use onnx_runtime::runs_functions;
pub use tensorrt::plan_graphs;

use super::table::known;
use super::{Host, Release};
use crate::package::Manifest;
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
    known(release)?;
    let mut found = Findings::default();
    match release.host {
        Host::OnnxRuntime => onnx_runtime::find(manifest, release, &mut found),
        Host::TensorRt | Host::TensorRtRtx => tensorrt::find(manifest, release, &mut found),
        Host::Triton => triton::find(manifest, release, &mut found),
    }
    Ok(found.0)
}

/// Holds the opset and the IR version of the package's files to what a release reads; `of_integers` is what
/// to do where it is the integers that need more.
fn versions(
    manifest: &Manifest,
    release: Release,
    reads: Option<(i64, i64)>,
    of_integers: &str,
    found: &mut Findings,
) {
    // Of a known release it is known.
    let Some((opset, ir)) = reads else {
        return;
    };
    let layout = manifest.precision.layout().unwrap_or_default();
    let (least, _) = layout.onnx_versions();
    let remedy = match least > opset {
        true => of_integers.to_owned(),
        false => format!("export with `opset: {opset}`"),
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
