//! Sequences in slots, step by step.

use crate::common::{MAX_SEQ_LEN, Options, VOCAB, backends, fixture, open, tokens, write_package};
use ratplus_graphs::package::Fallback;
use ratplus_runtime::backend::{BackendError, BackendKind};
use ratplus_runtime::engine::{Engine, EngineError, Ran};
use ratplus_runtime::package::Package;

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// The likeliest token after `slot`'s last one, and the bits of its logits.
fn greedy(engine: &Engine, slot: usize) -> Option<(u32, Vec<u32>)> {
    let logits = engine.logits(slot)?;
    let likeliest = (0..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1))?;
    Some((likeliest.0, bits(logits)))
}

/// Decodes `count` tokens in `slot` after those of its logits: bits of all of them.
fn decode(engine: &mut Engine, slot: usize, first: u32, count: usize) -> Vec<Vec<u32>> {
    let mut next = first;
    let mut seen = Vec::new();
    for _ in 0..count {
        engine.feed(slot, next).unwrap();
        assert_eq!(engine.step().unwrap(), Ran::Decode { slots: 1 });
        let (token, logits) = greedy(engine, slot).unwrap();
        seen.push(logits);
        next = token;
    }
    seen
}

/// Runs the prompt of `slot` alone; its first token and logits.
fn prefill(engine: &mut Engine, slot: usize, prompt: &[u32]) -> (u32, Vec<u32>) {
    engine.add(slot, prompt).unwrap();
    let mut tokens = 0;
    while engine.logits(slot).is_none() {
        match engine.step().unwrap() {
            Ran::Prefill {
                slot: ran,
                tokens: more,
            } => {
                assert_eq!(ran, slot);
                tokens += more;
            }
            ran => panic!("{ran:?}"),
        }
    }
    assert_eq!(tokens, prompt.len());
    greedy(engine, slot).unwrap()
}

#[test]
fn a_sequence_moves_to_another_slot_and_session() {
    let fixture = fixture(Options {
        batch: 3,
        ..Options::default()
    });
    for kind in backends(Fallback::Function) {
        let mut engine = Engine::new(open(&fixture, kind));
        let (first, _) = prefill(&mut engine, 0, &tokens(1, 21));
        let expected = decode(&mut engine, 0, first, 8);

        // Stopped after three tokens, with another sequence beside it.
        let mut engine = Engine::new(open(&fixture, kind));
        prefill(&mut engine, 2, &tokens(2, 30));
        let (first, _) = prefill(&mut engine, 0, &tokens(1, 21));
        let begun = decode(&mut engine, 0, first, 3);
        assert_eq!(begun, expected[..3], "{kind}");
        let (next, _) = greedy(&engine, 0).unwrap();
        let state = engine.read_state(0).unwrap();
        assert_eq!(state.past_length, 24);
        assert_eq!(state.tensors.len(), 8);
        engine.cancel(0);
        prefill(&mut engine, 0, &tokens(3, 11));

        engine.write_state(1, &state).unwrap();
        assert_eq!(engine.read_state(1).unwrap(), state, "{kind}");
        let rest = decode(&mut engine, 1, next, 5);
        assert_eq!(rest, expected[3..], "{kind}: in another slot");

        let mut other = Engine::new(open(&fixture, kind));
        other.write_state(2, &state).unwrap();
        let rest = decode(&mut other, 2, next, 5);
        assert_eq!(rest, expected[3..], "{kind}: in another session");

        // As tokens of a prompt, in chunks, it is the same sequence.
        let mut other = Engine::new(open(&fixture, kind));
        other.write_state(1, &state).unwrap();
        other.extend(1, &[next, 5, 9]).unwrap();
        while !other.is_idle() {
            assert!(matches!(
                other.step().unwrap(),
                Ran::Prefill { slot: 1, .. }
            ));
        }
        assert!(other.logits(1).is_some());
        assert_eq!(other.session().past_length(1), 27);
    }
}

