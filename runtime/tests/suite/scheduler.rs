//! Requests over the slots of one engine: the same bits alone and in company, cold and from the prefix
//! cache, after errors; and how they end.

use crate::common::{
    Fixture, MAX_SEQ_LEN, Options as Shape, VOCAB, backends, fixture, open, poisoned, write_package,
};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::ElementType;
use ratplus_graphs::package::{Fallback, LogitsMode, written_bytes};
use ratplus_runtime::backend::{BackendKind, Session, SlotState, inspection};
use ratplus_runtime::engine::Engine;
use ratplus_runtime::package::Package;
use ratplus_runtime::sampler::Sampling;
use ratplus_runtime::scheduler::{
    Constraint, ConstraintError, Ended, Finished, Options, Refused, Request, Score, Service, Sink,
    Ticket, TokenSet, Update,
};
use ratplus_tests::times;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A sink that nobody listens to.
struct Unwanted(Sender<Update>);

impl Sink for Unwanted {
    fn send(&mut self, update: Update) -> bool {
        self.0.send(update).is_ok()
    }

    fn is_wanted(&self) -> bool {
        false
    }
}

/// What a request was told.
#[derive(Debug)]
struct Told {
    answer: Answer,
    cached: usize,
    state: Option<Arc<SlotState>>,
}

/// All that does not depend on what the prefix cache held.
#[derive(Debug, PartialEq)]
struct Answer {
    prompt: Vec<Bits>,
    tokens: Vec<(u32, Option<Bits>)>,
    ended: Ended,
}

/// A score, bit for bit.
#[derive(Debug, PartialEq)]
struct Bits(u32, Vec<(u32, u32)>);

fn bits(score: &Score) -> Bits {
    let best = score
        .best
        .iter()
        .map(|&(token, logprob)| (token, logprob.to_bits()));
    Bits(score.logprob.to_bits(), best.collect())
}

struct Asked {
    _ticket: Ticket,
    updates: Receiver<Update>,
}

impl Asked {
    fn told(self) -> Told {
        let (mut prompt, mut tokens) = (Vec::new(), Vec::new());
        loop {
            match self.updates.recv().unwrap() {
                Update::Prompt(scores) => prompt.extend(scores.iter().map(bits)),
                Update::Token(token) => tokens.push((token.token, token.score.as_ref().map(bits))),
                Update::Finished(Finished {
                    ended,
                    cached_tokens: cached,
                    new_tokens,
                    state,
                    ..
                }) => {
                    assert_eq!(new_tokens, tokens.len());
                    let answer = Answer {
                        prompt,
                        tokens,
                        ended,
                    };
                    return Told {
                        answer,
                        cached,
                        state,
                    };
                }
            }
        }
    }
}

fn ask(service: &Service, request: Request) -> Result<Asked, Refused> {
    let (sender, updates) = channel();
    let sink = Box::new(move |update| sender.send(update).is_ok());
    let ticket = service.submit(vec![(request, sink)])?.remove(0);
    Ok(Asked {
        _ticket: ticket,
        updates,
    })
}

fn start(fixture: &Fixture, kind: BackendKind, options: &Options) -> Service {
    start_failing(fixture, kind, options, 0)
}

/// A service every `n`-th step of which fails.
fn start_failing(fixture: &Fixture, kind: BackendKind, options: &Options, n: u64) -> Service {
    let mut session = open(fixture, kind);
    inspection::fail_every(&mut session, n);
    Service::start(Engine::new(session), None, options.clone()).unwrap()
}

fn options(prefix_cache_bytes: u64) -> Options {
    let mut options = Options::default();
    options.prefix_cache_bytes = prefix_cache_bytes;
    options
}

/// Even tokens, then odd ones, and so on; fifteen of them.
struct Turns(u32);

