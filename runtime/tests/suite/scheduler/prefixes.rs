//! Prefixes in files, and what they weigh.

use super::*;
use crate::common::{MAX_SEQ_LEN, Options as Shape, backends, write_package};
use ratplus_graphs::package::{Fallback, written_bytes};
use ratplus_runtime::backend::Session;
use ratplus_runtime::package::Package;
use ratplus_tests::times;

#[test]
fn prefixes_go_from_one_service_to_the_next_through_a_file() {
    let fixture = fixture(Shape::default());
    let other = {
        let dir = tempfile::tempdir().unwrap();
        write_package(dir.path(), Shape::default(), 2);
        let package = Package::open(dir.path()).unwrap();
        Fixture::new(dir, package)
    };
    for kind in backends(Fallback::Function) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prefixes");
        let mut options = options(1 << 30);
        options.prefix_cache_file = Some(path.clone());
        let try_start = |fixture: &Fixture, options: &Options| {
            Service::start(Engine::new(open(fixture, kind)), None, options.clone())
        };
        let prompt: Vec<u32> = (0..36).collect();
        let ask = |service: &Service| ask(service, Request::new(prompt.clone())).unwrap().told();
        let first = try_start(&fixture, &options).unwrap();
        let cold = ask(&first);
        let kept = first.snapshot().prefix.checkpoints;
        assert_eq!((cold.cached, kept), (0, 3), "{kind}");
        assert!(first.stop().is_some());
        let bytes = std::fs::read(&path).unwrap();

        let second = try_start(&fixture, &options).unwrap();
        assert_eq!(second.snapshot().prefix.checkpoints, kept);
        let warm = ask(&second);
        assert_eq!(warm.answer, cold.answer, "{kind}");
        assert_eq!(warm.cached, 36, "{kind}");
        drop(second);
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{kind}");

        // As many as fit, from the start on.
        let mut small = options.clone();
        small.prefix_cache_bytes = bytes.len() as u64 / 2;
        assert!(
            (1..3).contains(
                &try_start(&fixture, &small)
                    .unwrap()
                    .snapshot()
                    .prefix
                    .checkpoints
            )
        );

        std::fs::write(&path, &bytes).unwrap();
        let refused = |what: &str| {
            let error = try_start(&fixture, &options).err();
            let text = error
                .unwrap_or_else(|| panic!("{kind}: {what}"))
                .to_string();
            assert!(
                text.contains("prefixes: ") && text.contains("delete the file"),
                "{text}"
            );
            text
        };
        let error = try_start(&other, &options).err().unwrap().to_string();
        assert!(error.contains("of this package"), "{error}");
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for round in 0..times(60) {
            let at = rng.random_range(0..bytes.len());
            let mut damaged = bytes.clone();
            match round % 2 {
                0 => damaged[at] ^= 1 << rng.random_range(0..8),
                _ => damaged.truncate(at),
            }
            std::fs::write(&path, &damaged).unwrap();
            refused(&format!("damaged at {at}"));
            // What was refused is as it was.
            assert_eq!(std::fs::read(&path).unwrap(), damaged);
        }
        std::fs::write(&path, &bytes).unwrap();
        let fewer = Session::builder(&fixture.package)
            .engines([1, 4])
            .threads(1);
        let fewer = Engine::new(fewer.open(kind).unwrap());
        let error = Service::start(fewer, None, options.clone()).err().unwrap();
        assert!(error.to_string().contains("chunks of [1, 4]"), "{error}");
        std::fs::write(&path, b"a file of somebody's own, of some length").unwrap();
        assert!(refused("another file").contains("something else"));
    }
}

#[test]
fn a_checkpoint_has_the_bytes_that_are_planned_for() {
    let fixture = fixture(Shape::default());
    let manifest = fixture.package.manifest();
    // A whole sequence leaves all that a slot has.
    let all = written_bytes(&manifest.model, &manifest.shape(), 0..MAX_SEQ_LEN);
    assert_eq!(all * manifest.batch as u64, manifest.state_bytes);
    for kind in backends(Fallback::Function) {
        let mut engine = Engine::new(open(&fixture, kind));
        engine.add(0, &[1; 37]).unwrap();
        let mut from = 0;
        while !engine.chunks(0).is_empty() {
            engine.prefill_slot(0).unwrap();
            let delta = engine.read_delta(0, from).unwrap();
            let planned = written_bytes(&manifest.model, &manifest.shape(), from..delta.to);
            assert_eq!(
                delta.bytes.len() as u64,
                planned,
                "{kind} {from}..{}",
                delta.to
            );
            from = delta.to;
        }
    }
}
