//! What a machine with a GPU needs to check and measure the kernels: binaries and scripts in one
//! folder.

use crate::step::{Error, Steps, say};
use crate::tensorrt;
use crate::toolkit;
use crate::workspace::Workspace;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Below the target directory, which git ignores.
const FOLDER: &str = "gpu-bundle";
const SCRIPTS: &str = "benches/gpu";
const HARNESS: &str = "tests/python/trt_harness.cpp";
/// What the package for the `ort` step is made of.
const CHECKPOINT: &str = "tests/golden/kjv_d16w64i4";
/// Bytes of all files together; what travels to such a machine is limited.
const MOST_BYTES: u64 = 64 << 20;
/// Sets of steps of benches/gpu/check.py, each of at most ten minutes.
const RUNS: [(&str, &str); 7] = [
    (
        "brief",
        "every kernel, the times that goals are set for, counters, memcheck",
    ),
    ("first", "every kernel against the reference, memcheck"),
    ("bench", "our times"),
    ("peers", "PyTorch's times"),
    ("sanitize", "racecheck, initcheck, synccheck"),
    (
        "trt-plugins",
        "TensorRT plugins against the definition, and their times",
    ),
    (
        "ort",
        "captured against eager under onnxruntime-gpu, where it is installed",
    ),
];

/// Builds and copies everything, and says what to type on the other machine.
pub fn run(workspace: &Workspace) -> Result<(), Error> {
    let steps = Steps::new(workspace);
    toolkit::run(workspace)?;
    tensorrt::headers(workspace)?;
    let mut build = Command::new("cargo");
    build.args(["build", "--release"]);
    build.args(["-p", "ratplus-benches", "-p", "ratplus"]);
    build.args(["-p", "ratplus-onnxruntime", "-p", "ratplus-tensorrt"]);
    steps.run(
        "build gpu_check, the ratplus command and the plugin libraries",
        &mut build,
        "mend what the compiler says above, then run it again",
    )?;
    let check = workspace.release.join("gpu_check");
    embeds_code(&check)?;

    let folder = workspace.target.join(FOLDER);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(|error| unwritable(&folder, &error))?;
    }
    std::fs::create_dir_all(&folder).map_err(|error| unwritable(&folder, &error))?;
    for binary in [
        check,
        workspace.program(),
        workspace.ort_plugin(),
        workspace.trt_plugin(),
    ] {
        strip(&steps, &binary, &folder)?;
    }
    let program = workspace.program();
    pack(
        &steps,
        &folder.join(program.file_name().unwrap_or_default()),
    )?;
    harness(workspace, &steps, &folder.join("trt_harness.so"))?;
    for script in scripts()? {
        let to = folder.join(script.file_name().unwrap_or_default());
        std::fs::copy(&script, &to).map_err(|error| unwritable(&to, &error))?;
    }
    package(workspace, &steps, &folder.join("package"))?;
    let commit = folder.join("commit.txt");
    std::fs::write(&commit, commit_name()).map_err(|error| unwritable(&commit, &error))?;

    let total = list(&folder)?;
    if total > MOST_BYTES {
        return Err(Error::new(
            format!(
                "{}: expected at most {} bytes in all, found {total}",
                folder.display(),
                MOST_BYTES
            ),
            "leave something out, in xtask/src/bundle.rs",
        ));
    }
    say(&format!(
        "\nCarry {0} to the machine with the GPU; there, from the checkout's root:",
        folder.display()
    ));
    for (name, what) in RUNS {
        say(&format!(
            "    python3 {}/check.py --steps {name:9} # {what}",
            folder.display()
        ));
    }
    say("and here, with the results.json of each:");
    say("    python3 benches/gpu/report.py FILE...");
    Ok(())
}

/// The other machine need not have NVRTC.
fn embeds_code(check: &Path) -> Result<(), Error> {
    let remedy = "run `cargo xtask setup` (it installs nvcc), then this again";
    let output = Command::new(check).arg("info").output().map_err(|error| {
        Error::new(format!("{}: did not run: {error}", check.display()), remedy)
    })?;
    // Without a driver it ends with an error, after this line.
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find(|line| line.starts_with("embedded: ")) {
        Some(line) if line.contains("nvcc") => {
            say(&format!("    {line}"));
            Ok(())
        }
        found => Err(Error::new(
            format!(
                "{}: expected the code of the CUDA kernels in it, found `{}`",
                check.display(),
                found.unwrap_or_default()
            ),
            remedy,
        )),
    }
}

