//! Coverage-guided fuzzing of everything that reads files of strangers: the targets of
//! `tests/fuzz` under libFuzzer, instrumented by this toolchain's own compiler.

use crate::Outcome;
use crate::step::{Error, Steps, say};
use crate::toolkit;
use crate::workspace::Workspace;
use std::collections::VecDeque;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

const USAGE: &str = "fuzz [TARGET..] [--seconds N] [--workers N] [--asan]";
/// The crate's folder; its targets are listed in its library.
const CRATE: &str = "tests/fuzz";
const PROFILE: &str = "fuzz";
const TITLE: &str = "fuzzing";

/// As libFuzzer wants it: counters of edges, where they are, and what comparisons compare.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing";

/// Limits of one input, which CI's slow machine has to keep too.
const RSS_MB: usize = 1024;
const ALLOCATION_MB: usize = 512;
const INPUT_SECONDS: usize = 20;

/// What to fuzz, and for how long.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    targets: Vec<String>,
    seconds: u64,
    workers: usize,
    asan: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            targets: Vec::new(),
            seconds: 12,
            workers: 2,
            asan: false,
        }
    }
}

impl Options {
    /// All targets, this long each.
    pub fn lasting(seconds: u64) -> Self {
        Self {
            seconds,
            ..Self::default()
        }
    }

    /// Reads the words after `fuzz`.
    pub fn parse(words: &[&str]) -> Result<Self, Error> {
        let bad = |found: &str| {
            Error::new(
                format!("fuzz: expected {USAGE}, found `{found}`"),
                "give whole numbers from 1 on",
            )
        };
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            let mut number = || {
                let value = words.next().and_then(|value| value.parse().ok());
                value.filter(|&value| value > 0).ok_or_else(|| bad(word))
            };
            match word {
                "--seconds" => options.seconds = number()?,
                "--workers" => options.workers = number()? as usize,
                "--asan" => options.asan = true,
                _ if word.starts_with('-') => return Err(bad(word)),
                target => options.targets.push(target.to_owned()),
            }
        }
        Ok(options)
    }
}

/// Builds the targets and runs them; false where one found something.
pub fn run(workspace: &Workspace, options: &Options) -> Outcome {
    let steps = Steps::new(workspace);
    toolkit::check_cxx_compiler(&steps)?;
    fuzz(workspace, &steps, options)
}

/// [`run`] in CI: without a C++ compiler a skip, which is counted.
pub fn run_in_ci(workspace: &Workspace, skips: &mut Vec<String>) -> Outcome {
    let steps = Steps::new(workspace);
    if let Err(error) = toolkit::check_cxx_compiler(&steps) {
        skips.push(format!("{TITLE}: libFuzzer needs a C++ compiler: {error}"));
        return Ok(true);
    }
    fuzz(workspace, &steps, &Options::default())
}

fn fuzz(workspace: &Workspace, steps: &Steps<'_>, options: &Options) -> Outcome {
    let names = chosen(options)?;
    let program = build(workspace, steps, options.asan)?;
    let folder = workspace.target.join("fuzz");
    let title = format!(
        "{TITLE}: {} targets for {} s each, {} at once",
        names.len(),
        options.seconds,
        options.workers
    );
    let found = steps.timed(&title, || {
        let queue = Mutex::new(VecDeque::from(names));
        let results = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..options.workers {
                scope.spawn(|| {
                    loop {
                        let next = lock(&queue).pop_front();
                        let Some(name) = next else { break };
                        let result = one(workspace, &program, &folder, &name, options);
                        say(&result.line);
                        lock(&results).push(result);
                    }
                });
            }
        });
        results.into_inner().unwrap_or_else(PoisonError::into_inner)
    });
    let total: u64 = found.iter().map(|result| result.executions).sum();
    let bad: Vec<_> = found.iter().filter(|result| !result.passed).collect();
    say(&format!(
        "    {total} inputs in all; {} of {} targets found something",
        bad.len(),
        found.len()
    ));
    for result in &bad {
        say(&result.report);
    }
    Ok(bad.is_empty())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The targets asked for, or all of them, as the crate's library lists them.
