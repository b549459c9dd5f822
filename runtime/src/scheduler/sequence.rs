//! A request on its way through a slot.

use super::constraint::ConstraintError;
use super::request::{Ended, Finished, NewToken, Request, Sink, Timing, Update};
use crate::backend::{SlotState, finite};
use crate::engine::Limits;
use crate::planner::Chunk;
use crate::sampler::{Sampler, Score, score};
use crate::text::{StoppingDecoder, Tokenizer};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A request and who asked for it.
pub(super) struct Job {
    pub id: u64,
    pub request: Request,
    pub sink: Box<dyn Sink>,
    pub cancelled: Arc<AtomicBool>,
    pub submitted: Instant,
}

impl Job {
    /// Why it ends before its next step, if it does.
    pub fn over(&self, now: Instant) -> Option<Ended> {
        let late = |deadline| now >= deadline;
        match () {
            () if self.cancelled.load(Ordering::Relaxed) => Some(Ended::Cancelled),
            () if !self.sink.is_wanted() => Some(Ended::Cancelled),
            () if self.request.deadline.is_some_and(late) => Some(Ended::Deadline),
            () => None,
        }
    }

    /// Tells its end before it has had a slot.
    pub fn end(mut self, ended: Ended) {
        let finished = Finished {
            ended,
            text: String::new(),
            prompt_tokens: self.request.prompt.len(),
            cached_tokens: 0,
            new_tokens: 0,
            timing: Timing {
                queued: self.submitted.elapsed(),
                ..Timing::default()
            },
            state: None,
        };
        self.sink.send(Update::Finished(finished));
    }
}

/// A request in a slot.
pub(super) struct Sequence {
    pub job: Job,
    /// Chunks of the prompt.
    pub plan: Vec<Chunk>,
    /// Prompt tokens that came from the prefix cache, the first time.
    pub cached: usize,
    /// How often another prompt's chunk was run before its next one.
    pub passed: usize,
    /// Whether no part of its prompt comes from the prefix cache: scores are of every token's logits, and a prompt
    /// after a state is no beginning.
    pub runs_all: bool,
    /// New tokens.
    pub tokens: Vec<u32>,
    /// How many of them the engine was given: fewer than all where a backend error has lost them.
    pub fed: usize,
    /// Runs again after backend errors, since the last token that was told.
    pub replays: usize,
    /// Whether it was ever run again.
    pub restarted: bool,
    sampler: Sampler,
    text: Option<StoppingDecoder>,
    prompt_scores: Vec<Score>,
    begun: Instant,
    first: Option<Instant>,
}

impl Sequence {
    pub fn new(job: Job, mut sampler: Sampler, tokenizer: Option<&Tokenizer>) -> Self {
        let request = &job.request;
        sampler.observe_prompt(&request.prompt);
        let text = tokenizer.map(|tokenizer| {
            let stops = request.stop_strings.clone();
            StoppingDecoder::new(tokenizer, &request.prompt, stops, request.include_stop)
        });
        Self {
            plan: Vec::new(),
            cached: 0,
            passed: 0,
            runs_all: request.prompt_logprobs.is_some() || request.state.is_some(),
            tokens: Vec::new(),
            fed: 0,
            replays: 0,
            restarted: false,
            sampler,
            text,
            prompt_scores: Vec::new(),
            begun: Instant::now(),
            first: None,
            job,
        }
    }

    /// Whether tokens are run again that it had.
    pub fn replaying(&self) -> bool {
        self.fed < self.tokens.len()
    }

    /// Has it start over with what it had told; the random sequence goes on where it was.
    pub fn start_over(&mut self) {
        (self.fed, self.passed) = (0, 0);
        self.replays += 1;
        self.restarted = true;
        // Told, or to come again.
        self.prompt_scores.clear();
    }

    /// Whether its end tells what it leaves, of which `past` tokens have run: not within its prompt, nor where
    /// tokens that were told have to run again, nor where it is no number or nobody listens.
    pub fn keeps_state(&self, past: usize, ended: &Ended) -> bool {
        let request = &self.job.request;
        let Some(ran) = past.checked_sub(request.past() + request.prompt.len()) else {
            return false;
        };
        // The last one was picked and not run, unless no token could follow it.
        let whole = ran == self.tokens.len() || ran + 1 == self.tokens.len();
        let sound = !matches!(ended, Ended::NonFinite(_));
        request.keep_state && whole && sound && self.job.sink.is_wanted()
    }

    /// Whether scores of its prompt are asked for and were not told.
    pub fn scores_prompt(&self) -> bool {
        self.job.request.prompt_logprobs.is_some() && self.first.is_none()
    }

