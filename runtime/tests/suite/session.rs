//! Sessions on every backend of this machine: chunkings, slots, refusals, extra outputs.

use crate::common::{
    EMULATED, MAX_SEQ_LEN, Options, VOCAB, backends, fixture, open, tokens, verified, write_package,
};
use ratplus_graphs::model::{FINAL_NORM, Tap};
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{Fallback, LogitsMode};
use ratplus_graphs::tolerance::F32_LOGIT;
use ratplus_runtime::backend::inspection::{Inspection, extra_output};
use ratplus_runtime::backend::{BackendError, BackendKind, Implementation, Session};
use ratplus_runtime::package::Package;
use ratplus_runtime::planner::{Chunk, chunks_of, plan};

/// Runs `prompt` in `slot` alone and returns the logits after its last token.
fn run(session: &mut Session, slot: usize, prompt: &[u32], chunks: &[Chunk]) -> Vec<f32> {
    session.reset(slot);
    let (mut done, mut logits) = (0, Vec::new());
    for chunk in chunks {
        let mut ids = vec![0; session.batch() * chunk.engine_len];
        for (id, &token) in ids[slot * chunk.engine_len..]
            .iter_mut()
            .zip(&prompt[done..][..chunk.tokens])
        {
            *id = token.into();
        }
        done += chunk.tokens;
        let mut seq_length = vec![0; session.batch()];
        seq_length[slot] = chunk.tokens as i64;
        let step = session.run(chunk.engine_len, &ids, &seq_length).unwrap();
        logits = step.last_logits(slot).unwrap().to_vec();
    }
    assert_eq!(session.past_length(slot), prompt.len());
    logits
}

