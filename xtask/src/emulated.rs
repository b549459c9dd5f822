//! Tests of the wheel for another processor, under qemu: a Python of Debian's for that processor, with programs around it
//! that look like this machine's own.

use crate::setup;
use crate::step::{Error, Steps};
use crate::toolkit;
use crate::wheel;
use crate::workspace::Workspace;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What runs another processor's programs.
const QEMU: &str = "qemu-user";
/// Debian's packages for that processor; apt adds what they need.
const PACKAGES: [&str; 2] = ["python3", "libstdc++6"];
/// What Linux says of a Neoverse N1. Programs would read this machine's, which ONNX Runtime's library for AArch64 does
/// not survive.
const CPU_INFO: &str = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics \
    fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\n\
    CPU part\t: 0xd0c\nCPU revision\t: 1\n\n";
/// Tests of programs that are installed for this machine's processor, and of time.
const NOT_HERE: [&str; 2] = [
    "--ignore=tests/wheel/test_lm_eval.py",
    "--deselect=test_module.py::test_the_import_is_quick",
];
/// What a process of a test may take.
const SECONDS: &str = "1200";
const INSTALL: &str = "install it (Debian: apt install qemu-user)";
const STAMP: &str = "ratplus-emulated.txt";
const REMEDY: &str = "run it on Debian as root, with the network";

/// Installs a wheel for `arch` and gives what tests it under qemu.
pub fn tests(workspace: &Workspace, wheel: &Path, arch: &str) -> Result<Command, Error> {
    let steps = Steps::new(workspace);
    let title = "setup: install qemu for programs of other processors";
    toolkit::install_debian(&steps, title, QEMU, INSTALL)?;
    let folder = workspace.absolute(&workspace.target.join(format!("emulated-{arch}")));
    let root = folder.join("root");
    if !folder.join(STAMP).exists() {
        system(&steps, arch, &folder, &root)?;
        write(&folder.join(STAMP), "")?;
    }
    let emulator = emulator(arch)?;
    let version = version(&emulator, &root)?;

    // As an environment is laid out, which the program looks for around itself.
    let prefix = folder.join("prefix");
    let site = prefix.join(format!("lib/python{version}/site-packages"));
    let program = prefix.join("bin/ratplus");
    wheel::remade(&prefix)?;
    let mut install = setup::pip_of(&workspace.venv());
    install.args(["install", "--quiet", "--disable-pip-version-check"]);
    install.args(["--only-binary=:all:", "--no-deps", "--python-version"]);
    install.arg(&version).arg("--target").arg(&site);
    // Those that its requirements have wheels for, of the oldest first.
    for platform in ["manylinux2014", "manylinux_2_27", "manylinux_2_28"] {
        install.args(["--platform", &format!("{platform}_{arch}")]);
    }
    install
        .args(["-r", wheel::TEST_REQUIREMENTS])
        .arg(workspace.absolute(wheel));
    let title = format!("install the wheel for {arch}");
    steps.run_quiet(&title, &mut install, "read pip's message above")?;

    wheel::remade(&prefix.join("bin"))?;
    std::fs::rename(site.join("bin/ratplus"), &program)
        .map_err(|error| wheel::unwritable(&program, &error))?;

    let bin = folder.join("bin");
    wheel::remade(&bin)?;
    let run = |environment: &str, program: &Path| {
        format!(
            "#!/bin/sh\n{environment}exec {emulator:?} -0 \"$0\" -L {root:?} {program:?} \"$@\"\n"
        )
    };
    let python = bin.join("python");
    let home = root.join("usr");
    let environment = format!("export PYTHONHOME={home:?} PYTHONPATH={site:?}\n");
    script(&python, &run(&environment, &home.join("bin/python3")))?;
    script(&bin.join("ratplus"), &run("", &program))?;
    let mut tests = Command::new(python);
    tests.args(wheel::TESTS).env_remove("PYTEST_ADDOPTS");
    tests.env("RATPLUS_TEST_SECONDS", SECONDS);
    tests.args(NOT_HERE);
    Ok(tests)
}

