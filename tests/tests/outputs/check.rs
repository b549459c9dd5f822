//! What releases run.

use super::{case, export};
use ratplus_tests::{run, texts};
use std::ffi::OsString;

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
    assert!(
        error.contains("24.04 to 24.12, 25.01 to 25.12, 26.01 to 26.08"),
        "{error}"
    );
    // Nothing is said of others, and all that are not known are named at once.
    let (code, (out, error)) = checked("ort=1.20,ort=9.9,tensorrt=10.99");
    assert_eq!((code, out.as_str()), (Some(2), ""), "{error}");
    for release in ["ONNX Runtime 9.9", "TensorRT 10.99"] {
        assert!(
            error.contains(&format!("{release}: nothing is known")),
            "{error}"
        );
    }
}
