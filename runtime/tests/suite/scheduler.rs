//! Requests over the slots of one engine: the same bits alone and in company, cold and from the prefix
//! cache, after errors; and how they end.

mod answers;
mod ending;
mod prefixes;
mod states;
mod turns;

use crate::common::{Fixture, VOCAB, fixture, open};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ratplus_runtime::backend::{BackendKind, SlotState, inspection};
use ratplus_runtime::engine::Engine;
use ratplus_runtime::sampler::Sampling;
use ratplus_runtime::scheduler::{
    Constraint, ConstraintError, Ended, Finished, Options, Refused, Request, Score, Service,
    Ticket, TokenSet, Update,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

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
