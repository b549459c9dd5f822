//! `ratplus verify`: one matrix over backends, routes and tensors.

mod print;

use super::{backends, session_builder, spinner};
use crate::args::VerifyArgs;
use crate::files::{self, PACKAGE, Targets};
use crate::output::{Failure, OrInput, Outcome};
use crate::streams::{errln, outln};
use ratplus_charts::{Lines, Panel, Series};
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::package::Package;
use ratplus_tools::verify::{self, Golden, VerifyOptions, VerifyReport};

/// Runs the matrix and prints it.
pub fn run(args: VerifyArgs) -> Outcome {
    let backends = backends(&args.backend)?;
    if args.reference != BackendKind::Tract.name() {
        return Err(Failure::input(format!(
            "--reference: expected tract, found {}",
            args.reference
        )));
    }
    let golden = args.golden.as_deref().map(|path| ("--golden", path));
    let read = [(PACKAGE, &*args.dir)].into_iter().chain(golden);
    let mut targets = Targets::of(read);
    targets.add("--report", args.report.as_deref());
    targets.add("--plot", args.plot.as_deref());
    targets.add("--save-golden", args.save_golden.as_deref());
    targets.check()?;
    let package = Package::open(&args.dir).or_input()?;
    let golden = args.golden.as_deref().map(Golden::read);
    let golden = golden.transpose().or_input()?;
    let mut options = VerifyOptions::default();
    (options.backends, options.chunks) = (backends, args.chunks.clone());
    let most = package.manifest().max_seq_len;
    options.tokens = args.tokens.unwrap_or(options.tokens.min(most));
    options.seed = args.seed;
    options.tolerances = args.atol.clone();
    options.reference_taps = args.save_golden.is_some();
    options.curves = args.plot.is_some();
    let sessions = session_builder(&package, &args.libraries);
    let bar = spinner();
    let report = verify::verify(&sessions, golden.as_ref(), &options, &mut |what| {
        bar.set_message(what.to_owned());
    });
    bar.finish_and_clear();
    let report = report.or_input()?;
    let json = serde_json::to_string_pretty(&report).or_input()?;
    // What was found is said first: a file that cannot be written does not cost it.
    if args.json {
        outln!("{json}");
    } else {
        print::print(&args.dir.display().to_string(), &report, args.histogram);
    }
    let written = write(&args, &report, &json);
    if report.passed {
        return written;
    }
    if let Err(failure) = written {
        errln!("error: {failure}");
    }
    let failed = report.rows.iter().filter(|row| !row.passed).count();
    Err(Failure::BadResult(match failed {
        0 => "the logits of a backend were compared nowhere; export with --logits all".into(),
        _ => format!(
            "{failed} of {} comparisons are out of tolerance",
            report.rows.len()
        ),
    }))
}

/// Writes every file that was asked for, whatever becomes of the others.
fn write(args: &VerifyArgs, report: &VerifyReport, json: &str) -> Outcome {
    let mut written = Vec::new();
    if let Some(path) = &args.report {
        written.push(files::write("--report", path, json.as_bytes()));
    }
    if let Some(path) = &args.plot {
        note_left_out(report);
        let svg = plot(report).svg().or_input();
        written.push(svg.and_then(|svg| files::write("--plot", path, svg.as_bytes())));
    }
    if let (Some(path), Some(reference)) = (&args.save_golden, &report.reference) {
        let bytes = reference.to_bytes().or_input();
        written.push(bytes.and_then(|bytes| files::write("--save-golden", path, &bytes)));
    }
    let problems = written.into_iter().filter_map(Result::err);
    let problems: Vec<_> = problems.map(|failure| failure.to_string()).collect();
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Failure::BadInput(problems.join("\n  "))),
    }
}

/// No axis has a place for what is not finite.
fn note_left_out(report: &VerifyReport) {
    for curve in &report.curves {
        let errors = curve.max_errors.iter();
        let positions: Vec<_> = (0..)
            .zip(errors)
            .filter(|(_, error)| !error.is_finite())
            .collect();
        if let Some((first, _)) = positions.first() {
            let what = match curve.layer {
                None => "logits".to_owned(),
                Some(layer) => format!("residual stream after layer {layer}"),
            };
            errln!(
                "note: --plot leaves out {} of {} positions of {}'s {what}, whose errors are not finite; the \
                 first is {first}",
                positions.len(),
                curve.max_errors.len(),
                curve.backend
            );
        }
    }
}

/// A panel of the logits, and one a backend of its residual stream.
fn plot(report: &VerifyReport) -> Lines {
    let mut panels = vec![Panel {
        title: "logits".into(),
        series: Vec::new(),
    }];
    for curve in &report.curves {
        // From 1: position 0 has no place on a logarithmic axis.
        let points = (1..).map(f64::from).zip(curve.max_errors.iter().copied());
        let points: Vec<_> = points.filter(|(_, error)| error.is_finite()).collect();
        let title = format!("{}: residual stream", curve.backend);
        let (panel, name) = match curve.layer {
            None => (0, curve.backend.to_string()),
            Some(layer) => {
                if panels.last().is_none_or(|panel| panel.title != title) {
                    panels.push(Panel {
                        title,
                        series: Vec::new(),
                    });
                }
                (panels.len() - 1, format!("after layer {layer}"))
            }
        };
        panels[panel].series.push(Series::new(name, points));
    }
    Lines {
        panels,
        x_label: "token, from 1".into(),
        y_label: "largest error".into(),
    }
}
