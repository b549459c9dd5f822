//! What `verify` says and keeps.

use super::export::{beyond_f16, exported};
use super::{case, export, printed};
use ratplus_tests::{run, texts};
use std::ffi::OsString;
use std::path::Path;

#[test]
fn a_short_package_is_verified_on_as_many_tokens_as_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    export(&case("kjv_d16w64i4"), &package, &["--max-seq-len", "24"]);
    let text = printed(&["verify", "--backend", "tract"], &package);
    assert!(text.contains(" 24 "), "{text}");
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

/// In bf16 a backend chooses other blocks than the golden file has: curves and rows are both of what the reference makes
/// of its choices.
#[test]
fn curves_of_a_model_that_chooses_blocks_are_of_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    let [package, plot] = ["package", "errors.svg"].map(|name| dir.path().join(name));
    let case = case("topk_bounds");
    let flags = ["--dtype", "bf16", "--logits", "all", "--no-check"];
    let (checkpoint, config) = (case.checkpoint(), case.file("config.json"));
    let (code, _, error) = exported(&checkpoint, &config, &package, &flags);
    assert_eq!(code, 0, "{error}");
    let [golden, plot] = [case.file("golden.safetensors"), plot];
    let words = [
        "verify",
        "--backend",
        "ort-cpu",
        "--chunks",
        "1,64",
        "--json",
    ];
    let files = [
        "--golden",
        golden.to_str().unwrap(),
        "--plot",
        plot.to_str().unwrap(),
    ];
    let report = printed(&[&words[..], &files].concat(), &package);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let choices = report["choices"].as_array().unwrap();
    assert!(
        choices.iter().any(|row| row["agreed"] != row["queries"]),
        "{report}"
    );
    let largest = |values: &[serde_json::Value]| {
        let values = values.iter().map(|value| value.as_f64().unwrap());
        values.fold(0.0, f64::max)
    };
    let rows = |tensor: &str| {
        let rows = report["rows"].as_array().unwrap().iter();
        let rows = rows.filter(|row| row["backend"] == "ort-cpu" && row["tensor"] == tensor);
        largest(&rows.map(|row| row["max_error"].clone()).collect::<Vec<_>>())
    };
    let curves = report["curves"].as_array().unwrap();
    for (layer, tensor) in [
        (serde_json::Value::Null, "logits"),
        (0.into(), "layer0.hidden"),
        (1.into(), "last_hidden"),
    ] {
        let mut found = curves.iter().filter(|curve| curve["layer"] == layer);
        let errors = found.next().unwrap()["max_errors"].as_array().unwrap();
        assert!(rows(tensor) > 0.0, "{tensor}: {report}");
        assert_eq!(largest(errors), rows(tensor), "{tensor}: {report}");
    }
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
    let (code, (out, _)) = judged(&["tract,ort-cpu", "--atol", "logits:100"]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("beyond which nothing is\n"), "{out}");
    let (code, (_, error)) = judged(&["tract", "--atol", "hidden:1"]);
    assert_eq!(code, Some(2));
    assert_eq!(
        error,
        "error: --atol: expected one of logits, found hidden\n"
    );
}

/// Verifies on tract, token by token; exit code, standard output and standard error.
fn verified(package: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let fixed = ["--backend", "tract", "--chunks", "1"];
    let mut args: Vec<OsString> = vec!["verify".into(), package.into()];
    args.extend(fixed.iter().chain(more).map(OsString::from));
    let result = run(args);
    let (out, error) = texts(&result);
    (result.status.code(), out, error)
}

