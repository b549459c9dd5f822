//! Bad input: exit 2, one message that says what to do, nothing half-written, nothing lost.

use ratplus_tests::{GoldenCase, golden_case, run, texts};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

fn case(name: &str) -> GoldenCase {
    golden_case(name)
}

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Exports a golden case with these extra flags.
    fn export(&self, case: &GoldenCase, name: &str, flags: &[&str]) -> PathBuf {
        let output = self.path(name);
        let mut args: Vec<OsString> = vec!["export".into(), case.checkpoint().into(), "-o".into()];
        args.extend([
            output.clone().into(),
            "--config".into(),
            case.file("config.json").into(),
        ]);
        args.extend(flags.iter().map(OsString::from));
        let result = run(args);
        assert!(result.status.success(), "{}", texts(&result).1);
        output
    }

    /// The one message of a command that has to exit with 2, without this machine's paths.
    fn refused<S: Into<OsString>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let before = self.listing();
        let output = run(args.into_iter().map(Into::into));
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{stdout}{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert_eq!(stdout, "", "{stderr}");
        assert_eq!(self.listing(), before, "a refused command left files");
        assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
        let root = ratplus_tests::root();
        let mut text = stderr.replace(&self.0.path().display().to_string(), "DIR");
        for path in [
            root.display().to_string(),
            root.canonicalize().unwrap().display().to_string(),
        ] {
            text = text.replace(&path, "REPO");
        }
        text.trim_end().to_owned()
    }

    fn listing(&self) -> BTreeMap<PathBuf, u64> {
        fn walk(dir: &Path, list: &mut BTreeMap<PathBuf, u64>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, list);
                } else {
                    list.insert(path.clone(), path.metadata().unwrap().len());
                }
            }
        }
        let mut list = BTreeMap::new();
        walk(self.0.path(), &mut list);
        list
    }

    /// A copy of a golden case's safetensors checkpoint, changed.
    fn changed(&self, case: &GoldenCase, change: impl FnOnce(&mut Tensors)) -> PathBuf {
        let bytes = std::fs::read(case.file("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Tensors = file
            .iter()
            .map(|(name, view)| {
                (
                    name.to_owned(),
                    (view.dtype(), view.shape().to_vec(), view.data().to_vec()),
                )
            })
            .collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            (
                name.clone(),
                TensorView::new(*dtype, shape.clone(), data).unwrap(),
            )
        });
        let path = self.path("changed.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Arguments that export `checkpoint` with the golden case's configuration.
fn export_args(checkpoint: &Path, case: &GoldenCase, output: &Path) -> Vec<OsString> {
    vec![
        "export".into(),
        checkpoint.into(),
        "-o".into(),
        output.into(),
        "--config".into(),
        case.file("config.json").into(),
    ]
}

/// A zip of stored entries, as `torch.save` writes them.
fn stored_zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut central) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let offset = out.len() as u32;
        let mut fields = Vec::new();
        fields.extend(
            [20u16, 0, 0, 0, 0]
                .iter()
                .flat_map(|value| value.to_le_bytes()),
        );
        fields.extend(0u32.to_le_bytes());
        fields.extend(
            [data.len() as u32; 2]
                .iter()
                .flat_map(|value| value.to_le_bytes()),
        );
        fields.extend((name.len() as u16).to_le_bytes());
        fields.extend(0u16.to_le_bytes());
        out.extend(0x0403_4b50u32.to_le_bytes());
        out.extend(&fields);
        out.extend(name.as_bytes());
        out.extend(*data);
        central.extend(0x0201_4b50u32.to_le_bytes());
        central.extend(20u16.to_le_bytes());
        central.extend(&fields);
        central.extend([0u8; 10]);
        central.extend(offset.to_le_bytes());
        central.extend(name.as_bytes());
    }
    let (start, count) = (out.len() as u32, entries.len() as u16);
    out.extend(&central);
    out.extend(0x0605_4b50u32.to_le_bytes());
    out.extend(
        [0u16, 0, count, count]
            .iter()
            .flat_map(|value| value.to_le_bytes()),
    );
    out.extend((central.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend(0u16.to_le_bytes());
    out
}

#[test]
fn a_pickle_that_calls_something_calls_nothing() {
    let scratch = Scratch::new();
    let planted = scratch.path("planted");
    let command = format!("touch {}", planted.display());
    // os.system(command) by REDUCE, protocol 2.
    let mut pickle = b"\x80\x02cos\nsystem\nX".to_vec();
    pickle.extend((command.len() as u32).to_le_bytes());
    pickle.extend(command.as_bytes());
    pickle.extend(b"\x85R.");
    let zip = stored_zip(&[
        ("model/data.pkl", &pickle),
        ("model/byteorder", b"little"),
        ("model/version", b"3\n"),
    ]);
    let checkpoint = scratch.path("hostile.pth");
    std::fs::write(&checkpoint, zip).unwrap();
    let case = case("dense");
    let text = scratch.refused(export_args(&checkpoint, &case, &scratch.path("out")));
    insta::assert_snapshot!("pickle_that_calls", text);
    assert!(!planted.exists());
}

#[test]
fn a_truncated_checkpoint_is_refused_at_any_length() {
    let scratch = Scratch::new();
    let case = case("layer_hybrid");
    let whole = std::fs::read(case.file("model.pth")).unwrap();
    let checkpoint = scratch.path("short.pth");
    for length in [0, 1, 30, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&checkpoint, &whole[..length]).unwrap();
        let text = scratch.refused(export_args(&checkpoint, &case, &scratch.path("out")));
        assert!(text.contains("DIR/short.pth"), "{text}");
    }
    let text = scratch.refused(export_args(
        &scratch.path("none.pth"),
        &case,
        &scratch.path("out"),
    ));
    insta::assert_snapshot!("missing_checkpoint", text);
}

