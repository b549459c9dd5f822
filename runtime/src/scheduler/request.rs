//! What a request asks for, and what it is told.

use super::constraint::Constraint;
use crate::backend::{NonFinite, SlotState};
use crate::sampler::{Sampling, Score};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One prompt and how to continue it.
pub struct Request {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Most tokens to add; 0 only runs the prompt.
    pub max_new_tokens: usize,
    /// Before so many tokens nothing in `stop_tokens` comes, and their text has no part in a stop string.
    pub min_new_tokens: usize,
    /// How tokens are picked.
    pub sampling: Sampling,
    /// Tokens that end the sequence. They count as new tokens and have no text.
    pub stop_tokens: BTreeSet<u32>,
    /// Texts that end the sequence; no part of one is told, unless `include_stop`. They need a tokenizer.
    pub stop_strings: Vec<String>,
    /// Whether the text has the stop string that ended it.
    pub include_stop: bool,
    /// Scores every new token, beside so many of the likeliest.
    pub logprobs: Option<usize>,
    /// Scores every token of the prompt but the first in the same way; needs a package with all logits.
    pub prompt_logprobs: Option<usize>,
    /// What the text has to be.
    pub constraint: Option<Box<dyn Constraint>>,
    /// When it ends, whether it has begun or not.
    pub deadline: Option<Instant>,
    /// What another sequence has left, which this one goes on from. Its tokens are not the prompt's: penalties do
    /// not know them.
    pub state: Option<Arc<SlotState>>,
    /// Whether the end has what this one leaves.
    pub keep_state: bool,
}

impl Request {
    /// Tokens before the prompt.
    pub(super) fn past(&self) -> usize {
        self.state.as_ref().map_or(0, |state| state.past_length)
    }

    /// Greedy continuation of `prompt` by at most 128 tokens.
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            prompt,
            max_new_tokens: 128,
            min_new_tokens: 0,
            sampling: Sampling::GREEDY,
            stop_tokens: BTreeSet::new(),
            stop_strings: Vec::new(),
            include_stop: false,
            logprobs: None,
            prompt_logprobs: None,
            constraint: None,
            deadline: None,
            state: None,
            keep_state: false,
        }
    }
}

/// A new token.
#[derive(Clone, Debug, PartialEq)]
pub struct NewToken {
    /// The token.
    pub token: u32,
    /// The text that can be shown now, often none; with no tokenizer, none.
    pub text: String,
    /// Where it was asked for.
    pub score: Option<Score>,
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Ended {
    /// It has `max_new_tokens` tokens.
    MaxNewTokens,
    /// The last token is one of `stop_tokens`, or the constraint allows no more.
    StopToken,
    /// The text has this stop string, by its index.
    StopString(usize),
    /// The sequence is full: its last token cannot be run.
    MaxSeqLen,
    /// Its ticket was dropped, or nobody listened.
    Cancelled,
    /// Its deadline has passed.
    Deadline,
    /// The scheduler stopped before its end.
    Stopped,
    /// The model returned logits that are no numbers; other sequences went on.
    NonFinite(NonFinite),
    /// The constraint cannot be gone on with: why.
    Constraint(String),
    /// The tokenizer failed, or the backend again and again: why.
    Failed(String),
}

/// How long a sequence took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From its submission to its slot.
    pub queued: Duration,
    /// From its slot to its first new token.
    pub prefill: Duration,
    /// From there to its end.
    pub decode: Duration,
}

/// A finished sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why there are no more tokens.
    pub ended: Ended,
    /// The rest of the text, which was held back.
    pub text: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, how many came from the prefix cache.
    pub cached_tokens: usize,
    /// New tokens.
    pub new_tokens: usize,
    /// How long it took.
    pub timing: Timing,
    /// What it leaves after the tokens that have run, where that was asked for: after all but the last new one, or
    /// after all of them where no token could follow. None where it ended within its prompt, or with logits that are
    /// no numbers.
    pub state: Option<Arc<SlotState>>,
}

/// What a request is told, in this order: scores of the prompt where they were asked for, tokens, the end.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// Of the prompt's second token and those after it.
    Prompt(Vec<Score>),
    /// A new token.
    Token(NewToken),
    /// The end; nothing follows.
    Finished(Finished),
}

/// Where updates of one request go.
pub trait Sink: Send {
    /// Takes an update without waiting; false where nobody listens any more, which ends the request.
    fn send(&mut self, update: Update) -> bool;

    /// Whether anybody still listens; asked before every step, also while the request waits or its prompt runs.
    fn is_wanted(&self) -> bool {
        true
    }
}

impl<F: FnMut(Update) -> bool + Send> Sink for F {
    fn send(&mut self, update: Update) -> bool {
        self(update)
    }
}
