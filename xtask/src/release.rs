//! What a release has to pass besides CI: the same tests at many times the work, the largest
//! shape, the sanitizers, and fuzzing for hours.

use crate::counts::{CargoTest, Totals};
use crate::sanitize::{self, Sanitizer};
use crate::step::{Error, Steps, say};
use crate::workspace::Workspace;
use crate::{Outcome, clients, fuzz, suite, wheel};
use std::process::Command;
use std::time::Instant;

const USAGE: &str = "release [tests|large|sanitize|fuzz|wheel]..";
/// How many times CI's work a long test does.
const TIMES: &str = "RATPLUS_TIMES";

/// Rust tests by what their names contain, and how many times CI's work each does.
const RUST: [(usize, &[&str]); 6] = [
    // 100 runs for every number of threads.
    (5, &["outputs_hash_equal_over_threads_runs_and_processes"]),
    // 20,000 requests.
    (50, &["whatever_clients_send"]),
    // Half an hour.
    (360, &["serving_for_long_costs_no_memory"]),
    // 1,000,000 views; of kernels' properties, ten times CI's; 500 answers under each load.
    (
        10,
        &[
            "views_agree_with_the_oracle",
            "any_chunking_agrees_with_the_model",
            "served_answers_are_the_same_under_every_load",
        ],
    ),
    // 100,000 fillings, 1,000,000 cases.
    (
        100,
        &[
            "fillings_of_the_other_slots_change_no_byte",
            "nothing_is_lost_that_need_not_be",
            "attention_in_chunks_is_attention",
            "scan_in_chunks_is_the_recurrence",
        ],
    ),
    // 25,000,000 steps and 2,500,000 requests: half an hour of them.
    (
        250,
        &["decode_steps_cost_no_memory", "requests_cost_no_memory"],
    ),
];

/// The same of Python tests.
const PYTHON: [(usize, &str); 2] = [
    // 10,000 cycles.
    (10, "test_loading_and_unloading_costs_no_memory"),
    // 10,080,000 runs.
    (63, "test_threads_share_sessions"),
];
const PYTHON_FILE: &str = "tests/python/test_ort_plugin_process.py";

/// Bits flipped in the weights of the largest shape, 15.56 GB, each time in all of them.
const FLIPS: usize = 60;
const FUZZ_SECONDS: u64 = 1200;

/// A part of a release's checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Long tests.
    Tests,
    /// The 7.6B shape, exported and damaged.
    Large,
    /// AddressSanitizer and ThreadSanitizer.
    Sanitize,
    /// Every fuzz target.
    Fuzz,
    /// The wheels for other machines, and their tests.
    Wheel,
}

impl Part {
    const ALL: [(&str, Self); 5] = [
        ("tests", Self::Tests),
        ("large", Self::Large),
        ("sanitize", Self::Sanitize),
        ("fuzz", Self::Fuzz),
        ("wheel", Self::Wheel),
    ];

    /// Reads the words after `release`; none is all parts.
    pub fn parse(words: &[&str]) -> Result<Vec<Self>, Error> {
        let named = |word: &&str| {
            let part = Self::ALL.iter().find(|(name, _)| name == word);
            part.map(|(_, part)| *part).ok_or_else(|| {
                Error::new(
                    format!("release: expected {USAGE}, found `{word}`"),
                    "name parts, or none for all",
                )
            })
        };
        match words {
            [] => Ok(Self::ALL.map(|(_, part)| part).to_vec()),
            words => words.iter().map(named).collect(),
        }
    }

    fn run(self, workspace: &Workspace) -> Outcome {
        match self {
            Self::Tests => tests(workspace),
            Self::Large => large(workspace),
            Self::Sanitize => {
                let address = sanitize::run(workspace, Sanitizer::Address)?;
                Ok(sanitize::run(workspace, Sanitizer::Thread)? && address)
            }
            Self::Fuzz => fuzz::run(workspace, &fuzz::Options::lasting(FUZZ_SECONDS)),
            Self::Wheel => {
                let mut passed = true;
                // The harness of tests/wheel/test_lm_eval.py.
                clients::install(workspace);
                for arch in [wheel::X86_64, wheel::AARCH64] {
                    let wanted = wheel::For::Manylinux(arch);
                    let wheel = wheel::run(workspace, wanted)?;
                    let mut tests = wheel::tests(workspace, &wheel, wanted)?;
                    let title = format!("tests of the wheel for {arch}");
                    passed &= Steps::new(workspace).try_run(&title, &mut tests)?;
                }
                Ok(passed)
            }
        }
    }
}

