//! Draws a chart for what is not Rust: `ratplus_charts::Chart` as JSON on standard input, SVG on
//! standard output.

use std::io::{Write, stdin, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let chart: ratplus_charts::Chart = serde_json::from_reader(stdin().lock())?;
        Ok(stdout().write_all(chart.svg()?.as_bytes())?)
    };
    match draw() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: standard input: {error}");
            ExitCode::from(2)
        }
    }
}
