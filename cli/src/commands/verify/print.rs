//! What `verify` says.

use crate::flags::in_flags;
use crate::output::Table;
use crate::streams::{out, outln};
use ratplus_graphs::tolerance::OutputTolerance;
use ratplus_runtime::backend::BackendKind;
use ratplus_tools::verify::{ChoiceRow, Decade, Row, STORED_WEIGHTS, VerifyReport};

/// Prints the matrix and what there is to say about it.
pub(super) fn print(package: &str, report: &VerifyReport, histogram: bool) {
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
        "at",
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
            error(row.max_error),
            row.worst.map_or_else(String::new, |worst| {
                format!("{}:{}:{}", worst.sequence, worst.position, worst.index)
            }),
            error(row.mean_error),
            tolerance(row),
            row.argmax_agreed
                .map_or_else(String::new, |agreed| format!("{agreed}/{}", row.rows)),
            format!("{:.2} s", row.seconds),
            status(row).into(),
        ]);
    }
    out!("{table}");
    outln!();
    outln!("at           sequence:position:index of the largest error");
    let by_default = report.rows.iter().filter(|row| row.asked.is_empty());
    let mut sources: Vec<_> = by_default
        .map(|row| row.tolerance_source.as_str())
        .collect();
    sources.sort_unstable();
    sources.dedup();
    for source in sources {
        outln!("tolerance    {source}");
    }
    print_asked(report);
    print_choices(report);
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
        for asked in row.asked.iter().filter(|asked| !asked.kept()) {
            let OutputTolerance {
                statistic, most, ..
            } = asked.tolerance;
            outln!(
                "             {statistic} error {}, expected at most {most:.2e}",
                error(asked.found)
            );
        }
        if let Some(most) = row.mean_tolerance.filter(|most| row.mean_error > *most) {
            outln!(
                "             mean error {}, expected at most {most:.2e}",
                error(row.mean_error)
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
        if !histogram {
            print_histogram(row);
        }
    }
    if histogram {
        for row in &report.rows {
            outln!(
                "errors       {}, {}, {}",
                row.backend,
                row.route,
                row.tensor
            );
            print_histogram(row);
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

/// Which blocks queries chose, where they choose: a line a backend and layer, over all routes.
fn print_choices(report: &VerifyReport) {
    let mut rows: Vec<_> = report.choices.iter().collect();
    rows.sort_by_key(|row| (row.backend, row.layer));
    for rows in rows.chunk_by(|a, b| (a.backend, a.layer) == (b.backend, b.layer)) {
        let [agreed, queries] = [
            rows.iter().map(|row| row.agreed).sum::<u64>(),
            rows.iter().map(|row| row.queries).sum(),
        ];
        // The route that is nearest to its tolerance.
        let share = |row: &ChoiceRow| row.largest_gap / row.tolerance;
        let worst = rows.iter().max_by(|a, b| share(a).total_cmp(&share(b)));
        let Some(worst) = worst else { continue };
        outln!(
            "choices      {}, layer {}: {agreed} of {queries} as the reference's; largest gap {} of {} that \
             roundings explain{}",
            worst.backend,
            worst.layer,
            error(worst.largest_gap),
            error(worst.tolerance),
            if rows.iter().all(|row| row.passed) {
                String::new()
            } else {
                format!(": FAILED, {}", worst.route)
            },
        );
    }
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

fn error(value: f64) -> String {
    match value.is_finite() {
        true => format!("{value:.2e}"),
        false => "not finite".into(),
    }
}

/// What the row is held to.
fn tolerance(row: &Row) -> String {
    match (row.asked.as_slice(), row.tolerance) {
        ([], Some(most)) => format!("{most:.2e}"),
        ([], None) if row.backend == BackendKind::Tract => "sets it".into(),
        ([], None) => "none".into(),
        (asked, _) => {
            let each = asked.iter().map(|asked| &asked.tolerance);
            let each = each.map(|one| format!("{} {:.2e}", one.statistic, one.most));
            format!("yours: {}", each.collect::<Vec<_>>().join(", "))
        }
    }
}

/// Names every tolerance of the user's, and what the package's type would have allowed.
fn print_asked(report: &VerifyReport) {
    let mut seen: Vec<&OutputTolerance> = Vec::new();
    for asked in report.rows.iter().flat_map(|row| &row.asked) {
        let tolerance = &asked.tolerance;
        if seen.contains(&tolerance) {
            continue;
        }
        seen.push(tolerance);
        let of_output = || {
            let rows = report.rows.iter();
            rows.filter(|row| row.tensor == tolerance.output && row.rows > 0)
        };
        let defaults = of_output().filter_map(|row| row.tolerance);
        let beyond = of_output().filter(|row| row.beyond_default()).count();
        let default = match (defaults.clone().reduce(f64::max), beyond) {
            (None, _) => "set by tract, which none of these comparisons has".into(),
            (Some(most), 0) => format!("max {most:.2e}, beyond which nothing is"),
            (Some(most), _) => format!(
                "max {most:.2e}, beyond which {beyond} of {} comparisons are",
                defaults.count()
            ),
        };
        outln!(
            "tolerance    {}: {} at most {:.2e} is yours (--atol), in place of the default, {default}",
            tolerance.output,
            tolerance.statistic,
            tolerance.most
        );
    }
}

/// A line a power of ten, with a bar as long as its share of all elements.
fn print_histogram(row: &Row) {
    const WIDTH: f64 = 40.0;
    let total: u64 = row.histogram.iter().map(|decade| decade.elements).sum();
    for Decade { below, elements } in &row.histogram {
        let size = match below {
            Some(0.0) => "0".into(),
            Some(below) => format!("< {below:.0e}"),
            None => "not a number".into(),
        };
        let share = *elements as f64 / total as f64;
        // Whatever is there is seen.
        let bar = "#".repeat((share * WIDTH).ceil() as usize);
        outln!("             {size:>12} {elements:>10} {bar}");
    }
}
