//! Commands where nothing can be written: a read-only root, no folder of temporary files, another
//! user.

use ratplus_tests::{golden_case, ratplus, run, texts, with_own_mounts};
use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

/// `$1` and whatever lies in memory become read-only, then the command after that runs. Exit 77:
/// the machine does not let us mount.
const SCRIPT: &str = r#"
mount --bind / / && mount -o remount,bind,ro / || exit 77
for folder in "$1" /tmp /dev/shm /run /var/tmp; do
  mount --bind "$folder" "$folder" 2>/dev/null && mount -o remount,bind,ro "$folder" || exit 77
done
if touch "$1/x" 2>/dev/null; then exit 77; fi
shift
cd / && exec "$@"
"#;

fn package(dir: &Path) -> OsString {
    let case = golden_case("kjv_d16w64i4");
    let package = dir.join("package");
    let mut args: Vec<OsString> = vec!["export".into(), case.checkpoint().into(), "-o".into()];
    args.extend([package.clone().into(), "--config".into()]);
    args.extend([case.file("config.json").into(), "--tokenizer".into()]);
    args.push(case.file("tokenizer.json").into());
    args.extend(["--max-seq-len=96", "--prefill-lengths=16"].map(OsString::from));
    let result = run(args);
    assert!(result.status.success(), "{}", texts(&result).1);
    package.into()
}

/// What a command printed, on both streams, that has to succeed.
fn succeeded(what: &str, output: &Output) -> String {
    let (stdout, stderr) = texts(output);
    assert!(output.status.success(), "{what}: {stderr}");
    stdout + &stderr
}

#[test]
fn nothing_has_to_be_written_to_say_what_ran() {
    let dir = tempfile::tempdir().unwrap();
    let (package, text) = (package(dir.path()), dir.path().join("text"));
    std::fs::write(
        &text,
        "In the beginning God created the heaven and the earth.",
    )
    .unwrap();
    let eval = format!("eval DIR --text {} --threads 1", text.display());
    let commands = [
        (
            "generate DIR --prompt In -n 4 --threads 1",
            "kernel (CPUExecutionProvider)",
        ),
        (
            "generate DIR --prompt In -n 4 --threads 1 --backend ort-fallback",
            "function body",
        ),
        (
            "generate DIR --prompt In -n 4 --threads 1 --backend tract",
            "reference",
        ),
        (&eval, "kernel (CPUExecutionProvider)"),
        (
            "verify DIR --tokens 20 --threads 1",
            "kernel (CPUExecutionProvider)",
        ),
        (
            "bench DIR --prompt 16 -n 2 --repeat 1 --threads 1",
            "no folder takes one",
        ),
        ("inspect DIR", "pattern"),
        ("doctor", "processor"),
    ];
    let arguments = |command: &str| -> Vec<OsString> {
        let words = command.split(' ');
        words
            .map(|word| match word {
                "DIR" => package.clone(),
                word => word.into(),
            })
            .collect()
    };
    for (command, expected) in commands {
        let program = [dir.path().into(), ratplus().into_os_string()];
        let words = program.into_iter().chain(arguments(command));
        match with_own_mounts(SCRIPT, words.collect::<Vec<_>>()) {
            Ok(output) => {
                let printed = succeeded(command, &output);
                assert!(printed.contains(expected), "{command}: {printed}");
            }
            Err(reason) => {
                let line = format!("SKIPPED {command} on a read-only root: {reason}");
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
        if command == "doctor" {
            continue;
        }
        // Where there is no folder of temporary files, and no home.
        let output = Command::new(ratplus())
            .args(arguments(command))
            .env("TMPDIR", "/nowhere")
            .env_remove("HOME")
            .output()
            .unwrap();
        let printed = succeeded(command, &output);
        // /dev/shm takes the profile.
        let expected = match command.starts_with("bench") {
            true => "kernel (CPUExecutionProvider)",
            false => expected,
        };
        assert!(printed.contains(expected), "{command}: {printed}");
    }
}
