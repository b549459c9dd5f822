//! `ratplus check`: whether a release of a runtime will run a package, before anything is built.

use crate::args::CheckArgs;
use crate::flags::in_flags;
use crate::output::{Failure, OrInput, Outcome};
use crate::streams::outln;
use ratplus_graphs::none_wrong;
use ratplus_graphs::releases::{Finding, Verdict, findings};
use ratplus_runtime::package::Package;
use serde::Serialize;

/// What was found of one release.
#[derive(Serialize)]
struct Report {
    target: String,
    fits: bool,
    findings: Vec<Finding>,
}

/// Looks and prints; a misfit is a bad result.
pub fn run(args: CheckArgs) -> Outcome {
    let package = Package::open(&args.dir).or_input()?;
    let (mut reports, mut problems) = (Vec::new(), Vec::new());
    for release in args.target {
        let mut findings = match findings(package.manifest(), release) {
            Ok(findings) => findings,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        for finding in &mut findings {
            finding.text = in_flags(&finding.text);
        }
        reports.push(Report {
            target: release.to_string(),
            fits: findings
                .iter()
                .all(|finding| finding.verdict != Verdict::Misfit),
            findings,
        });
    }
    none_wrong(problems).map_err(|problems| Failure::input(problems.join("\n  ")))?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&reports).or_input()?);
    } else {
        reports.iter().for_each(print);
    }
    let misfits = reports.iter().filter(|report| !report.fits);
    let misfits: Vec<_> = misfits.map(|report| report.target.as_str()).collect();
    match misfits.is_empty() {
        true => Ok(()),
        false => Err(Failure::BadResult(format!(
            "{} does not run on {}",
            args.dir.display(),
            misfits.join(", ")
        ))),
    }
}

fn print(report: &Report) {
    outln!("{}", report.target);
    for finding in &report.findings {
        let mark = match finding.verdict {
            Verdict::Fits => "ok",
            Verdict::Note => "note",
            Verdict::Misfit => "MISFIT",
        };
        outln!("  {mark:6}  {:17}  {}", finding.subject, finding.text);
    }
}
