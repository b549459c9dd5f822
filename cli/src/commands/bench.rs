//! `ratplus bench`: tokens a second, latencies, memory.

use super::plot::{self, Panel, Series};
use super::spinner;
use super::verify::session_options;
use crate::args::BenchArgs;
use crate::output::{Failure, OrInput, Outcome, Table, bytes};
use ratplus_runtime::backend::{BackendKind, Session};
use ratplus_runtime::bench::{BenchOptions, Measured, bench};
use ratplus_runtime::package::Package;
use serde::Serialize;
use std::path::Path;

/// Everything about one package.
#[derive(Serialize)]
struct Report {
    package: String,
    backend: String,
    dtype: String,
    batch: usize,
    max_seq_len: usize,
    patterns: String,
    implementations: Vec<String>,
    weights_bytes: u64,
    state_bytes: u64,
    /// Resident memory at most, files mapped included; where the system tells.
    peak_resident_bytes: Option<u64>,
    measured: Vec<Measured>,
}

/// Measures every package, one after the other.
pub fn run(args: BenchArgs) -> Outcome {
    let backend: BackendKind = args.backend.parse().or_input()?;
    let mut reports = Vec::new();
    for dir in &args.dirs {
        let report = measure(dir, backend, &args)?;
        print(&report);
        reports.push(report);
    }
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&reports).or_input()?;
        std::fs::write(path, json + "\n")
            .map_err(|error| Failure::input(format!("--json {}: {error}", path.display())))?;
    }
    if let Some(path) = &args.plot {
        draw(path, &reports).or_input()?;
        eprintln!("drew {}", path.display());
    }
    Ok(())
}

fn measure(dir: &Path, backend: BackendKind, args: &BenchArgs) -> Result<Report, Failure> {
    reset_peak();
    let package = Package::open(dir).or_input()?;
    let manifest = package.manifest();
    let longest = manifest.max_seq_len;
    let new_tokens = args.new_tokens.min(longest);
    let options = BenchOptions {
        prompts: match &args.prompt {
            Some(prompts) => prompts.clone(),
            None => vec![512.min(longest)],
        },
        new_tokens,
        contexts: match &args.context {
            Some(contexts) => contexts.clone(),
            None => vec![0, longest - new_tokens],
        },
        repeats: args.repeat,
    };
    let mut session =
        Session::open(&package, backend, &session_options(&args.libraries)).or_input()?;
    let bar = spinner();
    let measured = bench(&mut session, &options, &mut |name| {
        bar.set_message(format!("{}: {name}", dir.display()));
    });
    bar.finish_and_clear();
    let engines = session.implementations();
    Ok(Report {
        package: dir.display().to_string(),
        backend: backend.to_string(),
        dtype: manifest.dtype.to_string(),
        batch: manifest.batch,
        max_seq_len: longest,
        patterns: super::inspect::pattern_summary(&manifest.model),
        implementations: engines.iter().map(ToString::to_string).collect(),
        weights_bytes: package.weights().len() as u64,
        state_bytes: session.state_bytes(),
        peak_resident_bytes: peak(),
        measured: measured.or_input()?,
    })
}

fn print(report: &Report) {
    let batch = report.batch;
    println!(
        "{}: {}, {}, batch {batch}, up to {} tokens, {}",
        report.package, report.backend, report.dtype, report.max_seq_len, report.patterns
    );
    for engine in &report.implementations {
        println!("  {engine}");
    }
    let peak = report.peak_resident_bytes.map_or_else(String::new, |peak| {
        format!(", resident at most {}", bytes(peak as f64))
    });
    println!(
        "  weights {}, state {}{peak}\n",
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
    println!("{table}");
}

fn draw(path: &Path, reports: &[Report]) -> Result<(), String> {
    let series = |decode: bool| -> Vec<Series> {
        let points = |report: &Report| {
            let rows = report.measured.iter().filter(|row| row.decode == decode);
            let mut points: Vec<_> = rows
                .map(|row| (row.context.max(row.tokens) as f64, row.step_ms.p50))
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points
        };
        let named = |report: &Report| Series {
            name: format!("{} {}", report.package, report.patterns),
            points: points(report),
        };
        reports.iter().map(named).collect()
    };
    let panels = [
        Panel {
            title: "ms a decoded token, against tokens before it",
            series: series(true),
        },
        Panel {
            title: "ms to the first token, against tokens of the prompt",
            series: series(false),
        },
    ];
    plot::log_log(path, &panels, "tokens")
}

/// Has the system forget the peak so far: of another package, or of a checksum.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Largest resident set since, in bytes.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
