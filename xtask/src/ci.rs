//! What every change has to pass.

use crate::Outcome;
use crate::fuzz;
use crate::resources;
use crate::setup;
use crate::step::{Error, Steps, say};
use crate::suite;
use crate::supply;
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
    let operators = operators(workspace);
    let mut formatting = vec!["fmt", "--all", "--check", "--"];
    formatting.extend(operators.iter().map(String::as_str));
    for (title, arguments, environment) in [
        ("formatting", &formatting[..], &[][..]),
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
            &RUST_ALONE,
        ),
        (
            "documentation",
            &["doc", "--workspace", "--no-deps", "--release"],
            &[&RUST_ALONE[..], &[("RUSTDOCFLAGS", "-D warnings")]].concat(),
        ),
        ("packages", &PACKAGE, &[]),
    ] {
        let mut command = Command::new("cargo");
        command.args(arguments).envs(environment.iter().copied());
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
    let mut skips = Vec::new();
    if !other_processor(&steps, &mut skips)? {
        failed.push(PORTABLE);
    }
    if !supply::run(workspace, &steps, &mut skips)? {
        failed.push(supply::TITLE);
    }
    match fuzz::run_in_ci(workspace, &mut skips) {
        Ok(true) => (),
        Ok(false) => failed.push("fuzz"),
        Err(error) => {
            say(&format!("    FAILED: {error}"));
            failed.push("fuzz");
        }
    }
    if !failed.is_empty() {
        say(&format!("\nchecks that failed: {}\n", failed.join(", ")));
    }
    Ok(suite::run_after(workspace, skips)? && failed.is_empty())
}

/// The files of operators: a macro declares these modules, where rustfmt looks for none.
fn operators(workspace: &Workspace) -> Vec<String> {
    let entries = std::fs::read_dir(workspace.root.join("graphs/src/ops"));
    let paths = entries.into_iter().flatten().flatten();
    let files = paths.map(|entry| match entry.path() {
        folder if folder.is_dir() => folder.join("mod.rs"),
        file => file,
    });
    files.map(|file| file.display().to_string()).collect()
}

/// Nothing is said of what the compilers of CUDA and C++ make, and each check would have them make it anew.
const RUST_ALONE: [(&str, &str); 2] = [("RATPLUS_NVCC", "none"), ("RATPLUS_CXX", "none")];

/// Every crate that is published, as cargo would publish it. The others are left out, so that none
/// that is published may need one of them.
const PACKAGE: [&str; 19] = [
    "package",
    "--workspace",
    "--no-verify",
    "--allow-dirty",
    "--quiet",
    "--exclude",
    "ratplus-benches",
    "--exclude",
    "ratplus-examples",
    "--exclude",
    "ratplus-faults",
    "--exclude",
    "ratplus-fuzz",
    "--exclude",
    "ratplus-python",
    "--exclude",
    "ratplus-tests",
    "--exclude",
    "xtask",
];
const PORTABLE: &str = "kernels on another processor";

/// Compiles the kernels' portable path for a processor that has no other; false where it fails.
/// Needs rustup to bring that processor's standard library.
fn other_processor(steps: &Steps<'_>, skips: &mut Vec<String>) -> Result<bool, Error> {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    let added = Command::new("rustup")
        .args(["target", "add", TARGET])
        .output();
    let reason = match added {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("rustup: {error}")),
    };
    if let Some(reason) = reason {
        skips.push(format!(
            "{PORTABLE}: no standard library for {TARGET}: {reason}"
        ));
        return Ok(true);
    }
    let mut clippy = Command::new("cargo");
    clippy.args([
        "clippy",
        "-p",
        "ratplus-kernels",
        "--no-default-features",
        "--lib",
    ]);
    clippy.args(["--release", "--target", TARGET, "--", "-D", "warnings"]);
    let passed = steps.try_run(PORTABLE, &mut clippy)?;
    if !passed {
        say(&format!("    FAILED: {PORTABLE}"));
    }
    Ok(passed)
}
