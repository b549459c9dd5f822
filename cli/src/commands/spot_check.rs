//! What `export` ends with: a few tokens through what it wrote.

use super::{spinner, while_opening};
use crate::flags::in_flags;
use crate::output::{Failure, OrInput, Outcome, Table};
use crate::streams::{errln, out, outln};
use ratplus_graphs::package::Manifest;
use ratplus_runtime::backend::{BackendKind, Session};
use ratplus_runtime::package::Package;
use ratplus_tools::spot_check::{self, SpotCheck};
use std::path::Path;

/// Names of tensors beyond f16's range that are printed, at most.
const MAX_NAMES: usize = 8;

/// Checks the package in `dir` and says what was checked, or why nothing was.
pub fn run(dir: &Path, manifest: &Manifest) -> Outcome {
    if let Some(why) = spot_check::refusal(manifest, available_memory()) {
        outln!("not checked: {why}; `ratplus verify` checks all of it");
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
    let what = match (check.backend, &check.graphs_unseen) {
        (BackendKind::OrtFallback, _) => "the portable decode graph in ONNX Runtime".to_owned(),
        (backend, None) => format!("the decode graph of {backend}"),
        (backend, Some(why)) => format!("{backend} with the package's types, no graph ({why})"),
    };
    outln!(
        "checked {} tokens: {what}, against tract in f32",
        check.tokens
    );
    let mut table = Table::new(1, ["output", "max error", "tolerance", "layer", ""]);
    for output in &check.outputs {
        let within = output.max_error <= output.tolerance;
        table.row([
            output.output.clone(),
            format!("{:.2e}", output.max_error),
            format!("{:.2e}", output.tolerance),
            output
                .layer
                .map_or_else(String::new, |layer| layer.to_string()),
            if within { "ok" } else { "FAILED" }.into(),
        ]);
    }
    out!("{table}");
    for beyond in check.beyond_f16.iter().take(MAX_NAMES) {
        errln!(
            "warning: {} reaches {:.3e} on these tokens, beyond f16's 65504: --dtype bf16 has the range, and \
             --cache-dtype for cache rows",
            beyond.name,
            beyond.largest
        );
    }
    match check.beyond_f16.len() {
        0 if check.keeps_f16 => outln!("f16's range holds what these tokens give"),
        count if count > MAX_NAMES => errln!("warning: and {} more", count - MAX_NAMES),
        _ => {}
    }
}

/// Bytes that can be had without swapping; Linux tells.
fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_known() {
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