fn assert_close(left: &[f32], right: &[f32], tolerance: f64, what: &str) {
    let scale = right.iter().fold(0f32, |max, value| max.max(value.abs()));
    let error = left
        .iter()
        .zip(right)
        .map(|(a, b)| (a - b).abs())
        .fold(0f32, f32::max);
    assert!(left.iter().all(|value| value.is_finite()), "{what}");
    assert!(
        f64::from(error) <= tolerance * f64::from(scale),
        "{what}: {error} of {scale}"
    );
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn any_chunking_is_one_pass() {
    for fallback in [Fallback::Function, Fallback::Inline, Fallback::None] {
        let options = Options {
            fallback,
            ..Options::default()
        };
        let fixture = fixture(options);
        let prompt = tokens(3, 37);
        let mut reference = None;
        for kind in backends(fallback) {
            let mut session = open(&fixture, kind);
            let plans = [
                plan(prompt.len(), session.lengths(), MAX_SEQ_LEN).unwrap(),
                chunks_of(prompt.len(), 1).unwrap(),
                chunks_of(prompt.len(), 4).unwrap(),
                chunks_of(prompt.len(), 16).unwrap(),
            ];
            for chunks in plans {
                let logits = run(&mut session, 1, &prompt, &chunks);
                let first = reference.get_or_insert_with(|| logits.clone());
                assert_close(
                    &logits,
                    first,
                    F32_LOGIT,
                    &format!("{kind} {fallback} {chunks:?}"),
                );
            }
        }
    }
}

#[test]
fn low_precision_packages_agree_across_backends() {
    for (dtype, tolerance) in [(ElementType::F16, 0.01), (ElementType::BF16, 0.08)] {
        let fixture = fixture(Options {
            dtype,
            ..Options::default()
        });
        let prompt = tokens(4, 21);
        let chunks = plan(prompt.len(), &[1, 4, 16], MAX_SEQ_LEN).unwrap();
        let mut reference = None;
        for kind in backends(Fallback::Function) {
            let logits = run(&mut open(&fixture, kind), 0, &prompt, &chunks);
            let first = reference.get_or_insert_with(|| logits.clone());
            assert_close(&logits, first, tolerance, &format!("{kind} {dtype}"));
        }
    }
}

/// Every cache of another type than the activations: backends and chunkings agree as closely as
/// the activations' type allows, and what has no kernels for it says so.
#[test]
fn caches_of_a_type_of_their_own() {
    let types = ElementType::ACTIVATIONS;
    let pairs = types.into_iter().flat_map(|t| types.map(|c| (t, c)));
    for (dtype, cache_dtype) in pairs.filter(|(t, c)| t != c) {
        let fixture = fixture(Options {
            dtype,
            cache_dtype: Some(cache_dtype),
            logits: LogitsMode::All,
            ..Options::default()
        });
        let manifest = fixture.package.manifest();
        let what = manifest.types();
        for kind in [BackendKind::OrtCuda, BackendKind::TensorRt] {
            let error = Session::builder(&fixture.package).open(kind);
            let error = error.err().unwrap().to_string();
            let expected = format!("expected {dtype}, the type of query, found {cache_dtype}");
            assert!(error.contains(&expected), "{error}");
        }
        if EMULATED {
            continue;
        }
        let report = verified(&fixture, backends(Fallback::Function));
        for row in &report.rows {
            let (backend, route) = (row.backend, &row.route);
            println!(
                "{what} {backend} {route}: {:e} of {:?}",
                row.max_error, row.tolerance
            );
        }
        assert!(report.passed, "{what}");
        let prompt = tokens(4, 37);
        let unit = match [dtype, cache_dtype].contains(&ElementType::BF16) {
            true => 0.08,
            false => 0.01,
        };
        for kind in backends(Fallback::Function) {
            let mut session = open(&fixture, kind);
            assert_eq!(session.state_bytes(), manifest.state_bytes);
            let [whole, single] = [16, 1].map(|length| {
                let chunks = chunks_of(prompt.len(), length).unwrap();
                run(&mut session, 0, &prompt, &chunks)
            });
            assert_close(&whole, &single, unit, &format!("{kind} {what}"));
        }
    }
}

/// Steps of both slots at once, each slot with its own tokens and lengths: (engine, lengths).
const SCHEDULE: [(usize, [i64; 2]); 6] = [
    (16, [16, 3]),
    (4, [4, 0]),
    (1, [1, 1]),
    (4, [2, 4]),
    (1, [0, 1]),
    (16, [5, 16]),
];

fn run_schedule(session: &mut Session, prompts: [&[u32]; 2], only: Option<usize>) -> Vec<Vec<u32>> {
    let mut done = [0; 2];
    let mut seen = Vec::new();
    (0..2).for_each(|slot| session.reset(slot));
    for (engine_len, mut lengths) in SCHEDULE {
        if let Some(only) = only {
            lengths[1 - only] = 0;
        }
        let mut ids = vec![7; 2 * engine_len];
        for slot in 0..2 {
            let count = lengths[slot] as usize;
            for (id, &token) in ids[slot * engine_len..]
                .iter_mut()
                .zip(&prompts[slot][done[slot]..][..count])
            {
                *id = token.into();
            }
            done[slot] += count;
        }
        if lengths == [0, 0] {
            continue;
        }
        let step = session.run(engine_len, &ids, &lengths).unwrap();
        let wanted = only.unwrap_or(0);
        seen.extend(step.last_logits(wanted).map(bits));
    }
    seen
}

#[test]
fn slots_do_not_see_each_other() {
    let fixture = fixture(Options {
        chooses: true,
        ..Options::default()
    });
    let (left, right, other) = (tokens(5, 28), tokens(6, 25), tokens(7, 25));
    for kind in backends(Fallback::Function) {
        let mut session = open(&fixture, kind);
        let together = run_schedule(&mut session, [&left, &right], None);
        assert_eq!(together.len(), 5);
        assert_eq!(
            together,
            run_schedule(&mut session, [&left, &other], None),
            "{kind}"
        );
        // The other slot is idle, and holds what the last run left there.
        assert_eq!(
            together,
            run_schedule(&mut session, [&left, &right], Some(0)),
            "{kind}"
        );
        assert_eq!(
            together,
            run_schedule(&mut open(&fixture, kind), [&left, &right], None),
            "{kind}"
        );
    }
}

#[test]
fn threads_do_not_change_the_numbers() {
    let fixture = fixture(Options::default());
    let prompt = tokens(8, 30);
    let chunks = plan(30, &[1, 4, 16], MAX_SEQ_LEN).unwrap();
    for kind in backends(Fallback::Function) {
        let with = |threads| {
            let builder = Session::builder(&fixture.package).threads(threads);
            let mut session = builder.open(kind).unwrap();
            bits(&run(&mut session, 0, &prompt, &chunks))
        };
        assert_eq!(with(1), with(2), "{kind}");
    }
}

#[test]
fn extra_outputs_and_all_logits() {
    let fixture = fixture(Options {
        logits: LogitsMode::All,
        dtype: ElementType::BF16,
        ..Options::default()
    });
    let names = [
        Tap::GatedKey.name(0),
        Tap::Hidden.name(1),
        FINAL_NORM.to_owned(),
    ];
    let prompt: Vec<i64> = tokens(9, 8).into_iter().map(i64::from).collect();
    let mut reference: Option<Vec<Vec<f32>>> = None;
    for kind in backends(Fallback::Function) {
        let inspection = Inspection {
            extra_outputs: names.to_vec(),
            ..Inspection::default()
        };
        let builder = Session::builder(&fixture.package).engines([4]);
        let mut session = builder.inspect(inspection).open(kind).unwrap();
        assert_eq!(session.lengths(), [4]);
        let step = session.run(4, &prompt, &[4, 2]).unwrap();
        assert_eq!(step.logits_shape(), [2, 4, VOCAB]);
        assert_eq!(step.logits_at(1, 1), step.last_logits(1));
        assert_eq!(step.logits_at(1, 2), None);
        assert_eq!(step.logits_at(0, 1), Some(&step.logits()[VOCAB..2 * VOCAB]));
        assert!(extra_output(&step, "embedded").is_none());
        let found: Vec<_> = names
            .iter()
            .map(|name| {
                let (shape, values) = extra_output(&step, name).unwrap();
                assert_eq!(shape.iter().product::<usize>(), values.len());
                // Slot 0 only: the other has padding.
                values[..values.len() / 2].to_vec()
            })
            .collect();
        let first = reference.get_or_insert_with(|| found.clone());
        for ((name, left), right) in names.iter().zip(&found).zip(first.iter()) {
            assert_close(left, right, 0.08, &format!("{kind} {name}"));
        }
    }
}

#[test]
fn bad_steps_are_refused_before_the_run() {
    let fixture = fixture(Options::default());
    for kind in backends(Fallback::Function) {
        let mut session = open(&fixture, kind);
        let ids = [1, 2, 3, 4, 5, 6, 7, 8];
        let before = bits(session.run(4, &ids, &[4, 4]).unwrap().logits());
        let problems = |result: Result<_, BackendError>| match result {
            Err(BackendError::Input(problems)) => problems,
            Err(error) => panic!("{error}"),
            Ok(()) => panic!("accepted"),
        };
        let mut refuse = |engine, ids: &[i64], lengths: &[i64]| {
            problems(session.run(engine, ids, lengths).map(|_| ()))
        };
        for token in [
            -1,
            VOCAB as i64,
            -(VOCAB as i64),
            1 << 31,
            i64::MAX,
            i64::MIN,
        ] {
            let found = refuse(4, &[1, 2, 3, 4, 5, token, 7, 8], &[4, 4]);
            let expected = format!(
                "slot 1: token 1 of the chunk is {token}, expected 0 to {}",
                VOCAB - 1
            );
            assert_eq!(found, [expected]);
        }
        for length in [5, 0] {
            let found = refuse(length, &ids, &[4, 4]);
            assert!(found[0].starts_with("engine length: expected one of ["));
            assert!(found[0].ends_with(&format!(", found {length}")));
        }
        assert_eq!(
            refuse(4, &ids[..7], &[4]),
            [
                "input_ids: expected 8 values, found 7",
                "seq_length: expected 2 values, found 1"
            ]
        );
        assert_eq!(
            refuse(4, &ids, &[0, 0]),
            ["seq_length: expected at least one slot with 1 token or more, found none"]
        );
        for length in [5, -1, i64::MAX, i64::MIN] {
            let found = refuse(4, &ids, &[4, length]);
            assert!(matches!(&found[..], [one] if one.starts_with("slot 1: ")));
        }
        // Nothing has moved, and the sequence ends at the last row.
        assert_eq!((session.past_length(0), session.past_length(1)), (4, 4));
        for step in 4..MAX_SEQ_LEN {
            assert_eq!(session.past_length(0), step);
            session.run(1, &[1, 1], &[1, 0]).unwrap();
        }
        let error = session
            .run(1, &[1, 1], &[1, 0])
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("slot 0") && error.contains("at most 48"),
            "{error}"
        );
        session.reset(0);
        session.reset(1);
        assert_eq!(
            bits(session.run(4, &ids, &[4, 4]).unwrap().logits()),
            before,
            "{kind}"
        );
    }
}

