//! Prompts in, tokens out.

use crate::backend::{NonFiniteLogits, finite};
use crate::engine::{Engine, EngineError, Limits, Ran};
use crate::sampler::{SampleError, Sampler, Sampling};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// One prompt and how to continue it.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Most tokens to add; 0 only runs the prompt.
    pub max_new_tokens: usize,
    /// How tokens are picked.
    pub sampling: Sampling,
    /// Tokens that end the text; they are reported like any other.
    pub stop_tokens: BTreeSet<u32>,
}

impl Request {
    /// Greedy continuation of `prompt` by at most 128 tokens.
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            prompt,
            max_new_tokens: 128,
            sampling: Sampling::GREEDY,
            stop_tokens: BTreeSet::new(),
        }
    }

    /// Whether a package with these limits runs it.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, limits: &Limits) -> Result<(), RequestError> {
        check(
            &self.prompt,
            self.max_new_tokens,
            &self.stop_tokens,
            &self.sampling,
            limits,
        )
    }
}

/// Whether a package with these limits continues `prompt` so.
pub(crate) fn check(
    prompt: &[u32],
    max_new_tokens: usize,
    stop_tokens: &BTreeSet<u32>,
    sampling: &Sampling,
    limits: &Limits,
) -> Result<(), RequestError> {
    limits.check(0, prompt)?;
    if max_new_tokens > 1 {
        limits.check_decode()?;
    }
    check_stop_tokens(stop_tokens, limits)?;
    Ok(sampling.check(Some(limits.vocab_size))?)
}

/// Whether a package can give such tokens.
///
/// # Errors
/// One is outside the vocabulary.
pub fn check_stop_tokens(tokens: &BTreeSet<u32>, limits: &Limits) -> Result<(), RequestError> {
    match tokens
        .iter()
        .find(|&&token| token as usize >= limits.vocab_size)
    {
        None => Ok(()),
        Some(&token) => Err(RequestError::StopToken {
            token,
            vocab_size: limits.vocab_size,
        }),
    }
}

/// Whether texts can end with such strings.
///
/// # Errors
/// One is empty.
pub fn check_stop_strings(strings: &[String]) -> Result<(), RequestError> {
    match strings.iter().any(String::is_empty) {
        false => Ok(()),
        true => Err(RequestError::EmptyStopString),
    }
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum StopReason {
    /// It has `max_new_tokens` tokens.
    MaxNewTokens,
    /// The last token is one of `stop_tokens`.
    StopToken,
    /// The observer saw its end.
    StopString,
    /// The sequence is full: its last token cannot be run.
    MaxSeqLen,
    /// The callback said so.
    Cancelled,
    /// The model returned logits that are no numbers; other sequences went on.
    Failed(NonFiniteLogits),
}

impl StopReason {
    /// Its name, as reports have it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::StopToken => "end",
            Self::StopString => "stop_string",
            Self::MaxNewTokens => "max_new_tokens",
            Self::MaxSeqLen => "max_seq_len",
            Self::Cancelled => "cancelled",
            Self::Failed(_) => "failed",
        }
    }
}

/// One finished sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// New tokens.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub stop: StopReason,
}

/// A new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Index of the request.
    pub request: usize,
    /// The token.
    pub token: u32,
}

/// How long it took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Tokens of all prompts.
    pub prefill_tokens: usize,
    /// Time to run them and to pick each sequence's first token.
    pub prefill_time: Duration,
    /// From the start to the first new token.
    pub time_to_first_token: Option<Duration>,
    /// New tokens but each sequence's first, which comes from its prompt.
    pub decode_tokens: usize,
    /// Time of the decode steps, sampling and the callback included.
    pub decode_time: Duration,
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if tokens == 0 {
        0.0
    } else {
        tokens as f64 / time.as_secs_f64().max(1e-9)
    }
}

impl Stats {
    /// Prompt tokens a second, all sequences together.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        rate(self.prefill_tokens, self.prefill_time)
    }

    /// New tokens a second, all sequences together.
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.decode_tokens, self.decode_time)
    }
}

/// What [`generate`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// One per request, in order.
    pub completions: Vec<Completion>,
    /// How long it took.
    pub stats: Stats,
}

