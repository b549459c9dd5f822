//! An export's memory does not grow with the model.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::package::WEIGHTS_FILE;
use ratplus_runtime::package::Package;
use ratplus_tests::{ratplus, synthetic};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
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

/// A model with random weights instead, timed against `cp` of the same bytes: `7.6b` is 15 GB in four shards, and as
/// much again for the copy, and then for the package.
const SIZE: &str = "RATPLUS_EXPORT_SIZE";
/// More flags, with spaces between.
const FLAGS: &str = "RATPLUS_EXPORT_FLAGS";

/// Bits to flip in the package's weights, each time in all of them.
const FLIPS: &str = "RATPLUS_EXPORT_FLIPS";

/// No flipped bit is accepted, wherever in the file it is: the first, the last, around 4 GiB where
/// there is such a place, and anywhere.
fn flip_bits(package: &Path, count: usize) {
    let path = package.join(WEIGHTS_FILE);
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.unwrap();
    let len = file.metadata().unwrap().len();
    let mut rng = ChaCha8Rng::seed_from_u64(15);
    let started = Instant::now();
    for index in 0..count {
        let at = match index {
            0 => len - 1,
            1 => 0,
            2 | 3 if len > 1 << 32 => (1 << 32) - 3 + index as u64,
            _ => rng.random_range(0..len),
        };
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        let flipped = byte[0] ^ 1 << rng.random_range(0..8);
        file.write_all_at(&[flipped], at).unwrap();
        let error = Package::open(package).err().map(|error| error.to_string());
        assert!(
            error
                .as_ref()
                .is_some_and(|error| error.contains(WEIGHTS_FILE)),
            "byte {at}: {error:?}"
        );
        file.write_all_at(&byte, at).unwrap();
    }
    Package::open(package).unwrap();
    println!(
        "{count} flipped bits in {:.2} GB, all refused, {:.1} s each",
        len as f64 / 1e9,
        started.elapsed().as_secs_f64() / (count + 1) as f64
    );
}

/// Seconds that `cp` of a folder takes, until its bytes are on the disk.
fn copy_seconds(from: &Path, to: &Path) -> f64 {
    let started = Instant::now();
    let copied = Command::new("cp").arg("-r").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
    for file in std::fs::read_dir(to).unwrap() {
        let file = std::fs::File::open(file.unwrap().path()).unwrap();
        file.sync_all().unwrap();
    }
    let seconds = started.elapsed().as_secs_f64();
    std::fs::remove_dir_all(to).unwrap();
    seconds
}

/// The 1.5B shape, 2.95 GB of bf16, which are holes of a file: sampled every millisecond while it is exported.
#[test]
fn exporting_the_1_5b_shape_stays_under_300_mb() {
    let timed = std::env::var(SIZE).ok();
    let size = timed.as_deref().unwrap_or("1.5b");
    let flags = std::env::var(FLAGS).unwrap_or_default();
    let spec = synthetic::released(size).expect("1.5b, 2.6b or 7.6b");
    let dir = tempfile::tempdir_in(ratplus_tests::root().join("target")).unwrap();
    let from = dir.path().join("checkpoint");
    std::fs::create_dir(&from).unwrap();
    let file = from.join("model.safetensors");
    let checkpoint = match timed.as_deref() {
        Some("7.6b") => synthetic::write_shards(&spec, &from, 4).unwrap(),
        Some(_) => {
            synthetic::write_safetensors(&spec, &file).unwrap();
            file
        }
        None => {
            synthetic::write_holes(&spec, &file).unwrap();
            file
        }
    };
    let files = std::fs::read_dir(&from).unwrap();
    let bytes: u64 = files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();

    let copy = dir.path().join("copy");
    let copying = timed.as_ref().map(|_| copy_seconds(&from, &copy));
    let copying = copying.map_or("not timed".into(), |seconds| format!("{seconds:.2} s"));

    let started = Instant::now();
    let mut child = Command::new(ratplus())
        .args([
            "export".as_ref(),
            checkpoint.as_os_str(),
            "-o".as_ref(),
            dir.path().join("out").as_os_str(),
        ])
        .args(["--dtype", "bf16", "--dilation", "16", "--initial", "4"])
        .arg("--no-check")
        .args(flags.split_whitespace())
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
        "export of {size}, {:.2} GB {flags}: {:.1} MB of anonymous memory at most, {:.2} s; cp and sync {copying}",
        bytes as f64 / 1e9,
        most as f64 / 1e6,
        export.as_secs_f64(),
    );
    assert!(most < MOST, "{most} bytes");
    std::fs::remove_dir_all(&from).unwrap();
    let flips = std::env::var(FLIPS).map_or(2, |flips| flips.parse().expect("a number"));
    flip_bits(&dir.path().join("out"), flips);
}
