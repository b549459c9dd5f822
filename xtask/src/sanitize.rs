//! The custom-op library under a sanitizer, in Python and ONNX Runtime, which are built without.

use crate::Outcome;
use crate::setup;
use crate::step::{Error, Steps};
use crate::workspace::Workspace;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What watches the library.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sanitizer {
    /// AddressSanitizer.
    Address,
    /// ThreadSanitizer.
    Thread,
}

impl Sanitizer {
    fn name(self) -> &'static str {
        match self {
            Self::Address => "AddressSanitizer",
            Self::Thread => "ThreadSanitizer",
        }
    }

    fn tests(self) -> &'static str {
        match self {
            Self::Address => "tests/python/sanitize_ort_plugin.py",
            Self::Thread => "tests/python/sanitize_threads.py",
        }
    }
}

/// Builds the library in a folder of its own and runs its tests; false where one fails.
pub fn run(workspace: &Workspace, sanitizer: Sanitizer) -> Outcome {
    let steps = Steps::new(workspace);
    // gcc has the sanitizer's runtime as a library, which rustc has not. Its operator of C++
    // exceptions looks for the real one when it is loaded, before anything brought that one.
    let runtime = match sanitizer {
        Sanitizer::Address => "libasan.so",
        Sanitizer::Thread => "libtsan.so",
    };
    let preload = [library(runtime)?, library("libstdc++.so")?];
    setup::python(workspace)?;
    let mut folder = workspace.target.join("sanitize");
    if sanitizer == Sanitizer::Thread {
        folder = folder.join("thread");
    }
    let flags = match sanitizer {
        Sanitizer::Address => "-Zsanitizer=address -Clink-arg=-lasan".into(),
        Sanitizer::Thread => {
            let copies = copies(workspace, &steps, &folder)?;
            // std is not instrumented, and the compiler wants to be told that this is known.
            format!(
                "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer -Clink-arg=-ltsan \
                 -Clink-arg={}",
                workspace.absolute(&copies).display()
            )
        }
    };
    let mut build = Command::new("cargo");
    build
        .args(["build", "--release", "--lib", "--target", TARGET])
        .args(["-p", "ratplus-onnxruntime", "--features", "fault-injection"])
        .arg("--target-dir")
        .arg(&folder)
        // The flag is unstable, the compiler of a release has it all the same.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", flags)
        // Nothing here runs on a GPU.
        .env("RATPLUS_NVCC", "none");
    if sanitizer == Sanitizer::Thread {
        // A report names both places.
        build.env("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only");
    }
    let name = sanitizer.name();
    let remedy = "mend what the compiler says above, then run it again";
    steps.run(
        &format!("the custom-op library with {name}"),
        &mut build,
        remedy,
    )?;
    let mut operators = Command::new("cargo");
    operators.args(["build", "--release", "-p", "ratplus-tests", "--bins"]);
    steps.run("what tells of the operators", &mut operators, remedy)?;
    let built = folder.join(TARGET).join("release/libratplus_ort.so");
    let preload: Vec<_> = preload.iter().map(|path| path.to_string_lossy()).collect();
    let mut tests = Command::new(workspace.python());
    tests
        .args(["-m", "pytest", sanitizer.tests()])
        .args(["-v", "--color=no", "--durations=3"])
        .env_remove("PYTEST_ADDOPTS")
        .env(
            "RATPLUS_OPERATOR_TOOL",
            workspace.absolute(&workspace.operator_tool()),
        )
        .env("RATPLUS_SANITIZED_LIBRARY", workspace.absolute(&built))
        .env("RATPLUS_SANITIZER", preload.join(":"));
    steps.try_run(&format!("tests under {name}"), &mut tests)
}

/// LLVM calls these for copies and fills; the runtime of gcc 12 has only the functions of C, which
/// it watches. Each is a jump, so that the report names the caller.
const COPIES: &str = "\
#include <string.h>
void *__tsan_memcpy(void *to, const void *from, size_t n) { return memcpy(to, from, n); }
void *__tsan_memmove(void *to, const void *from, size_t n) { return memmove(to, from, n); }
void *__tsan_memset(void *to, int byte, size_t n) { return memset(to, byte, n); }
";

/// Compiles [`COPIES`].
fn copies(workspace: &Workspace, steps: &Steps<'_>, folder: &Path) -> Result<PathBuf, Error> {
    let (source, object) = (folder.join("copies.c"), folder.join("copies.o"));
    std::fs::create_dir_all(workspace.absolute(folder))
        .and_then(|()| std::fs::write(workspace.absolute(&source), COPIES))
        .map_err(|error| {
            Error::new(
                format!("sanitize: {}: {error}", source.display()),
                "free disk space or permissions, then run it again",
            )
        })?;
    let mut gcc = Command::new("gcc");
    // Where a runtime has them too, these are hidden and it does not matter.
    gcc.args(["-O2", "-fPIC", "-fvisibility=hidden", "-c"])
        .arg(&source)
        .arg("-o")
        .arg(&object);
    let remedy = "mend what gcc says above, then run it again";
    steps.run("copies for ThreadSanitizer", &mut gcc, remedy)?;
    Ok(object)
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
