//! What is installed into the target directory: the Python environment with ONNX Runtime and what
//! the Python tests import, the CUDA toolkit, and TensorRT's headers.

use crate::step::{Error, Steps, say};
use crate::tensorrt;
use crate::toolkit;
use crate::workspace::{Workspace, python_of};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is installed, and what a stamp is compared with.
pub const REQUIREMENTS: &str = "tests/python/requirements.txt";
/// File of a folder that says what is installed in it.
pub const STAMP: &str = "ratplus-setup.txt";
/// The oldest Python that the pinned wheels exist for.
const OLDEST_PYTHON: (u32, u32) = (3, 11);

/// What to do where pip fails.
pub const INSTALL_REMEDY: &str = "check the network (pip honours HTTPS_PROXY, PIP_INDEX_URL and \
    PIP_FIND_LINKS) and the disk, then run `cargo xtask setup` again";

/// Installs everything that is not there yet.
pub fn run(workspace: &Workspace) -> Result<(), Error> {
    python(workspace)?;
    toolkit::run(workspace)?;
    tensorrt::headers(workspace)
}

/// Makes the Python environment, or finds that it is there.
pub fn python(workspace: &Workspace) -> Result<(), Error> {
    check_c_compiler()?;
    environment(workspace, &workspace.venv(), REQUIREMENTS, &[], || {
        ort_library(workspace).map(drop)
    })
}

/// Makes a Python environment of the wheels that `requirements` names, or finds that it is there;
/// `flags` are pip's, `works` is asked once they are installed.
pub fn environment(
    workspace: &Workspace,
    venv: &Path,
    requirements: &str,
    flags: &[&str],
    works: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    let steps = Steps::new(workspace);
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let version = python_version(&python)?;
    let wheels = std::fs::read_to_string(requirements).map_err(|error| {
        Error::new(
            format!("setup: {requirements}: {error}"),
            "restore the file from the repository",
        )
    })?;
    // One environment may have several lists.
    let list = Path::new(requirements).with_extension("stamp");
    let stamp = venv.join(list.file_name().unwrap_or(STAMP.as_ref()));
    let wanted = format!("{version}\n{wheels}");
    let found = std::fs::read_to_string(&stamp).unwrap_or_default();
    let own = python_of(venv);
    if found == wanted && runs(&own) {
        say(&format!("==> setup: {} is up to date", venv.display()));
        return Ok(());
    }
    if python_version(&own.to_string_lossy()).ok() != Some(version) {
        create(venv, &steps, &python)?;
    }
    let mut install = pip(venv, &python);
    install
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(["--only-binary=:all:", "-r", requirements])
        .args(flags);
    steps.run_quiet("setup: install pinned wheels", &mut install, INSTALL_REMEDY)?;
    works()?;
    std::fs::write(&stamp, wanted).map_err(|error| {
        Error::new(
            format!("setup: {}: {error}", stamp.display()),
            "free disk space or permissions, then run it again",
        )
    })
}

/// Releases that the custom-op library is tried in besides the environment's own: the first two
/// need an older numpy.
const OTHER_RUNTIMES: [(&str, &[&str]); 5] = [
    ("1.16", &["onnxruntime==1.16.3", "numpy==1.26.4"]),
    ("1.17", &["onnxruntime==1.17.3", "numpy==1.26.4"]),
    ("1.20", &["onnxruntime==1.20.1", "numpy==1.26.4"]),
    ("1.24", &["onnxruntime==1.24.4", "numpy==2.4.6"]),
    ("1.32", &["onnxruntime==1.32.0", "numpy==2.4.6"]),
];

/// Installs other releases of ONNX Runtime, each in a folder of its own. A release that cannot be
/// had here (an old one has no wheel for a new Python) is said to be missing; its tests skip.
pub fn other_runtimes(workspace: &Workspace) {
    let steps = Steps::new(workspace);
    for (version, packages) in OTHER_RUNTIMES {
        let folder = workspace.target.join(format!("ort-{version}"));
        let stamp = folder.join(STAMP);
        let wanted = packages.join("\n");
        if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
            continue;
        }
        let title = format!("setup: install ONNX Runtime {version} for its tests");
        match install_into(workspace, &steps, &title, &folder, packages) {
            Ok(()) => {
                let _ = std::fs::write(&stamp, wanted);
            }
            Err(error) => say(&format!("    not installed, its tests will skip: {error}")),
        }
    }
}

/// pip for the environment at `venv`.
pub fn pip_of(venv: &Path) -> Command {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    pip(venv, &python)
}

