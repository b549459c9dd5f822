//! TensorRT's headers and the parts of it that need no GPU: registries of plugins to load ours
//! into, and TensorRT for RTX, which builds engines.

use crate::setup;
use crate::step::{Error, Steps, say};
use crate::workspace::Workspace;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Below the target directory.
const FOLDER: &str = "tensorrt";
const STAMP: &str = "ratplus-setup.txt";

/// The crate that carries NVIDIA's headers (Apache-2.0), unpacked and never built.
const HEADERS_CRATE: (&str, &str) = ("trtx-sys", "0.9.1");
/// Its folder of headers, and what ours are called.
const HEADERS: [(&str, &str); 3] = [
    ("TRT-Enterprise-11.4", "tensorrt-11.4"),
    ("TRT-RTX-1.7", "tensorrt-rtx-1.7"),
    // Of the time of TensorRT 10: plugins of the second version, no versioned logger.
    ("TRT-RTX-1.3", "tensorrt-rtx-1.3"),
];
/// Full TensorRT's newest.
pub const NEWEST_HEADERS: &str = HEADERS[0].1;
/// Packages whose build scripts look for the headers.
const BUILT_WITH_HEADERS: [&str; 2] = ["ratplus-nvinfer", "ratplus-tensorrt"];
/// The types of CUDA's runtime that they name.
const CUDA_STUB: &str = "cuda_runtime_api.h";

/// Folder and wheel of each library. The lean runtimes have plugin registries of their own.
const LIBRARIES: [(&str, &str); 3] = [
    ("lean-11.4", "tensorrt-lean-cu13-libs==11.4.0.106"),
    ("lean-10.16", "tensorrt-lean-cu13-libs==10.16.1.11"),
    ("rtx-1.7", "tensorrt-rtx-cu13-libs==1.7.1.116"),
];

/// The folder with the libraries of TensorRT for RTX.
pub fn rtx_folder(workspace: &Workspace) -> PathBuf {
    let folder = workspace.target.join(FOLDER).join("rtx-1.7");
    folder.join("tensorrt_rtx_libs")
}

/// Installs the headers, which the build of the plugin library and of the driver looks for.
pub fn headers(workspace: &Workspace) -> Result<(), Error> {
    let steps = Steps::new(workspace);
    let folder = headers_folder(workspace);
    let (stamp, wanted) = (folder.join(STAMP), format!("{HEADERS_CRATE:?} {HEADERS:?}"));
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        say(&format!("==> setup: {} is up to date", folder.display()));
        return Ok(());
    }
    let (name, version) = HEADERS_CRATE;
    let fetched = workspace.target.join(FOLDER).join("fetch");
    let title = format!("setup: fetch TensorRT's headers (crate {name} {version})");
    let source = steps.timed(&title, || locate_crate(workspace, &fetched))?;
    let source = source.join("TensorRT-Headers");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(|error| unwritable(&folder, &error))?;
    }
    for (from, to) in HEADERS {
        copy_files(&source.join(from), &folder.join(to))?;
    }
    copy_file(&source.join(CUDA_STUB), &folder.join(CUDA_STUB))?;
    // A build script that found no headers does not look again.
    let mut clean = Command::new("cargo");
    clean.args(["clean", "--quiet", "--release"]);
    for package in BUILT_WITH_HEADERS {
        clean.args(["-p", package]);
    }
    steps.run_quiet(
        "setup: have the code for TensorRT built with them",
        &mut clean,
        "read cargo's message above",
    )?;
    std::fs::write(&stamp, wanted).map_err(|error| unwritable(&stamp, &error))
}

/// Where the headers of each release are.
pub fn headers_folder(workspace: &Workspace) -> PathBuf {
    workspace.target.join(FOLDER).join("headers")
}

