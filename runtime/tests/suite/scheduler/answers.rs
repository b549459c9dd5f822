//! The same bits alone and in company, cold and from the prefix cache, after errors.

use super::*;
use crate::common::{Options as Shape, backends, poisoned};
use ratplus_graphs::package::{Fallback, LogitsMode};
use ratplus_tests::times;
use std::time::Duration;

#[test]
fn tokens_and_scores_do_not_depend_on_company_nor_on_the_prefix_cache() {
    let count = times(60) as u64;
    let shape = Shape {
        batch: 3,
        ..Shape::default()
    };
    let fixture = fixture(shape);
    for kind in backends(Fallback::Function) {
        let alone = all(&start(&fixture, kind, &options(0)), count, 1);
        assert!(
            alone
                .iter()
                .any(|told| told.answer.ended == Ended::StopToken)
        );
        for concurrency in [3, 16] {
            let service = start(&fixture, kind, &options(0));
            let found = all(&service, count, concurrency);
            assert_same(&found, &alone, &format!("{kind} at {concurrency}"));
        }
        // Cold, then warm; then with room for a few checkpoints alone.
        for budget in [1 << 30, 40_000] {
            let service = start(&fixture, kind, &options(budget));
            for (round, concurrency) in [1, 8, 16].into_iter().enumerate() {
                let found = all(&service, count, concurrency);
                let what = format!("{kind} at {concurrency}, cache of {budget}, round {round}");
                assert_same(&found, &alone, &what);
                let prefix = service.snapshot().prefix;
                assert!(prefix.bytes <= budget, "{what}: {prefix:?}");
                let hits = found.iter().map(|told| told.cached).sum::<usize>();
                assert!(hits > 0, "{what}: {prefix:?}");
                if budget < 100_000 {
                    assert!(prefix.evicted > 0, "{what}: {prefix:?}");
                }
            }
        }
    }
}

#[test]
fn whole_prompts_in_the_cache_are_not_run_again() {
    let fixture = fixture(Shape::default());
    for kind in backends(Fallback::Function) {
        let service = start(&fixture, kind, &options(1 << 30));
        let prompt: Vec<u32> = (0..32).collect();
        let ask = || ask(&service, Request::new(prompt.clone())).unwrap().told();
        let (cold, before) = (ask(), service.snapshot().totals.prompt_tokens);
        let warm = ask();
        assert_eq!(warm.answer, cold.answer, "{kind}");
        assert_eq!((cold.cached, warm.cached), (0, 32), "{kind}");
        assert!(service.wait_idle(Duration::from_secs(10)));
        assert_eq!(service.snapshot().totals.prompt_tokens, before, "{kind}");
    }
}

#[test]
fn requests_are_run_again_after_errors_and_lose_nothing() {
    let count = times(30) as u64;
    let fixture = fixture(Shape {
        batch: 3,
        logits: LogitsMode::All,
        ..Shape::default()
    });
    let request = |seed| Request {
        prompt_logprobs: (seed % 4 == 0).then_some(1),
        ..request(seed)
    };
    for kind in backends(Fallback::Function) {
        let alone = all_of(&start(&fixture, kind, &options(0)), count, 1, request);
        for budget in [0, 1 << 30] {
            let mut options = options(budget);
            options.replays = 100;
            // As long as the longest prompt and answer, so that some get through.
            let service = start_failing(&fixture, kind, &options, 37);
            // Enough that every slot has one, however seldom this thread runs.
            let found = all_of(&service, count, 16, request);
            assert_same(&found, &alone, &format!("{kind}, cache of {budget}"));
            let totals = service.snapshot().totals;
            assert!(totals.backend_errors > 2, "{kind}, {budget}: {totals:?}");
            // A step without the cache loses several at once; with it, a prompt's chunk may be all that fails.
            let most = totals.replayed > totals.backend_errors;
            let any = totals.replayed > 0;
            assert!(most || any && budget > 0, "{kind}, {budget}: {totals:?}");
        }
    }
}

#[test]
fn scores_of_prompts_are_those_of_their_tokens() {
    let fixture = fixture(Shape {
        logits: LogitsMode::All,
        ..Shape::default()
    });
    for kind in backends(Fallback::Function) {
        let service = start(&fixture, kind, &options(1 << 30));
        let prompt: Vec<u32> = (0..23).map(|i| i * 7 % VOCAB as u32).collect();
        let scored = Request {
            prompt_logprobs: Some(2),
            max_new_tokens: 1,
            ..Request::new(prompt.clone())
        };
        let told = ask(&service, scored).unwrap().told();
        assert_eq!(told.answer.prompt.len(), prompt.len() - 1);
        // A whole chunk of the prompt, and the score of what follows it as that of a new token.
        for length in [4, 16, 20] {
            let mut sampling = Sampling::default();
            sampling.temperature = 1.0;
            let one = Request {
                logprobs: Some(2),
                max_new_tokens: 1,
                sampling,
                ..Request::new(prompt[..length].to_vec())
            };
            let next = ask(&service, one).unwrap().told();
            let (_, Some(Bits(_, best))) = &next.answer.tokens[0] else {
                panic!("{next:?}");
            };
            let Bits(_, expected) = &told.answer.prompt[length - 1];
            let close = |(a, b): (&(u32, u32), &(u32, u32))| {
                let [a_score, b_score] = [a.1, b.1].map(f32::from_bits);
                a.0 == b.0 && (a_score - b_score).abs() < 1e-4
            };
            assert!(
                best.iter().zip(expected).all(close),
                "{kind} after {length}"
            );
        }
    }
}

/// Whatever is beside it, one whose logits are no numbers ends alone, and leaves nothing in the prefix cache.
#[test]
fn a_request_that_meets_nan_ends_alone() {
    let (fixture, poison) = poisoned();
    let count = times(30) as u64;
    let clean = |seed| {
        let mut request = request(seed);
        request.prompt.iter_mut().for_each(|token| *token %= poison);
        request.sampling.logit_bias = [(poison, -100.0)].into();
        request
    };
    // Every third one meets it, in its first chunk or its last.
    let some = |seed| {
        let mut request = clean(seed);
        if seed % 3 == 0 {
            let at = [0, request.prompt.len() - 1][seed as usize / 3 % 2];
            request.prompt[at] = poison;
            request.max_new_tokens += 1;
        }
        request
    };
    for kind in backends(Fallback::Function) {
        let alone = all_of(&start(&fixture, kind, &options(0)), count, 1, clean);
        for budget in [0, 1 << 30] {
            let service = start(&fixture, kind, &options(budget));
            // Again from what the first time left.
            for _ in 0..2 {
                let found = all_of(&service, count, 8, some);
                for (seed, (found, alone)) in found.iter().zip(&alone).enumerate() {
                    if seed % 3 == 0 {
                        let ended = &found.answer.ended;
                        assert!(matches!(ended, Ended::NonFinite(_)), "{kind}: {ended:?}");
                        assert!(found.answer.tokens.is_empty());
                    } else {
                        assert_eq!(found.answer, alone.answer, "{kind}, {budget}: {seed}");
                    }
                }
            }
            assert!(service.wait_idle(Duration::from_secs(10)));
            assert_eq!(service.snapshot().totals.backend_errors, 0, "{kind}");
        }
    }
}