/// What is wrong with a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// A prompt that the package has no room for, or tokens that it does not have.
    #[error(transparent)]
    Prompt(#[from] EngineError),
    /// A stop token outside the vocabulary.
    #[error("`stop_tokens`: expected 0 to {}, found {token}", vocab_size - 1)]
    StopToken {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A stop string that every text has.
    #[error("`stop_strings`: expected texts, found an empty one")]
    EmptyStopString,
    /// Parameters outside their ranges.
    #[error(transparent)]
    Sampling(#[from] SampleError),
    /// A parameter that the package has nothing for, or a value that means nothing.
    #[error("`{parameter}`: expected {expected}")]
    Needs {
        /// Its name.
        parameter: &'static str,
        /// What is needed.
        expected: &'static str,
    },
}

/// Why nothing was generated, or no more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// There are no requests.
    #[error("expected at least 1 prompt, found none")]
    NoRequests,
    /// A request that cannot be run.
    #[error("prompt {request}: {source}")]
    Request {
        /// Its index.
        request: usize,
        /// Why.
        source: RequestError,
    },
    /// A step failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Sees a generation as it goes on; breaking cancels all sequences, those that wait too.
pub trait Observer {
    /// A new token.
    fn token(&mut self, event: Event) -> ControlFlow<()>;

    /// Whether the token that it has just seen ends the text of `request`, by a stop string for example.
    fn ends(&mut self, request: usize) -> bool {
        let _ = request;
        false
    }

    /// The sequence of `request` has ended.
    fn finished(&mut self, request: usize, completion: &Completion) -> ControlFlow<()> {
        let (_, _) = (request, completion);
        ControlFlow::Continue(())
    }
}

impl<F: FnMut(Event) -> ControlFlow<()>> Observer for F {
    fn token(&mut self, event: Event) -> ControlFlow<()> {
        self(event)
    }
}

/// One sequence on its way, in a slot of its own.
struct Sequence<'a> {
    /// Index of the request.
    index: usize,
    request: &'a Request,
    sampler: Sampler,
    tokens: Vec<u32>,
}

/// Continues every request, as many at once as the engine has slots: where one ends, the next takes its
/// slot. `on_token` sees every new token as it comes; see [`generate_observed`].
///
/// # Errors
/// Requests are checked before anything runs. A step that fails ends everything.
pub fn generate(
    engine: &mut Engine,
    requests: &[Request],
    mut on_token: impl FnMut(Event) -> ControlFlow<()>,
) -> Result<Generation, GenerateError> {
    generate_observed(engine, requests, &mut on_token)
}

/// [`generate`] for an observer that is told of ends as well. Sequences that the engine had before are
/// cancelled.
///
/// A sequence's tokens do not depend on the other requests nor on its slot: its prompt is cut by its own
/// [`plan`](crate::planner::plan) and its random sequence is its own.
///
/// # Errors
/// Requests are checked before anything runs. A step that fails ends everything.
pub fn generate_observed(
    engine: &mut Engine,
    requests: &[Request],
    observer: &mut dyn Observer,
) -> Result<Generation, GenerateError> {
    if requests.is_empty() {
        return Err(GenerateError::NoRequests);
    }
    for (index, request) in requests.iter().enumerate() {
        let checked = request.check(engine.limits());
        checked.map_err(refused(index))?;
    }
    (0..engine.slots()).for_each(|slot| engine.cancel(slot));
    let run = Run {
        slots: (0..engine.slots()).map(|_| None).collect(),
        engine,
        requests,
        observer,
        waiting: 0,
        completions: vec![None; requests.len()],
        start: Instant::now(),
        stats: Stats::default(),
    };
    run.finish()
}

fn refused<E: Into<RequestError>>(request: usize) -> impl Fn(E) -> GenerateError {
    move |source| GenerateError::Request {
        request,
        source: source.into(),
    }
}

struct Run<'a> {
    engine: &'a mut Engine,
    requests: &'a [Request],
    observer: &'a mut dyn Observer,
    /// What each slot runs.
    slots: Vec<Option<Sequence<'a>>>,
    /// The first request that has no slot yet.
    waiting: usize,
    completions: Vec<Option<Completion>>,
    start: Instant,
    stats: Stats,
}

