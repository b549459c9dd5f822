//! `ratplus completions` and `ratplus man`: what shells and manuals know of this command line.

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::output::{Failure, OrInput, Outcome};
use crate::streams::{errln, out};
use clap::CommandFactory;

/// Prints the script that completes commands and flags.
pub fn completions(args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ratplus", &mut script);
    out!("{}", String::from_utf8(script).or_input()?);
    Ok(())
}

/// Writes a page for `ratplus` and one for each of its commands.
pub fn man(args: &ManArgs) -> Outcome {
    let dir = &args.dir;
    let failed = |error| Failure::input(format!("{}: {error}", dir.display()));
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?;
    errln!(
        "wrote ratplus.1 and a page a command into {}",
        dir.display()
    );
    Ok(())
}
