//! Generation on every backend of this machine.

use crate::common::{MAX_SEQ_LEN, Options, VOCAB, backends, fixture, open, poisoned, tokens};
use ratplus_graphs::package::Fallback;
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::engine::Engine;
use ratplus_runtime::generate::{
    Completion, Event, GenerateError, Observer, Request, StopReason, generate, generate_observed,
};
use ratplus_runtime::sampler::Sampling;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

fn request(seed: u64, length: usize, max_new_tokens: usize) -> Request {
    Request {
        max_new_tokens,
        ..Request::new(tokens(seed, length))
    }
}

fn sampling(temperature: f32, seed: u64) -> Sampling {
    let mut sampling = Sampling::default();
    (sampling.temperature, sampling.seed) = (temperature, seed);
    sampling
}

fn quiet(_: Event) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Tokens of `requests`, and why each stopped.
fn run(engine: &mut Engine, requests: &[Request]) -> Vec<(Vec<u32>, StopReason)> {
    let mut streamed = vec![Vec::new(); requests.len()];
    let generation = generate(engine, requests, |event| {
        streamed[event.request].push(event.token);
        ControlFlow::Continue(())
    })
    .unwrap();
    let completions: Vec<_> = generation
        .completions
        .into_iter()
        .map(|done| (done.tokens, done.stop))
        .collect();
    assert!(
        completions
            .iter()
            .zip(&streamed)
            .all(|((tokens, _), seen)| tokens == seen)
    );
    completions
}

#[test]
fn prompts_of_any_length_run_together_as_alone() {
    let fixture = fixture(Options {
        batch: 3,
        ..Options::default()
    });
    for kind in backends(Fallback::Function) {
        let mut engine = Engine::new(open(&fixture, kind));
        let mut sampling = sampling(0.8, 5);
        (sampling.top_k, sampling.top_p) = (Some(20), Some(0.95));
        let requests = [
            request(1, 1, 9),
            Request {
                sampling,
                ..request(2, 19, 12)
            },
            request(3, 37, 30),
        ];
        let together = run(&mut engine, &requests);
        assert_eq!(together[0].1, StopReason::MaxNewTokens);
        assert_eq!(together[1].0.len(), 12);
        // 37 + 11 tokens fill the sequence, and the last token of a full one is still returned.
        assert_eq!(together[2].1, StopReason::MaxSeqLen);
        assert_eq!(together[2].0.len(), MAX_SEQ_LEN - 37 + 1);
        for (request, expected) in requests.iter().zip(&together) {
            assert_eq!(
                &run(&mut engine, std::slice::from_ref(request))[0],
                expected,
                "{kind}"
            );
        }
        let reversed: Vec<_> = requests.iter().rev().cloned().collect();
        let mut again = run(&mut engine, &reversed);
        again.reverse();
        assert_eq!(again, together, "{kind}");
    }
}

/// More requests than slots, of all lengths: each is what it is alone, and ends are told in the order
/// in which they come.
#[test]
fn requests_without_a_slot_wait_for_one() {
    struct Ends(Vec<(usize, usize)>);
    impl Observer for Ends {
        fn token(&mut self, _: Event) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }
        fn finished(&mut self, request: usize, completion: &Completion) -> ControlFlow<()> {
            self.0.push((request, completion.tokens.len()));
            ControlFlow::Continue(())
        }
    }
    let fixture = fixture(Options::default());
    for kind in backends(Fallback::Function) {
        let mut engine = Engine::new(open(&fixture, kind));
        assert_eq!(engine.slots(), 2);
        let requests: Vec<_> = [(1, 20), (40, 2), (5, 0), (17, 9), (3, 1), (48, 7), (9, 12)]
            .into_iter()
            .zip(20..)
            .map(|((length, count), seed)| Request {
                sampling: sampling(if seed % 2 == 0 { 0.0 } else { 0.9 }, 3),
                ..request(seed, length, count)
            })
            .collect();
        let together = run(&mut engine, &requests);
        for (index, (request, expected)) in requests.iter().zip(&together).enumerate() {
            let alone = run(&mut engine, std::slice::from_ref(request));
            assert_eq!(&alone[0], expected, "{kind}: request {index}");
        }
        let mut ends = Ends(Vec::new());
        generate_observed(&mut engine, &requests, &mut ends).unwrap();
        assert_ne!(ends.0.first().map(|end| end.0), Some(0), "{kind}");
        ends.0.sort_unstable();
        let expected: Vec<_> = together.iter().map(|(tokens, _)| tokens.len()).collect();
        assert_eq!(ends.0, expected.into_iter().enumerate().collect::<Vec<_>>());
    }
}

#[test]
fn backends_pick_the_same_tokens() {
    let fixture = fixture(Options::default());
    let requests = [request(11, 21, 16), request(12, 5, 16)];
    let mut first = None;
    for kind in backends(Fallback::Function) {
        let found = run(&mut Engine::new(open(&fixture, kind)), &requests);
        assert_eq!(first.get_or_insert_with(|| found.clone()), &found, "{kind}");
    }
}

