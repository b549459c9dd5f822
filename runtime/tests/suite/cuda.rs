//! ort-cuda: refused with what is missing, and, in the emulator, what only a GPU's driver does.

use crate::common::{EMULATED, Fixture, MAX_SEQ_LEN, Options, fixture, tokens};
use ratplus_graphs::manifest::{Fallback, LogitsMode};
use ratplus_graphs::ops::ElementType;
use ratplus_kernels::cuda::Device;
use ratplus_runtime::backend::{BackendError, BackendKind, Session, SessionOptions};
use ratplus_runtime::ort_library;
use ratplus_runtime::verify::{VerifyOptions, verify};

fn refusal(fixture: &Fixture, options: &SessionOptions) -> Option<String> {
    match Session::open(&fixture.package, BackendKind::OrtCuda, options) {
        Ok(_) => None,
        Err(error @ BackendError::Unavailable { .. }) => Some(error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_machine_without_cuda_is_told_everything_it_lacks() {
    let (runtime, operators) = (ort_library::onnxruntime(None), ort_library::operators(None));
    let (Ok(runtime), Ok(_), false) = (&runtime, &operators, EMULATED) else {
        eprintln!("SKIPPED refusals of ort-cuda: {runtime:?}, {operators:?}, emulated {EMULATED}");
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
    let found = refusal(&fixture(Options::default()), &SessionOptions::default());
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
    let found = refusal(&fixture, &SessionOptions::default()).unwrap();
    assert!(found.contains("--fallback function"), "{found}");
}

#[test]
fn a_library_of_operators_without_the_report_of_errors_is_refused() {
    let Ok(runtime) = ort_library::onnxruntime(None) else {
        eprintln!("SKIPPED a wrong library of operators: no ONNX Runtime");
        return;
    };
    // A library that loads, but another one.
    let options = SessionOptions {
        operators: Some(runtime.path.clone()),
        ..SessionOptions::default()
    };
    let found = refusal(&fixture(Options::default()), &options).unwrap();
    assert!(found.contains("RatplusTakeDeviceError"), "{found}");
    assert!(
        found.contains(&runtime.path.display().to_string()),
        "{found}"
    );
}

/// Logits of every step of a prompt, the last token's, decoded in slot 1.
fn decode(session: &mut Session, prompt: &[u32]) -> Vec<Vec<u32>> {
    let step = |session: &mut Session, &token: &u32| {
        let step = session.run(1, &[7, token.into()], &[0, 1]).unwrap();
        let logits = step.last_logits(1).unwrap();
        logits.iter().map(|value| value.to_bits()).collect()
    };
    prompt.iter().map(|token| step(session, token)).collect()
}

fn open(fixture: &Fixture, without_cuda_graph: bool) -> Option<Session> {
    if !EMULATED {
        eprintln!("SKIPPED ort-cuda: needs a GPU, or feature cuda-emulation");
        return None;
    }
    let options = SessionOptions {
        without_cuda_graph,
        ..SessionOptions::default()
    };
    let session = Session::open(&fixture.package, BackendKind::OrtCuda, &options);
    Some(session.unwrap_or_else(|error| panic!("{error}")))
}

#[test]
fn a_session_may_change_threads_between_steps() {
    let fixture = fixture(Options::default());
    let prompt = tokens(11, 20);
    let (Some(mut session), Some(mut eager)) = (open(&fixture, false), open(&fixture, true)) else {
        return;
    };
    let expected = decode(&mut eager, &prompt);
    let mut found = decode(&mut session, &prompt[..6]);
    // Every thread records a graph of its own, which no state may feel.
    for range in [6..12, 12..20] {
        let session = &mut session;
        let decoded = std::thread::scope(|scope| {
            let run = scope.spawn(|| decode(session, &prompt[range]));
            run.join().unwrap()
        });
        found.extend(decoded);
    }
    assert_eq!(found, expected);
}

#[test]
fn products_in_the_package_type_are_within_the_tolerance() {
    for dtype in [ElementType::F32, ElementType::F16] {
        let fixture = fixture(Options {
            dtype,
            logits: LogitsMode::All,
            ..Options::default()
        });
        if open(&fixture, false).is_none() {
            return;
        }
        let options = VerifyOptions {
            backends: vec![BackendKind::Tract, BackendKind::OrtCuda],
            chunks: Vec::new(),
            session: SessionOptions::default(),
            tokens: MAX_SEQ_LEN,
            seed: 5,
        };
        let report = verify(&fixture.package, None, &options, &mut |_| {}).unwrap();
        for row in &report.rows {
            println!(
                "{dtype} {} {}: {:e} of {:e}",
                row.backend, row.route, row.max_error, row.tolerance
            );
        }
        assert!(report.passed, "{dtype}");
    }
}
