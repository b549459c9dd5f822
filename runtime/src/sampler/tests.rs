use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn sampling(temperature: f32, top_k: Option<usize>, top_p: Option<f32>, seed: u64) -> Sampling {
    Sampling {
        temperature,
        top_k,
        top_p,
        seed,
        ..Sampling::GREEDY
    }
}

#[test]
fn equal_logits_are_ordered_by_id() {
    let mut greedy = Sampler::new(&Sampling::GREEDY).unwrap();
    assert_eq!(greedy.sample(&[1.0, 3.0, 3.0, 2.0]).unwrap(), 1);
    let mut two = Sampler::new(&sampling(1.0, Some(2), None, 0)).unwrap();
    for _ in 0..100 {
        assert!(two.sample(&[1.0; 6]).unwrap() < 2);
    }
}

#[test]
fn frequencies_follow_the_distribution() {
    // Probabilities 0.6, 0.3, 0.1 at temperature 1.
    let logits = [0.6f32, 0.1, 0.3].map(f32::ln);
    let mut sampler = Sampler::new(&sampling(1.0, None, None, 7)).unwrap();
    let mut counts = [0u32; 3];
    for _ in 0..20_000 {
        counts[sampler.sample(&logits).unwrap() as usize] += 1;
    }
    for (count, expected) in counts.into_iter().zip([12_000.0, 2_000.0, 6_000.0]) {
        // Five standard deviations.
        assert!(
            (f64::from(count) - expected).abs() < 5.0 * f64::sqrt(expected),
            "{counts:?}"
        );
    }
    // 0.6 < 0.85 <= 0.6 + 0.3: the last token is never taken.
    let mut nucleus = Sampler::new(&sampling(1.0, None, Some(0.85), 7)).unwrap();
    assert!((0..1000).all(|_| nucleus.sample(&logits).unwrap() != 1));
    let mut one = Sampler::new(&sampling(5.0, None, Some(0.1), 7)).unwrap();
    assert!((0..1000).all(|_| one.sample(&logits).unwrap() == 0));
}

/// A seed's tokens are the same in every release.
#[test]
fn a_seed_gives_these_tokens() {
    let logits: Vec<f32> = (0..200u16)
        .map(|i| (u32::from(i) * 7919 % 211) as f32 / 30.0)
        .collect();
    let mut sampler = Sampler::new(&sampling(0.8, Some(60), Some(0.9), 17)).unwrap();
    let tokens = [(); 16].map(|()| sampler.sample(&logits).unwrap());
    let expected = [
        94, 62, 30, 175, 79, 96, 177, 62, 96, 160, 62, 126, 94, 162, 113, 64,
    ];
    assert_eq!(tokens, expected);
}

proptest! {
    #[test]
    fn a_seed_decides(
        logits in prop::collection::vec(-20f32..20.0, 1..200),
        temperature in 0f32..3.0, k in prop::option::of(1usize..250),
        p in prop::option::of(0.01f32..=1.0), seed: u64,
    ) {
        let options = sampling(temperature, k, p, seed);
        let (mut left, mut right) = (Sampler::new(&options).unwrap(), Sampler::new(&options).unwrap());
        for _ in 0..5 {
            let token = left.sample(&logits).unwrap();
            prop_assert_eq!(token, right.sample(&logits).unwrap());
            let better = logits.iter().filter(|&&other| other > logits[token as usize]).count();
            prop_assert!(better < k.unwrap_or(usize::MAX));
        }
    }
}

#[test]
fn bad_parameters_and_logits_are_named() {
    for (options, name) in [
        (sampling(-1.0, None, None, 0), "temperature"),
        (sampling(f32::NAN, None, None, 0), "temperature"),
        (sampling(f32::INFINITY, None, None, 0), "temperature"),
        (sampling(1.0, Some(0), None, 0), "top_k"),
        (sampling(1.0, None, Some(0.0), 0), "top_p"),
        (sampling(1.0, None, Some(1.1), 0), "top_p"),
        (sampling(1.0, None, Some(f32::NAN), 0), "top_p"),
    ] {
        let error = Sampler::new(&options).unwrap_err();
        assert_eq!(error.0[0].parameter, name);
        assert!(error.to_string().contains(name), "{error}");
    }
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for options in [Sampling::GREEDY, sampling(1.0, None, None, 0)] {
            let error = Sampler::new(&options)
                .unwrap()
                .sample(&[0.0, value])
                .unwrap_err();
            assert_eq!((error.token, error.value.to_bits()), (1, value.to_bits()));
        }
    }
}

