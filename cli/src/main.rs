//! The `ratplus` command.

// Both end the process where the stream cannot be written; see `streams`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod commands;
mod files;
mod flags;
mod log;
mod memory;
mod output;
mod streams;

use args::{Cli, Command};
use clap::Parser;
use output::{Failure, Outcome};
use std::process::ExitCode;
use streams::errln;

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(usage) if usage.use_stderr() => {
            let _ = usage.print();
            return ExitCode::from(2);
        }
        Err(help) => {
            streams::keep(help.print());
            return end(Ok(()));
        }
    };
    let installed = match &command {
        Command::Serve(args) => log::install_for_serving(args.log_format),
        _ => log::install(),
    };
    if let Err(problem) = installed {
        return end(Err(Failure::input(problem)));
    }
    end(match command {
        Command::Export(args) => commands::export::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Check(args) => commands::check::run(args),
        Command::Verify(args) => commands::verify::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Bench(args) => commands::bench::run(args),
        #[cfg(feature = "tensorrt")]
        Command::Build(args) => commands::build::run(args),
        #[cfg(not(feature = "tensorrt"))]
        Command::Build(args) => Err(Failure::input(format!(
            "backend `{}`: this build has none; build ratplus with its feature `tensorrt`",
            args.backend
        ))),
        Command::Generate(args) => commands::generate::run(args),
        Command::Serve(args) => commands::serve::run(args),
        Command::Triton(args) => commands::triton::run(args),
        Command::Doctor(args) => commands::doctor::run(args),
        Command::Completions(args) => commands::shell::completions(&args),
        Command::Man(args) => commands::shell::man(&args),
    })
}

/// Says why a command ended without success; output that went nowhere is bad environment, too.
fn end(outcome: Outcome) -> ExitCode {
    let mut code = 0;
    for failure in [outcome, streams::finish()]
        .into_iter()
        .filter_map(Result::err)
    {
        let (word, number) = match failure {
            Failure::BadResult(_) => ("failed", 1),
            Failure::BadInput(_) => ("error", 2),
        };
        errln!("{word}: {failure}");
        code = code.max(number);
    }
    ExitCode::from(code)
}
