//! An export's memory does not grow with the model.

use ratplus_tests::{ratplus, synthetic};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Most anonymous memory an export may use, in bytes.
const MOST: u64 = 300 << 20;

/// Anonymous resident bytes of a process; `None` once it has ended.
fn anonymous(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

/// The 1.5B shape, 3.1 GB of bf16: sampled every millisecond while it is exported, and timed
/// against `cp` of the same bytes. Only the memory is judged: machines are shared.
#[test]
fn exporting_the_1_5b_shape_stays_under_300_mb() {
    let spec = synthetic::released("1.5b").unwrap();
    let dir = tempfile::tempdir_in(ratplus_tests::root().join("target")).unwrap();
    let checkpoint = dir.path().join("model.safetensors");
    synthetic::write_safetensors(&spec, &checkpoint).unwrap();
    let bytes = std::fs::metadata(&checkpoint).unwrap().len();

    let started = Instant::now();
    let copied = Command::new("cp")
        .arg(&checkpoint)
        .arg(dir.path().join("copy"))
        .status()
        .unwrap();
    assert!(copied.success());
    std::fs::File::open(dir.path().join("copy"))
        .unwrap()
        .sync_all()
        .unwrap();
    let copy = started.elapsed();
    std::fs::remove_file(dir.path().join("copy")).unwrap();

    let started = Instant::now();
    let mut child = Command::new(ratplus())
        .args([
            "export".as_ref(),
            checkpoint.as_os_str(),
            "-o".as_ref(),
            dir.path().join("out").as_os_str(),
        ])
        .args(["--dtype", "bf16", "--dilation", "16", "--initial", "4"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut most = 0;
    let mut samples = 0;
    let status = loop {
        if let Some(bytes) = anonymous(child.id()) {
            most = most.max(bytes);
            samples += 1;
        }
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let export = started.elapsed();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut child.stderr.unwrap(), &mut text).unwrap();
    assert!(status.success(), "{text}");
    assert!(samples > 20, "only {samples} samples");
    println!(
        "export of {:.2} GB: {:.1} MB of anonymous memory at most, {:.2} s; cp and sync {:.2} s",
        bytes as f64 / 1e9,
        most as f64 / 1e6,
        export.as_secs_f64(),
        copy.as_secs_f64(),
    );
    assert!(most < MOST, "{most} bytes");
}
