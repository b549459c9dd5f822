//! `ratplus bench`: tokens a second, latencies, memory.

use super::{session_builder, spinner};
use crate::args::BenchArgs;
use crate::files::{self, PACKAGE, Targets};
use crate::output::{Failure, OrInput, Outcome, Table, bytes};
use crate::streams::{self, errln, outln};
use ratplus_charts::{Lines, Panel, Series};
use ratplus_runtime::backend::{BackendError, BackendKind};
use ratplus_runtime::package::Package;
use ratplus_tools::bench::{
    BenchError, BenchOptions, EngineTimes, Measured, bench, operator_times,
};
use serde::Serialize;
use std::path::Path;

/// Everything about one package.
#[derive(Serialize)]
struct Report {
    package: String,
    backend: String,
    dtype: String,
    cache_dtype: String,
    /// Both in words.
    #[serde(skip)]
    types: String,
    batch: usize,
    max_seq_len: usize,
    patterns: String,
    implementations: Vec<String>,
    weights_bytes: u64,
    state_bytes: u64,
    /// Resident memory at most, files mapped included; where the system tells.
    peak_resident_bytes: Option<u64>,
    /// Resident memory once everything has run: what files back, and the process's own.
    file_backed_bytes: Option<u64>,
    anonymous_bytes: Option<u64>,
    measured: Vec<Measured>,
    /// Empty for backends that cannot tell.
    operators: Vec<EngineTimes>,
    /// Why there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    operators_unseen: Option<String>,
}

/// Measures every package, one after the other.
pub fn run(args: BenchArgs) -> Outcome {
    let backend: BackendKind = args.engine.backend.parse().or_input()?;
    let mut targets = Targets::of(args.dirs.iter().map(|dir| (PACKAGE, &**dir)));
    targets.add("--json", args.json.as_deref());
    targets.add("--plot", args.plot.as_deref());
    targets.check()?;
    let packages = args.dirs.iter().map(Package::open);
    let packages = packages.collect::<Result<Vec<_>, _>>().or_input()?;
    let mut reports = Vec::new();
    for (dir, package) in args.dirs.iter().zip(&packages) {
        let report = measure(dir, package, backend, &args)?;
        print(&report);
        reports.push(report);
        // Measuring takes minutes, and nobody would see it.
        if !streams::is_open() && args.json.is_none() && args.plot.is_none() {
            return Ok(());
        }
    }
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&reports).or_input()?;
        files::write("--json", path, (json + "\n").as_bytes())?;
    }
    if let Some(path) = &args.plot {
        draw(path, &reports)?;
        errln!("drew {}", path.display());
    }
    Ok(())
}

fn measure(
    dir: &Path,
    package: &Package,
    backend: BackendKind,
    args: &BenchArgs,
) -> Result<Report, Failure> {
    reset_peak();
    let manifest = package.manifest();
    let mut options = BenchOptions::default();
    options.prompts.clone_from(&args.prompt);
    options.new_tokens = args.new_tokens;
    options.contexts.clone_from(&args.context);
    options.repeats = args.repeat.get();
    let sessions = session_builder(package, &args.engine.libraries);
    let mut session = sessions.open(backend).or_input()?;
    let bar = spinner();
    let measured = bench(&mut session, &options, &mut |name| {
        bar.set_message(format!("{}: {name}", dir.display()));
    });
    bar.finish_and_clear();
    let measured = measured.or_input()?;
    let [peak, file_backed, anonymous] = ["VmHWM:", "RssFile:", "RssAnon:"].map(resident);
    let state_bytes = session.state_bytes();
    let implementations = session.implementations().iter();
    let implementations = implementations.map(ToString::to_string).collect();
    // Two would not fit where one does.
    drop(session);
    let bar = spinner();
    bar.set_message(format!("{}: operators", dir.display()));
    let operators = operator_times(&sessions, backend, &options);
    bar.finish_and_clear();
    // What was measured stays good.
    let (operators, operators_unseen) = match operators {
        Ok(times) if times.is_empty() => (times, Some("has no times of its own".into())),
        Ok(times) => (times, None),
        Err(error @ BenchError::Backend(BackendError::Profile { .. })) => {
            (Vec::new(), Some(error.to_string()))
        }
        Err(error) => return Err(Failure::input(error)),
    };
    Ok(Report {
        package: dir.display().to_string(),
        backend: backend.to_string(),
        dtype: manifest.dtype.to_string(),
        cache_dtype: manifest.shape().cache_dtype.to_string(),
        types: manifest.types(),
        batch: manifest.batch,
        max_seq_len: manifest.max_seq_len,
        patterns: super::inspect::pattern_summary(&manifest.model),
        implementations,
        weights_bytes: package.weights().len() as u64,
        state_bytes,
        peak_resident_bytes: peak,
        file_backed_bytes: file_backed,
        anonymous_bytes: anonymous,
        measured,
        operators,
        operators_unseen,
    })
}

