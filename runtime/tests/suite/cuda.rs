//! ort-cuda is refused with everything that is missing.

use crate::common::{Fixture, Options, fixture};
use ratplus_graphs::package::Fallback;
#[cfg(not(feature = "cuda-emulation"))]
use ratplus_kernels::cuda::Device;
use ratplus_runtime::backend::{BackendError, BackendKind, OrtOptions, Session};
use ratplus_runtime::ort_library;

fn refusal(fixture: &Fixture, options: OrtOptions) -> Option<String> {
    let mut builder = Session::builder(&fixture.package);
    builder.ort = options;
    match builder.open(BackendKind::OrtCuda) {
        Ok(_) => None,
        Err(error @ BackendError::Unavailable { .. }) => Some(error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

// In the emulator nothing is lacking.
#[cfg(not(feature = "cuda-emulation"))]
#[test]
fn a_machine_without_cuda_is_told_everything_it_lacks() {
    let (runtime, operators) = (ort_library::onnxruntime(None), ort_library::operators(None));
    let (Ok(runtime), Ok(_)) = (&runtime, &operators) else {
        eprintln!("SKIPPED refusals of ort-cuda: {runtime:?}, {operators:?}");
        return;
    };
    let mut expected = Vec::new();
    let provider = "CUDAExecutionProvider";
    if !runtime.providers.iter().any(|name| name == provider) {
        expected.push(format!(
            "`{}`: expected the provider",
            runtime.path.display()
        ));
        expected.push("onnxruntime-gpu".into());
    }
    if let Err(error) = Device::describe(0) {
        expected.push(error.to_string());
    }
    let found = refusal(&fixture(Options::default()), OrtOptions::default());
    let Some(found) = found else {
        assert!(expected.is_empty(), "ort-cuda opened, but: {expected:?}");
        return;
    };
    assert!(found.starts_with("backend `ort-cuda`: "), "{found}");
    for part in expected {
        assert!(found.contains(&part), "expected {part} in: {found}");
    }
}

#[test]
fn packages_without_custom_nodes_are_refused() {
    let fixture = fixture(Options {
        fallback: Fallback::Inline,
        ..Options::default()
    });
    let found = refusal(&fixture, OrtOptions::default()).unwrap();
    assert!(found.contains("`fallback: function`"), "{found}");
}

#[test]
fn another_library_in_place_of_the_operators_is_refused() {
    let Ok(runtime) = ort_library::onnxruntime(None) else {
        eprintln!("SKIPPED a wrong library of operators: no ONNX Runtime");
        return;
    };
    // A library that loads, but another one.
    let mut options = OrtOptions::default();
    options.operators = Some(runtime.path.clone());
    let found = refusal(&fixture(Options::default()), options).unwrap();
    assert!(found.contains("RatplusWatchNodes"), "{found}");
    assert!(
        found.contains(&runtime.path.display().to_string()),
        "{found}"
    );
}
