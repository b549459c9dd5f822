//! What every change has to pass.

use crate::Outcome;
use crate::resources;
use crate::setup;
use crate::step::{Steps, say};
use crate::suite;
use crate::workspace::Workspace;
use std::process::Command;

/// Runs every check, then the tests, whatever failed before; true where all held. The test
/// counts stay the last line.
pub fn run(workspace: &Workspace) -> Outcome {
    let steps = Steps::new(workspace);
    let mut failed = Vec::new();
    // First, so that nothing is built twice: the kernels embed what the toolkit makes of them.
    if let Err(error) = setup::run(workspace) {
        say(&format!("    FAILED: {error}"));
        failed.push("setup");
    }
    for (title, arguments, environment) in [
        ("formatting", &["fmt", "--all", "--check"][..], None),
        (
            "lints",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--release",
                "--",
                "-D",
                "warnings",
            ],
            None,
        ),
        (
            "documentation",
            &["doc", "--workspace", "--no-deps", "--release"],
            Some(("RUSTDOCFLAGS", "-D warnings")),
        ),
    ] {
        let mut command = Command::new("cargo");
        command.args(arguments).envs(environment);
        if !steps.try_run(title, &mut command)? {
            say(&format!("    FAILED: {title}"));
            failed.push(title);
        }
    }
    match resources::run(workspace, true) {
        Ok(true) => (),
        Ok(false) => failed.push("cuda-resources"),
        Err(error) => {
            say(&format!("    FAILED: {error}"));
            failed.push("cuda-resources");
        }
    }
    if !failed.is_empty() {
        say(&format!("\nchecks that failed: {}\n", failed.join(", ")));
    }
    Ok(suite::run(workspace)? && failed.is_empty())
}
