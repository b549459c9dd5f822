//! Who runs next.

use super::request::Ended;
use super::sequence::{Job, Sequence};
use super::snapshot::{Activity, PrefixUse, SlotView, Snapshot, Totals};
use super::{Options, StartError};
use crate::backend::{BackendError, StateDelta, finite};
use crate::engine::{Engine, EngineError, Ran};
use crate::prefix::{Owner, PrefixCache, Sizes, checkpoint_bytes};
use crate::sampler::Sampler;
use crate::text::Tokenizer;
use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;

fn owner(engine: &Engine) -> Owner {
    Owner {
        fingerprint: engine.session().fingerprint().into(),
        backend: engine.session().backend().to_string(),
        lengths: engine.limits().lengths.clone(),
    }
}

/// The prefix cache of a file, or an empty one: where there is none, and where this machine and these libraries
/// do not compute the bits that the file has.
fn load(engine: &mut Engine, budget: u64, path: &Path) -> Result<PrefixCache, StartError> {
    let limits = engine.limits().clone();
    let sizes = Sizes {
        max_seq_len: limits.max_seq_len,
        vocab_size: limits.vocab_size,
        delta: &|tokens| engine.session().delta_bytes(tokens),
    };
    let Some(cache) = PrefixCache::load(budget, path, &owner(engine), &sizes)? else {
        return Ok(PrefixCache::new(budget));
    };
    for (tokens, delta, logits) in cache.beginnings() {
        if limits.check(0, tokens).is_err() || !computes(engine, tokens, delta, logits)? {
            tracing::warn!(
                "the prefixes of {} are left out: this machine or these libraries compute other bits",
                path.display()
            );
            return Ok(PrefixCache::new(budget));
        }
    }
    Ok(cache)
}

/// Whether a chunk leaves these bits.
fn computes(
    engine: &mut Engine,
    tokens: &[u32],
    delta: &StateDelta,
    logits: &[f32],
) -> Result<bool, EngineError> {
    engine.add(0, tokens)?;
    engine.prefill_slot(0)?;
    let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let same = engine.chunks(0).is_empty()
        && engine.read_delta(0, 0)? == *delta
        && engine.logits(0).map(bits) == Some(bits(logits));
    engine.cancel(0);
    Ok(same)
}

/// The queue, the slots and the engine, a step at a time.
pub(super) struct Core {
    engine: Engine,
    tokenizer: Option<Tokenizer>,
    options: Options,
    prefix: Option<PrefixCache>,
    queue: VecDeque<Job>,
    slots: Vec<Option<Sequence>>,
    /// Requests that have left the queue, and the tokens of their prompts, since they were last taken.
    left: (usize, usize),
    /// Decode steps that come before the next chunk of a prompt.
    decodes: usize,
    failing: bool,
    prefix_use: PrefixUse,
    totals: Totals,
}

impl Core {
    pub fn new(
        mut engine: Engine,
        tokenizer: Option<Tokenizer>,
        options: Options,
    ) -> Result<Self, StartError> {
        (0..engine.slots()).for_each(|slot| engine.cancel(slot));
        let budget = options.prefix_cache_bytes;
        let prefix = match &options.prefix_cache_file {
            _ if budget == 0 => None,
            None => Some(PrefixCache::new(budget)),
            Some(path) => Some(load(&mut engine, budget, path)?),
        };
        Ok(Self {
            slots: (0..engine.slots()).map(|_| None).collect(),
            prefix,
            engine,
            tokenizer,
            options,
            queue: VecDeque::new(),
            left: (0, 0),
            decodes: 0,
            failing: false,
            prefix_use: PrefixUse::default(),
            totals: Totals::default(),
        })
    }

    /// Writes the prefix cache to its file, where it has one.
    pub fn save(&self) {
        let (Some(prefix), Some(path)) = (&self.prefix, &self.options.prefix_cache_file) else {
            return;
        };
        match prefix.save(path, &owner(&self.engine)) {
            Ok(()) => tracing::info!(
                checkpoints = prefix.checkpoints(),
                "the prefix cache is saved"
            ),
            Err(error) => tracing::error!(%error, "the prefix cache is lost"),
        }
    }

    pub fn into_engine(self) -> Engine {
        self.engine
    }

    /// Queues a request that was checked.
    pub fn push(&mut self, job: Job) {
        self.totals.submitted += 1;
        self.queue.push_back(job);
    }

