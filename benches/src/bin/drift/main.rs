//! Writes docs/drift.md and docs/drift.svg: how far the recurrence's state drifts from f64 when it is
//! carried one token at a time, in f32 as our kernels keep it, and rounded to bf16 after every token.
//!
//! The portable kernels compute it, so that every machine gives the same figures.

mod chart;
mod model;
mod report;
mod state;

use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Steps at which figures are published.
const STEPS: [usize; 6] = [1, 10, 100, 1000, 10_000, 20_000];

/// Gates near 1.
const GATES: [f64; 4] = [0.9, 0.99, 0.999, 0.9999];

/// The drift of the recurrence's state
#[derive(Parser)]
struct Args {
    /// Folder that drift.md and drift.svg are written to
    #[arg(long, default_value = "docs")]
    docs: PathBuf,
    /// Folder of the trained model, with sample.txt and tokenizer.json
    #[arg(long, default_value = "tests/golden/kjv_d16w64i4")]
    model: PathBuf,
    /// Write nothing; fail where the files are not those that would be written
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let longest = STEPS[STEPS.len() - 1];
    let constant: Vec<_> = GATES
        .iter()
        .map(|&gate| state::Drift::of(&state::constant(gate, longest), &STEPS))
        .collect();
    let noise: Vec<_> = GATES
        .iter()
        .map(|&gate| state::Drift::of(&state::noise(gate, longest), &STEPS))
        .collect();
    let text = model::first_layer(&args.model, longest)?;
    let drift = state::Drift::of(&text.tokens, &STEPS);
    let text = report::Text {
        drift,
        ..text.about()
    };
    let markdown = report::markdown(&STEPS, &GATES, &constant, &noise, &text);
    let svg =
        chart::draw(&STEPS, &GATES, &noise, &text.drift).map_err(|error| error.to_string())?;
    for (name, content) in [("drift.md", markdown), ("drift.svg", svg)] {
        let path = args.docs.join(name);
        if args.check {
            compare(&path, &content)?;
        } else {
            std::fs::write(&path, content)
                .map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(())
}

fn compare(path: &Path, content: &str) -> Result<(), String> {
    let found =
        std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let differs = found.lines().zip(content.lines()).position(|(a, b)| a != b);
    match differs {
        None if found == content => Ok(()),
        line => Err(format!(
            "{}: line {}: expected {:?}, found {:?}; run `cargo run --release -p ratplus-benches --bin \
             drift` and look at what changed",
            path.display(),
            line.map_or(0, |line| line + 1),
            line.and_then(|line| content.lines().nth(line)),
            line.and_then(|line| found.lines().nth(line)),
        )),
    }
}