/// Prompts run one after the other, whatever slots they are in.
#[test]
fn prompts_have_the_same_bits_alone_and_beside_others() {
    let fixture = fixture(Options {
        batch: 3,
        chooses: true,
        ..Options::default()
    });
    for kind in backends(Fallback::Function) {
        let prompts = [tokens(1, 21), tokens(2, 21)];
        let alone = prompts.each_ref().map(|prompt| {
            let mut engine = Engine::new(open(&fixture, kind));
            prefill(&mut engine, 2, prompt)
        });
        let mut engine = Engine::new(open(&fixture, kind));
        engine.add(0, &prompts[0]).unwrap();
        engine.add(2, &prompts[1]).unwrap();
        let together = [0, 2].map(|expected| {
            let mut ran = 0;
            loop {
                match engine.step().unwrap() {
                    Ran::Prefill { slot, tokens } if slot == expected => ran += tokens,
                    other => panic!("{kind}: {other:?}"),
                }
                if let Some(found) = greedy(&engine, expected) {
                    assert_eq!(ran, 21, "{kind}");
                    break found;
                }
            }
        });
        assert_eq!(together, alone, "{kind}");
    }
}

#[test]
fn a_cancelled_sequence_is_gone_and_the_others_go_on() {
    let fixture = fixture(Options::default());
    for kind in backends(Fallback::Function) {
        let mut engine = Engine::new(open(&fixture, kind));
        let (first, _) = prefill(&mut engine, 1, &tokens(4, 9));
        let expected = decode(&mut engine, 1, first, 4);
        engine.cancel(1);
        assert!(engine.is_idle() && engine.logits(1).is_none());
        assert_eq!(engine.free_slot(), Some(0));

        let (first, _) = prefill(&mut engine, 1, &tokens(4, 9));
        let mut found = decode(&mut engine, 1, first, 2);
        // In the middle of a prompt, and before a token that it was given.
        engine.add(0, &tokens(5, 40)).unwrap();
        assert_eq!(engine.free_slot(), None);
        engine.step().unwrap();
        engine.cancel(0);
        let (token, _) = prefill(&mut engine, 0, &tokens(6, 5));
        engine.feed(0, token).unwrap();
        engine.cancel(0);
        assert_eq!(engine.step().unwrap(), Ran::Nothing);
        let next = |logits: &[u32]| {
            let logits = (0..)
                .zip(logits)
                .map(|(token, &bits)| (token, f32::from_bits(bits)));
            logits.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0
        };
        found.extend(decode(&mut engine, 1, next(&found[1]), 2));
        assert_eq!(found, expected, "{kind}");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let fixture = fixture(Options::default());
    let mut engine = Engine::new(open(&fixture, BackendKind::Tract));
    let refused = |result: Result<(), EngineError>, text: &str| {
        assert_eq!(result.unwrap_err().to_string(), text);
    };
    refused(
        engine.add(2, &[1]),
        "slot 2: expected no sequence, found no such slot",
    );
    refused(
        engine.feed(0, 1),
        "slot 0: expected a sequence that waits for a token, found none",
    );
    refused(
        engine.add(0, &[1, 2, VOCAB as u32]),
        "token 2: expected 0 to 60, found 61",
    );
    assert!(matches!(
        engine.add(0, &tokens(1, MAX_SEQ_LEN + 1)),
        Err(EngineError::Length(_))
    ));
    assert!(engine.read_state(0).is_err());
    assert_eq!(engine.free_slot(), Some(0));
    engine.add(0, &tokens(1, MAX_SEQ_LEN)).unwrap();
    refused(
        engine.add(0, &[1]),
        "slot 0: expected no sequence, found one whose prompt has not run",
    );
    refused(
        engine.extend(0, &[1]),
        "slot 0: expected a sequence that waits for a token, found one whose prompt has not run",
    );
    while !engine.is_idle() {
        engine.step().unwrap();
    }
    // It is full.
    assert!(matches!(engine.feed(0, 1), Err(EngineError::Length(_))));
    prefill(&mut engine, 1, &[3]);
    engine.feed(1, 5).unwrap();
    refused(
        engine.feed(1, 6),
        "slot 1: expected a sequence that waits for a token, found one whose next token has not run",
    );
    assert_eq!(engine.step().unwrap(), Ran::Decode { slots: 1 });
}

#[test]
fn states_of_another_package_or_type_are_refused() {
    let options = Options::default();
    let own = fixture(options);
    let dir = tempfile::tempdir().unwrap();
    write_package(dir.path(), options, 2);
    let other = Package::open(dir.path()).unwrap();
    for kind in backends(Fallback::Function) {
        let mut engine = Engine::new(open(&own, kind));
        prefill(&mut engine, 0, &tokens(1, 7));
        let state = engine.read_state(0).unwrap();
        let builder = ratplus_runtime::backend::Session::builder(&other);
        let mut stranger = Engine::new(builder.open(kind).unwrap());
        let error = stranger.write_state(0, &state).unwrap_err().to_string();
        assert!(
            error.contains("fingerprint: expected this package's"),
            "{error}"
        );
        assert_eq!(stranger.free_slot(), Some(0));

        let mut short = state.clone();
        short.tensors[3].pop();
        short.past_length = MAX_SEQ_LEN + 1;
        match engine.write_state(1, &short).unwrap_err() {
            EngineError::Backend(BackendError::State(problems)) => {
                assert_eq!(problems.len(), 2, "{problems:?}");
                assert!(problems[0].contains("at most 48, found 49"), "{problems:?}");
                assert!(
                    problems[1].starts_with("past_key_values.0."),
                    "{problems:?}"
                );
            }
            error => panic!("{error}"),
        }
        // A batch of another size is the same package's.
        engine.write_state(1, &state).unwrap();
    }
}

#[test]
fn what_tokens_left_takes_the_place_of_running_them() {
    let fixture = fixture(Options {
        chooses: true,
        ..Options::default()
    });
    let prompt = tokens(7, 41);
    for kind in backends(Fallback::Function) {
        let mut engine = Engine::new(open(&fixture, kind));
        let mut deltas = Vec::new();
        engine.add(0, &prompt).unwrap();
        while !engine.chunks(0).is_empty() {
            let from = engine.past_length(0);
            engine.prefill_slot(0).unwrap();
            deltas.push(engine.read_delta(0, from).unwrap());
        }
        let expected = engine.logits(0).unwrap().to_vec();
        assert!(engine.read_delta(0, prompt.len()).is_err());
        for count in 1..deltas.len() {
            let path: Vec<_> = deltas[..count].iter().collect();
            engine.add(1, &prompt).unwrap();
            engine.skip(1, &path).unwrap();
            assert_eq!(engine.past_length(1), path[count - 1].to);
            while !engine.chunks(1).is_empty() {
                engine.prefill_slot(1).unwrap();
            }
            assert_eq!(engine.logits(1).unwrap(), expected, "{kind} after {count}");
            engine.cancel(1);
        }
        // What does not fit is refused, and the prompt runs as if nothing had been.
        let (first, second) = (&deltas[0], &deltas[1]);
        let mut short = first.clone();
        short.bytes.pop();
        let mut elsewhere = first.clone();
        elsewhere.to -= 1;
        engine.add(1, &prompt).unwrap();
        for wrong in [
            &[][..],
            &[second],
            &[&short],
            &[&elsewhere],
            &[first, first],
        ] {
            assert!(engine.skip(1, wrong).is_err(), "{kind}");
            assert_eq!(
                (engine.holds(1), engine.past_length(1)),
                (true, 0),
                "{kind}"
            );
        }
        while !engine.chunks(1).is_empty() {
            engine.prefill_slot(1).unwrap();
        }
        assert_eq!(engine.logits(1).unwrap(), expected, "{kind}");
    }
}