    /// Whether nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.slots.iter().all(Option::is_none)
    }

    /// Ends everything.
    pub fn stop(&mut self) {
        for slot in 0..self.slots.len() {
            self.end(slot, Ended::Stopped);
        }
        while let Some(job) = self.queue.pop_front() {
            self.refuse(job, Ended::Stopped);
        }
    }

    /// Ends a request of the queue before it has a slot.
    fn refuse(&mut self, job: Job, ended: Ended) {
        self.leaves(&job);
        self.totals.finished += 1;
        job.end(ended);
    }

    /// Counts a request that is no longer in the queue.
    fn leaves(&mut self, job: &Job) {
        self.left.0 += 1;
        self.left.1 += job.request.prompt.len();
    }

    /// Ends what is over, fills free slots, runs a chunk or a decode step and tells what came of it.
    pub fn step(&mut self) {
        self.reap();
        self.admit();
        let ready = (0..self.slots.len()).any(|slot| self.engine.decodes(slot));
        let prompt = self.next_prompt();
        let started = Instant::now();
        match prompt {
            Some(slot) if !ready || self.decodes == 0 => {
                self.decodes = self.options.decode_steps_per_chunk.get();
                self.prefill(slot);
                self.totals.prefill_steps += 1;
                self.totals.prefill_time += started.elapsed();
            }
            _ if ready => {
                self.decodes = self.decodes.saturating_sub(1);
                let ran = self.engine.decode();
                self.after(ran);
                self.totals.decode_steps += 1;
                self.totals.decode_time += started.elapsed();
            }
            // A sequence that no step can go on with is never left to wait.
            _ => (0..self.slots.len()).for_each(|slot| {
                self.end(slot, Ended::Failed("the engine has nothing to run".into()))
            }),
        }
    }

    /// Ends sequences that nobody waits for any more.
    fn reap(&mut self) {
        let now = Instant::now();
        for slot in 0..self.slots.len() {
            let over = self.slots[slot].as_ref();
            if let Some(ended) = over.and_then(|sequence| sequence.job.over(now)) {
                self.end(slot, ended);
            }
        }
        if self.queue.iter().any(|job| job.over(now).is_some()) {
            for job in std::mem::take(&mut self.queue) {
                match job.over(now) {
                    None => self.queue.push_back(job),
                    Some(ended) => self.refuse(job, ended),
                }
            }
        }
    }

    /// Gives free slots to requests that wait.
    fn admit(&mut self) {
        while let Some(slot) = self.engine.free_slot() {
            let Some(job) = self.queue.pop_front() else {
                return;
            };
            match Sampler::new(&job.request.sampling) {
                Ok(sampler) => {
                    self.leaves(&job);
                    let sequence = Sequence::new(job, sampler, self.tokenizer.as_ref());
                    self.slots[slot] = Some(sequence);
                    self.begin(slot);
                }
                Err(error) => self.refuse(job, Ended::Failed(error.to_string())),
            }
        }
    }

    /// Begins the sequence in a slot that the engine has free.
    fn begin(&mut self, slot: usize) {
        let Some(sequence) = &mut self.slots[slot] else {
            return;
        };
        let request = &sequence.job.request;
        let begun = match &request.state {
            None => self.engine.add(slot, &request.prompt),
            Some(state) => {
                let decodes = self.engine.limits().check_decode().is_ok();
                let written = self.engine.write_state(slot, state);
                written.and_then(|()| match request.prompt[..] {
                    // As the sequence that left the state would have run it.
                    [token] if decodes => {
                        self.totals.prompt_tokens += 1;
                        self.engine.feed(slot, token)
                    }
                    _ => self.engine.extend(slot, &request.prompt),
                })
            }
        };
        match begun {
            Ok(()) => sequence.plan = self.engine.chunks(slot).iter().rev().copied().collect(),
            // A backend's error is none of the request's: it begins again, as after a step.
            Err(EngineError::Backend(error)) if !matches!(error, BackendError::State(_)) => {
                self.after(Err(error.into()));
            }
            Err(error) => self.end(slot, Ended::Failed(error.to_string())),
        }
    }

    /// The slot whose prompt goes on: the one with the fewest chunks left, but none is passed over for ever.
    fn next_prompt(&mut self) -> Option<usize> {
        let slots = self.slots.iter().enumerate();
        let waiting = slots.filter_map(|(slot, sequence)| {
            let left = self.engine.chunks(slot).len();
            let passed = sequence.as_ref()?.passed;
            (left > 0).then_some((left.saturating_sub(passed), slot))
        });
        waiting.min().map(|(_, slot)| slot)
    }

    /// Runs the next chunk of the prompt in `slot`, or goes past it and those after it.
    fn prefill(&mut self, slot: usize) {
        for (other, sequence) in self.slots.iter_mut().enumerate() {
            let Some(sequence) = sequence else { continue };
            if other == slot {
                sequence.passed = 0;
            } else if !self.engine.chunks(other).is_empty() {
                sequence.passed += 1;
            }
        }
        match self.skip(slot) {
            Ok(Some(logits)) => return self.pick(slot, &logits),
            Ok(None) => {}
            Err(error) if self.engine.holds(slot) => {
                tracing::warn!(%error, "a prefix is not taken over; the prompt runs");
                if let Some(sequence) = &mut self.slots[slot] {
                    sequence.runs_all = true;
                }
            }
            Err(error) => return self.after(Err(error)),
        }
        let before = self.engine.past_length(slot);
        let ran = self.engine.prefill_slot(slot);
        if let Ok(Ran::Prefill { tokens, .. }) = ran {
            self.totals.prompt_tokens += tokens as u64;
            self.scores(slot, before, tokens);
            self.keep(slot, before);
        }
        self.after(ran);
    }

    /// Goes past chunks of the prompt in `slot` that the prefix cache has; the logits after the prompt where
    /// they were all of it.
    fn skip(&mut self, slot: usize) -> Result<Option<Box<[f32]>>, EngineError> {
        let (Some(prefix), Some(sequence)) = (&mut self.prefix, &mut self.slots[slot]) else {
            return Ok(None);
        };
        let request = &sequence.job.request;
        if sequence.runs_all {
            return Ok(None);
        }
        let past = self.engine.past_length(slot);
        let first_time = !sequence.restarted;
        if past == 0 && first_time {
            self.prefix_use.queried_tokens += request.prompt.len() as u64;
        }
        let Some(hit) = prefix.get(&request.prompt, &sequence.plan, past) else {
            return Ok(None);
        };
        let depth = hit.deltas.last().map_or(past, |last| last.to);
        self.engine.skip(slot, &hit.deltas)?;
        let logits = (depth == request.prompt.len()).then(|| hit.logits.into());
        if first_time {
            sequence.cached += depth - past;
            self.prefix_use.hit_tokens += (depth - past) as u64;
        }
        Ok(logits)
    }

    /// Takes the logits of a chunk of the prompt in `slot`, of which `past` tokens had run.
    fn scores(&mut self, slot: usize, past: usize, tokens: usize) {
        let Some(sequence) = &mut self.slots[slot] else {
            return;
        };
        if !sequence.scores_prompt() {
            return;
        }
        for index in 0..tokens {
            if let Some(logits) = self.engine.logits_at(slot, index) {
                sequence.prompt_logits(past - sequence.job.request.past() + index, logits);
            }
        }
    }

    /// Has the prefix cache take what the chunk that began after `past` tokens has left in `slot`.
    fn keep(&mut self, slot: usize, past: usize) {
        let (Some(prefix), Some(sequence)) = (&mut self.prefix, &self.slots[slot]) else {
            return;
        };
        if sequence.job.request.state.is_some() {
            return;
        }
        let done = sequence.plan.len() - self.engine.chunks(slot).len();
        let (done, prompt) = (&sequence.plan[..done], &sequence.job.request.prompt);
        let Some(last) = done.last().map(|chunk| chunk.tokens) else {
            return;
        };
        let Some(room) = prefix.room(prompt, done) else {
            return;
        };
        let bytes = self.engine.session().delta_bytes(past..past + last);
        let logits = self.engine.logits_at(slot, last - 1);
        // One that is no number is this sequence's own matter.
        let Some(logits) = logits.filter(|logits| finite(logits).is_ok()) else {
            return;
        };
        if checkpoint_bytes(bytes, last, logits.len()) > room {
            return;
        }
        let logits = logits.into();
        // A copy that fails costs the cache this checkpoint, and the prompt nothing.
        if let Ok(delta) = self.engine.read_delta(slot, past) {
            prefix.insert(prompt, done, delta, logits);
        }
    }

    /// What a step leaves: tokens to pick, or sequences to run again.
    fn after(&mut self, ran: Result<Ran, EngineError>) {
        self.failing = ran.is_err();
        if let Err(error) = ran {
            return self.recover(&error);
        }
        for slot in 0..self.slots.len() {
            if let Some(picked) = self.engine.logits(slot).and_then(|logits| {
                let sequence = self.slots[slot].as_mut()?;
                Some(sequence.next(logits, self.engine.limits()))
            }) {
                self.give(slot, picked);
            }
        }
    }

    /// Begins what a backend error has lost again.
    fn recover(&mut self, error: &EngineError) {
        self.totals.backend_errors += 1;
        tracing::error!(%error, "the step failed; its sequences are run again");
        for slot in 0..self.slots.len() {
            let lost = !self.engine.holds(slot);
            let Some(sequence) = self.slots[slot].as_mut().filter(|_| lost) else {
                continue;
            };
            if sequence.replays >= self.options.replays {
                self.end(slot, Ended::Failed(error.to_string()));
                continue;
            }
            sequence.start_over();
            self.totals.replayed += 1;
            self.begin(slot);
        }
    }

    /// Gives the sequence in `slot` the token after `logits`.
    fn pick(&mut self, slot: usize, logits: &[f32]) {
        if let Some(sequence) = &mut self.slots[slot] {
            let picked = sequence.next(logits, self.engine.limits());
            self.give(slot, picked);
        }
    }

    /// Gives the sequence in `slot` its next token, or ends it.
    fn give(&mut self, slot: usize, picked: Result<u32, Ended>) {
        let fed = picked.and_then(|token| {
            let fed = self.engine.feed(slot, token);
            fed.map_err(|error| Ended::Failed(error.to_string()))
        });
        if let Err(ended) = fed {
            self.end(slot, ended);
        }
    }

    fn end(&mut self, slot: usize, ended: Ended) {
        let past = self.engine.past_length(slot);
        let kept = self.slots[slot].as_ref();
        let kept = kept.filter(|sequence| sequence.keeps_state(past, &ended));
        let state = kept.and_then(|_| {
            let state = self.engine.read_state(slot);
            state
                .inspect_err(|error| tracing::error!(%error, "a state is lost"))
                .ok()
        });
        self.engine.cancel(slot);
        if let Some(sequence) = self.slots[slot].take() {
            self.totals.finished += 1;
            self.totals.new_tokens += sequence.tokens.len() as u64;
            sequence.end(ended, state);
        }
    }

    /// What is going on.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        self.report(&mut snapshot);
        snapshot
    }

    /// Brings `snapshot` up to date, but for what the core does not know.
    pub fn report(&self, snapshot: &mut Snapshot) {
        let engine = &self.engine;
        let views = self.slots.iter().enumerate().map(|(slot, sequence)| {
            let Some(sequence) = sequence else {
                return SlotView::FREE;
            };
            let (prefill, past) = (!engine.chunks(slot).is_empty(), engine.past_length(slot));
            SlotView {
                activity: match () {
                    () if sequence.replaying() => Activity::Replay,
                    () if prefill => Activity::Prefill,
                    () => Activity::Decode,
                },
                request: sequence.job.id,
                prompt_tokens: sequence.job.request.prompt.len(),
                cached_tokens: sequence.cached,
                past_tokens: past,
                new_tokens: sequence.tokens.len(),
                age: sequence.job.submitted.elapsed(),
            }
        });
        snapshot.slots.clear();
        snapshot.slots.extend(views);
        let room = engine.limits().max_seq_len * self.slots.len();
        let used: usize = snapshot.slots.iter().map(|slot| slot.past_tokens).sum();
        snapshot.cache_use = used as f64 / room.max(1) as f64;
        snapshot.failing = self.failing && !self.is_idle();
        snapshot.totals.clone_from(&self.totals);
        let running: usize = snapshot.slots.iter().map(|slot| slot.new_tokens).sum();
        snapshot.totals.new_tokens += running as u64;
        snapshot.prefix.clone_from(&self.prefix_use);
        if let Some(prefix) = &self.prefix {
            let own = &mut snapshot.prefix;
            (own.budget_bytes, own.bytes) = (prefix.budget(), prefix.bytes());
            (own.checkpoints, own.evicted) = (prefix.checkpoints(), prefix.evicted());
        }
    }

    /// Takes how many requests have left the queue, and the tokens of their prompts.
    pub fn take_left(&mut self) -> (usize, usize) {
        std::mem::take(&mut self.left)
    }
}
