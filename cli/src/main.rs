//! The `ratplus` command.

mod args;
mod commands;
mod output;

use args::{Cli, Command};
use clap::Parser;
use output::Failure;
use std::process::ExitCode;

/// Ends quietly where nobody reads on, as in `ratplus eval .. | head`: Rust starts programs with
/// that signal ignored, and printing then panics.
#[cfg(unix)]
#[allow(unsafe_code)]
fn stop_at_closed_pipes() {
    // SAFETY: no other thread runs yet, and the default action is no handler of ours.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

#[cfg(not(unix))]
fn stop_at_closed_pipes() {}

fn main() -> ExitCode {
    stop_at_closed_pipes();
    let outcome = match Cli::parse().command {
        Command::Export(args) => commands::export::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Verify(args) => commands::verify::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Bench(args) => commands::bench::run(args),
        Command::Build(args) => commands::build::run(args),
        Command::Generate(args) => commands::generate::run(args),
        Command::Doctor(args) => commands::doctor::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::BadResult(message)) => {
            eprintln!("failed: {message}");
            ExitCode::from(1)
        }
        Err(Failure::BadInput(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}