#[test]
fn what_ran_is_what_was_asked_for() {
    for fallback in [Fallback::Function, Fallback::Inline, Fallback::None] {
        let fixture = fixture(Options {
            fallback,
            ..Options::default()
        });
        for kind in backends(fallback) {
            let session = Session::builder(&fixture.package).up_front().open(kind);
            let session = session.unwrap();
            let engines = fixture.package.manifest().engines.len();
            assert_eq!(session.implementations().len(), engines);
            for engine in session.implementations() {
                // Two layers of two operators and four matrices, and the head, which is a standard product
                // in portable graphs.
                let nodes = match (kind, fallback) {
                    // The reference reads no file: it has its nodes in every package.
                    (BackendKind::Tract, _) => 4,
                    (_, Fallback::Inline) => 0,
                    (BackendKind::OrtCpu, _) => 13,
                    (BackendKind::OrtFallback, _) => 12,
                    _ => 4,
                };
                assert_eq!(engine.nodes.len(), nodes, "{kind} {fallback}");
                for node in &engine.nodes {
                    let expected = match kind {
                        BackendKind::OrtCpu | BackendKind::OrtCuda => Implementation::Kernel {
                            provider: "CPUExecutionProvider".into(),
                        },
                        BackendKind::TensorRt => Implementation::Plugin,
                        BackendKind::OrtFallback | BackendKind::TensorRtRtx => {
                            Implementation::FunctionBody
                        }
                        BackendKind::Tract => Implementation::Reference,
                        other => panic!("{other}: which implementation runs there?"),
                    };
                    assert_eq!(node.implementation, expected, "{engine}");
                }
            }
            let manifest = fixture.package.manifest();
            assert_eq!(session.state_bytes(), manifest.state_bytes);
            let in_place = kind != BackendKind::Tract;
            assert!(
                session
                    .state_buffers()
                    .iter()
                    .all(|buffer| buffer.in_place == in_place)
            );
        }
    }
    let bare = fixture(Options {
        fallback: Fallback::None,
        ..Options::default()
    });
    let error = Session::builder(&bare.package).open(BackendKind::OrtFallback);
    let error = error.err().unwrap().to_string();
    assert!(error.contains("`fallback: function`"), "{error}");
}

