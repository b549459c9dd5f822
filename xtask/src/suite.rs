//! All tests, counted.

use crate::Outcome;
use crate::clients;
use crate::counts::{CargoTest, Totals, pytest};
use crate::ort_headers;
use crate::setup;
use crate::step::{Error, Steps, say};
use crate::support;
use crate::tensorrt;
use crate::toolkit;
use crate::triton;
use crate::wheel;
use crate::workspace::Workspace;
use std::path::Path;
use std::process::Command;

const PYTHON_TESTS: &str = "tests/python";
/// Files of tests that run at once at most: what they start has threads of its own.
const MOST_WORKERS: usize = 4;

/// Runs every test and prints the counts as the last line. True where none failed.
pub fn run(workspace: &Workspace) -> Outcome {
    run_after(workspace, Vec::new())
}

/// [`run`] after checks of which `skips` were skipped, which count.
pub fn run_after(workspace: &Workspace, skips: Vec<String>) -> Outcome {
    let mut totals = Totals::default();
    for skip in skips {
        totals.skip(skip);
    }
    match fill(workspace, &mut totals) {
        Ok(()) => support::write(workspace, &mut totals),
        Err(error) => totals.fail(error.to_string()),
    }
    report("failed", &totals.failures);
    report("skipped", &totals.skips);
    say("");
    say(&totals.summary());
    Ok(totals.failed == 0)
}

fn report(what: &str, lines: &[String]) {
    if !lines.is_empty() {
        say(&format!("\n{what}:"));
    }
    for line in lines {
        say(&format!("  {line}"));
    }
}

fn fill(workspace: &Workspace, totals: &mut Totals) -> Result<(), Error> {
    let steps = Steps::new(workspace);
    prepare(workspace, &steps)?;
    disk(workspace);
    let mut cargo = Command::new("cargo");
    cargo
        .args(["test", "--workspace", "--release", "--no-fail-fast"])
        .env("CARGO_TERM_COLOR", "never");
    environment(workspace, &mut cargo)?;
    let mut reader = CargoTest::default();
    let each = |line: &str| reader.line(line, totals);
    let status = steps.run_watched("Rust tests", &mut cargo, each)?;
    reader.finish(status.success(), totals);

    // Without it the other tests run all the same.
    let wheel = wheel::pack(workspace, wheel::For::Here);
    let wheel = wheel.map_err(|error| totals.fail(error.to_string())).ok();
    if let Some(wheel) = &wheel {
        wheel::dynamo(workspace, wheel);
    }
    let mut python = Command::new(workspace.python());
    python
        .args([
            "-m",
            "pytest",
            PYTHON_TESTS,
            "-rsxfE",
            // A line a test, at once: a suite that hangs names the test.
            "-v",
            "--color=no",
            "--durations=40",
        ])
        .args(at_once())
        .env_remove("PYTEST_ADDOPTS");
    environment(workspace, &mut python)?;
    python_tests(workspace, &steps, "Python tests", &mut python, totals)?;
    disk(workspace);
    let Some(wheel) = wheel else { return Ok(()) };
    let mut python = wheel::tests(workspace, &wheel, wheel::For::Here)?;
    python.args(at_once());
    python_tests(workspace, &steps, "tests of the wheel", &mut python, totals)
}

/// Words that have pytest run a file of tests for each processor at once; those of a file share what they made.
fn at_once() -> [String; 4] {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = workers.min(MOST_WORKERS).to_string();
    ["-n", &workers, "--dist", "loadfile"].map(str::to_owned)
}

/// Says what is free where tests write: a full disk fails many of them in many ways.
fn disk(workspace: &Workspace) {
    let mut df = Command::new("df");
    let output = df
        .args(["-Ph", "."])
        .current_dir(&workspace.target)
        .output();
    let text = output.map_or_else(
        |error| error.to_string(),
        |out| String::from_utf8_lossy(&out.stdout).into(),
    );
    let free = text
        .lines()
        .nth(1)
        .and_then(|line| line.split_whitespace().nth(3));
    say(&format!(
        "==> disk: {} free below {}",
        free.unwrap_or("unknown"),
        workspace.target.display()
    ));
}

/// Runs pytest and counts what it reports.
pub fn python_tests(
    workspace: &Workspace,
    steps: &Steps<'_>,
    title: &str,
    python: &mut Command,
    totals: &mut Totals,
) -> Result<(), Error> {
    let report = workspace.absolute(&workspace.target.join("pytest.xml"));
    // One of an earlier run says nothing of this one.
    let _ = std::fs::remove_file(&report);
    let passed = steps.try_run(title, python.arg("--junitxml").arg(&report))?;
    let report = std::fs::read_to_string(&report).unwrap_or_default();
    pytest(&report, passed, totals);
    Ok(())
}

/// Installs and builds all that tests need.
pub fn prepare(workspace: &Workspace, steps: &Steps<'_>) -> Result<(), Error> {
    setup::run(workspace)?;
    setup::other_runtimes(workspace);
    triton::install(workspace);
    tensorrt::libraries(workspace);
    ort_headers::install(workspace);
    clients::install(workspace);
    browser(steps);
    let remedy = "mend what the compiler says above, then run it again";
    // Tests among the targets: the same features, so that the test run compiles nothing twice.
    let mut build = Command::new("cargo");
    build.args([
        "build",
        "--workspace",
        "--release",
        "--lib",
        "--bins",
        "--tests",
    ]);
    steps.run("build everything", &mut build, remedy)
}

/// Installs the browser that the server's page is tested in, where this process may; the test skips where there
/// is none.
fn browser(steps: &Steps<'_>) {
    const PACKAGE: &str = "chromium";
    if setup::runs(Path::new(PACKAGE)) {
        return;
    }
    let remedy = "install it (Debian: apt install chromium)";
    let title = "setup: install Chromium for the test of the server's page";
    if let Err(error) = toolkit::install_debian(steps, title, PACKAGE, remedy) {
        say(&format!("    not installed, its test will skip: {error}"));
    }
}

/// Where tests find what was built and installed.
pub fn environment(workspace: &Workspace, command: &mut Command) -> Result<(), Error> {
    command
        .env("RATPLUS_BIN", workspace.absolute(&workspace.program()))
        .env(
            "RATPLUS_OPERATOR_TOOL",
            workspace.absolute(&workspace.operator_tool()),
        )
        .env(
            "RATPLUS_ORT_LIBRARY",
            workspace.absolute(&workspace.ort_plugin()),
        )
        .env(
            "RATPLUS_TRT_LIBRARY",
            workspace.absolute(&workspace.trt_plugin()),
        )
        .env(
            "RATPLUS_TRITON_LIBRARY",
            workspace.absolute(&workspace.triton_backend()),
        )
        .env("ORT_DYLIB_PATH", setup::ort_library(workspace)?)
        .env(
            "RATPLUS_CACHE_DIR",
            workspace.absolute(&workspace.target.join("kernel-cache")),
        );
    let nvrtc = workspace.absolute(&toolkit::nvrtc_folder(workspace));
    if nvrtc.is_dir() {
        command.env("RATPLUS_NVRTC", nvrtc);
    }
    let rtx = workspace.absolute(&tensorrt::rtx_folder(workspace));
    if rtx.is_dir() {
        command.env("RATPLUS_TENSORRT_RTX", rtx);
    }
    Ok(())
}
