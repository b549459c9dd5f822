//! What there is on this machine, and what shells know of the command.

use ratplus_graphs::ops::Op;
use ratplus_tests::{run, texts};
use std::ffi::OsString;

#[test]
fn doctor_says_what_is_there() {
    let result = run(["doctor", "--json"]);
    let findings: serde_json::Value = serde_json::from_str(&texts(&result).0).unwrap();
    let found = |name: &str| {
        let list = findings.as_array().unwrap();
        list.iter().find(|finding| finding["name"] == name).unwrap()["found"].clone()
    };
    for name in [
        "ONNX Runtime",
        "custom ops",
        "ort-cpu",
        "ort-fallback",
        "tract",
    ] {
        assert_eq!(found(name), true, "{findings}");
    }
}

#[test]
fn libraries_describe_themselves() {
    let described = |name: &str| -> serde_json::Value {
        let library = ratplus_tests::ratplus().with_file_name(name);
        let args = ["doctor", "--json", "--library"].map(OsString::from);
        let result = run(args.into_iter().chain([library.clone().into_os_string()]));
        let (out, error) = texts(&result);
        assert!(result.status.success(), "{error}");
        let note = std::process::Command::new("readelf")
            .arg("-n")
            .arg(library)
            .output()
            .unwrap();
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        let id = value["build_id"].as_str().unwrap().to_owned();
        assert!(texts(&note).0.contains(&format!("Build ID: {id}")), "{out}");
        value
    };
    let ort = described("libratplus_ort.so");
    assert_eq!(ort["api_levels"], serde_json::json!([17, 18]));
    assert_eq!(ort["providers"][0], "CPUExecutionProvider");
    let operators = |library: &serde_json::Value| -> Vec<String> {
        let list = library["operators"].as_array().unwrap().iter();
        list.map(|operator| operator["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let names = |ops: &[Op]| {
        ops.iter()
            .map(|op| op.name().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(operators(&ort), names(&Op::ALL));
    let trt = described("libratplus_trt.so");
    assert_eq!(operators(&trt), names(&Op::GPU));
    assert_eq!(trt["oldest_release"], "10.3");
    let other = run(["doctor", "--library", "/dev/null"]);
    assert_eq!(other.status.code(), Some(2));
}

#[test]
fn shells_and_manuals_know_every_command() {
    let help = texts(&run(["--help"])).0;
    let commands = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"));
    let commands = commands.skip(1).map_while(|line| line.strip_prefix("  "));
    let commands: Vec<_> = commands
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.len() > 9, "{commands:?}");
    let script = texts(&run(["completions", "bash"])).0;
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("made/man1");
    let result = run([OsString::from("man"), pages.clone().into()]);
    assert!(result.status.success(), "{}", texts(&result).1);
    for name in &commands {
        assert!(script.contains(&format!("ratplus,{name})")), "{name}");
        let page = std::fs::read_to_string(pages.join(format!("ratplus-{name}.1"))).unwrap();
        assert!(
            page.contains(".TH") && page.contains("help"),
            "{name}: {page}"
        );
    }
    let checked = std::process::Command::new("bash")
        .arg("-n")
        .arg("-c")
        .arg(&script)
        .output();
    assert!(checked.unwrap().status.success());
    let refused = run(["completions", "tcsh"]);
    assert_eq!(refused.status.code(), Some(2));
}

/// `ratplus inspect .. | head`: whoever stops reading hears nothing more.
#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_error() {
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    let mut child = Command::new(ratplus_tests::ratplus())
        .args(["export", "--help"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert_eq!(stderr, "");
    let status = child.wait().unwrap();
    // It may have written everything before the pipe was closed.
    assert!(status.success() || status.signal() == Some(13), "{status}");
}
