//! Prompts in, tokens out.

use crate::backend::{BackendError, NonFiniteLogits, Session, finite};
use crate::planner::{self, Chunk, PlanError, plan};
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
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq)]
pub enum StopReason {
    /// It has `max_new_tokens` tokens.
    MaxNewTokens,
    /// The last token is one of `stop_tokens`.
    StopToken,
    /// The sequence is full: its last token cannot be run.
    MaxSeqLen,
    /// The callback said so.
    Cancelled,
    /// The model returned logits that are no numbers; other sequences went on.
    Failed(NonFiniteLogits),
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

/// A request that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// There are no requests.
    #[error("expected at least 1 prompt, found none")]
    NoRequests,
    /// A prompt that does not fit.
    #[error("prompt {request}: {source}")]
    Prompt {
        /// Index of the request.
        request: usize,
        /// Why.
        source: PlanError,
    },
    /// A token outside the vocabulary.
    #[error("prompt {request}, token {index}: expected 0 to {}, found {token}", vocab_size - 1)]
    Token {
        /// Index of the request.
        request: usize,
        /// Index of the token.
        index: usize,
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A parameter outside its range.
    #[error("prompt {request}: {source}")]
    Sampling {
        /// Index of the request.
        request: usize,
        /// Which.
        source: SampleError,
    },
    /// There is no engine for single tokens.
    #[error("generation needs the engine of length 1, the session has {lengths:?}")]
    NoDecodeEngine {
        /// Lengths of the session.
        lengths: Vec<usize>,
    },
    /// A step failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Sees a generation as it goes on; breaking cancels all sequences, those that wait too.
pub trait Observer {
    /// A new token.
    fn token(&mut self, event: Event) -> ControlFlow<()>;

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
    /// Chunks still to run, last first.
    chunks: Vec<Chunk>,
    /// Prompt tokens that have run.
    done: usize,
    tokens: Vec<u32>,
}

/// Continues every request, as many at once as the session has slots: where one ends, the next takes its
/// slot. `on_token` sees every new token as it comes; see [`generate_observed`].
///
/// # Errors
/// Requests are checked before anything runs. A step that fails ends everything.
pub fn generate(
    session: &mut Session,
    requests: &[Request],
    mut on_token: impl FnMut(Event) -> ControlFlow<()>,
) -> Result<Generation, GenerateError> {
    generate_observed(session, requests, &mut on_token)
}

/// [`generate`] for an observer that is told of ends as well.
///
/// A sequence's tokens do not depend on the other requests nor on its slot: its prompt is cut by its own
/// [`plan`] and its random sequence is its own.
///
/// # Errors
/// Requests are checked before anything runs. A step that fails ends everything.
pub fn generate_observed(
    session: &mut Session,
    requests: &[Request],
    observer: &mut dyn Observer,
) -> Result<Generation, GenerateError> {
    let lengths = session.lengths().to_vec();
    check(session, requests, &lengths)?;
    let batch = session.batch();
    let longest = lengths.last().copied().unwrap_or(1);
    let run = Run {
        input_ids: vec![0; batch * longest],
        seq_length: vec![0; batch],
        start: Instant::now(),
        stats: Stats::default(),
        slots: (0..batch).map(|_| None).collect(),
        waiting: 0,
        completions: vec![None; requests.len()],
        lengths,
        requests,
        session,
        observer,
    };
    run.finish()
}

fn check(session: &Session, requests: &[Request], lengths: &[usize]) -> Result<(), GenerateError> {
    if requests.is_empty() {
        return Err(GenerateError::NoRequests);
    }
    if lengths.first() != Some(&1) && requests.iter().any(|request| request.max_new_tokens > 1) {
        return Err(GenerateError::NoDecodeEngine {
            lengths: lengths.into(),
        });
    }
    let vocab_size = session.vocab_size();
    for (index, request) in requests.iter().enumerate() {
        let prompt = &request.prompt;
        planner::check(prompt.len(), lengths, session.max_seq_len()).map_err(|source| {
            GenerateError::Prompt {
                request: index,
                source,
            }
        })?;
        let unknown = |&token: &u32| token as usize >= vocab_size;
        if let Some(at) = prompt.iter().position(unknown) {
            return Err(GenerateError::Token {
                request: index,
                index: at,
                token: prompt[at],
                vocab_size,
            });
        }
        Sampler::new(request.sampling).map_err(|source| GenerateError::Sampling {
            request: index,
            source,
        })?;
    }
    Ok(())
}

struct Run<'a> {
    session: &'a mut Session,
    requests: &'a [Request],
    observer: &'a mut dyn Observer,
    /// Static lengths of the session.
    lengths: Vec<usize>,
    /// What each slot runs.
    slots: Vec<Option<Sequence<'a>>>,
    /// The first request that has no slot yet.
    waiting: usize,
    completions: Vec<Option<Completion>>,
    input_ids: Vec<i64>,
    seq_length: Vec<i64>,
    start: Instant,
    stats: Stats,
}

impl Run<'_> {
    fn finish(mut self) -> Result<Generation, GenerateError> {
        loop {
            self.admit()?;
            // Slots whose next chunk has the same length run together; the longest first.
            if let Some(engine_len) = self.next_prefill() {
                self.prefill(engine_len)?;
            } else if self.slots.iter().any(Option::is_some) {
                self.decode()?;
            } else {
                break;
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
        let max_seq_len = self.session.max_seq_len();
        for (slot, sequence) in self.slots.iter_mut().enumerate() {
            let index = self.waiting;
            let Some(request) = self.requests.get(index).filter(|_| sequence.is_none()) else {
                continue;
            };
            let mut chunks =
                plan(request.prompt.len(), &self.lengths, max_seq_len).map_err(|source| {
                    GenerateError::Prompt {
                        request: index,
                        source,
                    }
                })?;
            chunks.reverse();
            let sampler =
                Sampler::new(request.sampling).map_err(|source| GenerateError::Sampling {
                    request: index,
                    source,
                })?;
            self.session.reset(slot);
            *sequence = Some(Sequence {
                index,
                request,
                sampler,
                chunks,
                done: 0,
                tokens: Vec::with_capacity(request.max_new_tokens.min(max_seq_len)),
            });
            self.waiting += 1;
        }
        Ok(())
    }

    fn next_prefill(&self) -> Option<usize> {
        let running = self.slots.iter().flatten();
        running
            .filter_map(|sequence| Some(sequence.chunks.last()?.engine_len))
            .max()
    }

    fn prefill(&mut self, engine_len: usize) -> Result<(), GenerateError> {
        let begin = Instant::now();
        let count = self.seq_length.len() * engine_len;
        self.input_ids[..count].fill(0);
        self.seq_length.fill(0);
        for (slot, sequence) in self.slots.iter_mut().enumerate() {
            let Some(sequence) = sequence else {
                continue;
            };
            let chunk = sequence
                .chunks
                .pop_if(|chunk| chunk.engine_len == engine_len);
            let Some(chunk) = chunk else {
                continue;
            };
            let prompt = &sequence.request.prompt[sequence.done..][..chunk.tokens];
            for (id, &token) in self.input_ids[slot * engine_len..].iter_mut().zip(prompt) {
                *id = token.into();
            }
            sequence.done += chunk.tokens;
            self.seq_length[slot] = chunk.tokens as i64;
            self.stats.prefill_tokens += chunk.tokens;
        }
        self.step(engine_len)?;
        self.stats.prefill_time += begin.elapsed();
        Ok(())
    }

    fn decode(&mut self) -> Result<(), GenerateError> {
        let begin = Instant::now();
        self.seq_length.fill(0);
        for (slot, sequence) in self.slots.iter().enumerate() {
            if let Some(&token) = sequence
                .as_ref()
                .and_then(|sequence| sequence.tokens.last())
            {
                self.input_ids[slot] = token.into();
                self.seq_length[slot] = 1;
            }
        }
        self.step(1)?;
        self.stats.decode_time += begin.elapsed();
        Ok(())
    }

    /// Runs the prepared chunk, then picks a token for every sequence whose prompt is through.
    fn step(&mut self, engine_len: usize) -> Result<(), GenerateError> {
        let max_seq_len = self.session.max_seq_len();
        let count = self.seq_length.len() * engine_len;
        let step = self
            .session
            .run(engine_len, &self.input_ids[..count], &self.seq_length)?;
        let mut cancelled = false;
        for (slot, place) in self.slots.iter_mut().enumerate() {
            let Some(sequence) = place else {
                continue;
            };
            if self.seq_length[slot] == 0 || !sequence.chunks.is_empty() {
                continue;
            }
            let Some(logits) = step.last_logits(slot) else {
                continue;
            };
            let picked = match sequence.request.max_new_tokens {
                0 => finite(logits).map(|_| None),
                // Looks at every logit once, for the largest and for those that are no numbers.
                _ => sequence.sampler.sample(logits).map(Some),
            };
            let stop = match picked {
                Ok(Some(token)) => {
                    self.stats.decode_tokens += usize::from(!sequence.tokens.is_empty());
                    sequence.tokens.push(token);
                    self.stats
                        .time_to_first_token
                        .get_or_insert_with(|| self.start.elapsed());
                    let event = Event {
                        request: sequence.index,
                        token,
                    };
                    cancelled |= self.observer.token(event).is_break();
                    sequence.stop_after(token, max_seq_len)
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
            }
            if cancelled {
                break;
            }
        }
        if cancelled {
            self.waiting = self.requests.len();
            for sequence in self.slots.iter_mut().filter_map(Option::take) {
                self.completions[sequence.index] = Some(Completion {
                    tokens: sequence.tokens,
                    stop: StopReason::Cancelled,
                });
            }
        }
        Ok(())
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
