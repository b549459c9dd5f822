//! `gpu_check` over the emulator: every kernel is right, the small benchmark runs, and what is
//! wrong is found.

#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::{Command, Output};

/// `gpu_check`, with the emulator for a driver.
fn gpu_check(arguments: &[&str]) -> Command {
    let folder = ratplus_cuda_emulator::library().parent().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpu_check"));
    command.args(arguments).env("LD_LIBRARY_PATH", folder);
    command
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn every_kernel_is_as_the_reference() {
    let output = gpu_check(&["correct", "--quick"]).output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{out}{err}");
    for part in [
        "scan Serial f32",
        "scan ThreeLaunches f16",
        "scan SinglePass bf16",
        "attention Decode bf16 of 64",
        "attention Tiles f16 of 128",
        "attention SmallTiles bf16 of 64",
        "attention SmallHopper f16 of 128",
        "bad lengths, attention SmallHopper",
        "attention Hopper bf16 of 128",
        "attention Any f32 of 80",
        "blocks bf16 of 128",
        "blocks f32 of 80",
        "40 decode steps bf16",
        "bad lengths, attention Hopper",
        "many times: scan SinglePass",
        "all right",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    assert!(!out.contains("SKIPPED"), "{out}");
}

#[test]
fn a_planted_error_is_found_in_every_comparison() {
    let groups = "scan,decode,tiles,small-tiles,any,blocks,large";
    let arguments = ["correct", "--quick", "--plant-error", "--only", groups];
    let output = gpu_check(&arguments).output().unwrap();
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{out}{err}");
    let lines: Vec<_> = out
        .lines()
        .filter(|line| line.contains(" cases "))
        .collect();
    assert!(lines.len() > 20, "{out}");
    assert!(lines.iter().all(|line| line.ends_with("WRONG")), "{out}");
    assert!(
        err.starts_with("error: not as the reference: scan Serial f32, "),
        "{err}"
    );
    assert!(err.contains("--seed"), "{err}");
}

#[test]
fn the_benchmark_becomes_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results");
    std::fs::create_dir(&results).unwrap();
    let json = results.join("bench.json");
    let arguments = ["bench", "--tiny", "--json", json.to_str().unwrap()];
    let output = gpu_check(&arguments).output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{out}{err}");
    let text = std::fs::read_to_string(&json).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = document["rows"].as_array().unwrap();
    for operator in ["scan", "decode", "attention", "scan + attention"] {
        let own = rows.iter().filter(|row| row["operator"] == operator);
        assert!(own.count() > 3, "{operator}: {text}");
    }
    for row in rows {
        let (median, floor) = (row["median_ms"].as_f64(), row["floor_ms"].as_f64());
        assert!(median > Some(0.0) && floor > Some(0.0), "{row}");
    }
    let page = folder.path().join("gpu.md");
    report(&[json.as_path()], &page);
    let page = std::fs::read_to_string(page).unwrap();
    for part in [
        "ratplus emulator",
        "SinglePass",
        "Hopper",
        "Serial + Decode",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(!page.contains("Not measured"), "{page}");
}

#[test]
fn the_page_in_the_repository_is_what_the_script_writes() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("gpu.md");
    report(&[], &page);
    let made = std::fs::read_to_string(page).unwrap();
    assert!(made.contains("Not measured"), "{made}");
    assert!(made.contains("check.py --steps first"), "{made}");
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/gpu.md");
    let kept = std::fs::read_to_string(kept).unwrap();
    // With figures in it, it is as the session left it that measured them.
    if kept.contains("Not measured") {
        assert_eq!(kept, made, "run python3 benches/gpu/report.py");
    }
}

/// Runs the script that writes the page.
fn report(results: &[&Path], page: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("gpu/report.py");
    let output = Command::new(python())
        .arg(script)
        .args(results)
        .arg("-o")
        .arg(page)
        .output()
        .unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{out}{err}");
}

fn python() -> String {
    std::env::var("PYTHON").unwrap_or_else(|_| "python3".into())
}

#[test]
fn one_command_runs_all_steps_and_says_what_failed() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let out = folder.path().join("out");
    std::fs::create_dir(&bundle).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_gpu_check"), bundle.join("gpu_check")).unwrap();
    let run = |steps: &str| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("gpu/check.py");
        let output = Command::new(python())
            .arg(script)
            .args(["--steps", steps, "--tiny", "--bundle"])
            .arg(&bundle)
            .arg("--out")
            .arg(&out)
            .env(
                "LD_LIBRARY_PATH",
                ratplus_cuda_emulator::library().parent().unwrap(),
            )
            .output()
            .unwrap();
        let code = output.status.code();
        let (out, err) = texts(&output);
        (code, format!("{out}{err}"))
    };
    let (code, text) = run("info,correct-flags,bench-scan");
    assert_eq!(code, Some(0), "{text}");
    for part in ["info", "correct-flags", "bench-scan", "scan SinglePass"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.len() < 11_000, "{}", text.len());
    let results = std::fs::read_to_string(out.join("results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&results).unwrap();
    assert_eq!(results["steps"].as_object().unwrap().len(), 3, "{results}");
    assert!(!results["rows"].as_array().unwrap().is_empty(), "{results}");

    // A step that fails does not keep the next from running.
    std::fs::write(bundle.join("gpu_check"), "#!/bin/sh\necho broken\nexit 1\n").unwrap();
    let (code, text) = run("info,correct-flags");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("info") && text.contains("exit 1"), "{text}");
    let results = std::fs::read_to_string(out.join("results.json")).unwrap();
    assert!(results.contains("correct-flags"), "{results}");

    let (code, text) = run("no-such-step");
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("no-such-step") && text.contains("bench-scan"),
        "{text}"
    );
}

