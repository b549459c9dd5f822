//! A Triton Inference Server for its tests: of the wheel that has one, the server alone.

use crate::setup::{self, INSTALL_REMEDY, STAMP};
use crate::step::{Error, Steps, say};
use crate::workspace::Workspace;
use std::fs;
use std::path::Path;

/// The wheel, and what a stamp is compared with.
const REQUIREMENTS: &str = "tests/python/triton-requirements.txt";

/// Installs it, or finds that it is there. Where it cannot be had, its tests skip.
pub fn install(workspace: &Workspace) {
    if let Err(error) = server(workspace, &workspace.target.join("triton")) {
        say(&format!("    not installed, its tests will skip: {error}"));
    }
}

fn server(workspace: &Workspace, folder: &Path) -> Result<(), Error> {
    let failed = |path: &Path, error: std::io::Error| {
        let what = format!("setup: {}: {error}", path.display());
        Error::new(
            what,
            "restore the file, or free disk space or permissions, then run it again",
        )
    };
    let requirements = Path::new(REQUIREMENTS);
    let wanted = fs::read_to_string(requirements).map_err(|error| failed(requirements, error))?;
    let stamp = folder.join(STAMP);
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(|error| failed(folder, error))?;
    }
    let mut install = setup::pip_of(&workspace.venv());
    // Nothing of it is run but the server, which needs no Python; the wheel is not kept.
    install
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(["--only-binary=:all:", "--no-deps", "--no-cache-dir"])
        .args(["--no-compile", "-r", REQUIREMENTS, "--target"])
        .arg(folder);
    let title = "setup: install a Triton Inference Server";
    Steps::new(workspace).run_quiet(title, &mut install, INSTALL_REMEDY)?;
    // Beside the server: a package for Python, backends for it, and what only these link.
    let keep = |folder: &Path, kept: fn(&str) -> bool| {
        remove_others(folder, kept).map_err(|error| failed(folder, error))
    };
    keep(folder, |name| {
        name == "pytriton" || name.starts_with("nvidia_pytriton")
    })?;
    keep(&folder.join("pytriton"), |name| name == "tritonserver")?;
    keep(&folder.join("pytriton/tritonserver"), |name| name == "bin")?;
    keep(&folder.join("nvidia_pytriton.libs"), |name| {
        !name.starts_with("libpython")
    })?;
    fs::write(&stamp, wanted).map_err(|error| failed(&stamp, error))
}

/// Removes what is in `folder` but for names that are `kept`.
fn remove_others(folder: &Path, kept: fn(&str) -> bool) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if kept(&entry.file_name().to_string_lossy()) {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}
