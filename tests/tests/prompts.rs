//! What becomes of a text on its way to the model and back: special tokens, vocabularies, where prompts
//! come from.

use ratplus_tests::{GoldenCase, golden_case, run, texts};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn case() -> GoldenCase {
    golden_case("kjv_d16w64i4")
}

fn tokenizer() -> Value {
    let json = std::fs::read(case().file("tokenizer.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn added(id: u32, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true,
    })
}

/// One token for each of these words.
fn word_level(words: &[&str]) -> Value {
    let vocab: serde_json::Map<_, _> = words
        .iter()
        .zip(0..)
        .map(|(word, id)| ((*word).to_owned(), id.into()))
        .collect();
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null, "decoder": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": words[0]},
    })
}

struct Packages(tempfile::TempDir);

impl Packages {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, contents).unwrap();
        path.into_os_string().into_string().unwrap()
    }

    /// Exports the King James model with a tokenizer; what that says on standard error.
    fn export(&self, name: &str, tokenizer: &Value, flags: &[&str]) -> (String, String) {
        let case = case();
        let file = self.file(&format!("{name}.json"), tokenizer.to_string());
        let output = self.path(name).into_os_string().into_string().unwrap();
        let mut args: Vec<OsString> = vec!["export".into(), case.checkpoint().into()];
        args.extend(["-o".into(), output.clone().into()]);
        args.extend(["--config".into(), case.file("config.json").into()]);
        args.extend(["--tokenizer", &file].map(Into::into));
        args.extend(flags.iter().map(Into::into));
        let done = run(args);
        let (_, stderr) = texts(&done);
        assert!(done.status.success(), "{stderr}");
        (output, stderr)
    }
}

/// Standard output and standard error of a command that succeeds.
fn fine(args: &[&str]) -> (String, String) {
    let output = run(args);
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{args:?}: {stderr}");
    (stdout, stderr)
}

/// The message of a command that exits with 2 and has printed nothing else.
fn refused(args: &[&str]) -> String {
    message(&run(args))
}

fn message(output: &Output) -> String {
    let (stdout, stderr) = texts(output);
    assert_eq!(output.status.code(), Some(2), "{stdout}{stderr}");
    assert_eq!(stdout, "", "{stderr}");
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    stderr
}

