//! The CPU kernels against what one would run instead: an environment with PyTorch, the build, the
//! measurement, and docs/cpu.md.

use crate::Outcome;
use crate::setup;
use crate::step::{Error, Steps, say};
use crate::toolkit;
use crate::workspace::{Workspace, python_of};
use std::path::Path;
use std::process::Command;

const SCRIPT: &str = "benches/cpu/peers.py";
const REQUIREMENTS: &str = "benches/cpu/requirements.txt";
const SUITES: [&str; 2] = ["must", "full"];

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    suite: String,
    seconds: Option<u64>,
}

impl Options {
    /// Reads the words after `peers`.
    pub fn parse(words: &[&str]) -> Result<Self, Error> {
        let mut options = Self {
            suite: SUITES[0].to_owned(),
            seconds: None,
        };
        let mut words = words.iter();
        while let Some(&flag) = words.next() {
            let value = words.next().copied().unwrap_or_default();
            match flag {
                "--suite" if SUITES.contains(&value) => options.suite = value.to_owned(),
                "--seconds" if value.parse::<u64>().is_ok() => {
                    options.seconds = value.parse().ok();
                }
                _ => {
                    return Err(Error::new(
                        format!(
                            "peers: expected `--suite {}` or `--seconds N`, found `{}`",
                            SUITES.join("|"),
                            format!("{flag} {value}").trim_end()
                        ),
                        "correct the command line",
                    ));
                }
            }
        }
        Ok(options)
    }
}

/// Measures and writes the page; false where a contender's results are wrong.
pub fn run(workspace: &Workspace, options: &Options) -> Outcome {
    let steps = Steps::new(workspace);
    let folder = workspace.target.join("peers");
    let python = python_of(&folder);
    say("    PyTorch's wheels take several GB below the target directory");
    setup::environment(workspace, &folder, REQUIREMENTS, || Ok(()))?;
    for problem in [
        toolkit::check_cxx_compiler(&steps),
        check_headers(&steps, &python),
    ] {
        if let Err(error) = problem {
            say(&format!(
                "    what PyTorch compiles will be rows without figures: {error}"
            ));
        }
    }
    let mut build = Command::new("cargo");
    build.args(["build", "--release"]);
    build.args(["-p", "ratplus", "-p", "ratplus-onnxruntime"]);
    // What tells of the operators, and what draws.
    build.args(["-p", "ratplus-tests", "-p", "ratplus-benches"]);
    steps.run(
        "build the ratplus command, the ONNX Runtime library and what the benchmarks need",
        &mut build,
        "mend what the compiler says above, then run it again",
    )?;
    let mut measure = Command::new(workspace.absolute(&python));
    measure
        .args([SCRIPT, "--suite", &options.suite])
        .arg("--library")
        .arg(workspace.absolute(&workspace.ort_plugin()))
        .arg("--program")
        .arg(workspace.absolute(&workspace.program()))
        .arg("--json")
        .arg(workspace.absolute(&folder.join("results.json")))
        .args(["--docs", "docs"])
        .env(
            "TORCHINDUCTOR_CACHE_DIR",
            workspace.absolute(&folder.join("torchinductor")),
        );
    if let Some(seconds) = options.seconds {
        measure.args(["--seconds", &seconds.to_string()]);
    }
    steps.try_run("measure the CPU kernels and the others", &mut measure)
}

/// Finds Python's headers, which PyTorch's compiled code includes, or installs Debian's where this
/// process may.
fn check_headers(steps: &Steps<'_>, python: &Path) -> Result<(), Error> {
    let remedy = "install Python's headers (Debian: apt install python3-dev)";
    let script = "import os, sysconfig; \
        print(os.path.join(sysconfig.get_paths()['include'], 'Python.h'))";
    let output = Command::new(python).args(["-c", script]).output();
    let output = output.map_err(|error| {
        let python = python.display();
        Error::new(format!("peers: {python}: did not run: {error}"), remedy)
    })?;
    let header = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if Path::new(&header).is_file() {
        return Ok(());
    }
    toolkit::install_debian(
        steps,
        "peers: install Python's headers",
        "python3-dev",
        remedy,
    )?;
    if Path::new(&header).is_file() {
        return Ok(());
    }
    Err(Error::new(format!("peers: {header}: no such file"), remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_refused() {
        let read = |words: &[&str]| Options::parse(words).map_err(|error| error.to_string());
        let options = |suite: &str, seconds| Options {
            suite: suite.into(),
            seconds,
        };
        assert_eq!(read(&[]), Ok(options("must", None)));
        assert_eq!(
            read(&["--seconds", "60", "--suite", "full"]),
            Ok(options("full", Some(60)))
        );
        for words in [
            &["--suite", "all"][..],
            &["--seconds"],
            &["--seconds", "-1"],
            &["x"],
        ] {
            let message = read(words).unwrap_err();
            assert!(message.contains(&words.join(" ")), "{message}");
        }
    }
}