#[test]
fn every_difference_between_config_and_weights_is_listed() {
    let scratch = Scratch::new();
    let case = case("dense");
    let checkpoint = scratch.changed(&case, |tensors| {
        let out_proj = tensors
            .get_mut("backbone.layers.1.seq_layer.out_proj.weight")
            .unwrap();
        out_proj.1 = vec![32, 128];
        tensors.remove("backbone.layers.0.hidden_layer.ln.weight");
        tensors.insert("surprise".into(), (Dtype::F32, vec![1], vec![0; 4]));
    });
    let text = scratch.refused(export_args(&checkpoint, &case, &scratch.path("out")));
    insta::assert_snapshot!("mismatches", text);
}

#[test]
fn weights_that_are_no_numbers_are_refused_unless_asked_for() {
    let scratch = Scratch::new();
    let case = case("dense");
    let checkpoint = scratch.changed(&case, |tensors| {
        let (_, _, data) = tensors
            .get_mut("backbone.layers.1.hidden_layer.fc1.weight")
            .unwrap();
        data[40..44].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let output = scratch.path("out");
    let mut args = export_args(&checkpoint, &case, &output);
    insta::assert_snapshot!("nan_weight", scratch.refused(args.clone()));
    args.push("--allow-nonfinite".into());
    assert!(run(args).status.success());
}

#[test]
fn weights_too_large_for_f16_are_refused_by_name() {
    let scratch = Scratch::new();
    let case = case("dense");
    let checkpoint = scratch.changed(&case, |tensors| {
        let (_, _, data) = tensors.get_mut("head.lm_head.weight").unwrap();
        data[8..12].copy_from_slice(&1e6f32.to_le_bytes());
    });
    let mut args = export_args(&checkpoint, &case, &scratch.path("out"));
    args.extend(["--dtype".into(), "f16".into()]);
    insta::assert_snapshot!("f16_overflow", scratch.refused(args));
}

#[test]
fn a_target_that_is_no_package_keeps_its_files() {
    let scratch = Scratch::new();
    let case = case("dense");
    let output = scratch.path("thesis");
    std::fs::create_dir(&output).unwrap();
    std::fs::write(output.join("chapter1.txt"), "long work").unwrap();
    let text = scratch.refused(export_args(&case.checkpoint(), &case, &output));
    insta::assert_snapshot!("target_in_use", text);
}

#[test]
fn options_that_do_not_fit_are_refused_together() {
    let scratch = Scratch::new();
    let case = case("dense");
    let mut args = export_args(&case.checkpoint(), &case, &scratch.path("out"));
    args.extend(
        [
            "--batch",
            "0",
            "--prefill-lengths",
            "64,5000",
            "--tokenizer",
            "none.json",
        ]
        .map(Into::into),
    );
    insta::assert_snapshot!("options", scratch.refused(args));
    let mut args = export_args(&case.checkpoint(), &case, &scratch.path("out"));
    args.extend(["--dilation", "0"].map(Into::into));
    insta::assert_snapshot!("dilation_zero", scratch.refused(args));
}

#[test]
fn rows_are_rounded_by_an_operator_alone() {
    let scratch = Scratch::new();
    let case = case("dense");
    let export = |more: &[&str]| {
        let mut args = export_args(&case.checkpoint(), &case, &scratch.path("out"));
        args.extend(more.iter().map(OsString::from));
        let text = scratch.refused(args);
        assert!(!scratch.path("out").exists());
        text
    };
    let integers = ["--quantize", "int8", "--activations", "int8"];
    for fallback in ["inline", "trt-plugins"] {
        let text = export(&[&integers[..], &["--fallback", fallback]].concat());
        for part in [
            "--activations",
            "expected float",
            "found int8",
            "`function` and `none`",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
    assert!(export(&["--activations", "int8"]).contains("--quantize"));
}

#[test]
fn a_log_filter_without_a_level_is_refused() {
    let doctor = |levels: &str| {
        let mut command = std::process::Command::new(ratplus_tests::ratplus());
        command.arg("doctor").env("RATPLUS_LOG", levels);
        command.output().unwrap()
    };
    for levels in [
        "loud",
        "debug,loud",
        "ratplus_runtime",
        "ratplus_runtime=loud",
    ] {
        let output = doctor(levels);
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{levels}: {stdout}{stderr}");
        assert_eq!((&*stdout, stderr.lines().count()), ("", 1), "{stderr}");
        let expected =
            "error: RATPLUS_LOG: expected a level (off, error, warn, info, debug, trace)";
        assert!(stderr.starts_with(expected), "{stderr}");
        assert!(stderr.contains(&format!("found `{levels}`")), "{stderr}");
    }
    for levels in [
        "",
        "off",
        "WARN",
        "ratplus_runtime=trace,ratplus_tools=info",
    ] {
        assert!(doctor(levels).status.success(), "{levels}");
    }
}

/// Checksums of graphs change whenever graphs do.
fn without_checksums(text: &str) -> String {
    let words = text.split_inclusive([' ', ',', ';', '\n']).map(|word| {
        let hash = word.trim_end_matches([' ', ',', ';', '\n']);
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_hash {
            word.replace(hash, "CHECKSUM")
        } else {
            word.to_owned()
        }
    });
    words.collect()
}

#[test]
fn a_corrupted_package_is_refused_whatever_is_wrong() {
    let scratch = Scratch::new();
    let package = scratch.export(&case("dense"), "package", &["--prefill-lengths", "8"]);
    let verify = || scratch.refused(["verify".into(), package.clone().into_os_string()]);
    let mut texts = Vec::new();
    for file in [
        "weights.bin",
        "decode.onnx",
        "prefill_8.cuda.onnx",
        "manifest.json",
    ] {
        let path = package.join(file);
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        let at = whole
            .windows(7)
            .position(|window| window == b"ratplus")
            .unwrap_or(whole.len() / 2);
        flipped[at] ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        texts.push(without_checksums(&verify()));
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let text = verify();
        assert!(text.contains(file), "{text}");
        std::fs::write(&path, &whole).unwrap();
        assert!(
            run(["inspect".as_ref(), package.as_os_str()])
                .status
                .success()
        );
    }
    std::fs::remove_file(package.join("decode.onnx")).unwrap();
    texts.push(verify());
    std::fs::remove_file(package.join("manifest.json")).unwrap();
    texts.push(verify());
    insta::assert_snapshot!("corrupted", texts.join("\n---\n"));
}

#[test]
fn prompts_that_cannot_run_are_refused() {
    let scratch = Scratch::new();
    let case = case("kjv_d16w64i4");
    let tokenizer = case
        .file("tokenizer.json")
        .into_os_string()
        .into_string()
        .unwrap();
    let flags = [
        "--tokenizer",
        &tokenizer,
        "--max-seq-len",
        "20",
        "--prefill-lengths",
        "8",
    ];
    let package = scratch.export(&case, "package", &flags);
    let generate = |args: &[&str]| {
        let package = package.clone().into_os_string();
        let args = args.iter().map(OsString::from);
        scratch.refused(["generate".into(), package].into_iter().chain(args))
    };
    let long = "And it came to pass in those days that ".repeat(4);
    let texts = [
        generate(&["--prompt", ""]),
        generate(&["--prompt", &long]),
        generate(&["--prompt", "And", "--temperature", "-1"]),
        generate(&["--prompt", "And", "--top-p", "1.5"]),
        generate(&["--prompt", "And", "--backend", "abacus"]),
        generate(&["--prompt", "And", "--stop-tokens", "2048"]),
    ];
    insta::assert_snapshot!("prompts", texts.join("\n---\n"));
    let silent = scratch.export(&case, "silent", &["--prefill-lengths", "8"]);
    let text = scratch.refused([
        "generate".into(),
        silent.into_os_string(),
        "--prompt".into(),
        "And".into(),
    ]);
    insta::assert_snapshot!("no_tokenizer", text);
}

#[test]
fn a_missing_runtime_is_one_clear_message() {
    let scratch = Scratch::new();
    let package = scratch.export(&case("dense"), "package", &["--prefill-lengths", "8"]);
    let missing = scratch.path("libonnxruntime.so").into_os_string();
    let args = [
        "verify".into(),
        package.clone().into_os_string(),
        "--backend".into(),
        "ort-cpu".into(),
    ];
    let text = scratch.refused(
        args.into_iter()
            .chain(["--onnxruntime".into(), missing.clone()]),
    );
    insta::assert_snapshot!("missing_runtime", text);
    // Backends nobody asked for by name are skipped, and said to be.
    let output = run([
        "verify".into(),
        package.into_os_string(),
        "--onnxruntime".into(),
        missing,
    ]);
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    assert!(
        stdout.contains("5 backends skipped") && stdout.contains("skipped      ort-cpu"),
        "{stdout}"
    );
}

#[test]
fn ort_cuda_without_what_it_needs_is_refused() {
    let scratch = Scratch::new();
    let case = case("kjv_d16w64i4");
    let tokenizer = case.file("tokenizer.json");
    let flags = ["--prefill-lengths", "8", "--tokenizer"];
    let flags = [&flags[..], &[tokenizer.to_str().unwrap()]].concat();
    let package = scratch.export(&case, "package", &flags);
    let (doctor, _) = texts(&run(["doctor", "--json"]));
    let findings: Vec<serde_json::Value> = serde_json::from_str(&doctor).unwrap();
    let ready = findings
        .iter()
        .find(|finding| finding["name"] == "ort-cuda");
    if ready.unwrap()["found"] == true {
        eprintln!("SKIPPED refusals of ort-cuda: this machine has what it needs");
        return;
    }
    for command in [&["verify"][..], &["generate", "--prompt", "And"]] {
        let mut args: Vec<OsString> = command.iter().map(OsString::from).collect();
        args.extend([
            "--backend".into(),
            "ort-cuda".into(),
            package.clone().into(),
        ]);
        let text = scratch.refused(args);
        assert!(text.contains("backend `ort-cuda`: "), "{text}");
        assert!(
            text.contains("onnxruntime-gpu") || text.contains("NVIDIA's driver"),
            "{text}"
        );
    }
}

/// The findings of `ratplus doctor` that are not there.
fn missing_here() -> Vec<String> {
    let (doctor, _) = texts(&run(["doctor", "--json"]));
    let findings: Vec<serde_json::Value> = serde_json::from_str(&doctor).unwrap();
    let missing = findings.iter().filter(|finding| finding["found"] == false);
    missing
        .map(|finding| finding["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn backends_of_plans_say_everything_that_is_missing_at_once() {
    let scratch = Scratch::new();
    let case = case("kjv_d16w64i4");
    let tokenizer = case.file("tokenizer.json");
    let flags = ["--prefill-lengths", "8", "--tokenizer"];
    let flags = [&flags[..], &[tokenizer.to_str().unwrap()]].concat();
    let package = scratch.export(&case, "package", &flags);
    let missing = missing_here();
    for (backend, library) in [("tensorrt", "TensorRT"), ("tensorrt-rtx", "TensorRT-RTX")] {
        for command in [&["verify"][..], &["generate", "--prompt", "And"]] {
            let mut args: Vec<OsString> = command.iter().map(OsString::from).collect();
            args.extend(["--backend".into(), backend.into(), package.clone().into()]);
            let text = scratch.refused(args);
            assert!(text.contains(&format!("backend `{backend}`: ")), "{text}");
            // No machine has plans of a package that was just exported.
            assert!(text.contains("run `ratplus build DIR/package"), "{text}");
            for (name, advice) in [(library, "pip install"), ("CUDA driver", "NVIDIA's driver")] {
                let expected = missing.iter().any(|missing| missing == name);
                assert_eq!(text.contains(advice), expected, "{name}: {text}");
            }
        }
    }
    for backend in ["ort-cpu", "tract"] {
        let package = package.clone().into_os_string();
        let text = scratch.refused(["build".into(), package, "--backend".into(), backend.into()]);
        assert!(text.contains("tensorrt or tensorrt-rtx"), "{text}");
    }
}

#[test]
fn golden_files_that_do_not_fit_are_refused() {
    let scratch = Scratch::new();
    let small = case("dense");
    let package = scratch.export(
        &small,
        "package",
        &["--prefill-lengths", "8", "--max-seq-len", "100"],
    );
    let verify = |golden: &Path, more: &[&str]| {
        let head = [
            "verify".into(),
            package.clone().into_os_string(),
            "--golden".into(),
            golden.into(),
        ];
        scratch.refused(head.into_iter().chain(more.iter().map(OsString::from)))
    };
    let texts = [
        verify(
            &case("kjv_d16w64i4").file("golden.safetensors"),
            &["--chunks", "5"],
        ),
        verify(&small.file("config.json"), &[]),
        verify(&small.file("none.safetensors"), &[]),
    ];
    insta::assert_snapshot!("golden_misfits", texts.join("\n---\n"));
}