/// Where nothing is compared, an infinity would make everything equal elsewhere.
#[test]
fn a_golden_file_with_an_infinity_is_refused() {
    use safetensors::tensor::TensorView;
    let case = case("dense");
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    let mut args: Vec<OsString> = vec!["export".into(), case.checkpoint().into(), "-o".into()];
    args.extend([
        package.clone().into(),
        "--config".into(),
        case.file("config.json").into(),
    ]);
    args.extend(["--prefill-lengths", "64", "--no-check"].map(OsString::from));
    assert!(run(args).status.success());
    let bytes = std::fs::read(case.file("golden.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let changed: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let mut data = view.data().to_vec();
            let broken = match name.as_str() {
                "logits" => Some(f32::INFINITY),
                "last_hidden" => Some(f32::NAN),
                _ => None,
            };
            if let Some(value) = broken {
                data[12..16].copy_from_slice(&value.to_le_bytes());
            }
            (name, view.dtype(), view.shape().to_vec(), data)
        })
        .collect();
    let views = changed.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    let golden = dir.path().join("golden.safetensors");
    std::fs::write(&golden, safetensors::serialize(views, None).unwrap()).unwrap();
    let mut args: Vec<OsString> = vec!["verify".into(), package.into(), "--golden".into()];
    args.extend([golden.into(), "--chunks".into(), "64".into()]);
    let result = run(args);
    let (out, error) = texts(&result);
    assert_eq!(
        (result.status.code(), out.as_str()),
        (Some(2), ""),
        "{error}"
    );
    for expected in [
        "--golden: logits: expected finite numbers of f32, found inf at sequence 0, position 0, index 3",
        "--golden: last_hidden: expected finite numbers of f32, found NaN at sequence 0, position 0, index 3",
    ] {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_file_that_cannot_be_written_costs_no_result_and_no_package() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    export(
        &case("kjv_d16w64i4"),
        &package,
        &["--max-seq-len", "16", "--no-check"],
    );
    let golden = dir.path().join("golden.safetensors");
    let golden = golden.to_str().unwrap();
    let (code, out, error) = verified(
        &package,
        &["--report", "/dev/full", "--save-golden", golden],
    );
    assert_eq!(code, Some(2), "{error}");
    assert!(out.contains("comparisons within tolerance"), "{out}");
    assert!(
        error.contains("--report: cannot write /dev/full: "),
        "{error}"
    );
    assert!(Path::new(golden).is_file());
    let weights = package.join("weights.bin");
    let before = std::fs::read(&weights).unwrap();
    for flag in ["--report", "--plot", "--save-golden"] {
        let (code, out, error) = verified(&package, &[flag, weights.to_str().unwrap()]);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{error}");
        let expected = "weights.bin is in the package, which stays as it is";
        assert!(error.contains(flag) && error.contains(expected), "{error}");
    }
    let (code, _, error) = verified(&package, &["--golden", golden, "--report", golden]);
    assert_eq!(code, Some(2));
    assert!(
        error.contains("is --golden, which stays as it is"),
        "{error}"
    );
    assert!(std::fs::read(&weights).unwrap() == before);
    assert_eq!(verified(&package, &["--golden", golden]).0, Some(0));
}

#[test]
fn what_is_not_finite_is_said_and_passes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let case = case("tied");
    let [checkpoint, package, plot, report] =
        ["model.safetensors", "package", "errors.svg", "report.json"]
            .map(|name| dir.path().join(name));
    beyond_f16(&case, &checkpoint);
    let mut args: Vec<OsString> = vec!["export".into(), checkpoint.into(), "-o".into()];
    args.extend([
        package.clone().into(),
        "--config".into(),
        case.file("config.json").into(),
    ]);
    args.extend(["--dtype", "f16", "--max-seq-len", "32", "--no-check"].map(OsString::from));
    assert!(run(args).status.success());
    let more = [
        "--backend",
        "ort-fallback",
        "--plot",
        plot.to_str().unwrap(),
    ];
    let more = [&more[..], &["--report", report.to_str().unwrap()]].concat();
    let (code, out, error) = verified(&package, &more);
    assert_eq!(code, Some(1), "{out}{error}");
    assert!(
        out.contains("not finite") && !out.contains(" inf "),
        "{out}"
    );
    assert!(error.contains("note: --plot leaves out "), "{error}");
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert!(report["largest_logit"].is_number(), "{report}");
    for row in report["rows"].as_array().unwrap() {
        assert_eq!(row["passed"], false, "{row}");
        assert!(
            row.get("tolerance")
                .is_none_or(serde_json::Value::is_number),
            "{row}"
        );
    }
}