#[test]
fn every_bad_parameter_is_named() {
    let bad = Sampling {
        temperature: -1.0,
        top_k: Some(0),
        top_p: Some(0.0),
        min_p: Some(1.5),
        repetition_penalty: 0.0,
        presence_penalty: f32::NAN,
        frequency_penalty: -2.5,
        logit_bias: BTreeMap::from([(1, 3.0), (7, 101.0), (9, 0.0)]),
        seed: 0,
    };
    let error = bad.check(Some(9)).unwrap_err();
    let messages: Vec<_> = error.0.iter().map(ToString::to_string).collect();
    let expected = [
        "`temperature`: expected a finite number of 0 or more, found -1",
        "`top_k`: expected 1 or more, found 0",
        "`top_p`: expected more than 0 and at most 1, found 0",
        "`min_p`: expected 0 to 1, found 1.5",
        "`repetition_penalty`: expected a finite number of more than 0, found 0",
        "`presence_penalty`: expected -2 to 2, found NaN",
        "`frequency_penalty`: expected -2 to 2, found -2.5",
        "`logit_bias`: expected -100 to 100, found 101 for token 7",
        "`logit_bias`: expected tokens 0 to 8, found 9",
    ];
    assert_eq!(messages, expected);
    assert_eq!(error.to_string(), expected.join("; "));
    let fine = Sampling {
        logit_bias: BTreeMap::from([(8, -100.0)]),
        ..Sampling::GREEDY
    };
    assert_eq!(fine.check(Some(9)), Ok(()));
    assert!(fine.check(Some(8)).is_err());
    for penalty in [f32::NAN, f32::INFINITY, -1.0] {
        let bad = Sampling {
            repetition_penalty: penalty,
            ..Sampling::GREEDY
        };
        assert!(bad.check(None).is_err(), "{penalty}");
    }
}

/// What came before, in numbers that are easy to follow.
#[test]
fn penalties_change_what_came_before() {
    let pick = |sampling: &Sampling, prompt: &[u32], new: &[u32], logits: &[f32]| {
        let mut sampler = Sampler::new(sampling).unwrap();
        sampler.observe_prompt(prompt);
        new.iter().for_each(|&token| sampler.record(token));
        sampler.sample(logits).unwrap()
    };
    let repetition = Sampling {
        repetition_penalty: 2.0,
        ..Sampling::GREEDY
    };
    // 4 / 2 < 3; -1 * 2 < -1.5; how often does not matter.
    assert_eq!(pick(&repetition, &[0], &[], &[4.0, 3.0]), 1);
    assert_eq!(pick(&repetition, &[0, 0], &[0], &[6.5, 3.0]), 0);
    assert_eq!(pick(&repetition, &[], &[1], &[-1.5, -1.0]), 0);
    assert_eq!(pick(&repetition, &[], &[], &[-1.5, -1.0]), 1);
    let presence = Sampling {
        presence_penalty: 1.0,
        ..Sampling::GREEDY
    };
    // New tokens alone, once.
    assert_eq!(pick(&presence, &[0], &[], &[3.5, 3.0]), 0);
    assert_eq!(pick(&presence, &[], &[0], &[3.5, 3.0]), 1);
    assert_eq!(pick(&presence, &[], &[0, 0, 0], &[4.5, 3.0]), 0);
    let frequency = Sampling {
        frequency_penalty: 0.5,
        ..Sampling::GREEDY
    };
    assert_eq!(pick(&frequency, &[0, 0, 0], &[0, 0, 0], &[4.75, 3.0]), 0);
    assert_eq!(pick(&frequency, &[], &[0, 0, 0, 0], &[4.75, 3.0]), 1);
    // The bias comes first: (2 + 4) / 2 = 3.
    let biased = Sampling {
        logit_bias: BTreeMap::from([(0, 4.0)]),
        ..repetition.clone()
    };
    assert_eq!(pick(&biased, &[0], &[], &[2.0, 3.5]), 1);
    assert_eq!(pick(&biased, &[0], &[], &[2.0, 2.5]), 0);
    // Tokens that are picked count without being recorded.
    let mut sampler = Sampler::new(&presence).unwrap();
    let tokens: Vec<_> = (0..4)
        .map(|_| sampler.sample(&[3.5, 3.0, 2.75]).unwrap())
        .collect();
    assert_eq!(tokens, [0, 1, 2, 0]);
}

