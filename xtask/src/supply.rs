//! Licences, sources and bans of every dependency, by cargo-deny.

use crate::step::{Error, Steps, say};
use crate::workspace::Workspace;
use std::process::Command;

/// The check's name in reports.
pub const TITLE: &str = "licences, sources and bans";
const VERSION: &str = "0.20.2";

/// Installs cargo-deny into the target folder, unoptimized because that is most of the time it
/// takes, and runs it; false where it finds something. Where it cannot be installed, a skip.
pub fn run(
    workspace: &Workspace,
    steps: &Steps<'_>,
    skips: &mut Vec<String>,
) -> Result<bool, Error> {
    let root = workspace.target.join("tools");
    let mut install = Command::new("cargo");
    install
        .args(["install", "--quiet", "--debug", "--locked", "--root"])
        .arg(workspace.absolute(&root))
        .arg(format!("cargo-deny@{VERSION}"));
    if !steps.try_run("install cargo-deny", &mut install)? {
        skips.push(format!("{TITLE}: cargo-deny {VERSION} cannot be installed"));
        return Ok(true);
    }
    let mut deny = Command::new(workspace.absolute(&root.join("bin/cargo-deny")));
    // Every feature: the fuzzer's own dependencies too. What is there twice is only a warning.
    deny.args(["--all-features", "--log-level", "error", "check"])
        .args(["--hide-inclusion-graph", "bans", "licenses", "sources"]);
    let passed = steps.try_run(TITLE, &mut deny)?;
    if !passed {
        say(&format!("    FAILED: {TITLE}"));
    }
    Ok(passed)
}
