//! What good commands print.

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

#[test]
fn inspect_shows_patterns_bytes_and_flops() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    export(
        &case("kjv_hybrid"),
        &package,
        &["--max-seq-len", "1024", "--batch", "2"],
    );
    let plot = dir.path().join("cost.svg");
    let text = printed(&["inspect", "--plot", plot.to_str().unwrap()], &package);
    // Files' sizes follow the graphs.
    let lines = text
        .lines()
        .filter(|line| !line.contains(".onnx"))
        .map(|line| line.replace(&dir.path().display().to_string(), "DIR"));
    insta::assert_snapshot!("inspect", lines.collect::<Vec<_>>().join("\n"));
    let svg = std::fs::read_to_string(plot).unwrap();
    assert!(
        svg.starts_with("<svg") && svg.contains("dense attention"),
        "{svg}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&printed(&["inspect", "--json"], &package)).unwrap();
    assert_eq!(json["bound_state_bytes"], json["manifest"]["state_bytes"]);
}

#[test]
fn every_backend_continues_a_prompt_with_the_same_words() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    export(&case("kjv_d16w64i4"), &package, &["--max-seq-len", "256"]);
    let prompt = [
        "generate",
        "--prompt",
        "And God said, Let there be",
        "-n",
        "60",
    ];
    let continued = |more: &[&str]| printed(&[&prompt, more].concat(), &package);
    let text = continued(&[]);
    assert!(
        text.starts_with("And God said, Let there be") && text.len() > 120,
        "{text}"
    );
    for more in [
        &["--backend", "ort-fallback"][..],
        &["--backend", "tract"],
        &["--threads", "1"],
        &["--temperature", "1.5", "--top-k", "1", "--seed", "9"],
    ] {
        assert_eq!(continued(more), text, "{more:?}");
    }
    let drawn =
        |seed: &str| continued(&["--temperature", "0.9", "--top-p", "0.95", "--seed", seed]);
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
}

#[test]
fn a_short_package_is_verified_on_as_many_tokens_as_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    export(&case("kjv_d16w64i4"), &package, &["--max-seq-len", "24"]);
    let text = printed(&["verify", "--backend", "tract"], &package);
    assert!(text.contains(" 24 "), "{text}");
}

/// What `export` prints of a checkpoint with these flags, and whether it succeeds.
fn exported(
    checkpoint: &Path,
    config: &Path,
    package: &Path,
    flags: &[&str],
) -> (i32, String, String) {
    let mut args: Vec<OsString> = vec!["export".into(), checkpoint.into(), "-o".into()];
    args.extend([package.into(), "--config".into(), config.into()]);
    args.extend(flags.iter().map(OsString::from));
    let result = run(args);
    let (out, error) = texts(&result);
    (result.status.code().unwrap(), out, error)
}

#[test]
fn an_export_ends_with_a_few_tokens_through_it() {
    let dir = tempfile::tempdir().unwrap();
    let case = case("kjv_d16w64i4");
    let (checkpoint, config) = (case.checkpoint(), case.file("config.json"));
    let export = |name: &str, flags: &[&str]| {
        let (code, out, error) = exported(&checkpoint, &config, &dir.path().join(name), flags);
        assert_eq!(code, 0, "{error}");
        out
    };
    for (name, flags, what) in [
        ("f32", &[][..], "the portable decode graph in ONNX Runtime"),
        (
            "f16",
            &["--dtype", "f16", "--batch", "2"],
            "the portable decode graph in ONNX Runtime",
        ),
        (
            "bare",
            &["--fallback", "none", "--cache-dtype", "bf16"],
            "the decode graph of ort-cpu",
        ),
        (
            "plugins",
            &["--fallback", "trt-plugins"],
            "tract with the package's types, no graph",
        ),
    ] {
        let more = ["--max-seq-len", "64"];
        let out = export(name, &[flags, &more].concat());
        assert!(
            out.contains(&format!("checked 8 tokens: {what}")),
            "{name}: {out}"
        );
        for output in ["logits", "present.*.key", "present.*.recurrent_value"] {
            let line = out.lines().find(|line| line.starts_with(output)).unwrap();
            assert!(line.ends_with("ok"), "{name}: {line}");
        }
        assert_eq!(
            out.contains("f16's range holds"),
            name == "f16",
            "{name}: {out}"
        );
    }
    let out = export("plain", &["--no-check"]);
    assert!(!out.contains("checked"), "{out}");
}