fn with_input(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(ratplus_tests::ratplus())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its flags reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

const PROMPT: &str = "In the beginning God";

#[test]
fn special_tokens_are_added_where_asked_for() {
    let packages = Packages::new();
    let mut template = tokenizer();
    template["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    });
    let flags = [
        "--max-seq-len",
        "512",
        "--prefill-lengths",
        "64",
        "--logits",
        "all",
    ];
    let (plain, notes) = packages.export("plain", &tokenizer(), &flags);
    assert!(!notes.contains("--tokenizer"), "{notes}");
    let (default, notes) = packages.export("default", &template, &flags);
    assert!(notes.contains("would add `<s>` to every text"), "{notes}");
    let asked = [&flags[..], &["--special-tokens", "tokenizer"]].concat();
    let (asked, notes) = packages.export("asked", &template, &asked);
    assert!(notes.contains("adds `<s>` to every text"), "{notes}");
    // Packages without special tokens are as they were before there was a choice.
    let manifest =
        |package: &str| std::fs::read_to_string(Path::new(package).join("manifest.json")).unwrap();
    assert!(!manifest(&plain).contains("special_tokens"));
    assert!(!manifest(&default).contains("special_tokens"));
    assert!(manifest(&asked).contains("\"special_tokens\": \"tokenizer\""));
    let none = ["--special-tokens", "none"];
    let some = ["--special-tokens", "tokenizer"];
    let ways: [(&str, &[&str], bool); 6] = [
        (&plain, &[], false),
        (&default, &[], false),
        (&asked, &none, false),
        (&asked, &[], true),
        (&default, &some, true),
        (&plain, &some, false),
    ];
    let adds = "adds `<s>` to every text; --special-tokens none leaves that out";
    let mut continued: [Option<String>; 2] = Default::default();
    let mut scored: [Option<(Value, f64)>; 2] = Default::default();
    // One sentence: what stands at a text's start matters less and less after it.
    let sample = std::fs::read_to_string(case().file("sample.txt")).unwrap();
    let text = packages.file("text.txt", &sample[..100]);
    let prompts = [
        PROMPT,
        "And God said",
        "Blessed are the",
        "Thou",
        "The LORD",
    ];
    let prompts = prompts.map(|prompt| json!(prompt).to_string()).join("\n");
    let prompts = packages.file("prompts.jsonl", prompts);
    for (package, flags, special) in ways {
        let args = ["generate", package, "--prompts", &prompts, "-n", "30"];
        let (stdout, stderr) = fine(&[&args, flags].concat());
        assert_eq!(stderr.contains(adds), special, "{stderr}");
        let first = continued[usize::from(special)].get_or_insert_with(|| stdout.clone());
        assert_eq!(&stdout, first, "{package} {flags:?}");
        let args = ["eval", package, "--json", "--text", &text];
        let (stdout, stderr) = fine(&[&args, flags].concat());
        assert_eq!(stderr.contains(adds), special, "{stderr}");
        let rows: Value = serde_json::from_str(&stdout).unwrap();
        let names = if special { json!(["<s>"]) } else { json!([]) };
        assert_eq!(rows[0]["special_tokens"], names);
        let row = (
            rows[0]["tokens"].clone(),
            rows[0]["perplexity"].as_f64().unwrap(),
        );
        let first = scored[usize::from(special)].get_or_insert_with(|| row.clone());
        assert_eq!(&row, first, "{package} {flags:?}");
    }
    // What this model never saw confuses it; its first token is scored where one comes before it.
    assert_ne!(continued[0], continued[1]);
    let [Some(without), Some(with)] = scored else {
        panic!("both were scored");
    };
    assert_eq!(with.0.as_u64().unwrap(), without.0.as_u64().unwrap() + 1);
    assert!(with.1 > 1.2 * without.1, "{} {}", with.1, without.1);
    let args = ["eval", &asked, "--window", "64", "--text"];
    let (table, _) = fine(&[&args[..], &[&text]].concat());
    assert!(
        table.contains(&format!("{} tokens scored, `<s>` added", with.0)),
        "{table}"
    );
    let error = refused(&[
        "export",
        "x.pth",
        "-o",
        "x",
        "--special-tokens",
        "tokenizer",
    ]);
    assert!(error.contains("--tokenizer <FILE>"), "{error}");
}

#[test]
fn a_tokenizer_may_know_other_tokens_than_the_model() {
    let packages = Packages::new();
    let mut larger = tokenizer();
    let list = larger["added_tokens"].as_array_mut().unwrap();
    list.extend([added(2048, "<pad>"), added(2049, "<image>")]);
    let flags = ["--max-seq-len", "64", "--prefill-lengths", "8"];
    let (package, notes) = packages.export("larger", &larger, &flags);
    let note = "knows 2 tokens that the model does not, whose vocabulary is 0 to 2047; the largest is 2049, \
                `<image>`";
    assert!(notes.contains(note), "{notes}");
    fine(&["inspect", &package]);
    let (plain, notes) = packages.export("plain", &tokenizer(), &flags);
    assert!(!notes.contains("knows"), "{notes}");
    let generate = |package: &str| fine(&["generate", package, "-p", PROMPT, "-n", "8"]).0;
    assert_eq!(generate(&package), generate(&plain));
    let error = refused(&["generate", &package, "-p", "In the<image> beginning<pad>"]);
    assert_eq!(
        error,
        "error: --prompt: tokenizer: token 2 is 2049, `<image>`, at byte 6 and 1 more: expected 0 to 2047, \
         the tokens that the model knows; leave it out of the text\n"
    );
    let text = packages.file("text.txt", "In the beginning<pad>");
    let error = refused(&["eval", &package, "--text", &text]);
    assert!(error.contains("text.txt: tokenizer: token "), "{error}");
    assert!(
        error.contains("is 2048, `<pad>`, at byte 16: expected 0 to 2047"),
        "{error}"
    );
    // A padded vocabulary: what the tokenizer does not know has no text.
    let (package, notes) = packages.export("smaller", &word_level(&["In", "the"]), &flags);
    assert!(!notes.contains("knows"), "{notes}");
    let (stdout, _) = fine(&["generate", &package, "-p", "In the", "-n", "8"]);
    assert!(
        stdout.starts_with("In the") && stdout.ends_with('\n'),
        "{stdout}"
    );
    // Nothing is lost where a tokenizer is of no use: the package runs without it.
    let (package, notes) = packages.export("unreadable", &json!({"model": {}}), &flags);
    assert!(notes.contains("generate and eval cannot use it"), "{notes}");
    let error = refused(&["generate", &package, "-p", "In"]);
    assert!(
        error.contains("expected the contents of a tokenizer.json"),
        "{error}"
    );
}

#[test]
fn prompts_come_from_files_and_standard_input() {
    let packages = Packages::new();
    let flags = ["--max-seq-len", "64", "--prefill-lengths", "8"];
    let (package, _) = packages.export("package", &tokenizer(), &flags);
    let file = packages.file("prompt.txt", PROMPT);
    let (expected, _) = fine(&["generate", &package, "-p", PROMPT, "-n", "12"]);
    let args = ["generate", &package, "-n", "12", "--prompt-file"];
    assert_eq!(fine(&[&args[..], &[&file]].concat()).0, expected);
    let piped = with_input(&[&args[..], &["-"]].concat(), PROMPT.as_bytes());
    assert_eq!(texts(&piped).0, expected);
    let eval = ["eval", &package, "--json", "--text"];
    let score = |output: &Output| {
        let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
        (rows[0]["tokens"].clone(), rows[0]["perplexity"].clone())
    };
    assert_eq!(
        score(&with_input(
            &[&eval[..], &["-"]].concat(),
            PROMPT.as_bytes()
        )),
        score(&run([&eval[..], &[&file]].concat()))
    );
    // A text that looks like a file is a text, with a note.
    for (text, file) in [("-", "-".into()), (&format!("@{file}"), file.clone())] {
        let (stdout, stderr) = fine(&["generate", &package, "-n", "1", "-p", text]);
        assert!(stdout.starts_with(text), "{stdout}");
        let advice = format!("--prompt-file {file} reads");
        assert!(stderr.contains(&advice), "{stderr}");
    }
    let (_, stderr) = fine(&["generate", &package, "-n", "1", "-p", "@home"]);
    assert!(!stderr.contains("--prompt-file"), "{stderr}");
    let error = message(&with_input(&["generate", &package], PROMPT.as_bytes()));
    assert_eq!(
        error,
        "error: expected --prompt TEXT, --prompt-file FILE or --prompts FILE, found none of them; \
         `--prompt-file -` reads standard input\n"
    );
    let error = refused(&["generate", &package, "-p", "a", "--prompts", &file]);
    assert!(error.contains("cannot be used with"), "{error}");
    let latin = packages.file("latin.txt", b"caf\xe9");
    for flag in ["--prompt-file", "--prompts"] {
        let error = refused(&["generate", &package, flag, &latin]);
        let expected = "latin.txt: expected UTF-8, found something else at byte 3";
        assert!(error.contains(flag) && error.contains(expected), "{error}");
        let error = refused(&["generate", &package, flag, "none.txt"]);
        assert!(error.contains(&format!("{flag} none.txt: ")), "{error}");
    }
    let error = message(&with_input(&[&args[..], &["-"]].concat(), b""));
    assert!(
        error.contains("--prompt-file -: the prompt has no tokens"),
        "{error}"
    );
    // A megabyte that is too long is counted in seconds, and one that fits runs.
    let sample = std::fs::read_to_string(case().file("sample.txt")).unwrap();
    let book = sample.repeat((1 << 20) / sample.len() + 1);
    let error = message(&with_input(&[&args[..], &["-"]].concat(), book.as_bytes()));
    assert!(
        error.contains(
            " tokens, the sequence has room for 64; shorten the prompt or export with a larger"
        ),
        "{error}"
    );
    let long = "w".repeat(40_000);
    let words = word_level(&["In", &long]);
    let (package, _) = packages.export("words", &words, &flags);
    let text = vec![long; 30].join(" ");
    assert!(text.len() > 1 << 20);
    let args = ["generate", &package, "-n", "2", "--prompt-file", "-"];
    let output = with_input(&args, text.as_bytes());
    let (stdout, stderr) = texts(&output);
    assert!(
        output.status.success() && stdout.starts_with(&text),
        "{stderr}"
    );
}

#[test]
fn several_prompts_are_continued_as_each_alone() {
    let packages = Packages::new();
    let flags = [
        "--max-seq-len",
        "48",
        "--prefill-lengths",
        "8",
        "--batch",
        "2",
    ];
    let (package, _) = packages.export("package", &tokenizer(), &flags);
    let prompts = [
        PROMPT,
        "And it came to pass in those days, that there went out a decree from Caesar Augustus",
        "\u{e9}\n\"",
        "Blessed are the",
        "Thou shalt not",
    ];
    let lines: Vec<_> = prompts
        .iter()
        .map(|prompt| json!(prompt).to_string())
        .collect();
    let file = packages.file("prompts.jsonl", lines.join("\n"));
    let sampled = ["--temperature", "0.9", "--seed", "7", "--top-k", "50"];
    for flags in [&[][..], &sampled[..]] {
        let flags = [&["-n", "30"], flags].concat();
        let together = ["generate", &package, "--prompts"];
        let (stdout, _) = fine(&[&together[..], &[&file], &flags].concat());
        let rows: Vec<Value> = stdout
            .lines()
            .map(|row| serde_json::from_str(row).unwrap())
            .collect();
        assert_eq!(rows.len(), prompts.len());
        for (row, prompt) in rows.iter().zip(prompts) {
            assert_eq!(row["prompt"], prompt);
            let (alone, stderr) =
                fine(&[&["generate", &package, "-p", prompt], &flags[..]].concat());
            let completion = row["completion"].as_str().unwrap();
            assert_eq!(alone, format!("{prompt}{completion}\n"));
            let full = stderr.contains("stopped: the sequence is full at 48 tokens");
            let tokens = row["tokens"].as_u64().unwrap();
            match row["stop"].as_str().unwrap() {
                "max_new_tokens" => assert!(tokens == 30 && !full),
                "max_seq_len" => assert!(tokens < 30 && full),
                stop => assert_eq!(stop, "end"),
            }
        }
        assert!(
            rows.iter().any(|row| row["stop"] == "max_seq_len"),
            "{stdout}"
        );
        // The end of the file may have a line feed, and so may that of Windows.
        let piped = [&together[..], &["-"], &flags].concat();
        let input = lines.join("\r\n") + "\r\n";
        assert_eq!(texts(&with_input(&piped, input.as_bytes())).0, stdout);
    }
    let long = json!("In the beginning ".repeat(30)).to_string();
    let bad = [
        "\"fine\"",
        "",
        "In the beginning",
        "{\"prompt\": \"a\"}",
        "\"\"",
        &long,
    ];
    let bad = packages.file("bad.jsonl", bad.join("\n"));
    let args = [
        "generate",
        &package,
        "--prompts",
        &bad,
        "--top-p",
        "2",
        "--stop-tokens",
        "9999",
    ];
    let error = refused(&args).replace(&bad, "FILE");
    insta::assert_snapshot!("bad_prompts", error);
    let empty = packages.file("empty.jsonl", "");
    let error = refused(&["generate", &package, "--prompts", &empty]);
    assert!(
        error.contains("expected a JSON string a line, found no lines"),
        "{error}"
    );
}

#[test]
fn sampling_flags_without_effect_are_named() {
    let packages = Packages::new();
    let flags = ["--max-seq-len", "64", "--prefill-lengths", "8"];
    let (package, _) = packages.export("package", &tokenizer(), &flags);
    let note = |flags: &[&str]| {
        let (_, stderr) = fine(&[&["generate", &package, "-p", "In", "-n", "1"], flags].concat());
        let note = stderr.lines().find(|line| line.contains("no effect"));
        note.map(str::to_owned)
    };
    let greedy = "no effect: --temperature 0, the default, always takes the likeliest token";
    for (flags, expected) in [
        (&[][..], None),
        (&["--temperature", "0"], None),
        (&["--seed", "0"], Some(format!("note: --seed has {greedy}"))),
        (
            &[
                "--top-p",
                "0.9",
                "--temperature",
                "0",
                "--top-k",
                "1",
                "--seed",
                "4",
            ],
            Some(format!("note: --top-k, --top-p, --seed have {greedy}")),
        ),
        (
            &[
                "--temperature",
                "0.5",
                "--top-k",
                "2",
                "--seed",
                "4",
                "--top-p",
                "0.5",
            ],
            None,
        ),
        (
            &[
                "--min-p",
                "0.1",
                "--repetition-penalty",
                "1.2",
                "--stop",
                "x",
            ],
            Some(format!("note: --min-p has {greedy}")),
        ),
        (
            &["--temperature", "0.5", "--top-k", "1", "--seed", "4"],
            Some("note: --seed has no effect: --top-k 1 always takes the likeliest token".into()),
        ),
    ] {
        assert_eq!(note(flags), expected, "{flags:?}");
    }
}

#[test]
fn texts_end_before_a_stop_string() {
    let packages = Packages::new();
    let flags = ["--max-seq-len", "64", "--prefill-lengths", "8"];
    let batch = [&flags[..], &["--batch", "2"]].concat();
    let (package, _) = packages.export("package", &tokenizer(), &batch);
    let prompts = [PROMPT, "And it came to pass", "Blessed are the"];
    let lines = prompts.map(|prompt| json!(prompt).to_string()).join("\n");
    let file = packages.file("prompts.jsonl", lines);
    let rows = |more: &[&str]| -> Vec<(String, u64, String)> {
        let args = ["generate", &package, "--prompts", &file, "-n", "30"];
        let (stdout, _) = fine(&[&args[..], more].concat());
        let row = |line: &str| {
            let row: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            (
                text("completion"),
                row["tokens"].as_u64().unwrap(),
                text("stop"),
            )
        };
        stdout.lines().map(row).collect()
    };
    let free = rows(&[]);
    // Some characters in the middle of one text, wherever tokens begin.
    for length in [1, 4, 17] {
        let stop: String = free[0].0.chars().skip(20).take(length).collect();
        assert_eq!(stop.chars().count(), length, "{free:?}");
        let stopped = rows(&["--stop", "no text has this", "--stop", &stop]);
        assert_eq!(stopped[0].2, "stop_string");
        for (stopped, free) in stopped.iter().zip(&free) {
            match free.0.split_once(&stop) {
                Some((before, _)) => {
                    assert_eq!((&*stopped.0, &*stopped.2), (before, "stop_string"));
                    assert!(stopped.1 < free.1);
                }
                None => assert_eq!(stopped, free),
            }
        }
        let args = [
            "generate", &package, "-p", PROMPT, "-n", "30", "--stop", &stop,
        ];
        assert_eq!(fine(&args).0, format!("{PROMPT}{}\n", stopped[0].0));
    }
    let error = refused(&["generate", &package, "-p", "In", "--stop", ""]);
    assert!(
        error.contains("--stop: expected texts, found an empty one"),
        "{error}"
    );
}

#[test]
fn penalties_change_greedy_texts() {
    let packages = Packages::new();
    let flags = ["--max-seq-len", "256", "--prefill-lengths", "8"];
    let (package, _) = packages.export("package", &tokenizer(), &flags);
    let distinct = |flags: &[&str]| {
        let args = ["generate", &package, "-p", PROMPT, "-n", "150"];
        let (text, _) = fine(&[&args[..], flags].concat());
        let words: std::collections::BTreeSet<&str> = text.split_whitespace().collect();
        words.len()
    };
    let plain = distinct(&[]);
    for flags in [
        ["--repetition-penalty", "1.5"],
        ["--presence-penalty", "2"],
        ["--frequency-penalty", "2"],
    ] {
        assert!(distinct(&flags) > plain, "{flags:?}");
    }
}