/// Folders with each release's headers, separated as in PATH.
pub fn includes(workspace: &Workspace) -> Result<OsString, Error> {
    let folder = workspace.absolute(&headers_folder(workspace));
    let folders = HEADERS.map(|(_, name)| folder.join(name));
    std::env::join_paths(folders).map_err(|error| {
        let reason = format!("{}: {error}", folder.display());
        Error::new(reason, "build in a folder without a colon in its name")
    })
}

/// Installs the libraries that the tests load. One that cannot be had is said to be missing; its
/// tests skip.
pub fn libraries(workspace: &Workspace) {
    let steps = Steps::new(workspace);
    if !cfg!(target_os = "linux") {
        say("==> setup: NVIDIA's packages are for Linux: no TensorRT here");
        return;
    }
    for (name, package) in LIBRARIES {
        let folder = workspace.target.join(FOLDER).join(name);
        let stamp = folder.join(STAMP);
        if std::fs::read_to_string(&stamp).is_ok_and(|found| found == package) {
            continue;
        }
        let title = format!("setup: install TensorRT {name} for its tests");
        // Without what it depends on: CUDA's runtime, which is only for running engines.
        match setup::install_into(workspace, &steps, &title, &folder, &["--no-deps", package]) {
            Ok(()) => {
                let _ = std::fs::write(&stamp, package);
            }
            Err(error) => say(&format!("    not installed, its tests will skip: {error}")),
        }
    }
}

/// Where cargo has unpacked the crate with the headers.
fn locate_crate(workspace: &Workspace, folder: &Path) -> Result<PathBuf, Error> {
    let (name, version) = HEADERS_CRATE;
    let manifest = format!(
        "[package]\nname = \"headers\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[lib]\npath = \
         \"none.rs\"\n[dependencies]\n{name} = \"={version}\"\n[workspace]\n"
    );
    std::fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))?;
    for (file, text) in [("Cargo.toml", manifest.as_str()), ("none.rs", "")] {
        let path = folder.join(file);
        std::fs::write(&path, text).map_err(|error| unwritable(&path, &error))?;
    }
    let remedy =
        "check the network and cargo's registry settings, then run `cargo xtask setup` again";
    let mut metadata = Command::new("cargo");
    metadata
        .args(["metadata", "--quiet", "--format-version", "1"])
        .current_dir(workspace.absolute(folder));
    let output = metadata
        .output()
        .map_err(|error| Error::new(format!("setup: `cargo` did not run: {error}"), remedy))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let paths = text.split("\"manifest_path\":\"").skip(1);
    let folders = paths.filter_map(|rest| Path::new(rest.split('"').next()?).parent());
    let ours = format!("{name}-{version}");
    let found = folders
        .filter(|folder| {
            folder
                .file_name()
                .is_some_and(|file| file.to_string_lossy().starts_with(&ours))
        })
        .map(Path::to_owned)
        .next();
    found.ok_or_else(|| {
        let message = String::from_utf8_lossy(&output.stderr);
        Error::new(
            format!(
                "setup: the crate {name} {version} was not had: {}",
                message.trim()
            ),
            remedy,
        )
    })
}

/// Copies the files of a folder.
fn copy_files(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(to).map_err(|error| unwritable(to, &error))?;
    let entries = std::fs::read_dir(from).map_err(|error| incomplete(from, &error))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let copy = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_files(&path, &copy)?;
        } else {
            copy_file(&path, &copy)?;
        }
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path) -> Result<(), Error> {
    let content = std::fs::read(from).map_err(|error| incomplete(from, &error))?;
    std::fs::write(to, content).map_err(|error| unwritable(to, &error))
}

fn incomplete(path: &Path, error: &std::io::Error) -> Error {
    Error::new(
        format!("setup: {}: {error}", path.display()),
        "clear cargo's registry cache of that crate, then run `cargo xtask setup` again",
    )
}

fn unwritable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(
        format!("setup: {}: {error}", path.display()),
        "free disk space or permissions, then run it again",
    )
}
