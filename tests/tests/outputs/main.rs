//! What good commands print.

mod check;
mod export;
mod generate;
mod inspect;
mod machine;
mod verify;

use ratplus_tests::{GoldenCase, golden_case, run, texts};
use std::ffi::OsString;
use std::path::Path;

fn case(name: &str) -> GoldenCase {
    golden_case(name)
}

fn export(case: &GoldenCase, package: &Path, flags: &[&str]) {
    let mut args: Vec<OsString> = vec!["export".into(), case.checkpoint().into(), "-o".into()];
    args.extend([
        package.into(),
        "--config".into(),
        case.file("config.json").into(),
    ]);
    args.extend(["--tokenizer".into(), case.file("tokenizer.json").into()]);
    args.extend(flags.iter().map(OsString::from));
    let result = run(args);
    assert!(result.status.success(), "{}", texts(&result).1);
}

/// Standard output of a command that has to succeed.
fn printed(args: &[&str], package: &Path) -> String {
    let args = [args[0].into(), package.as_os_str().to_owned()]
        .into_iter()
        .chain(args[1..].iter().map(OsString::from));
    let result = run(args);
    let (stdout, stderr) = texts(&result);
    assert!(result.status.success(), "{stderr}");
    stdout
}
