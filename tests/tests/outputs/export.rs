//! What `export` says of what it wrote.

use super::case;
use ratplus_tests::{GoldenCase, ratplus, root, run, texts};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `export` prints of a checkpoint with these flags, and whether it succeeds.
pub fn exported(
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
    // Nothing is compared with itself.
    let out = export("plugins", &["--fallback", "trt-plugins"]);
    assert!(
        out.contains("not checked: the package is for TensorRT"),
        "{out}"
    );
    assert!(!out.contains("max error"), "{out}");
}

/// An ONNX Runtime that `cargo xtask setup` installs beside the newest.
fn other_runtime(version: &str) -> Option<PathBuf> {
    let folder = root().join(format!("target/ort-{version}/onnxruntime/capi"));
    let mut files = std::fs::read_dir(folder).ok()?.flatten();
    let library = files.find(|file| {
        let name = file.file_name();
        name.to_string_lossy().starts_with("libonnxruntime.so.")
    });
    library.map(|file| file.path())
}

#[test]
fn a_runtime_that_cannot_run_an_export_says_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let case = case("dense");
    let export = |library: &Path, flags: &[&str]| {
        let mut command = Command::new(ratplus());
        command.arg("export").arg(case.checkpoint());
        command.arg("-o").arg(dir.path().join("package"));
        command.arg("--config").arg(case.file("config.json"));
        command.args(["--max-seq-len", "32", "--prefill-lengths", "8"]);
        command.args(flags).env("ORT_DYLIB_PATH", library);
        let result = command.output().unwrap();
        let (out, error) = texts(&result);
        assert!(result.status.success(), "{out}{error}");
        out
    };
    let out = export(&dir.path().join("libonnxruntime.so"), &[]);
    assert!(
        out.contains("not checked: ") && out.contains("found none"),
        "{out}"
    );
    let Some(old) = other_runtime("1.17") else {
        eprintln!("SKIPPED an older ONNX Runtime: run `cargo xtask setup`");
        return;
    };
    let out = export(&old, &["--opset", "23"]);
    for part in [
        "not checked: ONNX Runtime 1.17.",
        "opset: expected at most 20",
        "--opset 20",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let out = export(&old, &[]);
    assert!(out.contains("checked 8 tokens: "), "{out}");
}

#[test]
fn a_place_for_a_report_is_there_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let case = case("dense");
    let package = dir.path().join("package");
    let report = |report: &Path| {
        let flags = ["--quantize", "int4", "--report", report.to_str().unwrap()];
        let config = case.file("config.json");
        exported(&case.checkpoint(), &config, &package, &flags)
    };
    let (code, out, error) = report(&dir.path().join("none/lost.json"));
    assert_eq!((code, out.as_str()), (2, ""), "{error}");
    assert!(
        error.contains("--report: expected a file in a folder that is there"),
        "{error}"
    );
    assert!(!package.exists());
    let (code, _, error) = report(&dir.path().join("lost.json"));
    assert_eq!(code, 0, "{error}");
    let weights = std::fs::read(package.join("weights.bin")).unwrap();
    let (code, _, error) = report(&package.join("weights.bin"));
    assert_eq!(code, 2, "{error}");
    assert!(
        error.contains("is in the package, which stays as it is"),
        "{error}"
    );
    assert!(std::fs::read(package.join("weights.bin")).unwrap() == weights);
}

/// A copy of a checkpoint whose second layer's output leaves the range of f16.
pub(super) fn beyond_f16(case: &GoldenCase, checkpoint: &Path) {
    use safetensors::tensor::TensorView;
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
    std::fs::write(checkpoint, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn an_export_names_what_f16_cannot_hold() {
    let dir = tempfile::tempdir().unwrap();
    let case = case("tied");
    let checkpoint = dir.path().join("model.safetensors");
    beyond_f16(&case, &checkpoint);
    let package = dir.path().join("package");
    for (fallback, expected) in [("trt-plugins", 0), ("function", 1)] {
        let flags = [
            "--dtype",
            "f16",
            "--max-seq-len",
            "32",
            "--fallback",
            fallback,
        ];
        let config = case.file("config.json");
        let (code, out, error) = exported(&checkpoint, &config, &package, &flags);
        assert_eq!(code, expected, "{out}{error}");
        assert!(
            error.contains("warning: layers.1.hidden reaches "),
            "{error}"
        );
        assert!(!error.contains("layers.0.hidden"), "{error}");
        // What is infinite is no tolerance, and nothing is within one.
        let logits = out.lines().find(|line| line.starts_with("logits"));
        assert_eq!(logits.is_some(), expected == 1, "{out}");
        if let Some(line) = logits {
            assert!(
                line.contains("not finite") && line.ends_with("FAILED"),
                "{line}"
            );
        }
        assert!(!out.contains("inf "), "{out}");
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