    /// Takes the logits after token `index` of the prompt.
    pub fn prompt_logits(&mut self, index: usize, logits: &[f32]) {
        let request = &self.job.request;
        let next = request.prompt.get(index + 1);
        if let Some((&next, best)) = next.zip(request.prompt_logprobs) {
            self.prompt_scores.push(score(logits, next, best));
        }
    }

    /// The token after `logits`, which the engine is given next: the one that was there before an error, or
    /// one that is picked and told; or the end.
    pub fn next(&mut self, logits: &[f32], limits: &Limits) -> Result<u32, Ended> {
        let token = match self.replaying() {
            true => self.tokens[self.fed],
            false => self.pick(logits, limits)?,
        };
        self.fed += 1;
        Ok(token)
    }

    fn pick(&mut self, logits: &[f32], limits: &Limits) -> Result<u32, Ended> {
        if self.scores_prompt() {
            let scores = std::mem::take(&mut self.prompt_scores);
            self.tell(Update::Prompt(scores))?;
        }
        let first = self.first.is_none();
        if first {
            self.first = Some(Instant::now());
        }
        let request = &mut self.job.request;
        if request.max_new_tokens == 0 {
            finite(logits).map_err(Ended::NonFinite)?;
            return Err(Ended::MaxNewTokens);
        }
        let allowed = match &mut request.constraint {
            None => None,
            Some(constraint) => Some(constraint.allowed().map_err(unmet)?),
        };
        let none = BTreeSet::new();
        let forbidden = match self.tokens.len() < request.min_new_tokens {
            true => &request.stop_tokens,
            false => &none,
        };
        let picked = self
            .sampler
            .sample_among(logits, allowed.as_ref(), forbidden);
        let Some(token) = picked.map_err(Ended::NonFinite)? else {
            return Err(match allowed {
                Some(_) => Ended::StopToken,
                None => failed("every token is forbidden before `min_new_tokens`"),
            });
        };
        let stops = request.stop_tokens.contains(&token);
        let mut complete = false;
        if let Some(constraint) = &mut request.constraint {
            constraint.accept(token).map_err(unmet)?;
            complete = constraint.must_end();
        }
        let scored = request.logprobs.map(|best| score(logits, token, best));
        self.tokens.push(token);
        self.replays = 0;
        let mut stopped = None;
        let text = match &mut self.text {
            Some(text) if !stops && self.tokens.len() <= request.min_new_tokens => {
                text.push_past(token).map_err(failed)?
            }
            Some(text) if !stops => {
                let piece = text.push(token).map_err(failed)?;
                stopped = piece.stopped;
                piece.text
            }
            _ => String::new(),
        };
        self.tell(Update::Token(NewToken {
            token,
            text,
            score: scored,
        }))?;
        let (request, tokens) = (&self.job.request, self.tokens.len());
        match stopped {
            _ if stops => Err(Ended::StopToken),
            Some(index) => Err(Ended::StopString(index)),
            None if complete => Err(Ended::StopToken),
            None if tokens >= request.max_new_tokens => Err(Ended::MaxNewTokens),
            None if request.past() + request.prompt.len() + tokens > limits.max_seq_len => {
                Err(Ended::MaxSeqLen)
            }
            None => Ok(token),
        }
    }

    fn tell(&mut self, update: Update) -> Result<(), Ended> {
        match self.job.sink.send(update) {
            true => Ok(()),
            false => Err(Ended::Cancelled),
        }
    }

    /// Tells the end.
    pub fn end(mut self, ended: Ended, state: Option<SlotState>) {
        let (mut ended, mut rest) = (ended, String::new());
        // What a stop string ends has nothing after it.
        if let Some(text) = self.text.take()
            && !matches!(ended, Ended::StopString(_))
        {
            match text.finish() {
                Ok(piece) => {
                    rest = piece.text;
                    ended = piece.stopped.map_or(ended, Ended::StopString);
                }
                Err(error) => ended = failed(error),
            }
        }
        let now = Instant::now();
        let first = self.first.unwrap_or(now);
        let finished = Finished {
            ended,
            text: rest,
            prompt_tokens: self.job.request.prompt.len(),
            cached_tokens: self.cached,
            new_tokens: self.tokens.len(),
            timing: Timing {
                queued: self.begun - self.job.submitted,
                prefill: first - self.begun,
                decode: now - first,
            },
            state: state.map(Arc::new),
        };
        self.job.sink.send(Update::Finished(finished));
    }
}

fn unmet(error: ConstraintError) -> Ended {
    Ended::Constraint(error.to_string())
}

fn failed(why: impl ToString) -> Ended {
    Ended::Failed(why.to_string())
}
