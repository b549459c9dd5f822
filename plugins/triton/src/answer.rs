//! What a sequence says becomes responses.

use crate::engine::Turn;
use crate::error::{Fault, guarded};
use crate::ffi::Code;
use crate::metrics::{Metrics, Number};
use crate::response::{Output, Owned};
use ratplus_runtime::scheduler::{Ended, Finished, NewToken, Sink, Ticket, Update};
use ratplus_server::single::{Scores, finish_reason};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What a request is answered with.
#[derive(Debug, Default)]
pub struct Wanted {
    /// A response for what is new, whenever something is.
    pub stream: bool,
    pub text: bool,
    pub tokens: bool,
    pub finish_reason: bool,
    pub cumulative_logprob: bool,
    pub logprobs: bool,
    pub prompt_count: bool,
    pub new_count: bool,
}

/// A request whose sequence runs or waits. Fields are dropped in this order: the model may be gone with its request.
pub struct Answer {
    pub wanted: Wanted,
    /// Text that was not told yet; at first what comes before the new.
    pub text: String,
    pub scores: Scores,
    tokens: Vec<u32>,
    cumulative_logprob: f32,
    submitted: Instant,
    /// When the last token came.
    last: Option<Instant>,
    metrics: Arc<Metrics>,
    /// The request, and then whoever waits for its turn.
    owned: Owned,
    _turn: Turn,
}

impl Answer {
    pub fn new(
        wanted: Wanted,
        text: String,
        scores: Scores,
        (mut owned, turn, metrics): (Owned, Turn, Arc<Metrics>),
    ) -> Self {
        metrics.add(Number::InFlight, 1.0);
        owned.queued();
        Self {
            wanted,
            text,
            scores,
            tokens: Vec::new(),
            cumulative_logprob: 0.0,
            submitted: Instant::now(),
            last: None,
            metrics,
            owned,
            _turn: turn,
        }
    }

    /// Says what is wrong; nothing follows.
    pub fn fail(&mut self, fault: &Fault) {
        self.owned.fail(fault);
    }

    /// A new token.
    fn token(&mut self, new: NewToken) -> Result<(), Fault> {
        let now = Instant::now();
        let since = self.last.unwrap_or(self.submitted);
        let number = match self.last {
            None => Number::FirstToken,
            Some(_) => Number::BetweenTokens,
        };
        self.metrics.observe(number, now - since);
        self.metrics.add(Number::NewTokens, 1.0);
        self.last = Some(now);
        self.text += &new.text;
        self.tokens.push(new.token);
        if let Some(score) = new.score {
            self.cumulative_logprob += score.logprob;
            if self.wanted.logprobs {
                self.scores.push(new.token, score);
            }
        }
        if self.wanted.stream && self.has_news() {
            let outputs = self.outputs();
            self.owned.send(&outputs, false)?;
        }
        Ok(())
    }

    /// Whether there is something to tell: characters and stop strings may not be whole yet.
    fn has_news(&self) -> bool {
        let Wanted {
            text,
            tokens,
            logprobs,
            ..
        } = self.wanted;
        text && !self.text.is_empty() || (tokens || logprobs) && !self.tokens.is_empty()
    }

    /// What is new, which counts as told.
    fn outputs(&mut self) -> Vec<Output> {
        let mut outputs = Vec::new();
        let (text, tokens) = (
            std::mem::take(&mut self.text),
            std::mem::take(&mut self.tokens),
        );
        if self.wanted.text {
            outputs.push(Output::text("text_output", &text));
        }
        if self.wanted.tokens {
            outputs.push(Output::tokens("output_ids", &tokens));
        }
        if self.wanted.logprobs {
            outputs.push(Output::text("logprobs", &self.scores.take()));
        }
        if self.wanted.cumulative_logprob {
            let sum = self.cumulative_logprob;
            outputs.push(Output::number("cumulative_logprob", sum));
        }
        outputs
    }

    /// The end.
    fn finish(&mut self, finished: &Finished) -> Result<(), Fault> {
        self.owned.began(finished.timing.queued);
        self.metrics
            .add(Number::PromptTokens, finished.prompt_tokens as f64);
        self.metrics
            .add(Number::CachedTokens, finished.cached_tokens as f64);
        if let Some(fault) = failure(&finished.ended) {
            return Err(fault);
        }
        self.text += &finished.text;
        let mut outputs = match self.wanted.stream && !self.has_news() {
            true => Vec::new(),
            false => self.outputs(),
        };
        if self.wanted.finish_reason {
            let reason = finish_reason(&finished.ended);
            outputs.push(Output::text("finish_reason", reason));
        }
        if self.wanted.prompt_count {
            outputs.push(Output::count("num_input_tokens", finished.prompt_tokens));
        }
        if self.wanted.new_count {
            outputs.push(Output::count("num_output_tokens", finished.new_tokens));
        }
        match outputs.is_empty() && self.wanted.stream {
            true => self.owned.end(),
            false => self.owned.send(&outputs, true),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.metrics.add(Number::InFlight, -1.0);
    }
}

/// The error that an end is, where it is one.
fn failure(ended: &Ended) -> Option<Fault> {
    match ended {
        Ended::MaxNewTokens | Ended::StopToken | Ended::StopString(_) | Ended::MaxSeqLen => None,
        Ended::Cancelled => Some(Fault::new(Code::Cancelled, "the request was cancelled")),
        Ended::Stopped => {
            let message = "the model was unloaded before the answer ended";
            Some(Fault::new(Code::Unavailable, message))
        }
        Ended::Constraint(why) => Some(Fault::invalid(format!(
            "what the text has to be cannot be gone on with: {why}"
        ))),
        Ended::NonFinite(found) => Some(Fault::internal(format!(
            "the model returned a logit that is no number: {} for token {}",
            found.value, found.token
        ))),
        Ended::Failed(why) => Some(Fault::internal(why)),
        _ => Some(Fault::internal("the sequence ended unexpectedly")),
    }
}

/// An answer that its sequence writes, and its ticket, which keeps the sequence.
#[derive(Default)]
struct Running {
    answer: Option<Answer>,
    ticket: Option<Ticket>,
}

/// Both ends of it: what the scheduler has, and what has the answer until the scheduler has taken it.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<Running>>);

impl Shared {
    pub fn new(answer: Answer) -> Self {
        Self(Arc::new(Mutex::new(Running {
            answer: Some(answer),
            ticket: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the ticket until the end, which may have been.
    pub fn keep(&self, ticket: Ticket) {
        let mut running = self.lock();
        if running.answer.is_some() {
            running.ticket = Some(ticket);
        }
    }

    /// Ends it with an error.
    pub fn fail(&self, fault: &Fault) {
        if let Some(mut answer) = self.lock().answer.take() {
            answer.fail(fault);
        }
    }
}

impl Sink for Shared {
    fn send(&mut self, update: Update) -> bool {
        let mut running = self.lock();
        let Some(answer) = &mut running.answer else {
            return false;
        };
        let ended = match update {
            Update::Prompt(_) => return true,
            Update::Token(new) => match guarded(|| answer.token(new)) {
                Ok(()) => return true,
                Err(fault) => Err(fault),
            },
            Update::Finished(finished) => guarded(|| answer.finish(&finished)),
        };
        if let Err(fault) = ended {
            answer.fail(&fault);
        }
        *running = Running::default();
        false
    }

    fn is_wanted(&self) -> bool {
        let running = self.lock();
        let answer = running.answer.as_ref();
        answer.is_some_and(|answer| !answer.owned.is_cancelled())
    }
}
