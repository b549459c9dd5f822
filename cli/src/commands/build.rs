//! `ratplus build`: engine plans from a package.

use super::spinner;
use crate::args::BuildArgs;
use crate::files::{self, PACKAGE, Targets};
use crate::output::{OrInput, Outcome, Table, bytes};
use crate::streams::{errln, out, outln};
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::package::Package;
use ratplus_tools::plans::{self, BuildOptions, BuildReport, BuildSettings};

/// Builds every engine and says what came of it.
pub fn run(args: BuildArgs) -> Outcome {
    let backend: BackendKind = args.backend.parse().or_input()?;
    let mut targets = Targets::of([(PACKAGE, &*args.dir)]);
    targets.add("--report", args.report.as_deref());
    targets.check()?;
    let package = Package::open(&args.dir).or_input()?;
    let mut options = BuildOptions::default();
    options.device = args.device;
    options.compute_capabilities = args.compute_capability;
    options.split_engines = args.split_engines;
    options.settings = BuildSettings {
        workspace: args.workspace.map(|mebibytes| mebibytes << 20),
        optimization_level: args.optimization_level,
        version_compatible: args.version_compatible,
        hardware_compatibility: args.hardware_compatibility,
        strip_weights: args.strip_weights,
    };
    let needed = bytes(plans::host_memory_bytes(&package) as f64);
    let bar = spinner();
    let report = plans::build(&package, backend, &options, &mut |progress| {
        let plans::BuildProgress {
            engine,
            index,
            count,
        } = progress;
        // What cannot be built at all was refused by now.
        if index == 0 {
            let said =
                format!("building takes about {needed} of host memory, four times the weights");
            bar.suspend(|| errln!("{said}"));
        }
        bar.set_message(format!("{engine} ({} of {count})", index + 1));
    });
    bar.finish_and_clear();
    let report = report.or_input()?;
    for note in &report.notes {
        errln!("note: {note}");
    }
    let json = serde_json::to_string_pretty(&report).or_input()?;
    if args.json {
        outln!("{json}");
    } else {
        print(&args.dir.display().to_string(), &report);
    }
    match &args.report {
        Some(path) => files::write("--report", path, (json + "\n").as_bytes()),
        None => Ok(()),
    }
}

fn print(package: &str, report: &BuildReport) {
    let targets = report.compute_capabilities.iter().map(ToString::to_string);
    outln!(
        "{package}: plans for {}, version {}, compute capability {}",
        report.backend,
        report.library,
        targets.collect::<Vec<_>>().join(", ")
    );
    outln!("custom nodes: {}\n", report.custom_nodes);
    let mut table = Table::new(2, ["engines", "plan", "size", "parser", "builder", "time"]);
    for plan in &report.plans {
        table.row([
            plan.engines.join(", "),
            plan.file.clone(),
            bytes(plan.bytes as f64),
            format!("{:.2} s", plan.parse_seconds),
            format!("{:.2} s", plan.build_seconds),
            format!("{:.2} s", plan.seconds),
        ]);
    }
    out!("{table}");
    if let Some(timing) = &report.timing_cache {
        outln!(
            "\nmeasured: {}, {}",
            timing.file,
            bytes(timing.bytes as f64)
        );
    }
    outln!("\n{:.2} s in all", report.seconds);
}