impl Run<'_> {
    fn finish(mut self) -> Result<Generation, GenerateError> {
        loop {
            self.admit()?;
            let begin = Instant::now();
            let ran = self.engine.step()?;
            if self.pick()?.is_break() {
                self.cancel();
            }
            match ran {
                Ran::Nothing => break,
                Ran::Prefill { tokens, .. } => {
                    self.stats.prefill_tokens += tokens;
                    self.stats.prefill_time += begin.elapsed();
                }
                Ran::Decode { .. } => self.stats.decode_time += begin.elapsed(),
            }
        }
        let completions = self.completions.into_iter().map(|completion| {
            completion.unwrap_or(Completion {
                tokens: Vec::new(),
                stop: StopReason::Cancelled,
            })
        });
        Ok(Generation {
            completions: completions.collect(),
            stats: self.stats,
        })
    }

    /// Gives free slots to requests that wait.
    fn admit(&mut self) -> Result<(), GenerateError> {
        for (slot, sequence) in self.slots.iter_mut().enumerate() {
            let index = self.waiting;
            let Some(request) = self.requests.get(index).filter(|_| sequence.is_none()) else {
                continue;
            };
            let added = self.engine.add(slot, &request.prompt);
            added.map_err(refused(index))?;
            let most = self.engine.limits().max_seq_len;
            let mut sampler = Sampler::new(&request.sampling).map_err(refused(index))?;
            sampler.observe_prompt(&request.prompt);
            *sequence = Some(Sequence {
                index,
                request,
                sampler,
                tokens: Vec::with_capacity(request.max_new_tokens.min(most)),
            });
            self.waiting += 1;
        }
        Ok(())
    }

    /// Picks a token for every sequence that has logits; broken where the observer has seen enough.
    fn pick(&mut self) -> Result<ControlFlow<()>, GenerateError> {
        for (slot, place) in self.slots.iter_mut().enumerate() {
            let (Some(sequence), Some(logits)) = (place.as_mut(), self.engine.logits(slot)) else {
                continue;
            };
            let picked = match sequence.request.max_new_tokens {
                0 => finite(logits).map(|_| None),
                // Looks at every logit once, for the largest and for those that are no numbers.
                _ => sequence.sampler.sample(logits).map(Some),
            };
            let mut cancelled = false;
            let stop = match picked {
                Ok(Some(token)) => {
                    self.stats.decode_tokens += usize::from(!sequence.tokens.is_empty());
                    sequence.tokens.push(token);
                    let first = &mut self.stats.time_to_first_token;
                    first.get_or_insert_with(|| self.start.elapsed());
                    let event = Event {
                        request: sequence.index,
                        token,
                    };
                    cancelled |= self.observer.token(event).is_break();
                    let stop = match self.observer.ends(sequence.index) {
                        true => Some(StopReason::StopString),
                        false => sequence.stop_after(token, self.engine.limits().max_seq_len),
                    };
                    if stop.is_none() {
                        self.engine.feed(slot, token)?;
                    }
                    stop
                }
                Ok(None) => Some(StopReason::MaxNewTokens),
                Err(source) => {
                    let step = sequence.request.prompt.len() + sequence.tokens.len();
                    Some(StopReason::Failed(NonFiniteLogits { step, slot, source }))
                }
            };
            if let Some(stop) = stop {
                let (index, completion) = (
                    sequence.index,
                    Completion {
                        tokens: std::mem::take(&mut sequence.tokens),
                        stop,
                    },
                );
                cancelled |= self.observer.finished(index, &completion).is_break();
                self.completions[index] = Some(completion);
                *place = None;
                self.engine.cancel(slot);
            }
            if cancelled {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Ends every sequence, those that wait among them.
    fn cancel(&mut self) {
        self.waiting = self.requests.len();
        for (slot, place) in self.slots.iter_mut().enumerate() {
            self.engine.cancel(slot);
            if let Some(sequence) = place.take() {
                self.completions[sequence.index] = Some(Completion {
                    tokens: sequence.tokens,
                    stop: StopReason::Cancelled,
                });
            }
        }
    }
}

impl Sequence<'_> {
    /// Why there is nothing after `token`, the last one.
    fn stop_after(&self, token: u32, max_seq_len: usize) -> Option<StopReason> {
        if self.request.stop_tokens.contains(&token) {
            Some(StopReason::StopToken)
        } else if self.tokens.len() >= self.request.max_new_tokens {
            Some(StopReason::MaxNewTokens)
        } else if self.request.prompt.len() + self.tokens.len() > max_seq_len {
            Some(StopReason::MaxSeqLen)
        } else {
            None
        }
    }
}