fn chosen(options: &Options) -> Result<Vec<String>, Error> {
    let path = Path::new(CRATE).join("src/lib.rs");
    let restore = "restore the file from the repository";
    let text = fs::read_to_string(&path)
        .map_err(|error| Error::new(format!("fuzz: {}: {error}", path.display()), restore))?;
    let all = listed(&text);
    if all.is_empty() {
        let problem = format!(
            "fuzz: {}: expected `targets!(..);`, found none",
            path.display()
        );
        return Err(Error::new(problem, restore));
    }
    if options.targets.is_empty() {
        return Ok(all);
    }
    match options.targets.iter().find(|name| !all.contains(name)) {
        None => Ok(options.targets.clone()),
        Some(name) => Err(Error::new(
            format!("fuzz: expected one of {}, found `{name}`", all.join(", ")),
            "name a target, or none for all",
        )),
    }
}

/// The names in `targets!(..);`.
fn listed(text: &str) -> Vec<String> {
    let inside = text
        .split_once("\ntargets!(")
        .and_then(|(_, rest)| rest.split_once(");"));
    let names = inside.map_or("", |(names, _)| names).split(',');
    names
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

/// The triple that this toolchain compiles for. Naming it keeps build scripts free of
/// instrumentation.
fn host() -> Result<String, Error> {
    let remedy = "install Rust with rustup";
    let output = Command::new("rustc").arg("-vV").output();
    let output = output.map_err(|error| Error::new(format!("fuzz: rustc: {error}"), remedy))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| {
        Error::new(
            "fuzz: rustc -vV: expected a line `host: `, found none",
            remedy,
        )
    })
}

fn build(workspace: &Workspace, steps: &Steps<'_>, asan: bool) -> Result<PathBuf, Error> {
    let host = host()?;
    let mut flags = INSTRUMENTATION.to_owned();
    let mut folder = workspace.target.join("fuzz");
    let mut command = Command::new("cargo");
    if asan {
        folder = folder.join("asan");
        flags.push_str(" -Zsanitizer=address");
        // The sanitizer comes with the stable toolchain; only its flag does not.
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    command
        .args([
            "build",
            "-p",
            "ratplus-fuzz",
            "--features",
            "libfuzzer",
            "--bin",
            "fuzz",
        ])
        .args(["--profile", PROFILE, "--target", &host, "--target-dir"])
        .arg(&folder)
        .env("RUSTFLAGS", flags)
        // Nothing here runs on a GPU.
        .env("RATPLUS_NVCC", "none");
    let remedy = "mend what the compiler says above, then run it again";
    steps.run("build the fuzz targets", &mut command, remedy)?;
    Ok(workspace.absolute(&folder.join(host).join(PROFILE).join("fuzz")))
}

struct Ran {
    executions: u64,
    passed: bool,
    line: String,
    report: String,
}

/// Runs one target. What it finds new stays in `target/fuzz/corpus`, for the next run.
fn one(workspace: &Workspace, program: &Path, folder: &Path, name: &str, options: &Options) -> Ran {
    let below = |kind: &str| folder.join(kind).join(name);
    let (corpus, findings) = (below("corpus"), below("findings"));
    for folder in [&corpus, &findings] {
        // A folder that cannot be made is libFuzzer's to complain about.
        let _ = fs::create_dir_all(folder);
    }
    let mut command = Command::new(program);
    command
        .env("RATPLUS_FUZZ_TARGET", name)
        .env("RATPLUS_FUZZ_FOLDER", folder)
        .env("ASAN_OPTIONS", "detect_leaks=0")
        .stdin(Stdio::null())
        .arg(format!("-max_total_time={}", options.seconds))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!(
            "-dict={}",
            folder.join(format!("{name}.dict")).display()
        ))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .arg("-print_final_stats=1");
    if !options.asan {
        // The sanitizer's own memory is many times that of what it watches.
        command
            .arg(format!("-rss_limit_mb={RSS_MB}"))
            .arg(format!("-malloc_limit_mb={ALLOCATION_MB}"));
    }
    command.arg(&corpus).arg(below("seeds"));
    for kind in ["corpus", "regressions"] {
        let committed = Path::new(CRATE).join(kind).join(name);
        if committed.is_dir() {
            command.arg(committed);
        }
    }
    match command.output() {
        Ok(output) => {
            let log = String::from_utf8_lossy(&output.stderr);
            summary(workspace, program, name, &log, output.status.success())
        }
        Err(error) => Ran {
            executions: 0,
            passed: false,
            line: format!("    {name}: did not run: {error}"),
            report: String::new(),
        },
    }
}

