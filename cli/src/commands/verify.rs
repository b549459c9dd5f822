//! `ratplus verify`: one matrix over backends, routes and tensors.

use super::{backends, session_builder, spinner};
use crate::args::VerifyArgs;
use crate::files;
use crate::flags::in_flags;
use crate::output::{Failure, OrInput, Outcome, Table};
use crate::streams::{out, outln};
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::package::Package;
use ratplus_tools::verify::{self, Golden, Row, STORED_WEIGHTS, VerifyOptions, VerifyReport};

/// Runs the matrix and prints it.
pub fn run(args: VerifyArgs) -> Outcome {
    let backends = backends(&args.backend)?;
    if args.reference != BackendKind::Tract.name() {
        return Err(Failure::input(format!(
            "--reference: expected tract, found {}",
            args.reference
        )));
    }
    let package = Package::open(&args.dir).or_input()?;
    let golden = args.golden.as_deref().map(Golden::read);
    let golden = golden.transpose().or_input()?;
    let mut options = VerifyOptions::default();
    (options.backends, options.chunks) = (backends, args.chunks);
    let most = package.manifest().max_seq_len;
    options.tokens = args.tokens.unwrap_or(options.tokens.min(most));
    options.seed = args.seed;
    let sessions = session_builder(&package, &args.libraries);
    let bar = spinner();
    let report = verify::verify(&sessions, golden.as_ref(), &options, &mut |what| {
        bar.set_message(what.to_owned());
    });
    bar.finish_and_clear();
    let report = report.or_input()?;
    let json = serde_json::to_string_pretty(&report).or_input()?;
    if let Some(path) = &args.report {
        files::write("--report", path, json.as_bytes())?;
    }
    if args.json {
        outln!("{json}");
    } else {
        print(&args.dir.display().to_string(), &report);
    }
    if report.passed {
        Ok(())
    } else {
        let failed = report.rows.iter().filter(|row| !row.passed).count();
        Err(Failure::BadResult(match failed {
            0 => "the logits of a backend were compared nowhere; export with --logits all".into(),
            _ => format!(
                "{failed} of {} comparisons are out of tolerance",
                report.rows.len()
            ),
        }))
    }
}

fn print(package: &str, report: &VerifyReport) {
    outln!(
        "{package}: {}, fallback {}, batch {}; {} x {} tokens against {}",
        report.types,
        report.fallback,
        report.batch,
        report.sequences,
        report.seq_len,
        report.golden
    );
    outln!();
    let header = [
        "backend",
        "route",
        "tensor",
        "rows",
        "max error",
        "mean error",
        "tolerance",
        "argmax",
        "time",
        "",
    ];
    let mut table = Table::new(3, header);
    for row in &report.rows {
        table.row([
            row.backend.to_string(),
            row.route.clone(),
            row.tensor.clone(),
            row.rows.to_string(),
            format!("{:.2e}", row.max_error),
            format!("{:.2e}", row.mean_error),
            if row.tolerance.is_finite() {
                format!("{:.2e}", row.tolerance)
            } else {
                "sets it".into()
            },
            row.argmax_agreed
                .map_or_else(String::new, |agreed| format!("{agreed}/{}", row.rows)),
            format!("{:.2} s", row.seconds),
            status(row).into(),
        ]);
    }
    out!("{table}");
    outln!();
    let mut sources: Vec<_> = report
        .rows
        .iter()
        .map(|row| row.tolerance_source.as_str())
        .collect();
    sources.sort_unstable();
    sources.dedup();
    for source in sources {
        outln!("tolerance    {source}");
    }
    for found in &report.implementations {
        for engine in &found.engines {
            outln!("ran          {}: {engine}", found.backend);
        }
    }
    for skip in &report.skipped {
        outln!("skipped      {}: {}", skip.backend, in_flags(&skip.reason));
    }
    for row in report.rows.iter().filter(|row| !row.passed) {
        outln!(
            "FAILED       {}, {}, {}",
            row.backend,
            row.route,
            row.tensor
        );
        if let Some(most) = row.mean_tolerance.filter(|most| row.mean_error > *most) {
            outln!(
                "             mean error {:.2e}, expected at most {most:.2e}",
                row.mean_error
            );
        }
        if row.tensor == STORED_WEIGHTS {
            outln!(
                "             the package's weights are not the golden file's model's: export the \
                 checkpoint that it was made from"
            );
        }
        if let Some(worst) = row.worst {
            outln!(
                "             worst: sequence {}, position {}, index {}: expected {}, found {}",
                worst.sequence,
                worst.position,
                worst.index,
                worst.expected,
                worst.found
            );
        }
        if let Some(divergence) = &row.divergence {
            outln!("             {divergence}");
        }
    }
    let statuses: Vec<_> = report.rows.iter().map(status).collect();
    let count = |status| statuses.iter().filter(|found| **found == status).count();
    let (passed, failed, empty) = (count(OK), count(FAILED), count(NOT_COMPARED));
    let plans = |row: &&Row| row.rows == 0 && row.tensor != "logits";
    let plans = report.rows.iter().filter(plans).count();
    if plans > 0 {
        outln!("not compared {plans} intermediate tensors of engine plans, which return none");
    }
    if empty > plans {
        let empty = empty - plans;
        outln!(
            "not compared {empty} routes return logits at none of the golden positions; export with --logits \
             all to compare them"
        );
    }
    outln!(
        "{passed} of {} comparisons within tolerance, {empty} not compared, {} backends skipped",
        passed + failed,
        report.skipped.len()
    );
}

const OK: &str = "ok";
const FAILED: &str = "FAILED";
const NOT_COMPARED: &str = "not compared";

fn status(row: &Row) -> &'static str {
    match (row.rows, row.passed) {
        (0, _) => NOT_COMPARED,
        (_, true) => OK,
        (_, false) => FAILED,
    }
}