/// Copies a binary without its symbols.
fn strip(steps: &Steps<'_>, binary: &Path, folder: &Path) -> Result<(), Error> {
    let name = binary.file_name().unwrap_or_default();
    let mut strip = Command::new("strip");
    strip
        .args(["--strip-unneeded", "-o"])
        .arg(folder.join(name))
        .arg(binary);
    steps.run_quiet(
        &format!("copy {}", name.to_string_lossy()),
        &mut strip,
        "install binutils (Debian: apt install binutils)",
    )
}

/// Packs the largest file, which only TensorRT's steps need.
fn pack(steps: &Steps<'_>, file: &Path) -> Result<(), Error> {
    let mut gzip = Command::new("gzip");
    gzip.args(["-9", "--no-name"]).arg(file);
    steps.run_quiet(
        "pack the ratplus command",
        &mut gzip,
        "install gzip (Debian: apt install gzip)",
    )
}

/// A small trained model, for decoding under ONNX Runtime.
fn package(workspace: &Workspace, steps: &Steps<'_>, folder: &Path) -> Result<(), Error> {
    let mut export = Command::new(workspace.program());
    export
        .args(["export", "--no-check"])
        .arg(format!("{CHECKPOINT}/model.pth"))
        .arg("--config")
        .arg(format!("{CHECKPOINT}/config.json"))
        .arg("--tokenizer")
        .arg(format!("{CHECKPOINT}/tokenizer.json"))
        .args(["--dtype", "bf16", "--batch", "4", "--max-seq-len", "1024"])
        .args(["--prefill-lengths", "64", "-o"])
        .arg(folder);
    steps.run_quiet(
        "export the package of the `ort` step",
        &mut export,
        "read its message above",
    )
}

/// What plays TensorRT for trt_plugin_check.py.
fn harness(workspace: &Workspace, steps: &Steps<'_>, to: &Path) -> Result<(), Error> {
    let headers = tensorrt::headers_folder(workspace);
    let mut compile = Command::new("c++");
    compile
        .args(["-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-isystem"])
        .arg(headers.join(tensorrt::NEWEST_HEADERS))
        .arg("-isystem")
        .arg(headers)
        .args([HARNESS, "-ldl", "-o"])
        .arg(to);
    steps.run_quiet(
        "build the harness of the TensorRT plugins",
        &mut compile,
        "read the compiler's message above",
    )
}

/// The Python files of benches/gpu, and what they import.
fn scripts() -> Result<Vec<PathBuf>, Error> {
    let entries = std::fs::read_dir(SCRIPTS).map_err(|error| {
        Error::new(
            format!("{SCRIPTS}: {error}"),
            "restore the folder from the repository",
        )
    })?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut scripts: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "py"))
        .collect();
    scripts.push(Path::new(HARNESS).with_file_name("trt_driver.py"));
    scripts.sort();
    Ok(scripts)
}

/// What the binaries were built from.
fn commit_name() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".into();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit} with changes"),
    }
}

/// Prints every file's size; their sum.
fn list(folder: &Path) -> Result<u64, Error> {
    let mut folders = vec![folder.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).map_err(|error| unwritable(&folder, &error))?;
        for entry in entries.flatten() {
            match entry.metadata() {
                Ok(data) if data.is_dir() => folders.push(entry.path()),
                Ok(data) => files.push((entry.path(), data.len())),
                Err(error) => return Err(unwritable(&entry.path(), &error)),
            }
        }
    }
    files.sort();
    let total = files.iter().map(|(_, bytes)| bytes).sum();
    for (path, bytes) in &files {
        say(&format!(
            "    {:9.3} MB  {}",
            megabytes(*bytes),
            path.display()
        ));
    }
    say(&format!("    {:9.3} MB  in all", megabytes(total)));
    Ok(total)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn unwritable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(
        format!("{}: {error}", path.display()),
        "free disk space or permissions, then run it again",
    )
}
