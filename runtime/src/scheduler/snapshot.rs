//! What a scheduler is doing, in numbers.

use std::time::Duration;

/// What a slot does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activity {
    /// It has no sequence.
    Free,
    /// It runs a prompt.
    Prefill,
    /// It runs new tokens.
    Decode,
    /// It runs again what a backend error has lost.
    Replay,
}

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotView {
    /// What it does.
    pub activity: Activity,
    /// Whose; 0 for none.
    pub request: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, how many came from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens that have run.
    pub past_tokens: usize,
    /// New tokens.
    pub new_tokens: usize,
    /// Since its submission.
    pub age: Duration,
}

impl SlotView {
    pub(super) const FREE: Self = Self {
        activity: Activity::Free,
        request: 0,
        prompt_tokens: 0,
        cached_tokens: 0,
        past_tokens: 0,
        new_tokens: 0,
        age: Duration::ZERO,
    };
}

/// The prefix cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixUse {
    /// Bytes it may hold; 0 for none.
    pub budget_bytes: u64,
    /// Bytes it holds.
    pub bytes: u64,
    /// Checkpoints it holds.
    pub checkpoints: usize,
    /// Prompt tokens that were looked up.
    pub queried_tokens: u64,
    /// Of those, how many did not have to run.
    pub hit_tokens: u64,
    /// Checkpoints that gave way to others.
    pub evicted: u64,
}

/// Counts since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests that were queued.
    pub submitted: u64,
    /// Requests that ended, whyever.
    pub finished: u64,
    /// Prompt tokens that ran, without those of the prefix cache.
    pub prompt_tokens: u64,
    /// New tokens.
    pub new_tokens: u64,
    /// Chunks of prompts that ran, or were to; prompts that the prefix cache had whole among them.
    pub prefill_steps: u64,
    /// Time of those, picking tokens included.
    pub prefill_time: Duration,
    /// Decode steps.
    pub decode_steps: u64,
    /// Time of decode steps, picking tokens included.
    pub decode_time: Duration,
    /// Steps that the backend failed.
    pub backend_errors: u64,
    /// Sequences that were run again after one.
    pub replayed: u64,
}

/// What a scheduler is doing; a step old at most.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Of every slot.
    pub slots: Vec<SlotView>,
    /// Requests that wait for a slot.
    pub queued_requests: usize,
    /// Tokens of their prompts.
    pub queued_tokens: usize,
    /// Whether new requests are refused because it ends, or has ended.
    pub draining: bool,
    /// Whether it has ended without being told to: its thread panicked.
    pub ended: bool,
    /// Whether the last step failed on the backend and what it ran is still there, to be run again.
    pub failing: bool,
    /// Tokens that all slots hold, over those that they could.
    pub cache_use: f64,
    /// The prefix cache.
    pub prefix: PrefixUse,
    /// Counts since the start.
    pub totals: Totals,
}