#[test]
fn stops() {
    let fixture = fixture(Options::default());
    let mut engine = Engine::new(open(&fixture, BackendKind::Tract));
    let free = run(&mut engine, &[request(1, 5, 6)]).remove(0).0;
    let stop_tokens = BTreeSet::from([free[3]]);
    let first = free.iter().position(|token| *token == free[3]).unwrap();
    let stopped = run(
        &mut engine,
        &[Request {
            stop_tokens,
            ..request(1, 5, 6)
        }],
    )
    .remove(0);
    assert_eq!(stopped, (free[..=first].to_vec(), StopReason::StopToken));
    assert_eq!(
        run(&mut engine, &[request(1, 5, 0)]),
        [(vec![], StopReason::MaxNewTokens)]
    );
    assert_eq!(
        run(&mut engine, &[request(1, 48, 5)])[0].1,
        StopReason::MaxSeqLen
    );
    let mut left = 3;
    let generation = generate(&mut engine, &[request(1, 5, 9), request(2, 9, 9)], |_| {
        left -= 1;
        if left == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
    .unwrap();
    assert!(
        generation
            .completions
            .iter()
            .all(|done| done.stop == StopReason::Cancelled)
    );
    // Those that wait are cancelled too.
    let three = [request(1, 5, 9), request(2, 9, 9), request(3, 9, 9)];
    let generation = generate(&mut engine, &three, |_| ControlFlow::Break(())).unwrap();
    let mut found = generation.completions.iter();
    assert!(found.all(|done| done.stop == StopReason::Cancelled));
    assert!(generation.completions[2].tokens.is_empty());
    let stats = generate(&mut engine, &[request(1, 5, 4), request(2, 9, 4)], quiet)
        .unwrap()
        .stats;
    assert_eq!((stats.prefill_tokens, stats.decode_tokens), (14, 6));
    assert!(stats.prefill_tokens_per_second() > 0.0 && stats.decode_tokens_per_second() > 0.0);
    // No order between the two holds: the first token's time includes sampling it.
    assert!(!stats.prefill_time.is_zero() && stats.time_to_first_token.is_some());
}

#[test]
fn requests_are_checked_first() {
    let fixture = fixture(Options::default());
    let mut engine = Engine::new(open(&fixture, BackendKind::Tract));
    let mut refuse = |requests: &[Request]| generate(&mut engine, requests, quiet).unwrap_err();
    assert!(matches!(refuse(&[]), GenerateError::NoRequests));
    let error = refuse(&[request(1, 3, 1), request(1, 0, 1)]);
    assert!(matches!(error, GenerateError::Request { request: 1, .. }));
    assert!(error.to_string().contains("no tokens"), "{error}");
    let error = refuse(&[request(1, 49, 1)]).to_string();
    assert!(
        error.contains("49 tokens") && error.contains("48"),
        "{error}"
    );
    let error = refuse(&[Request {
        sampling: sampling(-1.0, 0),
        ..request(1, 3, 1)
    }]);
    assert!(
        error.to_string().starts_with("prompt 0: `temperature`: "),
        "{error}"
    );
    let error = refuse(&[Request {
        stop_tokens: BTreeSet::from([3, VOCAB as u32]),
        ..request(1, 3, 1)
    }]);
    assert_eq!(
        error.to_string(),
        "prompt 0: `stop_tokens`: expected 0 to 60, found 61"
    );
    // The last of more than there are slots for, too.
    let outside = Request::new(vec![1, VOCAB as u32, 2]);
    let many = [
        request(1, 1, 1),
        request(2, 1, 1),
        request(3, 1, 1),
        outside,
    ];
    assert_eq!(
        refuse(&many).to_string(),
        "prompt 3: token 1: expected 0 to 60, found 61"
    );
}

/// A sequence that meets NaN fails alone, and its slot is as good as new after.
#[test]
fn not_a_number_stops_one_slot() {
    let (fixture, poison) = poisoned();
    let clean = |seed, length| {
        let prompt = tokens(seed, length)
            .into_iter()
            .map(|token| token % poison)
            .collect();
        Request {
            max_new_tokens: 8,
            ..Request::new(prompt)
        }
    };
    for kind in backends(Fallback::Function) {
        let mut engine = Engine::new(open(&fixture, kind));
        let good = [clean(1, 20), clean(2, 9)];
        let expected = run(&mut engine, &good);
        let mut prompt = good[1].prompt.clone();
        prompt[4] = poison;
        let found = run(
            &mut engine,
            &[
                good[0].clone(),
                Request {
                    prompt,
                    ..good[1].clone()
                },
            ],
        );
        assert_eq!(found[0], expected[0], "{kind}");
        let StopReason::Failed(error) = &found[1].1 else {
            panic!("{kind}: {:?}", found[1]);
        };
        assert_eq!((error.step, error.slot), (9, 1), "{kind}: {error}");
        assert!(found[1].0.is_empty(), "{kind}");
        assert_eq!(run(&mut engine, &good), expected, "{kind}");
    }
}