/// An engine is opened by the step that needs it, once, and tells then what runs in it; the others
/// are not, and steps have the bits of a session that opened all.
#[test]
fn engines_open_when_they_first_run() {
    let fixture = fixture(Options::default());
    let engines = fixture.package.manifest().engines.len();
    for kind in [BackendKind::OrtCpu, BackendKind::OrtFallback] {
        let mut all = Session::builder(&fixture.package)
            .up_front()
            .open(kind)
            .unwrap();
        let mut session = open(&fixture, kind);
        assert!(engines > 2);
        assert_eq!(all.implementations().len(), engines);
        let lengths = |session: &Session| {
            let opened = session.implementations().iter();
            opened.map(|engine| engine.seq_len).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&session), [1]);
        let ids = [5, 9, 2, 7, 1, 3, 4, 8];
        for _ in 0..2 {
            let expected = bits(all.run(4, &ids, &[4, 3]).unwrap().logits());
            assert_eq!(
                bits(session.run(4, &ids, &[4, 3]).unwrap().logits()),
                expected
            );
            let expected = bits(all.run(1, &[6, 2], &[1, 1]).unwrap().logits());
            assert_eq!(
                bits(session.run(1, &[6, 2], &[1, 1]).unwrap().logits()),
                expected
            );
        }
        assert!(session.implementations().len() < engines);
        // In the order of the package, whichever ran first.
        let opened = lengths(&session);
        assert!(opened.contains(&4) && opened.is_sorted(), "{opened:?}");
    }
}