#[test]
fn an_export_names_what_f16_cannot_hold() {
    use safetensors::tensor::TensorView;
    let dir = tempfile::tempdir().unwrap();
    let case = case("tied");
    let bytes = std::fs::read(case.checkpoint()).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let scaled: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let scale = if name.contains("layers.1.hidden_layer.fc2") {
                1e5f32
            } else {
                1.0
            };
            let values = view
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|word| f32::from_le_bytes(*word) * scale);
            let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
            (name, view.dtype(), view.shape().to_vec(), data)
        })
        .collect();
    let views = scaled.iter().map(|(name, dtype, shape, data)| {
        (
            name.as_str(),
            TensorView::new(*dtype, shape.clone(), data).unwrap(),
        )
    });
    let checkpoint = dir.path().join("model.safetensors");
    std::fs::write(&checkpoint, safetensors::serialize(views, None).unwrap()).unwrap();
    let flags = [
        "--dtype",
        "f16",
        "--max-seq-len",
        "32",
        "--fallback",
        "trt-plugins",
    ];
    let package = dir.path().join("package");
    let (_, _, error) = exported(&checkpoint, &case.file("config.json"), &package, &flags);
    assert!(
        error.contains("warning: layers.1.hidden reaches "),
        "{error}"
    );
    assert!(!error.contains("layers.0.hidden"), "{error}");
}

#[test]
fn what_verify_compared_with_is_saved_drawn_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    export(&case("kjv_d16w64i4"), &package, &["--max-seq-len", "32"]);
    let [golden, plot] = ["golden.safetensors", "errors.svg"].map(|name| dir.path().join(name));
    let [golden, plot] = [&golden, &plot].map(|path| path.to_str().unwrap());
    let backend = ["verify", "--backend", "tract,ort-cpu", "--chunks", "1"];
    let save = ["--save-golden", golden, "--plot", plot, "--histogram"];
    let text = printed(&[&backend[..], &save].concat(), &package);
    // The counts of the first row's decades are those of all its logits.
    let decades = text.split("errors  ").nth(1).unwrap().lines().skip(1);
    let counts = decades.take_while(|line| line.contains('#'));
    let counted: u64 = counts
        .map(|line| {
            line.split_whitespace()
                .rev()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        })
        .sum();
    assert_eq!(counted, 32 * 2048, "{text}");
    let svg = std::fs::read_to_string(plot).unwrap();
    for name in [
        "logits",
        "ort-cpu: residual stream",
        "after layer 0",
        "token, from 1",
    ] {
        assert!(svg.contains(name), "{name}: {svg}");
    }
    // tract repeats itself bit for bit, at the intermediate tensors too.
    let replay = [
        "verify",
        "--backend",
        "tract",
        "--chunks",
        "1",
        "--golden",
        golden,
        "--json",
    ];
    let report: serde_json::Value = serde_json::from_str(&printed(&replay, &package)).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 5, "{report}");
    for row in rows {
        assert_eq!(
            (&row["max_error"], &row["rows"]),
            (&0.0.into(), &32.into()),
            "{row}"
        );
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
    assert_eq!(ort["operators"][2]["name"], "Linear", "{ort}");
    let trt = described("libratplus_trt.so");
    assert_eq!(trt["operators"].as_array().unwrap().len(), 2, "{trt}");
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

#[test]
fn check_says_what_a_release_does_not_run_and_what_to_export() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    let flags = [
        "--quantize",
        "int4",
        "--fallback",
        "inline",
        "--max-seq-len",
        "64",
        "--no-check",
    ];
    export(&case("kjv_d16w64i4"), &package, &flags);
    let checked = |targets: &str| {
        let mut args: Vec<OsString> = vec!["check".into(), package.clone().into()];
        args.extend(["--target", targets].map(OsString::from));
        let result = run(args);
        (result.status.code(), texts(&result))
    };
    let (code, (out, _)) = checked("ort=1.20,tensorrt-rtx=1.7,triton=24.10");
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("ok      state order"), "{out}");
    let (code, (out, error)) = checked("tensorrt-rtx=1.7,ort=1.17");
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("--fallback function"), "{out}");
    assert!(
        error.ends_with("does not run on ONNX Runtime 1.17\n"),
        "{error}"
    );
    let (code, (_, error)) = checked("triton=20.01");
    assert_eq!(code, Some(2));
    assert!(error.contains("24.04 to 26.08"), "{error}");
}