impl Constraint for Turns {
    fn allowed(&mut self) -> Result<TokenSet, ConstraintError> {
        let parity = self.0 % 2;
        Ok((0..VOCAB as u32)
            .filter(|token| token % 2 == parity)
            .collect())
    }

    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        assert_eq!(token % 2, self.0 % 2);
        self.0 += 1;
        Ok(())
    }

    fn must_end(&mut self) -> bool {
        self.0 == 15
    }
}

/// Prompts of all lengths, many of which begin as others do, with samplings of all kinds.
fn request(seed: u64) -> Request {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let common = ChaCha8Rng::seed_from_u64(seed % 3)
        .random_iter::<u32>()
        .take([0, 5, 16, 20, 33].choose(&mut rng).copied().unwrap())
        .map(|token| token % VOCAB as u32);
    let mut prompt: Vec<u32> = common.collect();
    let own = rng.random_range(0..8) + usize::from(prompt.is_empty());
    prompt.extend((0..own).map(|_| rng.random_range(0..VOCAB as u32)));
    let mut sampling = Sampling::default();
    sampling.temperature = [0.0, 0.7, 1.5][rng.random_range(0..3)];
    sampling.top_k = rng.random_bool(0.3).then_some(7);
    sampling.seed = rng.random();
    if rng.random_bool(0.3) {
        (sampling.repetition_penalty, sampling.frequency_penalty) = (1.3, 0.4);
    }
    let stop = rng.random_range(0..VOCAB as u32);
    let constraint = rng
        .random_bool(0.2)
        .then(|| Box::new(Turns(0)) as Box<dyn Constraint>);
    Request {
        constraint,
        max_new_tokens: rng.random_range(0..20),
        min_new_tokens: rng.random_range(0..3),
        stop_tokens: BTreeSet::from([stop]),
        logprobs: rng.random_bool(0.5).then_some(rng.random_range(0..4)),
        sampling,
        ..Request::new(prompt)
    }
}

/// All requests, at most `concurrency` at once.
fn all(service: &Service, count: u64, concurrency: u64) -> Vec<Told> {
    all_of(service, count, concurrency, request)
}

fn all_of(
    service: &Service,
    count: u64,
    concurrency: u64,
    request: impl Fn(u64) -> Request,
) -> Vec<Told> {
    let mut told = Vec::new();
    let mut asked = std::collections::VecDeque::new();
    for seed in 0..count {
        if asked.len() as u64 == concurrency {
            let first: Asked = asked.pop_front().unwrap();
            told.push(first.told());
        }
        asked.push_back(ask(service, request(seed)).unwrap());
    }
    told.extend(asked.into_iter().map(Asked::told));
    told
}

fn assert_same(found: &[Told], expected: &[Told], what: &str) {
    for (seed, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.answer, expected.answer, "{what}: request {seed}");
    }
    assert_eq!(found.len(), expected.len());
}

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
            let found = all_of(&service, count, 8, request);
            assert_same(&found, &alone, &format!("{kind}, cache of {budget}"));
            let totals = service.snapshot().totals;
            // A step without the cache loses several at once; with it, a prompt's chunk may be all that fails.
            let lost = totals.replayed - totals.backend_errors;
            assert!(totals.backend_errors > 2, "{kind}, {budget}: {totals:?}");
            assert!(lost > 0 || budget > 0, "{kind}, {budget}: {totals:?}");
        }
    }
}

