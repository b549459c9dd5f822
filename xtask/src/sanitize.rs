//! The custom-op library under AddressSanitizer, in Python and ONNX Runtime, which are built without.

use crate::Outcome;
use crate::setup;
use crate::step::{Error, Steps};
use crate::workspace::Workspace;
use std::path::{Path, PathBuf};
use std::process::Command;

const TESTS: &str = "tests/python/sanitize_ort_plugin.py";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the library in a folder of its own and runs its tests; false where one fails.
pub fn run(workspace: &Workspace) -> Outcome {
    let steps = Steps::new(workspace);
    // gcc has the sanitizer's runtime as a library, which rustc has not. Its operator of C++
    // exceptions looks for the real one when it is loaded, before anything brought that one.
    let preload = [library("libasan.so")?, library("libstdc++.so")?];
    setup::python(workspace)?;
    let folder = workspace.target.join("sanitize");
    let mut build = Command::new("cargo");
    build
        .args(["build", "--release", "--lib", "--target", TARGET])
        .args(["-p", "ratplus-onnxruntime", "--features", "fault-injection"])
        .arg("--target-dir")
        .arg(&folder)
        // The flag is unstable, the compiler of a release has it all the same.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address -Clink-arg=-lasan")
        // Nothing here runs on a GPU.
        .env("RATPLUS_NVCC", "none");
    let remedy = "mend what the compiler says above, then run it again";
    steps.run(
        "the custom-op library with AddressSanitizer",
        &mut build,
        remedy,
    )?;
    let built = folder.join(TARGET).join("release/libratplus_ort.so");
    let preload: Vec<_> = preload.iter().map(|path| path.to_string_lossy()).collect();
    let mut tests = Command::new(workspace.python());
    tests
        .args(["-m", "pytest", TESTS, "-v", "--color=no", "--durations=3"])
        .env_remove("PYTEST_ADDOPTS")
        .env("RATPLUS_SANITIZED_LIBRARY", workspace.absolute(&built))
        .env("RATPLUS_SANITIZER", preload.join(":"));
    steps.try_run("tests under AddressSanitizer", &mut tests)
}

/// A shared library of gcc's.
fn library(name: &str) -> Result<PathBuf, Error> {
    let mut gcc = Command::new("gcc");
    let found = gcc.arg(format!("-print-file-name={name}")).output();
    let found = found.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    // What gcc does not have comes back as it was asked for.
    let path = found.ok().filter(|path| path.contains('/'));
    path.and_then(|path| Path::new(&path).canonicalize().ok())
        .ok_or_else(|| {
            Error::new(
                format!("sanitize: gcc has no {name}"),
                "install gcc and g++ (Debian: apt install gcc g++); other compilers lack it",
            )
        })
}