#[test]
fn a_replay_goes_on_where_the_sequence_was() {
    let sampling = Sampling {
        temperature: 0.9,
        frequency_penalty: 0.7,
        repetition_penalty: 1.2,
        seed: 11,
        ..Sampling::GREEDY
    };
    let logits: Vec<f32> = (0..50u16).map(|i| f32::from(i * 7 % 13) / 3.0).collect();
    let mut whole = Sampler::new(&sampling).unwrap();
    whole.observe_prompt(&[3, 4]);
    let kept = whole.clone();
    let tokens: Vec<_> = (0..30).map(|_| whole.sample(&logits).unwrap()).collect();
    let mut again = kept;
    let first: Vec<_> = (0..10).map(|_| again.sample(&logits).unwrap()).collect();
    assert_eq!(first, tokens[..10]);
    // Recorded tokens count and draw nothing.
    let mut recorded = Sampler::new(&sampling).unwrap();
    recorded.observe_prompt(&[3, 4]);
    tokens.iter().for_each(|&token| recorded.record(token));
    recorded.rng = whole.rng.clone();
    assert_eq!(recorded.sample(&logits), whole.sample(&logits));
}

#[test]
fn nothing_is_picked_where_nothing_may_come() {
    for temperature in [0.0, 1.0] {
        let mut sampler = Sampler::new(&sampling(temperature, None, None, 3)).unwrap();
        let logits = [1.0, 2.0, 3.0];
        let among = |sampler: &mut Sampler, allowed: &[u32], forbidden: &[u32]| {
            let allowed: TokenSet = allowed.iter().copied().collect();
            let forbidden = forbidden.iter().copied().collect();
            sampler
                .sample_among(&logits, Some(&allowed), &forbidden)
                .unwrap()
        };
        assert_eq!(among(&mut sampler, &[], &[]), None);
        assert_eq!(among(&mut sampler, &[1, 70], &[1]), None);
        assert_eq!(among(&mut sampler, &[0, 2], &[2, 70]), Some(0));
        let all_but = sampler.sample_among(&logits, None, &BTreeSet::from([0, 2]));
        assert_eq!(all_but, Ok(Some(1)));
        // A token that may not come fails the request as well.
        let allowed: TokenSet = [0].into_iter().collect();
        let wrong = sampler.sample_among(&[1.0, f32::NAN], Some(&allowed), &BTreeSet::new());
        assert_eq!(wrong.unwrap_err().token, 1);
    }
}

#[test]
fn min_p_keeps_tokens_near_the_likeliest() {
    let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
    for (min_p, kept) in [(0.0, 4), (0.25, 3), (0.55, 2), (0.7, 1), (1.0, 1)] {
        let sampling = Sampling {
            temperature: 1.0,
            min_p: Some(min_p),
            ..Sampling::GREEDY
        };
        let mut sampler = Sampler::new(&sampling).unwrap();
        let mut counts = [0u32; 4];
        for _ in 0..4000 {
            counts[sampler.sample(&logits).unwrap() as usize] += 1;
        }
        let (in_it, out) = counts.split_at(kept);
        assert!(in_it.iter().all(|&count| count > 0), "{min_p} {counts:?}");
        assert!(out.iter().all(|&count| count == 0), "{min_p} {counts:?}");
    }
}

/// The same steps, one after the other over whole lists.
fn likely_tokens(
    sampling: &Sampling,
    logits: &[f32],
    prompt: &[u32],
    new: &[u32],
    may_come: impl Fn(u32) -> bool,
) -> Vec<(u32, f64)> {
    let count = |token| new.iter().filter(|&&other| other == token).count() as f64;
    let mut kept: Vec<(u32, f64)> = (0u32..)
        .zip(logits)
        .filter(|&(token, _)| may_come(token))
        .map(|(token, &logit)| {
            let bias = sampling.logit_bias.get(&token).copied().unwrap_or(0.0);
            let mut logit = f64::from(logit) + f64::from(bias);
            if prompt.contains(&token) || new.contains(&token) {
                let penalty = f64::from(sampling.repetition_penalty);
                logit = if logit > 0.0 {
                    logit / penalty
                } else {
                    logit * penalty
                };
            }
            logit -= count(token) * f64::from(sampling.frequency_penalty);
            logit -= count(token).min(1.0) * f64::from(sampling.presence_penalty);
            (
                token,
                f64::from(logit.clamp(f32::MIN.into(), f32::MAX.into()) as f32),
            )
        })
        .collect();
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    kept.truncate(if sampling.temperature == 0.0 {
        1
    } else {
        sampling.top_k.unwrap_or(usize::MAX)
    });
    let peak = kept.first().map_or(0.0, |first| first.1);
    for (_, logit) in &mut kept {
        let scaled = (*logit - peak) / f64::from(sampling.temperature);
        *logit = if sampling.temperature == 0.0 {
            1.0
        } else {
            scaled.exp()
        };
    }
    let total: f64 = kept.iter().map(|kept| kept.1).sum();
    let mut sum = 0.0;
    // With room for what single precision rounds.
    let top_p = f64::from(sampling.top_p.unwrap_or(1.0)) * (1.0 + 1e-5);
    let before = kept.iter().take_while(|kept| {
        let goes_on = sum < total * top_p;
        sum += kept.1;
        goes_on
    });
    let count = before.count();
    kept.truncate(count);
    let min_p = f64::from(sampling.min_p.unwrap_or(0.0)) * (1.0 - 1e-5);
    kept.retain(|kept| kept.1 >= min_p);
    kept
}

