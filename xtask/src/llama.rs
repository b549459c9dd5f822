//! llama.cpp's server, built from the source that comes with a release of `llama-cpp-python`.

use crate::setup;
use crate::step::{Error, Steps, say};
use crate::workspace::{Workspace, python_of};
use std::env::consts::EXE_SUFFIX;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names the release.
const REQUIREMENTS: &str = "benches/cpu/requirements-model.txt";
const PACKAGE: &str = "llama-cpp-python";
const REMEDY: &str = "read the messages above; remove target/peers/llama.cpp to begin anew";

/// Builds the server below the environment `venv`, which has CMake and Ninja, or finds that it is there.
pub fn server(workspace: &Workspace, steps: &Steps<'_>, venv: &Path) -> Result<PathBuf, Error> {
    let release = release()?;
    let folder = venv.join("llama.cpp");
    let (source, build) = (folder.join("source"), folder.join("build"));
    let program = workspace.absolute(&build.join("bin").join(format!("llama-server{EXE_SUFFIX}")));
    let stamp = folder.join("release.txt");
    let made = std::fs::read_to_string(&stamp).is_ok_and(|found| found == release);
    if made && setup::runs(&program) {
        say(&format!("==> {} is up to date", program.display()));
        return Ok(program);
    }
    let failed =
        |error: std::io::Error| Error::new(format!("peers: {}: {error}", folder.display()), REMEDY);
    std::fs::create_dir_all(&folder).map_err(failed)?;
    let python = workspace.absolute(&python_of(venv));
    if !made || !source.is_dir() {
        unpack(steps, &python, &release, &folder)?;
    }
    let tool = |name: &str| {
        let programs = python.parent().unwrap_or(Path::new(""));
        // What the machine is asked for besides comes first.
        let mut command = Command::new("nice");
        command.arg(programs.join(name));
        command.env("PATH", path_with(programs));
        command
    };
    let mut configure = tool("cmake");
    configure.arg("-S").arg(&source).arg("-B").arg(&build);
    configure.args(["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]);
    for option in [
        "GGML_NATIVE=ON",
        "BUILD_SHARED_LIBS=OFF",
        "LLAMA_CURL=OFF",
        "LLAMA_OPENSSL=OFF",
        // Its page would be fetched.
        "LLAMA_USE_PREBUILT_UI=OFF",
        "LLAMA_BUILD_TESTS=OFF",
        "LLAMA_BUILD_EXAMPLES=OFF",
        "LLAMA_BUILD_APP=OFF",
    ] {
        configure.arg(format!("-D{option}"));
    }
    steps.run_quiet("peers: configure llama.cpp", &mut configure, REMEDY)?;
    let mut make = tool("cmake");
    make.arg("--build").arg(&build);
    make.args(["--target", "llama-server"]);
    let title = "peers: build llama.cpp's server (10 minutes on two cores)";
    steps.run_quiet(title, &mut make, REMEDY)?;
    std::fs::write(&stamp, release).map_err(failed)?;
    Ok(program)
}

/// `llama-cpp-python==N`, as the requirements have it.
fn release() -> Result<String, Error> {
    let restore = "restore the file from the repository";
    let text = std::fs::read_to_string(REQUIREMENTS)
        .map_err(|error| Error::new(format!("peers: {REQUIREMENTS}: {error}"), restore))?;
    released(&text).ok_or_else(|| {
        let problem = format!("peers: {REQUIREMENTS}: expected `{PACKAGE}==N`, found none");
        Error::new(problem, restore)
    })
}

fn released(requirements: &str) -> Option<String> {
    let mut words = requirements.split_whitespace();
    let start = format!("{PACKAGE}==");
    words
        .find(|word| word.starts_with(&start))
        .map(str::to_owned)
}

/// Puts llama.cpp's source into `folder/source`.
fn unpack(steps: &Steps<'_>, python: &Path, release: &str, folder: &Path) -> Result<(), Error> {
    let mut download = Command::new(python);
    download
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .args(["--no-deps", "--no-binary", PACKAGE, release, "--dest"])
        .arg(folder);
    let title = "peers: fetch llama.cpp's source";
    steps.run_quiet(
        title,
        &mut download,
        "check the network (pip honours HTTPS_PROXY, PIP_INDEX_URL)",
    )?;
    let script = "\
import pathlib, shutil, sys, tarfile
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2].replace('-', '_').replace('==', '-')
shutil.rmtree(folder / 'unpacked', ignore_errors=True)
shutil.rmtree(folder / 'source', ignore_errors=True)
with tarfile.open(folder / (name + '.tar.gz')) as archive:
    archive.extractall(folder / 'unpacked', filter='data')
(folder / 'unpacked' / name / 'vendor' / 'llama.cpp').rename(folder / 'source')
shutil.rmtree(folder / 'unpacked')
";
    let mut extract = Command::new(python);
    extract.args(["-c", script]).arg(folder).arg(release);
    steps.run_quiet("peers: unpack llama.cpp's source", &mut extract, REMEDY)
}

/// This process's program folders after `first`.
fn path_with(first: &Path) -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(first.to_owned()).chain(std::env::split_paths(&path));
    std::env::join_paths(folders).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_one_that_is_required() {
        let text = include_str!("../../benches/cpu/requirements-model.txt");
        let release = released(text).unwrap();
        assert!(release.starts_with("llama-cpp-python=="), "{release}");
        assert_eq!(released("--no-binary llama-cpp-python\nnumpy==2\n"), None);
    }
}