#[test]
fn the_brief_check_ends_and_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let run = |arguments: &[&str]| {
        let check = Path::new(env!("CARGO_BIN_EXE_gpu_check"));
        let emulator = ratplus_cuda_emulator::library().parent().unwrap();
        let output = Command::new(python())
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("gpu/check.py"))
            .args(arguments)
            .args(["--tiny", "--step-seconds", "300", "--seconds", "3000"])
            .arg("--bundle")
            .arg(check.parent().unwrap())
            .arg("--out")
            .arg(&out)
            .env("LD_LIBRARY_PATH", emulator)
            .output()
            .unwrap();
        let (printed, err) = texts(&output);
        assert!(output.status.success(), "{printed}{err}");
        let results = std::fs::read_to_string(out.join("results.json")).unwrap();
        let results: serde_json::Value = serde_json::from_str(&results).unwrap();
        (printed, results)
    };
    let (printed, _) = run(&["--steps", "info,quick-scan,goals-scan"]);
    assert!(printed.contains("==> quick-scan"), "{printed}");
    let (printed, results) = run(&["--steps", "brief", "--resume"]);
    for step in ["info", "quick-scan", "goals-scan"] {
        assert!(
            !printed.contains(&format!("==> {step}:")),
            "{step}: {printed}"
        );
    }
    let steps = results["steps"].as_object().unwrap();
    assert_eq!(steps.len(), 29, "{results}");
    for (step, found) in steps {
        let verdict = found["verdict"].as_str().unwrap();
        let needs_more = ["limits", "ncu-", "memcheck-", "peers-"];
        let may_skip = needs_more.iter().any(|kind| step.starts_with(kind));
        assert!(
            verdict == "ok" || may_skip && verdict == "skipped",
            "{step}: {found}"
        );
    }
    let rows = results["rows"].as_array().unwrap();
    for method in [
        "SinglePass",
        "Tiles",
        "SmallTiles",
        "Hopper",
        "SmallHopper",
        "Serial + Decode",
    ] {
        let timed = |row: &&serde_json::Value| {
            row["method"] == method && row["median_ms"].as_f64() > Some(0.0)
        };
        assert!(rows.iter().any(|row| timed(&row)), "{method}");
    }
    // All is done: nothing runs, and nothing is lost.
    let (printed, again) = run(&["--steps", "brief", "--resume"]);
    assert_eq!(again["rows"], results["rows"]);
    assert!(!printed.contains("==> quick"), "{printed}");
}

#[test]
fn without_a_driver_there_is_one_message() {
    let output = Command::new(env!("CARGO_BIN_EXE_gpu_check"))
        .arg("info")
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .unwrap();
    let (out, err) = texts(&output);
    if output.status.success() {
        println!("SKIPPED: this machine has a driver: {out}");
        return;
    }
    assert_eq!(output.status.code(), Some(2), "{out}{err}");
    assert!(out.starts_with("embedded: "), "{out}");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.starts_with("error: no CUDA "), "{err}");
}

#[test]
fn scripts_are_python() {
    for script in ["check.py", "peers.py", "report.py"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("gpu")
            .join(script);
        let text = std::fs::read_to_string(&path).unwrap();
        let program = "import ast, sys; ast.parse(sys.stdin.read())";
        let mut child = Command::new(python())
            .args(["-c", program])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{script}");
    }
}
