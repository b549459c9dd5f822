//! When a backend computes something else, `verify` fails and names the first tensor that differs.

use prost::Message;
use ratplus_graphs::onnx::ModelProto;
use ratplus_graphs::package::{FileInfo, Manifest, Target};
use ratplus_runtime::{Package, Session};
use ratplus_tests::{GoldenCase, golden_case, run, texts};
use ratplus_tools::spot_check;
use std::ffi::OsString;
use std::path::Path;

fn export(case: &GoldenCase, package: &Path) {
    let mut args: Vec<OsString> = vec!["export".into(), case.checkpoint().into(), "-o".into()];
    args.extend([
        package.into(),
        "--config".into(),
        case.file("config.json").into(),
    ]);
    args.extend(
        [
            "--prefill-lengths",
            "32",
            "--logits",
            "all",
            "--max-seq-len",
            "200",
        ]
        .map(Into::into),
    );
    assert!(run(args).status.success());
}

/// Halves the scores in an attention's function body and reseals the package: ONNX Runtime
/// without the library then computes something else than the reference.
fn halve_scores(package: &Path, operator: &str) {
    let json = std::fs::read(package.join("manifest.json")).unwrap();
    let mut manifest = Manifest::parse(&json).unwrap();
    let engines: Vec<_> = manifest
        .engines
        .iter()
        .map(|engine| engine.files[&Target::Portable].clone())
        .collect();
    for file in &engines {
        let mut model = ModelProto::decode(&*std::fs::read(package.join(file)).unwrap()).unwrap();
        let body = model
            .functions
            .iter_mut()
            .find(|body| body.name == operator)
            .unwrap();
        let scale = body
            .node
            .iter_mut()
            .flat_map(|node| &mut node.attribute)
            .find(|attribute| attribute.ref_attr_name == "scale")
            .unwrap();
        // The heads have 16 channels: the node says 1/4.
        scale.ref_attr_name.clear();
        scale.f = Some(0.125);
        let bytes = model.encode_to_vec();
        std::fs::write(package.join(file), &bytes).unwrap();
        let info = manifest.files.get_mut(file).unwrap();
        *info = FileInfo::of(&bytes);
    }
    std::fs::write(package.join("manifest.json"), manifest.to_json()).unwrap();
}

#[test]
fn a_wrong_graph_fails_the_check_that_ends_an_export() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    export(&golden_case("dense"), &package);
    let check = || spot_check(&Session::builder(&Package::open(&package).unwrap())).unwrap();
    assert!(check().graphs.is_ok() && check().passed());
    halve_scores(&package, "DilatedAttention");
    let wrong = check();
    let outputs = wrong.graphs.as_ref().unwrap().outputs.iter();
    let failed: Vec<_> = outputs
        .filter(|output| !output.passed())
        .map(|output| (output.output.as_str(), output.layer))
        .collect();
    // The first layer's states do not depend on its attention.
    assert!(failed.contains(&("logits", None)), "{wrong:?}");
    assert!(
        failed.contains(&("present.*.recurrent_key", Some(1))),
        "{wrong:?}"
    );
    assert!(!wrong.passed());
}

#[test]
fn the_first_tensor_that_differs_is_named() {
    let [key, first, last] = ["layer0.gated_key", "layer0.hidden", "last_hidden"];
    named("dense", "DilatedAttention", 0, [key, first]);
    named("topk_bounds", "DilatedAttention", 0, [key, first]);
    named("topk_bounds", "BlockTopKAttention", 1, [first, last]);
}

/// `tensors`: one that is right and one that is not.
fn named(name: &str, operator: &str, layer: usize, tensors: [&str; 2]) {
    let case = golden_case(name);
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    export(&case, &package);
    halve_scores(&package, operator);
    let verify = |backends: &str| {
        let golden = case.file("golden.safetensors").into_os_string();
        let args = [
            "verify".into(),
            package.clone().into_os_string(),
            "--golden".into(),
            golden,
        ];
        run(args
            .into_iter()
            .chain(["--chunks", "32", "--backend", backends].map(Into::into)))
    };
    let good = verify("ort-cpu,tract");
    assert!(
        good.status.success(),
        "the kernel replaces the body: {}",
        texts(&good).0
    );
    let bad = verify("ort-fallback");
    let (stdout, stderr) = texts(&bad);
    assert_eq!(bad.status.code(), Some(1), "{stdout}{stderr}");
    assert!(stderr.starts_with("failed: "), "{stderr}");
    let line = |tensor: &str| stdout.lines().find(|line| line.contains(tensor)).unwrap();
    assert!(
        line(tensors[0]).ends_with("ok") && line(tensors[1]).ends_with("FAILED"),
        "{stdout}"
    );
    let place = format!("first differs at layers.{layer}.attention, sequence 0, position 1");
    assert!(stdout.contains(&place), "{stdout}");
}