/// What libFuzzer's log says. A target that ran nothing has not passed.
fn summary(workspace: &Workspace, program: &Path, name: &str, log: &str, ended_well: bool) -> Ran {
    let statistic = |key: &str| {
        let line = log.lines().rev().find_map(|line| {
            let rest = line.strip_prefix("stat::")?.strip_prefix(key)?;
            rest.trim_start_matches(':').trim().parse::<u64>().ok()
        });
        line.unwrap_or(0)
    };
    let coverage = log.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once(" cov: ")?;
        rest.split_whitespace().next()
    });
    let executions = statistic("number_of_executed_units");
    let passed = ended_well && executions > 0;
    let line = format!(
        "    {name:<12} {executions:>9} inputs, {:>6} a second, {:>6} edges, {:>5} new, {:>4} MB{}",
        statistic("average_exec_per_sec"),
        coverage.unwrap_or("?"),
        statistic("new_units_added"),
        statistic("peak_rss_mb"),
        if passed { "" } else { "  FAILED" }
    );
    let mut report = String::new();
    if !passed {
        let lines: Vec<_> = log.lines().collect();
        let from = lines
            .iter()
            .position(|line| line.contains("panicked at") || line.contains("ERROR: "))
            .unwrap_or(lines.len().saturating_sub(40));
        for line in lines[from..].iter().take(40) {
            let _ = writeln!(report, "    | {line}");
        }
        let written = log.lines().find_map(|line| {
            line.split_once("Test unit written to ")
                .map(|(_, path)| path)
        });
        for line in log.lines().filter(|line| line.starts_with("Base64: ")) {
            let _ = writeln!(report, "    {line}");
        }
        if let Some(path) = written {
            let program = program.strip_prefix(&workspace.root).unwrap_or(program);
            let _ = writeln!(
                report,
                "    {name}: {path}\n    again: RATPLUS_FUZZ_TARGET={name} {} {path}\n    \
                 keep it: copy it to {CRATE}/regressions/{name}/, where every test run replays it",
                program.display()
            );
        }
    }
    Ran {
        executions,
        passed,
        line,
        report,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_those_of_the_library() {
        assert_eq!(
            listed("x\ntargets!(\n    pth, zip,\n    onnx\n);\n"),
            ["pth", "zip", "onnx"]
        );
        let text = include_str!("../../tests/fuzz/src/lib.rs");
        assert_eq!(listed(text).len(), 11);
    }

    #[test]
    fn words_are_read() {
        let options = Options::parse(&["pth", "--seconds", "5", "zip", "--asan"]).unwrap();
        assert_eq!(
            options,
            Options {
                targets: vec!["pth".into(), "zip".into()],
                seconds: 5,
                asan: true,
                ..Options::default()
            }
        );
        for words in [&["--seconds"][..], &["--seconds", "0"], &["--second", "1"]] {
            assert!(Options::parse(words).is_err(), "{words:?}");
        }
    }

    fn read(log: &str, ended_well: bool) -> Ran {
        let workspace = Workspace {
            root: "/src".into(),
            target: "target".into(),
            release: "target/release".into(),
        };
        summary(
            &workspace,
            Path::new("/src/target/fuzz/fuzz"),
            "pth",
            log,
            ended_well,
        )
    }

    #[test]
    fn logs_are_read() {
        let good = "#9\tDONE   cov: 1983 ft: 4368 corp: 260/884Kb exec/s: 62 rss: 39Mb\n\
            stat::number_of_executed_units: 99377\nstat::average_exec_per_sec:     6211\n\
            stat::new_units_added:          260\nstat::peak_rss_mb:              39\n";
        let result = read(good, true);
        assert!(result.passed && result.executions == 99377);
        for part in [
            "99377 inputs",
            "6211 a second",
            "1983 edges",
            "260 new",
            "39 MB",
        ] {
            assert!(result.line.contains(part), "{part}: {}", result.line);
        }
        // Nothing ran, or something was found.
        assert!(!read("", true).passed);
        let bad = "thread 'x' panicked at y\nboom\n==1== ERROR: libFuzzer: deadly signal\n\
            artifact_prefix='a/'; Test unit written to target/fuzz/findings/pth/crash-1\n\
            Base64: UEs=\nstat::number_of_executed_units: 3\n";
        let result = read(bad, false);
        assert!(!result.passed && result.line.ends_with("FAILED"));
        for part in [
            "boom",
            "crash-1",
            "Base64: UEs=",
            "RATPLUS_FUZZ_TARGET=pth target/fuzz/fuzz",
        ] {
            assert!(result.report.contains(part), "{part}: {}", result.report);
        }
    }
}