proptest! {
    #[test]
    fn what_is_picked_is_what_the_steps_leave(
        mut logits in prop::collection::vec(prop_oneof![
            9 => (-40i8..40).prop_map(|x| f32::from(x) / 4.0),
            1 => prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO,
        ], 1..100),
        temperature in prop_oneof![Just(0.0f32), 0.1f32..3.0, Just(f32::MIN_POSITIVE), Just(f32::MAX)],
        (top_k, top_p, min_p) in (
            prop::option::of(1usize..120), prop::option::of(0.01f32..=1.0), prop::option::of(0f32..=1.0),
        ),
        repetition_penalty in prop_oneof![Just(1.0f32), 0.5f32..3.0, Just(f32::MIN_POSITIVE), Just(f32::MAX)],
        (presence_penalty, frequency_penalty) in (-2f32..=2.0, -2f32..=2.0),
        logit_bias in prop::collection::btree_map(0u32..120, -100f32..=100.0, 0..4),
        (prompt, new) in (prop::collection::vec(0u32..100, 0..9), prop::collection::vec(0u32..100, 0..9)),
        allowed in prop::option::of(prop::collection::btree_set(0u32..120, 0..60)),
        forbidden in prop::collection::btree_set(0u32..120, 0..4),
        seed: u64,
    ) {
        logits.retain(|logit| logit.is_finite());
        let sampling = Sampling {
            temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty,
            logit_bias, seed,
        };
        let mut sampler = Sampler::new(&sampling).unwrap();
        sampler.observe_prompt(&prompt);
        new.iter().for_each(|&token| sampler.record(token));
        let set = allowed.as_ref().map(|allowed| allowed.iter().copied().collect::<TokenSet>());
        let may_come = |token| {
            !forbidden.contains(&token) && allowed.as_ref().is_none_or(|allowed| allowed.contains(&token))
        };
        let likely = likely_tokens(&sampling, &logits, &prompt, &new, may_come);
        let mut again = sampler.clone();
        let picked = sampler.sample_among(&logits, set.as_ref(), &forbidden).unwrap();
        prop_assert_eq!(picked, again.sample_among(&logits, set.as_ref(), &forbidden).unwrap());
        match picked {
            None => prop_assert!(likely.is_empty()),
            Some(token) => {
                prop_assert!(likely.iter().any(|kept| kept.0 == token), "{} {:?}", token, likely);
            }
        }
    }

    #[test]
    fn scores_are_the_logarithms_of_probabilities(
        logits in prop::collection::vec(prop_oneof![-30f32..30.0, Just(0.0), Just(-0.0), Just(5.0)], 1..200),
        token: prop::sample::Index, best in 0usize..250,
    ) {
        let token = token.index(logits.len()) as u32;
        let found = score(&logits, token, best);
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let expected = |token: u32| (f64::from(logits[token as usize]).exp() / total).ln();
        prop_assert!((f64::from(found.logprob) - expected(token)).abs() < 1e-5);
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|&a, &b| {
            let (left, right) = (logits[a as usize], logits[b as usize]);
            right.partial_cmp(&left).unwrap().then(a.cmp(&b))
        });
        order.truncate(best);
        prop_assert_eq!(found.best.iter().map(|best| best.0).collect::<Vec<_>>(), order);
        for (token, logprob) in found.best {
            prop_assert_eq!(logprob.to_bits(), score(&logits, token, 0).logprob.to_bits());
        }
    }
}

#[test]
fn scores_of_extreme_logits_are_numbers() {
    let found = score(&[f32::MAX, f32::MIN, 0.0], 0, 3);
    assert_eq!(found.logprob, 0.0);
    assert_eq!(found.best[0], (0, 0.0));
    assert!(found.best.iter().all(|best| !best.1.is_nan()));
    assert_eq!(score(&[1.0], 7, 0).logprob, f32::NEG_INFINITY);
}
