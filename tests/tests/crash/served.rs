//! A package that is replaced while it is served.

use crate::scene::{NEW, OLD, Scene, succeeded};
use ratplus_runtime::backend::{BackendKind, Session};
use ratplus_runtime::ort_library;
use ratplus_runtime::package::{OpenOptions, Package};

fn logits(session: &mut Session) -> Vec<u32> {
    session.reset(0);
    let mut bits = Vec::new();
    for token in 0..12 {
        let step = session.run(1, &[token], &[1]).unwrap();
        bits.extend(
            step.last_logits(0)
                .unwrap()
                .iter()
                .map(|logit| logit.to_bits()),
        );
    }
    bits
}

#[test]
fn a_served_package_keeps_its_outputs_while_it_is_replaced() {
    let scene = Scene::tiny();
    let mut kinds = vec![BackendKind::Tract];
    match ort_library::onnxruntime(None) {
        Ok(_) => kinds.extend([BackendKind::OrtFallback, BackendKind::OrtCpu]),
        Err(error) => eprintln!("SKIPPED ort-cpu and ort-fallback: {error}"),
    }
    for kind in kinds {
        scene.clear();
        scene.put_old();
        let package = Package::open_with(scene.target(), &OpenOptions::default()).unwrap();
        let before = package.weights().to_vec();
        let mut session = Session::builder(&package).open(kind).unwrap();
        let expected = logits(&mut session);
        for flags in [NEW, OLD, NEW] {
            scene.change_weights();
            succeeded(&scene.command(flags).output().unwrap()).unwrap();
            assert_eq!(logits(&mut session), expected, "{kind}");
            assert!(package.weights() == before);
        }
    }
}
