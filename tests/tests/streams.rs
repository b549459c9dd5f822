//! Standard output that is full or closed, and standard error that is.

use ratplus_tests::{golden_case, ratplus, run, texts};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A package, and commands that print something.
struct Printers {
    dir: tempfile::TempDir,
    text: PathBuf,
}

const FULL: &str = "error: cannot write standard output: No space left on device (os error 28)";

impl Printers {
    fn new() -> Self {
        let (dir, case) = (tempfile::tempdir().unwrap(), golden_case("kjv_d16w64i4"));
        let printers = Self {
            dir,
            text: case.file("sample.txt"),
        };
        let mut args = printers.export();
        args.push("--logits=all".into());
        let result = run(args);
        assert!(result.status.success(), "{}", texts(&result).1);
        printers
    }

    fn package(&self) -> PathBuf {
        self.dir.path().join("package")
    }

    fn export(&self) -> Vec<OsString> {
        let case = golden_case("kjv_d16w64i4");
        let flags = "--max-seq-len 96 --prefill-lengths 16 --config".split(' ');
        let mut args: Vec<OsString> = vec!["export".into(), case.checkpoint().into(), "-o".into()];
        args.push(self.package().into());
        args.extend(flags.map(OsString::from));
        args.extend([
            case.file("config.json").into(),
            "--tokenizer".into(),
            case.file("tokenizer.json").into(),
        ]);
        args
    }

    /// Every command, with and without JSON; all end with success.
    fn commands(&self) -> Vec<Vec<OsString>> {
        let on_package = |command: &str, flags: &str| {
            let mut args = vec![command.into(), self.package().into()];
            let flags = flags.split(' ').filter(|flag| !flag.is_empty());
            args.extend(flags.map(OsString::from));
            args
        };
        let mut evaluate = on_package("eval", "--backend tract --text");
        evaluate.push(self.short_text().into());
        let mut evaluate_json = evaluate.clone();
        evaluate_json.push("--json".into());
        let mut dry_run = self.export();
        dry_run.push("--dry-run".into());
        let mut commands = vec![
            self.export(),
            dry_run,
            on_package("inspect", ""),
            on_package("inspect", "--json"),
            on_package("generate", "--backend tract --prompt In -n 8"),
            on_package("verify", "--backend tract --tokens 8"),
            on_package("verify", "--backend tract --tokens 8 --json"),
            on_package("bench", "--backend tract --prompt 16 -n 2 --repeat 1"),
            evaluate,
            evaluate_json,
        ];
        for words in [
            "doctor",
            "doctor --json",
            "--help",
            "--version",
            "help eval",
        ] {
            commands.push(words.split(' ').map(OsString::from).collect());
        }
        commands
    }

    fn short_text(&self) -> PathBuf {
        let (path, text) = (self.dir.path().join("text"), fs::read(&self.text).unwrap());
        fs::write(&path, &text[..200]).unwrap();
        path
    }
}

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// A pipe that nobody reads.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn started(args: &[OsString], stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Output {
    let mut command = Command::new(ratplus());
    command.args(args).stdout(stdout).stderr(stderr);
    command.output().unwrap()
}

#[test]
fn a_full_disk_at_standard_output_is_an_error_of_every_command() {
    let printers = Printers::new();
    for args in printers.commands() {
        let output = started(&args, full(), Stdio::piped());
        let (_, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert_eq!(stderr.matches(FULL).count(), 1, "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
}

#[test]
fn a_closed_pipe_is_quiet() {
    let printers = Printers::new();
    for args in printers.commands() {
        let output = started(&args, closed(), Stdio::piped());
        let (_, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
        for word in ["error", "panicked", "pipe"] {
            assert!(!stderr.contains(word), "{args:?}: {stderr}");
        }
    }
}

#[test]
fn what_standard_error_does_not_take_changes_nothing() {
    let printers = Printers::new();
    let wrong = ["inspect", "/nowhere"].map(OsString::from).to_vec();
    let unknown = vec!["--unknown".into()];
    for args in printers.commands().into_iter().chain([wrong, unknown]) {
        // Times differ.
        let compared = !["bench", "verify", "eval"]
            .map(OsString::from)
            .contains(&args[0]);
        let expected = started(&args, Stdio::piped(), Stdio::piped());
        for stderr in [full().into(), closed()] {
            let output = started(&args, Stdio::piped(), stderr);
            assert_eq!(output.status, expected.status, "{args:?}");
            assert!(!compared || output.stdout == expected.stdout, "{args:?}");
        }
    }
}

/// The exit code of a bad result does not hide that nobody could see it, and the other way round.
#[test]
fn a_bad_result_and_a_full_disk_are_both_told() {
    let dir = tempfile::tempdir().unwrap();
    let case = golden_case("dense");
    let package = dir.path().join("package");
    let mut args: Vec<OsString> = vec!["export".into(), case.checkpoint().into(), "-o".into()];
    args.extend([package.clone().into(), "--config".into()]);
    args.extend([case.file("config.json").into(), "--max-seq-len=150".into()]);
    args.push("--prefill-lengths=16".into());
    assert!(run(&args).status.success());
    let golden = golden_case("streaming").file("golden.safetensors");
    let verify = [
        "verify".into(),
        package.into(),
        "--golden".into(),
        golden.into(),
    ];
    let verify: Vec<OsString> = [&verify[..], &["--backend=tract".into()]].concat();
    let plain = run(&verify);
    assert_eq!(plain.status.code(), Some(1), "{}", texts(&plain).1);
    assert_eq!(
        started(&verify, closed(), Stdio::piped()).status.code(),
        Some(1)
    );
    let output = started(&verify, full(), Stdio::piped());
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("failed: ") && stderr.contains(FULL),
        "{stderr}"
    );
}

/// A file that a flag names is whole or as it was.
#[test]
fn a_report_that_cannot_be_written_is_an_error_and_costs_no_file() {
    let printers = Printers::new();
    let package = printers.package();
    let with = |words: &[&str], file: &Path| {
        let mut args: Vec<OsString> = vec![words[0].into(), package.clone().into()];
        args.extend(words[1..].iter().map(OsString::from));
        args.push(file.into());
        run(args)
    };
    let kinds: [&[&str]; 4] = [
        &["inspect", "--plot"],
        &["verify", "--backend=tract", "--tokens=8", "--report"],
        &[
            "bench",
            "--backend=tract",
            "--prompt=16",
            "-n2",
            "--repeat=1",
            "--json",
        ],
        &[
            "bench",
            "--backend=tract",
            "--prompt=16",
            "-n2",
            "--repeat=1",
            "--plot",
        ],
    ];
    for words in kinds {
        let flag = words[words.len() - 1];
        let output = with(words, Path::new("/dev/full"));
        let (_, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {stderr}");
        let expected = format!("error: {flag}: cannot write /dev/full: No space left");
        assert!(stderr.contains(&expected), "{stderr}");
        let file = printers.dir.path().join("report");
        fs::write(&file, "of before").unwrap();
        let output = with(words, &file);
        assert!(output.status.success(), "{}", texts(&output).1);
        assert_ne!(fs::read(&file).unwrap(), b"of before");
    }
}