#[test]
fn tolerances_of_the_users_own_are_named_and_decide() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    export(
        &case("kjv_d16w64i4"),
        &package,
        &["--max-seq-len", "16", "--dtype", "bf16"],
    );
    let judged = |more: &[&str]| {
        let fixed = ["--chunks", "1", "--backend"];
        let mut args: Vec<OsString> = vec!["verify".into(), package.clone().into()];
        args.extend(fixed.iter().chain(more).map(OsString::from));
        let result = run(args);
        (result.status.code(), texts(&result))
    };
    let (code, (out, _)) = judged(&["ort-cpu", "--atol", "logits:p99:100,logits:mean:1e-9"]);
    assert_eq!(code, Some(1), "{out}");
    for expected in [
        "yours: p99 1.00e2, mean 1.00e-9",
        "logits: p99 at most 1.00e2 is yours (--atol), in place of the default, set by tract",
        "expected at most 1.00e-9",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    assert!(
        !out.contains("p99 error"),
        "what is kept is no failure: {out}"
    );
    let (code, (out, _)) = judged(&["tract,ort-cpu", "--atol", "logits:max:100", "--json"]);
    assert_eq!(code, Some(0), "{out}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    let row = &report["rows"][1];
    assert_eq!(row["asked"][0]["most"], 100.0, "{row}");
    assert_eq!(row["asked"][0]["found"], row["max_error"], "{row}");
    assert!(
        row["tolerance"].as_f64().unwrap() < 1.0,
        "the default stays beside it: {row}"
    );
    let (code, (_, error)) = judged(&["tract", "--atol", "hidden:1"]);
    assert_eq!(code, Some(2));
    assert_eq!(
        error,
        "error: --atol: expected one of logits, found hidden\n"
    );
}

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
fn a_dry_run_says_sizes_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    let case = case("kjv_hybrid");
    let flags = ["--dry-run", "--max-seq-len", "64", "--prefill-lengths", "8"];
    let mut args: Vec<OsString> = vec!["export".into(), case.checkpoint().into(), "-o".into()];
    args.extend([
        package.clone().into(),
        "--config".into(),
        case.file("config.json").into(),
    ]);
    args.extend(flags.map(OsString::from));
    let (stdout, _) = texts(&run(args.clone()));
    assert!(stdout.ends_with("nothing was written\n"), "{stdout}");
    assert!(!package.exists());
    args.retain(|arg| arg != "--dry-run");
    assert!(run(args).status.success());
    for file in [
        "decode.onnx",
        "decode.cpu.onnx",
        "prefill_8.cuda.onnx",
        "model.tensorrt.onnx",
        "prefill_8.onnx",
        "weights.bin",
        "manifest.json",
    ] {
        let bytes = std::fs::metadata(package.join(file))
            .unwrap()
            .len()
            .to_string();
        let told = stdout
            .lines()
            .any(|line| line.split_whitespace().take(2).eq([file, &bytes]));
        assert!(told, "{file} {bytes}\n{stdout}");
    }
}

#[test]
fn a_checkpoints_cache_can_be_counted_in_another_type() {
    let case = case("kjv_hybrid");
    let config = case.file("config.json");
    let cache = |more: &[&str]| {
        let flags = ["inspect", "--json", "--config", config.to_str().unwrap()];
        let json = printed(&[&flags, more].concat(), &case.checkpoint());
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        json["state_bytes_per_sequence"]["cache"].as_u64().unwrap()
    };
    let f32 = cache(&[]);
    assert_eq!(cache(&["--cache-dtype", "f32"]), f32);
    assert_eq!(2 * cache(&["--cache-dtype", "bf16"]), f32);
    // A package has a type, and says so instead of ignoring the flag.
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    export(&case, &package, &["--max-seq-len", "64"]);
    let refused = run([
        "inspect".into(),
        package.into_os_string(),
        "--cache-dtype".into(),
        "f16".into(),
        "--max-seq-len".into(),
        "32".into(),
    ]);
    assert_eq!(refused.status.code(), Some(2));
    let (_, stderr) = texts(&refused);
    assert!(
        stderr.contains("--max-seq-len and --cache-dtype, found a package, which has its own: leave it out, or export again"),
        "{stderr}"
    );
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
