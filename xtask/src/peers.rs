//! The CPU kernels, a whole model, and a server of one, against what one would run instead: an
//! environment with PyTorch (and llama.cpp and OpenVINO), the build, the measurement, and
//! docs/cpu.md or docs/serving.md.

use crate::setup;
use crate::step::{Error, Steps, say};
use crate::toolkit;
use crate::workspace::{Workspace, python_of};
use crate::{Outcome, llama};
use std::path::Path;
use std::process::Command;

const REQUIREMENTS: &str = "benches/cpu/requirements.txt";
const MODEL_REQUIREMENTS: &str = "benches/cpu/requirements-model.txt";
const SERVE_REQUIREMENTS: &str = "benches/cpu/requirements-serve.txt";
/// The last two are of whole models.
const SUITES: [&str; 5] = ["must", "full", HEADS, "model", "serve"];
/// Of kernels too, with results and a part of the page of its own.
const HEADS: &str = "heads";
const SIZES: [&str; 2] = ["1.5b", "tiny"];

/// What the command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    suite: String,
    seconds: Option<u64>,
    /// Of the whole model, served or not.
    size: Option<String>,
    /// Whether its earlier results are kept.
    resume: bool,
}

impl Options {
    /// Reads the words after `peers`.
    pub fn parse(words: &[&str]) -> Result<Self, Error> {
        let mut options = Self {
            suite: SUITES[0].to_owned(),
            ..Self::default()
        };
        let mut words = words.iter();
        while let Some(&flag) = words.next() {
            if flag == "--continue" {
                options.resume = true;
                continue;
            }
            let value = words.next().copied().unwrap_or_default();
            match flag {
                "--suite" if SUITES.contains(&value) => options.suite = value.to_owned(),
                "--seconds" if value.parse::<u64>().is_ok() => {
                    options.seconds = value.parse().ok();
                }
                "--size" if SIZES.contains(&value) => options.size = Some(value.to_owned()),
                _ => {
                    return Err(Self::refused(format!(
                        "`--suite {}`, `--seconds N`, and of the suites `model` and `serve` `--size {}` and \
                         `--continue`, found `{}`",
                        SUITES.join("|"),
                        SIZES.join("|"),
                        format!("{flag} {value}").trim_end()
                    )));
                }
            }
        }
        let of_kernels = options.kind() == Kind::Kernels;
        for (wrong, found) in [
            (
                options.size.is_some() && of_kernels,
                "`--size` without `--suite model` or `--suite serve`",
            ),
            (
                options.resume && of_kernels,
                "`--continue` without `--suite model` or `--suite serve`",
            ),
        ] {
            if wrong {
                return Err(Self::refused(format!(
                    "them with a whole model alone, found {found}"
                )));
            }
        }
        Ok(options)
    }

    fn refused(expected: String) -> Error {
        Error::new(
            format!("peers: expected {expected}"),
            "correct the command line",
        )
    }

    fn kind(&self) -> Kind {
        match self.suite.as_str() {
            "model" => Kind::Model,
            "serve" => Kind::Serve,
            _ => Kind::Kernels,
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kernels,
    Model,
    Serve,
}

/// Measures and writes the page; false where a contender's results are wrong.
pub fn run(workspace: &Workspace, options: &Options) -> Outcome {
    let steps = Steps::new(workspace);
    let folder = workspace.target.join("peers");
    let python = python_of(&folder);
    let kind = options.kind();
    let requirements: &[&str] = match kind {
        Kind::Kernels => &[REQUIREMENTS],
        Kind::Model => &[REQUIREMENTS, MODEL_REQUIREMENTS],
        Kind::Serve => &[SERVE_REQUIREMENTS],
    };
    match kind {
        Kind::Kernels => say("    PyTorch's wheels take several GB below the target directory"),
        Kind::Model => say("    PyTorch's wheels take several GB, llama.cpp is built from source"),
        Kind::Serve => say("    llama.cpp's server is built from source: some minutes, once"),
    }
    for list in requirements {
        setup::environment(workspace, &folder, list, &[], || Ok(()))?;
    }
    if kind == Kind::Kernels {
        prepare_compiler(&steps, &python);
    }
    build(&steps)?;
    let mut measure = Command::new(workspace.absolute(&python));
    let (script, results) = match kind {
        Kind::Kernels if options.suite == HEADS => ("benches/cpu/peers.py", "heads.json"),
        Kind::Kernels => ("benches/cpu/peers.py", "results.json"),
        Kind::Model => ("benches/cpu/model_peers.py", "model.json"),
        Kind::Serve => ("benches/cpu/serve_peers.py", "serve.json"),
    };
    measure
        .arg(script)
        .arg("--library")
        .arg(workspace.absolute(&workspace.ort_plugin()))
        .arg("--program")
        .arg(workspace.absolute(&workspace.program()))
        .arg("--json")
        .arg(workspace.absolute(&folder.join(results)));
    // A tiny model is a trial.
    if options.size.as_deref() == Some(SIZES[1]) {
        let trial = workspace.absolute(&folder.join("docs"));
        measure.arg("--docs").arg(trial);
    } else {
        measure.args(["--docs", "docs"]);
    }
    if kind == Kind::Kernels {
        let compiled = workspace.absolute(&folder.join("torchinductor"));
        measure.args(["--suite", &options.suite]);
        measure.env("TORCHINDUCTOR_CACHE_DIR", compiled);
    } else {
        let models = folder.join("models");
        measure.arg("--models").arg(workspace.absolute(&models));
        measure.args(options.size.iter().flat_map(|size| ["--size", size]));
        measure.args(options.resume.then_some("--continue"));
    }
    if kind == Kind::Serve {
        let server = llama::server(workspace, &steps, &folder)?;
        measure.arg("--llama-server").arg(server);
    }
    if let Some(seconds) = options.seconds {
        measure.args(["--seconds", &seconds.to_string()]);
    }
    steps.try_run("measure ours and the others", &mut measure)
}

/// What PyTorch compiles with; where it cannot be had, rows have no figures.
fn prepare_compiler(steps: &Steps<'_>, python: &Path) {
    for problem in [
        toolkit::check_cxx_compiler(steps),
        check_headers(steps, python),
    ] {
        if let Err(error) = problem {
            say(&format!(
                "    what PyTorch compiles will be rows without figures: {error}"
            ));
        }
    }
}

fn build(steps: &Steps<'_>) -> Result<(), Error> {
    let mut build = Command::new("cargo");
    // The command, the library, what tells of the operators and what draws, with the features of all.
    build.args(["build", "--workspace", "--release", "--lib", "--bins"]);
    steps.run(
        "build everything",
        &mut build,
        "mend what the compiler says above, then run it again",
    )
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
            ..Options::default()
        };
        assert_eq!(read(&[]), Ok(options("must", None)));
        assert_eq!(
            read(&["--seconds", "60", "--suite", "full"]),
            Ok(options("full", Some(60)))
        );
        assert_eq!(read(&["--suite", "heads"]), Ok(options("heads", None)));
        assert_eq!(
            read(&["--suite", "model", "--size", "tiny", "--continue"]),
            Ok(Options {
                size: Some("tiny".into()),
                resume: true,
                ..options("model", None)
            })
        );
        assert_eq!(
            read(&["--suite", "serve", "--continue", "--size", "tiny"]),
            Ok(Options {
                size: Some("tiny".into()),
                resume: true,
                ..options("serve", None)
            })
        );
        for words in [&["--size", "tiny"][..], &["--suite", "full", "--continue"]] {
            let message = read(words).unwrap_err();
            assert!(message.contains("without `--suite model`"), "{message}");
        }
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
