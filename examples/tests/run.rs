//! The examples run as they stand, on a golden model.

use ratplus_graphs::Pattern;
use ratplus_tests::{golden_case, ratplus, texts};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

const CASE: &str = "kjv_d16w64i4";
const PROMPT: &str = "In the beginning God";

fn printed(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).output().unwrap();
    let (out, error) = texts(&done);
    assert!(
        done.status.success(),
        "{program} {arguments:?}\n{out}{error}"
    );
    out
}

fn exported(dir: &Path) -> String {
    let case = golden_case(CASE);
    let package = dir.join("package").display().to_string();
    let checkpoint = case.checkpoint().display().to_string();
    let tokenizer = case.file("tokenizer.json").display().to_string();
    let said = printed(
        env!("CARGO_BIN_EXE_example-export"),
        &[&checkpoint, &package, &tokenizer],
    );
    assert!(said.contains(" files"), "{said}");
    package
}

#[test]
fn generate_says_what_the_command_says() {
    let dir = tempfile::tempdir().unwrap();
    let package = exported(dir.path());
    let said = printed(
        env!("CARGO_BIN_EXE_example-generate"),
        &[&package, "tract", "24", PROMPT],
    );
    let command = ratplus().display().to_string();
    let expected = printed(
        &command,
        &[
            "generate",
            &package,
            "--backend",
            "tract",
            "-n",
            "24",
            "--prompt",
            PROMPT,
        ],
    );
    assert_eq!(said.trim_end(), expected.trim_end());
    assert!(said.len() > PROMPT.len() + 24, "{said}");
}

#[test]
fn verify_passes_and_another_models_golden_file_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let package = exported(dir.path());
    let verify = env!("CARGO_BIN_EXE_example-verify");
    let golden = golden_case(CASE).file("golden.safetensors");
    let said = printed(verify, &[&package, "tract", &golden.display().to_string()]);
    assert!(
        said.lines().count() > 2 && !said.contains("FAILED"),
        "{said}"
    );
    let other = golden_case("kjv_hybrid").file("golden.safetensors");
    let done = Command::new(verify)
        .arg(&package)
        .arg("tract")
        .arg(other)
        .output();
    let done = done.unwrap();
    assert!(!done.status.success(), "{:?}", texts(&done));
}

#[test]
fn cache_rows_are_those_that_a_query_can_see() {
    const TOKENS: usize = 200;
    let dir = tempfile::tempdir().unwrap();
    let package = exported(dir.path());
    let tokens: Vec<String> = (1..=TOKENS)
        .map(|token| (token * 7 % 2000).to_string())
        .collect();
    let said = printed(
        env!("CARGO_BIN_EXE_example-cache-rows"),
        &[&package, &tokens.join(",")],
    );
    // Of the first head, what each position's rows hold.
    let mut lengths: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    for line in said.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let [_, head, _, position, _, _, _, length] = words[..] else {
            panic!("{line}");
        };
        if head == "0" {
            lengths
                .entry(position.parse().unwrap())
                .or_default()
                .insert(length);
        }
    }
    let pattern = Pattern::new(16, 64, 4).unwrap();
    let visible: BTreeSet<_> = (0..TOKENS)
        .filter(|&key| pattern.visible(TOKENS, key))
        .collect();
    let held: BTreeSet<_> = lengths.keys().copied().collect();
    assert_eq!(held, visible);
    // A token in two rows is the same key in both.
    assert!(lengths.values().all(|length| length.len() == 1), "{said}");
}