/// Runs the parts and says how each ended; false where one failed.
pub fn run(workspace: &Workspace, parts: &[Part]) -> Outcome {
    let mut ends = Vec::new();
    for &part in parts {
        let start = Instant::now();
        let (passed, end) = match part.run(workspace) {
            Ok(passed) => (passed, if passed { "passed" } else { "FAILED" }.to_owned()),
            Err(error) => (false, format!("FAILED: {error}")),
        };
        let minutes = start.elapsed().as_secs_f64() / 60.0;
        ends.push((passed, format!("  {part:?}: {end}, {minutes:.1} min")));
    }
    say("\nrelease:");
    for (_, line) in &ends {
        say(line);
    }
    Ok(ends.iter().all(|(passed, _)| *passed))
}

fn tests(workspace: &Workspace) -> Outcome {
    let steps = Steps::new(workspace);
    suite::prepare(workspace, &steps)?;
    let mut totals = Totals::default();
    for (times, names) in RUST {
        let mut cargo = cargo(workspace)?;
        cargo.env(TIMES, times.to_string()).args(names);
        rust(
            &steps,
            &format!("{times} x"),
            cargo,
            names.len(),
            &mut totals,
        )?;
    }
    for (times, name) in PYTHON {
        let mut python = Command::new(workspace.python());
        python
            .args(["-m", "pytest", &format!("{PYTHON_FILE}::{name}")])
            // Long is not hung.
            .args(["-o", "faulthandler_timeout=0"])
            .args(["-v", "--color=no", "--durations=3"])
            .env_remove("PYTEST_ADDOPTS")
            .env(TIMES, times.to_string());
        suite::environment(workspace, &mut python)?;
        let before = totals.passed;
        let title = format!("{times} x {name}");
        suite::python_tests(workspace, &steps, &title, &mut python, &mut totals)?;
        ran(&title, totals.passed - before, 1, &mut totals);
    }
    Ok(told(&totals))
}

fn large(workspace: &Workspace) -> Outcome {
    let steps = Steps::new(workspace);
    suite::prepare(workspace, &steps)?;
    let mut cargo = cargo(workspace)?;
    cargo
        .env("RATPLUS_EXPORT_SIZE", "7.6b")
        .env("RATPLUS_EXPORT_FLIPS", FLIPS.to_string())
        .arg("exporting_");
    let mut totals = Totals::default();
    rust(&steps, "the 7.6B shape", cargo, 1, &mut totals)?;
    Ok(told(&totals))
}

/// `cargo test` of what [`suite::prepare`] built, up to the words after `--`.
fn cargo(workspace: &Workspace) -> Result<Command, Error> {
    let mut cargo = Command::new("cargo");
    cargo
        .args(["test", "--workspace", "--release", "--no-fail-fast"])
        // What tests print of their figures.
        .args(["--lib", "--bins", "--tests", "--", "--show-output"])
        .env("CARGO_TERM_COLOR", "never");
    suite::environment(workspace, &mut cargo)?;
    Ok(cargo)
}

fn rust(
    steps: &Steps<'_>,
    title: &str,
    mut cargo: Command,
    least: usize,
    totals: &mut Totals,
) -> Result<(), Error> {
    let before = totals.passed;
    let mut reader = CargoTest::default();
    let status = steps.run_watched(title, &mut cargo, |line| reader.line(line, totals))?;
    reader.finish(status.success(), totals);
    ran(title, totals.passed - before, least, totals);
    Ok(())
}

/// A test whose name changed would not run, and not fail.
fn ran(title: &str, passed: usize, least: usize, totals: &mut Totals) {
    if passed < least && totals.failed == 0 {
        totals.fail(format!("{title}: expected {least} tests, found {passed}"));
    }
}

fn told(totals: &Totals) -> bool {
    for failure in &totals.failures {
        say(&format!("  failed: {failure}"));
    }
    say(&totals.summary());
    totals.failed == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read() {
        assert_eq!(Part::parse(&[]).unwrap().len(), Part::ALL.len());
        let some = Part::parse(&["fuzz", "tests"]).unwrap();
        assert_eq!(some, [Part::Fuzz, Part::Tests]);
        assert!(Part::parse(&["test"]).is_err());
    }

    #[test]
    fn a_test_that_did_not_run_is_a_failure() {
        let mut totals = Totals::default();
        ran("x", 2, 2, &mut totals);
        assert_eq!(totals.failed, 0);
        ran("x", 1, 2, &mut totals);
        assert_eq!(totals.failures, ["x: expected 2 tests, found 1"]);
    }
}