/// The emulator's program, found whatever PATH a test gives to a process that it starts.
fn emulator(arch: &str) -> Result<PathBuf, Error> {
    let name = format!("qemu-{arch}");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(&name));
    found.find(|file| file.is_file()).ok_or_else(|| {
        let reason = format!("{name}: expected it in a folder of PATH, found it in none");
        Error::new(reason, INSTALL)
    })
}

/// Unpacks Debian's packages, which neither apt nor dpkg here is told of.
fn system(steps: &Steps<'_>, arch: &str, folder: &Path, root: &Path) -> Result<(), Error> {
    wheel::remade(folder)?;
    let debian = match arch {
        wheel::AARCH64 => "arm64",
        _ => "amd64",
    };
    let (state, cache) = (folder.join("apt"), folder.join("cache"));
    for below in ["lists/partial", "archives/partial"] {
        for above in [&state, &cache] {
            let path = above.join(below);
            std::fs::create_dir_all(&path).map_err(|error| wheel::unwritable(&path, &error))?;
        }
    }
    write(&state.join("status"), "")?;
    std::fs::create_dir_all(root).map_err(|error| wheel::unwritable(root, &error))?;
    let apt = || {
        let mut apt = Command::new("apt-get");
        for (name, value) in [
            ("Dir::State", state.as_path()),
            ("Dir::State::status", &state.join("status")),
            ("Dir::Cache", &cache),
            ("APT::Architecture", debian.as_ref()),
            ("APT::Architectures", debian.as_ref()),
            // Packages are read by the user that fetched them.
            ("APT::Sandbox::User", "root".as_ref()),
        ] {
            apt.arg("-o").arg(format!("{name}={}", value.display()));
        }
        apt
    };
    let title = format!("setup: read Debian's package lists for {debian}");
    steps.run_quiet(&title, apt().args(["update", "-q"]), REMEDY)?;
    let title = format!("setup: fetch Python for {debian}");
    let mut fetch = apt();
    fetch.args(["install", "-q", "-y", "--no-install-recommends"]);
    fetch.arg("--download-only").args(PACKAGES);
    steps.run_quiet(&title, &mut fetch, REMEDY)?;
    let packages = std::fs::read_dir(cache.join("archives"))
        .into_iter()
        .flatten()
        .flatten();
    let packages = packages.map(|entry| entry.path());
    for package in packages.filter(|path| path.extension().is_some_and(|end| end == "deb")) {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(&package).arg(root);
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        steps.run_quiet(&format!("setup: unpack {name}"), &mut unpack, REMEDY)?;
    }
    let proc = root.join("proc");
    std::fs::create_dir_all(&proc).map_err(|error| wheel::unwritable(&proc, &error))?;
    write(&proc.join("cpuinfo"), CPU_INFO)?;
    // Thousands of small files and the archives are of no more use.
    for done in [state, cache] {
        std::fs::remove_dir_all(&done).map_err(|error| wheel::unwritable(&done, &error))?;
    }
    Ok(())
}

/// Major and minor version of the Python in `root`.
fn version(emulator: &Path, root: &Path) -> Result<String, Error> {
    let script = "import sys; print('%d.%d' % sys.version_info[:2])";
    let mut python = Command::new(emulator);
    python.arg("-L").arg(root).arg(root.join("usr/bin/python3"));
    python.env("PYTHONHOME", root.join("usr"));
    let output = python.args(["-c", script]).output();
    let failed = |why: String| {
        let emulator = emulator.display();
        Error::new(format!("{emulator}: Python: {why}"), REMEDY)
    };
    let output = output.map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

fn script(path: &PathBuf, text: &str) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    write(path, text)?;
    let all = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, all).map_err(|error| wheel::unwritable(path, &error))
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).map_err(|error| wheel::unwritable(path, &error))
}
