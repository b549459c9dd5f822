//! What `export` ends with: a few tokens through what it wrote.

use super::{spinner, while_opening};
use crate::flags::in_flags;
use crate::memory;
use crate::output::{Failure, OrInput, Outcome, Table};
use crate::streams::{errln, out, outln};
use ratplus_graphs::package::Manifest;
use ratplus_runtime::backend::{BackendKind, Session};
use ratplus_runtime::package::Package;
use ratplus_tools::spot_check::{self, Comparison, SpotCheck};
use std::path::Path;

/// Names of tensors beyond f16's range that are printed, at most.
const MAX_NAMES: usize = 8;

/// Checks the package in `dir` and says what was checked, or why nothing was.
pub fn run(dir: &Path, manifest: &Manifest) -> Outcome {
    if let Some(why) = spot_check::refusal(manifest, memory::available()) {
        outln!("not checked: {}", in_flags(&why));
        return Ok(());
    }
    let package = while_opening(dir, || Package::open(dir)).or_input()?;
    let bar = spinner();
    bar.set_message("checking a few tokens; --no-check leaves that out");
    let check = spot_check::spot_check(&Session::builder(&package));
    bar.finish_and_clear();
    let failed = |what: String| {
        let place = dir.display();
        Failure::BadResult(format!("{what}; the package is in place in {place}"))
    };
    let check = check.map_err(|error| failed(in_flags(&error.to_string())))?;
    print(&check);
    match check.passed() {
        true => Ok(()),
        false => Err(failed(format!(
            "what was written is out of tolerance: `ratplus verify {}` says where",
            dir.display()
        ))),
    }
}

fn print(check: &SpotCheck) {
    match &check.graphs {
        Ok(ran) => print_outputs(check.tokens, ran),
        Err(why) => outln!("not checked: {}", in_flags(why)),
    }
    for beyond in check.beyond_f16.iter().take(MAX_NAMES) {
        let reaches = match beyond.largest.is_finite() {
            true => format!(
                "reaches {:.3e} on these tokens, beyond f16's 65504",
                beyond.largest
            ),
            false => "leaves the range of f32 on these tokens, and f16's 65504".into(),
        };
        errln!(
            "warning: {} {reaches}: --dtype bf16 has the range, and --cache-dtype for cache rows",
            beyond.name
        );
    }
    match check.beyond_f16.len() {
        0 if check.keeps_f16 => outln!("f16's range holds what these tokens give"),
        count if count > MAX_NAMES => errln!("warning: and {} more", count - MAX_NAMES),
        _ => {}
    }
}

fn print_outputs(tokens: usize, ran: &Comparison) {
    let graph = match ran.backend {
        BackendKind::OrtFallback => "the portable decode graph in ONNX Runtime".to_owned(),
        backend => format!("the decode graph of {backend}"),
    };
    outln!("checked {tokens} tokens: {graph}, against tract in f32");
    let mut table = Table::new(1, ["output", "max error", "tolerance", "layer", ""]);
    for output in &ran.outputs {
        table.row([
            output.output.clone(),
            match output.max_error.is_finite() {
                true => format!("{:.2e}", output.max_error),
                false => "not finite".into(),
            },
            match output.tolerance {
                Some(most) => format!("{most:.2e}"),
                None => "none: the reference is not finite".into(),
            },
            output
                .layer
                .map_or_else(String::new, |layer| layer.to_string()),
            if output.passed() { "ok" } else { "FAILED" }.into(),
        ]);
    }
    out!("{table}");
}