fn print(report: &Report) {
    let batch = report.batch;
    outln!(
        "{}: {}, {}, batch {batch}, up to {} tokens, {}",
        report.package,
        report.backend,
        report.types,
        report.max_seq_len,
        report.patterns
    );
    for engine in &report.implementations {
        outln!("  {engine}");
    }
    let peak = report.peak_resident_bytes.map_or_else(String::new, |peak| {
        format!(", resident at most {}", bytes(peak as f64))
    });
    let kinds = [report.file_backed_bytes, report.anonymous_bytes];
    let kinds = match kinds.map(|kind| kind.map(|kind| bytes(kind as f64))) {
        [Some(file_backed), Some(anonymous)] => {
            format!(": {file_backed} of files, {anonymous} of its own at the end")
        }
        _ => String::new(),
    };
    outln!(
        "  weights {}, state {}{peak}{kinds}\n",
        bytes(report.weights_bytes as f64),
        bytes(report.state_bytes as f64)
    );
    let header = [
        "", "tokens/s", "spread", "p50 ms", "p90 ms", "p99 ms", "max ms",
    ];
    let mut table = Table::new(1, header);
    for row in &report.measured {
        let (rate, step) = (&row.tokens_per_second, &row.step_ms);
        table.row([
            row.name.clone(),
            format!("{:.1}", rate.p50),
            format!("{:.1} - {:.1}", rate.min, rate.max),
            format!("{:.3}", step.p50),
            format!("{:.3}", step.p90),
            format!("{:.3}", step.p99),
            format!("{:.3}", step.max),
        ]);
    }
    outln!("{table}");
    for engine in &report.operators {
        outln!("  {}", shares(engine));
    }
    if let Some(reason) = &report.operators_unseen {
        outln!("  operators: {}: {reason}", report.backend);
    }
    outln!();
}

/// `tg128 @ d4096, decode.onnx: MatMul 71 % (1.25 ms), ...`: what makes up a hundredth or more.
fn shares(engine: &EngineTimes) -> String {
    let (shown, rest): (Vec<_>, Vec<_>) = engine.operators.iter().partition(|op| op.share >= 0.01);
    let mut parts: Vec<_> = shown
        .iter()
        .map(|op| {
            let (percent, ms) = (100.0 * op.share, op.ms);
            format!("{} {percent:.0} % ({ms:.3} ms)", op.op_type)
        })
        .collect();
    if !rest.is_empty() {
        let percent: f64 = rest.iter().map(|op| 100.0 * op.share).sum();
        parts.push(format!("{} others {percent:.0} %", rest.len()));
    }
    format!("{}, {}: {}", engine.name, engine.file, parts.join(", "))
}

fn draw(path: &Path, reports: &[Report]) -> Outcome {
    let series = |decode: bool| -> Vec<Series> {
        let points = |report: &Report| {
            let rows = report.measured.iter().filter(|row| row.decode == decode);
            let mut points: Vec<_> = rows
                .map(|row| (row.context.max(row.tokens) as f64, row.step_ms.p50))
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points
        };
        let named = |report: &Report| {
            Series::new(
                format!("{} {}", report.package, report.patterns),
                points(report),
            )
        };
        reports.iter().map(named).collect()
    };
    let panels = [
        ("ms a decoded token, against tokens before it", true),
        ("ms to the first token, against tokens of the prompt", false),
    ];
    let panels = panels.map(|(title, decode)| Panel {
        title: title.into(),
        series: series(decode),
    });
    let lines = Lines {
        panels: panels.into(),
        x_label: "tokens".into(),
        y_label: String::new(),
    };
    files::write("--plot", path, lines.svg().or_input()?.as_bytes())
}

/// Has the system forget the peak so far: of another package, or of a checksum.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// A field of the system's about this process's resident memory, in bytes: at most since
/// [`reset_peak`], what files back, or the rest.
fn resident(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