/// Installs packages into a folder of their own, with the environment's pip.
pub fn install_into(
    workspace: &Workspace,
    steps: &Steps<'_>,
    title: &str,
    folder: &Path,
    packages: &[&str],
) -> Result<(), Error> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let mut install = pip(&workspace.venv(), &python);
    install
        .args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--upgrade",
        ])
        .args(["--only-binary=:all:", "--target"])
        .arg(folder)
        .args(packages);
    steps.run_quiet(title, &mut install, INSTALL_REMEDY)
}

/// ONNX Runtime's library inside the environment, which the `ratplus` program loads.
pub fn ort_library(workspace: &Workspace) -> Result<PathBuf, Error> {
    let remedy = format!(
        "remove {} and run `cargo xtask setup` again",
        workspace.venv().display()
    );
    let mut query = Command::new(workspace.python());
    query.args([
        "-c",
        "import onnxruntime as o, pathlib; print(pathlib.Path(o.__file__).parent / 'capi')",
    ]);
    let output = query.output().map_err(|error| {
        let python = workspace.python();
        Error::new(format!("setup: {}: {error}", python.display()), &remedy)
    })?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::new(
            format!("setup: the installed onnxruntime does not load: {message}"),
            remedy,
        ));
    }
    let directory = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let entries = std::fs::read_dir(&directory)
        .into_iter()
        .flatten()
        .flatten();
    let library = entries.map(|entry| entry.path()).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libonnxruntime.") || name == "onnxruntime.dll"
    });
    library.ok_or_else(|| {
        let directory = directory.display();
        Error::new(
            format!("setup: {directory}: expected libonnxruntime.so.<version>, found none"),
            remedy,
        )
    })
}

/// Major and minor version of an interpreter, checked.
fn python_version(python: &str) -> Result<String, Error> {
    let (major, minor) = OLDEST_PYTHON;
    let remedy = format!(
        "install Python {major}.{minor} or newer with pip (Debian: apt install python3-pip \
         python3-venv), or name one in the environment variable PYTHON"
    );
    let script = "import sys; print('%d.%d' % sys.version_info[:2])";
    let output = Command::new(python)
        .args(["-c", script])
        .output()
        .map_err(|error| Error::new(format!("setup: `{python}` did not run: {error}"), &remedy))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let parts = text.split_once('.');
    let parsed = parts.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match parsed {
        Some(found) if found >= OLDEST_PYTHON => Ok(text),
        _ => Err(Error::new(
            format!("setup: `{python}`: expected Python {major}.{minor} or newer, found `{text}`"),
            remedy,
        )),
    }
}

/// Whether a program answers.
pub fn runs(program: &Path) -> bool {
    let output = Command::new(program).arg("--version").output();
    output.is_ok_and(|output| output.status.success())
}

fn check_c_compiler() -> Result<(), Error> {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let program = compiler.split_whitespace().next().unwrap_or("cc");
    if runs(Path::new(program)) {
        return Ok(());
    }
    Err(Error::new(
        format!("setup: the C compiler `{program}` did not run (`{program} --version`)"),
        "install gcc (Debian: apt install gcc), or name a compiler in the environment variable CC",
    ))
}

/// Makes an empty environment: with its own pip, or without one where Python's bundled pip is
/// left out (as Debian does without python3-venv).
fn create(venv: &Path, steps: &Steps<'_>, python: &str) -> Result<(), Error> {
    let remedy =
        "install Python's venv module and pip (Debian: apt install python3-venv python3-pip)";
    let title = "setup: make a Python environment";
    let make = |flags: &[&str]| {
        let mut command = Command::new(python);
        command
            .args(["-m", "venv", "--clear"])
            .args(flags)
            .arg(venv);
        command
    };
    steps.run_quiet(title, &mut make(&[]), remedy).or_else(|_| {
        say("    no bundled pip here: the system's pip will install into it");
        steps.run_quiet(title, &mut make(&["--without-pip"]), remedy)
    })
}

/// `pip` for an environment: its own, or the system's pointed at it.
fn pip(venv: &Path, python: &str) -> Command {
    let inside = python_of(venv);
    let own = Command::new(&inside)
        .args(["-m", "pip", "--version"])
        .output();
    if own.is_ok_and(|output| output.status.success()) {
        let mut command = Command::new(inside);
        command.args(["-m", "pip"]);
        command
    } else {
        let mut command = Command::new(python);
        command.args(["-m", "pip", "--python"]).arg(inside);
        command
    }
}
