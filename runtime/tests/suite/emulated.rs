//! ort-cuda in the emulator, where it differs from the CPU's way.

use crate::common::{Fixture, Options, fixture, tokens, verified};
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::LogitsMode;
use ratplus_kernels::cuda::Device;
use ratplus_runtime::backend::{BackendKind, Session};

/// Logits of every step of a prompt, the last token's, decoded in slot 1.
fn decode(session: &mut Session, prompt: &[u32]) -> Vec<Vec<u32>> {
    let step = |session: &mut Session, &token: &u32| {
        let step = session.run(1, &[7, token.into()], &[0, 1]).unwrap();
        let logits = step.last_logits(1).unwrap();
        logits.iter().map(|value| value.to_bits()).collect()
    };
    prompt.iter().map(|token| step(session, token)).collect()
}

fn open(fixture: &Fixture, without_graph: bool) -> Session {
    let mut sessions = Session::builder(&fixture.package);
    sessions.cuda.without_graph = without_graph;
    let opened = sessions.open(BackendKind::OrtCuda);
    opened.unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_session_may_change_threads_between_steps() {
    let fixture = fixture(Options::default());
    let prompt = tokens(11, 20);
    let (mut session, mut eager) = (open(&fixture, false), open(&fixture, true));
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
        let report = verified(&fixture, vec![BackendKind::Tract, BackendKind::OrtCuda]);
        for row in &report.rows {
            println!(
                "{dtype} {} {}: {:e} of {:?}",
                row.backend, row.route, row.max_error, row.tolerance
            );
        }
        assert!(report.passed, "{dtype}");
    }
}

#[test]
fn a_run_disturbs_no_capture_of_others() {
    let fixture = fixture(Options::default());
    let mut session = open(&fixture, true);
    // The driver forbids a capturing thread what waits for the whole context or the default stream.
    let device = Device::open(0).unwrap();
    let other = device.stream().unwrap();
    let capture = other.capture().unwrap();
    decode(&mut session, &tokens(3, 4));
    let state = session.read_state(1).unwrap();
    session.write_state(0, &state).unwrap();
    capture.end().unwrap();
}
