//! NVIDIA's compilers and a C++ compiler: what the CUDA kernels are built and tested with. No GPU
//! and no driver is needed.

use crate::setup;
use crate::step::{Error, Steps, say};
use crate::workspace::Workspace;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is installed, and what a stamp is compared with. Code from a newer toolkit than a
/// machine's driver may not load there: 13.0 is the oldest that knows every architecture that
/// kernels/src/cuda/units.rs lists.
const PACKAGES: [&str; 6] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-nvdisasm==13.2.86",
];

/// The folder, below the target directory, that kernels/build.rs looks into.
const FOLDER: &str = "cuda";
const STAMP: &str = "ratplus-setup.txt";

/// Installs the compilers, or finds that they are there.
pub fn run(workspace: &Workspace) -> Result<(), Error> {
    let steps = Steps::new(workspace);
    check_cxx_compiler(&steps)?;
    if !cfg!(target_os = "linux") {
        say("==> setup: NVIDIA's packages are for Linux: no CUDA toolkit here");
        return Ok(());
    }
    let folder = workspace.target.join(FOLDER);
    let stamp = folder.join(STAMP);
    let wanted = PACKAGES.join("\n");
    let found = std::fs::read_to_string(&stamp).unwrap_or_default();
    if found == wanted && program(workspace, "nvcc").is_file() {
        say(&format!("==> setup: {} is up to date", folder.display()));
        return Ok(());
    }
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(|error| unwritable(&folder, &error))?;
    }
    setup::install_into(
        workspace,
        &steps,
        "setup: install the pinned CUDA toolkit (0.5 GB)",
        &folder,
        &PACKAGES,
    )?;
    // A build script that found no nvcc does not look again.
    let mut clean = Command::new("cargo");
    clean.args(["clean", "--quiet", "--release", "-p", "ratplus-kernels"]);
    steps.run_quiet(
        "setup: have the kernels built with it",
        &mut clean,
        "read cargo's message above",
    )?;
    std::fs::write(&stamp, wanted).map_err(|error| unwritable(&stamp, &error))
}

/// An installed program.
pub fn program(workspace: &Workspace, name: &str) -> PathBuf {
    let folder = workspace.target.join(FOLDER);
    folder.join("nvidia/cu13/bin").join(name)
}

/// The folder with the installed NVRTC.
pub fn nvrtc_folder(workspace: &Workspace) -> PathBuf {
    workspace.target.join(FOLDER).join("nvidia/cu13/lib")
}

fn unwritable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(
        format!("setup: {}: {error}", path.display()),
        "free disk space or permissions, then run it again",
    )
}

/// The C++ compilers that are missing: nvcc asks for `g++`, the emulator for `CXX` or `c++`.
fn missing_cxx() -> Vec<String> {
    let named = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let named = named.split_whitespace().next().unwrap_or("c++").to_owned();
    let programs = [named, "g++".to_owned()];
    let missing = programs
        .into_iter()
        .filter(|program| !setup::runs(Path::new(program)));
    missing.collect()
}

/// Finds a C++ compiler, or installs Debian's where this process may.
pub fn check_cxx_compiler(steps: &Steps<'_>) -> Result<(), Error> {
    if missing_cxx().is_empty() {
        return Ok(());
    }
    let remedy = "install g++ (Debian: apt install g++), or name another compiler in the \
        environment variable CXX besides";
    install_debian(steps, "setup: install a C++ compiler", "g++", remedy)?;
    match &missing_cxx()[..] {
        [] => Ok(()),
        [program, ..] => Err(Error::new(
            format!("setup: the C++ compiler `{program}` did not run (`{program} --version`)"),
            remedy,
        )),
    }
}

/// Installs one of Debian's packages where this process may; elsewhere nothing.
pub fn install_debian(
    steps: &Steps<'_>,
    title: &str,
    package: &str,
    remedy: &str,
) -> Result<(), Error> {
    if !setup::runs(Path::new("apt-get")) || !is_root() {
        return Ok(());
    }
    let mut update = Command::new("apt-get");
    update.args(["update", "-q"]);
    let mut install = Command::new("apt-get");
    install
        .args(["install", "-q", "-y", "--no-install-recommends", package])
        .env("DEBIAN_FRONTEND", "noninteractive");
    // Package lists may be there already; where they are not, the second try says what fails.
    if steps.run_quiet(title, &mut install, remedy).is_err() {
        steps.run_quiet("setup: read the package lists", &mut update, remedy)?;
        steps.run_quiet(title, &mut install, remedy)?;
    }
    Ok(())
}

/// Whether this process may install packages.
fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}