#[test]
fn a_sequence_goes_on_from_what_another_has_left() {
    const FIRST: usize = 8;
    let fixture = fixture(Shape {
        batch: 2,
        ..Shape::default()
    });
    let other = self::fixture(Shape {
        dtype: ElementType::F16,
        ..Shape::default()
    });
    let prompt: Vec<u32> = (0..20).collect();
    let request = |prompt: &[u32], max_new_tokens, state| Request {
        max_new_tokens,
        logprobs: Some(2),
        keep_state: true,
        state,
        ..Request::new(prompt.into())
    };
    for kind in backends(Fallback::Function) {
        // The 31st step, which is one after the state, fails: what is begun again begins with the state again.
        for (budget, failing) in [(0, 0), (1 << 30, 0), (0, 31)] {
            let service = start_failing(&fixture, kind, &options(budget), failing);
            let told = |request| ask(&service, request).unwrap().told();
            let whole = told(request(&prompt, FIRST + 9, None)).answer.tokens;
            let first = told(request(&prompt, FIRST, None));
            assert_eq!(first.answer.tokens, whole[..FIRST], "{kind}");
            let state = first.state.unwrap();
            assert_eq!(state.past_length, prompt.len() + FIRST - 1, "{kind}");
            let last = [whole[FIRST - 1].0];
            for _ in 0..2 {
                let rest = told(request(&last, 9, Some(state.clone())));
                assert_eq!(
                    rest.answer.tokens,
                    whole[FIRST..],
                    "{kind} {budget} {failing}"
                );
                assert_eq!(rest.state.unwrap().past_length, prompt.len() + FIRST + 8);
            }
            // It is told how much room there is.
            let long = vec![1; MAX_SEQ_LEN - state.past_length + 1];
            assert!(ask(&service, request(&long, 1, Some(state.clone()))).is_err());
            let full = told(request(&long[1..], 9, Some(state.clone()))).answer;
            assert_eq!(
                (full.tokens.len(), full.ended),
                (1, Ended::MaxSeqLen),
                "{kind}"
            );
            let errors = service.snapshot().totals.backend_errors;
            assert_eq!(errors > 0, failing > 0, "{kind}");
            let service = start(&other, kind, &options(0));
            let refused = ask(&service, request(&last, 1, Some(state)));
            let refused = refused.err().unwrap().to_string();
            assert!(
                refused.contains("`state`: expected one of this package"),
                "{refused}"
            );
        }
    }
}