#[test]
fn options_that_name_nothing_are_refused() {
    let fixture = fixture(Options::default());
    let base = || Session::builder(&fixture.package);
    let extra = Inspection {
        extra_outputs: vec!["nothing".into()],
        ..Inspection::default()
    };
    for (builder, part) in [
        (base().threads(0), "threads"),
        (base().engines([5]), "engines"),
        (base().engines([]), "engines"),
        (base().inspect(extra), "extra_outputs"),
    ] {
        let error = builder.open(BackendKind::Tract).err().unwrap();
        assert!(
            error.to_string().starts_with(&format!("`{part}`: ")),
            "{error}"
        );
    }
}

/// A model hub's cache: every file is a link to a blob of another name in another folder.
#[cfg(unix)]
#[test]
fn linked_packages_run_like_real_ones() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (root.path().join("blobs"), root.path().join("snapshot"));
    std::fs::create_dir(&blobs).unwrap();
    std::fs::create_dir(&snapshot).unwrap();
    let options = Options {
        dtype: ElementType::F16,
        ..Options::default()
    };
    write_package(&blobs, options, 1);
    for (index, file) in std::fs::read_dir(&blobs).unwrap().enumerate() {
        let file = file.unwrap();
        let blob = blobs.join(format!("blob{index}"));
        std::fs::rename(file.path(), &blob).unwrap();
        symlink(blob, snapshot.join(file.file_name())).unwrap();
    }
    let (real, linked) = (fixture(options), Package::open(&snapshot).unwrap());
    let prompt = tokens(10, 9);
    let chunks = chunks_of(9, 4).unwrap();
    for kind in backends(Fallback::Function) {
        let mut session = Session::builder(&linked).open(kind).unwrap();
        let found = run(&mut session, 0, &prompt, &chunks);
        assert_eq!(
            bits(&found),
            bits(&run(&mut open(&real, kind), 0, &prompt, &chunks)),
            "{kind}"
        );
    }
}

/// On CPUs a step of a sequence has the same bits in the engine of one slot and in that of all, whatever
/// the others do.
#[test]
#[cfg(not(feature = "cuda-emulation"))] // There ort-cuda takes ort-cpu's place.
fn a_decode_step_has_the_same_bits_in_every_batch() {
    use ratplus_graphs::precision::{Activations, Quantization};
    const BATCH: usize = 8;
    if !backends(Fallback::Function).contains(&BackendKind::OrtCpu) {
        return; // `backends` has said why.
    }
    let integers = |bits| Quantization {
        bits,
        block_size: 32,
        symmetric: false,
        layout: Default::default(),
        activations: Activations::Float,
    };
    let rounded = Quantization {
        activations: Activations::Int8,
        ..integers(4)
    };
    for (dtype, quantization) in [
        (ElementType::F32, None),
        (ElementType::F16, None),
        (ElementType::BF16, None),
        (ElementType::F32, Some(integers(8))),
        (ElementType::BF16, Some(integers(4))),
        (ElementType::BF16, Some(rounded)),
    ] {
        let fixture = fixture(Options {
            batch: BATCH,
            dtype,
            quantization,
            ..Options::default()
        });
        let [mut alone, mut together] = [(); 2].map(|()| open(&fixture, BackendKind::OrtCpu));
        for slot in 0..BATCH {
            let prompt = tokens(slot as u64, 1 + slot % 4);
            for session in [&mut alone, &mut together] {
                session.run_slot(slot, 4, &prompt).unwrap();
            }
        }
        for step in 0..6 {
            let next = tokens(100 + step, BATCH);
            // Slots are idle in turn.
            let runs = |slot: usize| !(slot as u64 + step).is_multiple_of(3);
            let ids: Vec<_> = next.iter().map(|&id| i64::from(id)).collect();
            let lengths: Vec<_> = (0..BATCH).map(|slot| i64::from(runs(slot))).collect();
            let found: Vec<_> = {
                let made = together.run(1, &ids, &lengths).unwrap();
                let slots = (0..BATCH).map(|slot| made.last_logits(slot).map(bits));
                slots.collect()
            };
            for slot in (0..BATCH).filter(|&slot| runs(slot)) {
                let made = alone.run_slot(slot, 1, &next[slot..=slot]).unwrap();
                let expected = made.last_logits(slot).map(bits);
                assert!(expected.is_some());
                assert_eq!(found[slot], expected, "{dtype}, step {step}, slot {slot}");
            }
        }
    }
}
