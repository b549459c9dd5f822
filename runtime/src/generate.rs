//! Prompts in, tokens out.

use crate::backend::{BackendError, NonFiniteLogits, Session, finite};
use crate::planner::{Chunk, PlanError, plan};
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
    /// The model returned logits that are no numbers; other sequences went on. The slot is the index
    /// of the request.
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
    /// More requests than slots, or none.
    #[error(
        "expected 1 to {batch} prompts at once, found {found}; export with a larger --batch or run them one after the other"
    )]
    Requests {
        /// Slots of the session.
        batch: usize,
        /// What was given.
        found: usize,
    },
    /// A prompt that does not fit.
    #[error("prompt {request}: {source}")]
    Prompt {
        /// Index of the request.
        request: usize,
        /// Why.
        source: PlanError,
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

/// One sequence on its way.
struct Sequence<'a> {
    request: &'a Request,
    sampler: Sampler,
    /// Chunks still to run, last first.
    chunks: Vec<Chunk>,
    /// Prompt tokens that have run.
    done: usize,
    tokens: Vec<u32>,
    stop: Option<StopReason>,
}

/// Continues every request in a slot of its own; slot `i` runs request `i`, finished and unused
/// slots idle.
///
/// A sequence's tokens do not depend on the other requests: its prompt is cut by its own
/// [`plan`] and its random sequence is its own. `on_token` sees every new token as it comes;
/// breaking cancels all sequences.
///
/// # Errors
/// Requests are checked before anything runs. A step that fails ends everything.
pub fn generate(
    session: &mut Session,
    requests: &[Request],
    on_token: impl FnMut(Event) -> ControlFlow<()>,
) -> Result<Generation, GenerateError> {
    let batch = session.batch();
    if requests.is_empty() || requests.len() > batch {
        return Err(GenerateError::Requests {
            batch,
            found: requests.len(),
        });
    }
    let lengths = session.lengths().to_vec();
    if lengths.first() != Some(&1) && requests.iter().any(|request| request.max_new_tokens > 1) {
        return Err(GenerateError::NoDecodeEngine { lengths });
    }
    let sequences =
        requests
            .iter()
            .enumerate()
            .map(|(index, request)| {
                let mut chunks = plan(request.prompt.len(), &lengths, session.max_seq_len())
                    .map_err(|source| GenerateError::Prompt {
                        request: index,
                        source,
                    })?;
                chunks.reverse();
                let sampler =
                    Sampler::new(request.sampling).map_err(|source| GenerateError::Sampling {
                        request: index,
                        source,
                    })?;
                Ok(Sequence {
                    request,
                    sampler,
                    chunks,
                    done: 0,
                    tokens: Vec::with_capacity(request.max_new_tokens.min(session.max_seq_len())),
                    stop: None,
                })
            })
            .collect::<Result<Vec<_>, GenerateError>>()?;
    for slot in 0..sequences.len() {
        session.reset(slot);
    }
    let longest = lengths.last().copied().unwrap_or(1);
    let run = Run {
        input_ids: vec![0; batch * longest],
        seq_length: vec![0; batch],
        start: Instant::now(),
        stats: Stats::default(),
        sequences,
        session,
        on_token,
    };
    run.finish()
}

struct Run<'a, F> {
    session: &'a mut Session,
    sequences: Vec<Sequence<'a>>,
    on_token: F,
    input_ids: Vec<i64>,
    seq_length: Vec<i64>,
    start: Instant,
    stats: Stats,
}

impl<F: FnMut(Event) -> ControlFlow<()>> Run<'_, F> {
    fn finish(mut self) -> Result<Generation, GenerateError> {
        // Slots whose next chunk has the same length run together; the longest first.
        while let Some(engine_len) = self.next_prefill() {
            self.prefill(engine_len)?;
        }
        while self
            .sequences
            .iter()
            .any(|sequence| sequence.stop.is_none())
        {
            self.decode()?;
        }
        let completions = self.sequences.into_iter().map(|sequence| Completion {
            tokens: sequence.tokens,
            stop: sequence.stop.unwrap_or(StopReason::Cancelled),
        });
        Ok(Generation {
            completions: completions.collect(),
            stats: self.stats,
        })
    }

    fn next_prefill(&self) -> Option<usize> {
        let waiting = self
            .sequences
            .iter()
            .filter(|sequence| sequence.stop.is_none());
        waiting
            .filter_map(|sequence| Some(sequence.chunks.last()?.engine_len))
            .max()
    }

    fn prefill(&mut self, engine_len: usize) -> Result<(), GenerateError> {
        let begin = Instant::now();
        let count = self.seq_length.len() * engine_len;
        self.input_ids[..count].fill(0);
        self.seq_length.fill(0);
        for (slot, sequence) in self.sequences.iter_mut().enumerate() {
            let next = sequence.chunks.last().copied();
            let Some(chunk) = next.filter(|chunk| chunk.engine_len == engine_len) else {
                continue;
            };
            if sequence.stop.is_some() {
                continue;
            }
            sequence.chunks.pop();
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
        for (slot, sequence) in self.sequences.iter_mut().enumerate() {
            let Some(&token) = sequence.tokens.last() else {
                continue;
            };
            if sequence.stop.is_none() {
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
        for (slot, sequence) in self.sequences.iter_mut().enumerate() {
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
            let token = match picked {
                Ok(Some(token)) => token,
                Ok(None) => {
                    sequence.stop = Some(StopReason::MaxNewTokens);
                    continue;
                }
                Err(source) => {
                    let step = sequence.request.prompt.len() + sequence.tokens.len();
                    sequence.stop =
                        Some(StopReason::Failed(NonFiniteLogits { step, slot, source }));
                    continue;
                }
            };
            self.stats.decode_tokens += usize::from(!sequence.tokens.is_empty());
            sequence.tokens.push(token);
            self.stats
                .time_to_first_token
                .get_or_insert_with(|| self.start.elapsed());
            let length = sequence.request.prompt.len() + sequence.tokens.len();
            sequence.stop = if sequence.request.stop_tokens.contains(&token) {
                Some(StopReason::StopToken)
            } else if sequence.tokens.len() >= sequence.request.max_new_tokens {
                Some(StopReason::MaxNewTokens)
            } else if length > max_seq_len {
                Some(StopReason::MaxSeqLen)
            } else {
                None
            };
            let event = Event {
                request: slot,
                token,
            };
            if (self.on_token)(event).is_break() {
                cancelled = true;
                break;
            }
        }
        if cancelled {
            for sequence in &mut self.sequences {
                sequence.stop.get_or_insert(StopReason::Cancelled);
                sequence.chunks.clear();
            }
        }
        Ok(())
    }
}