#[test]
fn a_backend_that_always_fails_ends_requests_and_not_the_service() {
    let fixture = fixture(Shape::default());
    for kind in backends(Fallback::Function) {
        let service = start_failing(&fixture, kind, &options(0), 1);
        for _ in 0..3 {
            let told = ask(&service, Request::new(vec![1; 20])).unwrap().told();
            let Ended::Failed(why) = told.answer.ended else {
                panic!("{told:?}");
            };
            assert!(why.contains("it was to fail"), "{why}");
        }
        // It fails while something waits for it, and takes requests when nothing does.
        assert!(service.wait_idle(Duration::from_secs(10)));
        assert!(!service.snapshot().failing);
        let mut patient = options(0);
        patient.replays = usize::MAX;
        let service = start_failing(&fixture, kind, &patient, 1);
        let asked = ask(&service, Request::new(vec![1; 20])).unwrap();
        while !service.snapshot().failing {
            std::thread::yield_now();
        }
        drop(asked);
        assert!(service.wait_idle(Duration::from_secs(10)));
        assert!(!service.snapshot().failing);
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

#[test]
fn requests_end_when_nobody_waits_when_they_are_late_and_when_the_service_stops() {
    let fixture = fixture(Shape::default());
    for kind in backends(Fallback::Function) {
        let service = start(&fixture, kind, &options(0));
        let long = || Request {
            max_new_tokens: MAX_SEQ_LEN,
            ..Request::new(vec![5; 3])
        };
        // A dropped ticket; nothing goes on before an update is read.
        let (sender, updates) = sync_channel(0);
        let slow = Box::new(move |update| sender.send(update).is_ok());
        let ticket = service.submit(vec![(long(), slow)]).unwrap();
        updates.recv().unwrap();
        drop(ticket);
        let mut more = updates.into_iter().collect::<Vec<_>>();
        let Some(Update::Finished(finished)) = more.pop() else {
            panic!("{more:?}");
        };
        assert_eq!(finished.ended, Ended::Cancelled, "{kind}");
        assert!(more.len() <= 2, "{kind}: {more:?}");
        // A sink that takes no more than a token: it is told that, another, and the end.
        let told = Arc::new(AtomicUsize::new(0));
        let count = told.clone();
        let deaf = Box::new(move |_| count.fetch_add(1, Ordering::SeqCst) == 0);
        let _deaf = service.submit(vec![(long(), deaf)]).unwrap();
        assert!(service.wait_idle(Duration::from_secs(10)));
        assert_eq!(told.load(Ordering::SeqCst), 3, "{kind}");
        // One that nobody wants before it has begun: it is told its end alone.
        let (sender, updates) = channel();
        let _unwanted = service
            .submit(vec![(long(), Box::new(Unwanted(sender)))])
            .unwrap();
        let updates: Vec<_> = updates.iter().collect();
        assert!(
            matches!(&updates[..], [Update::Finished(finished)] if finished.ended == Ended::Cancelled),
            "{kind}: {updates:?}"
        );
        // A deadline that has passed.
        let late = Request {
            deadline: Some(Instant::now()),
            ..long()
        };
        let told = ask(&service, late).unwrap().told();
        assert_eq!(
            (told.answer.ended, told.answer.tokens.len()),
            (Ended::Deadline, 0)
        );
        assert!(service.wait_idle(Duration::from_secs(10)));
        assert_eq!(
            ask(&service, long()).unwrap().told().answer.ended,
            Ended::MaxSeqLen
        );
        // One that passes while the request runs: the step that is on its way ends, and no more of them.
        let (sender, updates) = sync_channel(0);
        let slow = Box::new(move |update| sender.send(update).is_ok());
        let soon = Request {
            deadline: Some(Instant::now() + Duration::from_millis(300)),
            ..long()
        };
        let ticket = service.submit(vec![(soon, slow)]).unwrap();
        updates.recv().unwrap();
        std::thread::sleep(Duration::from_millis(400));
        let mut rest = updates.into_iter().collect::<Vec<_>>();
        let Some(Update::Finished(Finished { ended, .. })) = rest.pop() else {
            panic!("{rest:?}");
        };
        assert_eq!(ended, Ended::Deadline, "{kind}");
        assert!(rest.len() <= 2, "{kind}: {rest:?}");
        drop(ticket);
        // Draining lets go on what runs; stopping does not.
        let (sender, updates) = sync_channel(0);
        let slow = Box::new(move |update| sender.send(update).is_ok());
        let ticket = service.submit(vec![(long(), slow)]).unwrap();
        let asked: Vec<_> = (0..30).map(|_| ask(&service, long()).unwrap()).collect();
        updates.recv().unwrap();
        service.drain();
        assert!(matches!(ask(&service, long()), Err(Refused::Draining)));
        let stopping = std::thread::spawn(|| service.stop().unwrap());
        // The step waits for its update to be read; by then it was told to stop.
        std::thread::sleep(Duration::from_millis(200));
        let last = updates.into_iter().last().unwrap();
        let Update::Finished(Finished { ended, .. }) = last else {
            panic!("{last:?}");
        };
        assert_eq!(ended, Ended::Stopped, "{kind}");
        drop(ticket);
        let engine = stopping.join().unwrap();
        assert!((0..engine.slots()).all(|slot| !engine.holds(slot)));
        for asked in asked {
            assert_eq!(asked.told().answer.ended, Ended::Stopped, "{kind}");
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

/// Ten chunks, and twelve prompts of one behind it.
#[test]
fn short_prompts_do_not_wait_for_all_of_a_long_one() {
    let fixture = fixture(Shape {
        batch: 3,
        lengths: &[1, 4],
        ..Shape::default()
    });
    for kind in backends(Fallback::Function) {
        let service = start(&fixture, kind, &options(0));
        let (sender, ends) = channel();
        let requests = (0..13).map(|index| {
            let sender = sender.clone();
            let tokens = if index == 0 { 40 } else { 4 };
            let request = Request {
                max_new_tokens: 1,
                ..Request::new(vec![1; tokens])
            };
            let sink = Box::new(move |update| match update {
                Update::Finished(_) => sender.send(index).is_ok(),
                _ => true,
            });
            (request, sink as Box<dyn Sink>)
        });
        let _tickets = service.submit(requests.collect()).unwrap();
        let order: Vec<usize> = ends.iter().take(13).collect();
        assert_eq!(order.last(), Some(&0), "{kind}: {order:?}");
    }
}

/// Between two tokens of one there is a chunk of another at most.
#[test]
fn a_long_prompt_keeps_others_waiting_for_one_chunk() {
    let fixture = fixture(Shape {
        batch: 2,
        lengths: &[1, 4],
        ..Shape::default()
    });
    for kind in backends(Fallback::Function) {
        let service = Arc::new(start(&fixture, kind, &options(0)));
        let (seen, steps) = (Arc::clone(&service), Arc::new(Mutex::new(Vec::new())));
        let kept = steps.clone();
        let running = Request {
            max_new_tokens: 40,
            ..Request::new(vec![1])
        };
        let sink = Box::new(move |update| {
            if let Update::Token(_) = update {
                // Of the steps before this one.
                let totals = seen.snapshot().totals;
                kept.lock().unwrap().push(totals.prefill_steps);
            }
            true
        });
        let long = Request {
            max_new_tokens: 1,
            ..Request::new(vec![2; 40])
        };
        let _tickets = service
            .submit(vec![(running, sink), (long, Box::new(|_| true))])
            .unwrap();
        assert!(service.wait_idle(Duration::from_secs(10)));
        let steps = steps.lock().unwrap();
        let most = steps.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert_eq!((steps.len(), most), (40, Some(1)), "{kind}: {steps:?}");
        assert!(steps.last() >= Some(&11), "{kind}: {steps:?}");
    }
}

#[test]
fn a_full_queue_and_requests_that_cannot_run_are_refused() {
    let fixture = fixture(Shape::default());
    // No backend has a part in it.
    let kind = *backends(Fallback::Function)
        .first()
        .expect("tract at least");
    let mut options = options(0);
    (options.max_queued_requests, options.max_queued_tokens) = (4, 50);
    let service = start(&fixture, kind, &options);
    let batch = |count: usize, tokens: usize| {
        let request = || {
            let sink = Box::new(|_| true) as Box<dyn Sink>;
            (Request::new(vec![1; tokens]), sink)
        };
        service.submit((0..count).map(|_| request()).collect())
    };
    for (count, tokens, what) in [(5, 1, "requests"), (2, 26, "tokens")] {
        let error = batch(count, tokens).unwrap_err();
        let Refused::Full { retry_after, .. } = &error else {
            panic!("{error}");
        };
        assert!(*retry_after >= Duration::from_secs(1));
        assert!(error.to_string().contains(what), "{error}");
    }
    assert_eq!(service.snapshot().queued_requests, 0);
    let wrong = [
        Request::new(vec![]),
        Request::new(vec![1; MAX_SEQ_LEN + 1]),
        Request::new(vec![VOCAB as u32]),
        Request {
            stop_strings: vec!["a".into()],
            ..Request::new(vec![1])
        },
        Request {
            prompt_logprobs: Some(1),
            ..Request::new(vec![1])
        },
    ];
    for request in wrong {
        let refused = ask(&service, request).err();
        assert!(matches!(refused, Some(Refused::Request { index: 0, .. })));
    }
    let tickets = batch(4, 12).unwrap();
    assert_eq!(tickets.len(), 4);
    assert!(service.wait_idle(Duration::from_secs(10)));
    let snapshot = service.snapshot();
    assert_eq!((snapshot.queued_requests, snapshot.queued_tokens), (0, 0));
    assert_eq!(
        (snapshot.totals.submitted, snapshot.totals.finished),
        (4, 4)
    );
}

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
