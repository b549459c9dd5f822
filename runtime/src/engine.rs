//! Sequences in the slots of a session, step by step.
//!
//! What calls it decides who runs: it puts sequences into free slots, steps, takes logits, and says which
//! token comes next. [`generate`](crate::generate()) is one such caller, a server another.
//!
//! ```
//! use ratplus_runtime::engine::{Engine, EngineError, Ran};
//!
//! /// The likeliest continuation of one prompt, beside whatever else runs.
//! fn greedy(engine: &mut Engine, prompt: &[u32], count: usize) -> Result<Vec<u32>, EngineError> {
//!     let mut tokens = Vec::new();
//!     let Some(slot) = engine.free_slot() else {
//!         return Ok(tokens);
//!     };
//!     engine.add(slot, prompt)?;
//!     while tokens.len() < count && engine.step()? != Ran::Nothing {
//!         // Nothing until the prompt is through.
//!         let Some(logits) = engine.logits(slot) else {
//!             continue;
//!         };
//!         let likeliest = (0..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1));
//!         let Some((token, _)) = likeliest else { break };
//!         tokens.push(token);
//!         engine.feed(slot, token)?;
//!     }
//!     engine.cancel(slot);
//!     Ok(tokens)
//! }
//! ```

use crate::backend::{BackendError, Session, SlotState, StateDelta};
use crate::planner::{self, Chunk, PlanError, plan};
use ratplus_graphs::package::Manifest;

/// What a sequence of a package may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Static lengths of engines, ascending.
    pub lengths: Vec<usize>,
    /// Tokens of a sequence in all.
    pub max_seq_len: usize,
    /// Tokens are below.
    pub vocab_size: usize,
}

impl From<&Manifest> for Limits {
    fn from(manifest: &Manifest) -> Self {
        Self {
            lengths: manifest.lengths(),
            max_seq_len: manifest.max_seq_len,
            vocab_size: manifest.model.vocab_size,
        }
    }
}

impl From<&Session> for Limits {
    fn from(session: &Session) -> Self {
        Self {
            lengths: session.lengths().into(),
            max_seq_len: session.max_seq_len(),
            vocab_size: session.vocab_size(),
        }
    }
}

impl Limits {
    /// Whether `tokens` can run after `past` others.
    ///
    /// # Errors
    /// There are none or too many, or one is outside the vocabulary.
    pub fn check(&self, past: usize, tokens: &[u32]) -> Result<(), EngineError> {
        self.check_length(past, tokens.len())?;
        let outside = |&token: &u32| token as usize >= self.vocab_size;
        match tokens.iter().position(outside) {
            None => Ok(()),
            Some(index) => Err(EngineError::Refused(format!(
                "token {index}: expected 0 to {}, found {}",
                self.vocab_size - 1,
                tokens[index]
            ))),
        }
    }

    /// Whether `tokens` tokens can run after `past` others.
    ///
    /// # Errors
    /// There are none or too many.
    pub fn check_length(&self, past: usize, tokens: usize) -> Result<(), EngineError> {
        let room = self.max_seq_len.saturating_sub(past);
        Ok(planner::check(tokens, &self.lengths, room)?)
    }

    /// Whether sequences can be longer than what prompts fill.
    ///
    /// # Errors
    /// There is no engine for single tokens.
    pub fn check_decode(&self) -> Result<(), EngineError> {
        match self.lengths.contains(&1) {
            true => Ok(()),
            false => Err(EngineError::Refused(format!(
                "generation needs the engine of length 1, the session has {:?}",
                self.lengths
            ))),
        }
    }
}

/// What an engine was asked for and cannot do; nothing has changed but after [`Backend`](Self::Backend).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Tokens that do not fit.
    #[error(transparent)]
    Length(#[from] PlanError),
    /// A token outside the vocabulary, a slot that cannot take what it is given, or no engine for single
    /// tokens: what was expected and found.
    #[error("{0}")]
    Refused(String),
    /// A step failed: its sequences are lost and their slots free. Or a state was not read or written.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// What a step ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ran {
    /// Nothing: no sequence has a token that has not run.
    Nothing,
    /// A chunk of a prompt.
    Prefill {
        /// Whose.
        slot: usize,
        /// How many tokens.
        tokens: usize,
    },
    /// One token each of so many sequences.
    Decode {
        /// How many.
        slots: usize,
    },
}

/// A slot and what is left to run in it.
#[derive(Default)]
struct Slot {
    /// Whether a sequence is in it.
    taken: bool,
    /// Whether the session holds state of it.
    started: bool,
    /// When its tokens came, against others.
    turn: u64,
    /// Tokens of which the last `left` have not run.
    prompt: Vec<u32>,
    left: usize,
    /// Chunks of those, last first.
    chunks: Vec<Chunk>,
    /// The token that follows.
    next: Option<u32>,
    /// Whether the last step has left its logits.
    ready: bool,
}

impl Slot {
    fn state(&self) -> &'static str {
        match () {
            () if !self.taken => "none",
            () if self.left > 0 => "one whose prompt has not run",
            () if self.next.is_some() => "one whose next token has not run",
            () => "one that waits for a token",
        }
    }
}

/// A session and the sequences in its slots.
pub struct Engine {
    session: Session,
    limits: Limits,
    slots: Vec<Slot>,
    turns: u64,
    input_ids: Vec<i64>,
    seq_length: Vec<i64>,
}

impl Engine {
    /// With no sequences.
    pub fn new(session: Session) -> Self {
        let batch = session.batch();
        Self {
            limits: Limits::from(&session),
            slots: (0..batch).map(|_| Slot::default()).collect(),
            turns: 0,
            input_ids: vec![0; batch],
            seq_length: vec![0; batch],
            session,
        }
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// What sequences may be.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How many sequences may run at once.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The first slot without a sequence.
    pub fn free_slot(&self) -> Option<usize> {
        self.slots.iter().position(|slot| !slot.taken)
    }

    /// Whether no sequence has a token that has not run.
    pub fn is_idle(&self) -> bool {
        let mut slots = self.slots.iter();
        slots.all(|slot| slot.left == 0 && slot.next.is_none())
    }

    /// Begins a sequence in a free slot; its logits are there once all of `prompt` has run.
    ///
    /// # Errors
    /// The slot is not free, or the prompt does not fit.
    pub fn add(&mut self, slot: usize, prompt: &[u32]) -> Result<(), EngineError> {
        self.expect(slot, "no sequence", |slot| !slot.taken)?;
        self.limits.check(0, prompt)?;
        self.session.reset(slot);
        self.push(slot, prompt)
    }

    /// Adds tokens to a sequence that waits for one; logits are there once all have run.
    ///
    /// # Errors
    /// The slot has no such sequence, or the tokens do not fit.
    pub fn extend(&mut self, slot: usize, tokens: &[u32]) -> Result<(), EngineError> {
        self.expect_waiting(slot)?;
        self.limits.check(self.session.past_length(slot), tokens)?;
        self.push(slot, tokens)
    }

    /// The token that follows in a sequence that waits for one; the next decode step runs it.
    ///
    /// # Errors
    /// The slot has no such sequence, which may be full; or the token is outside the vocabulary.
    pub fn feed(&mut self, slot: usize, token: u32) -> Result<(), EngineError> {
        self.expect_waiting(slot)?;
        self.limits.check_decode()?;
        self.limits
            .check(self.session.past_length(slot), &[token])?;
        self.slots[slot].next = Some(token);
        Ok(())
    }

    /// Ends the sequence in `slot`, wherever it is, and frees the slot.
    pub fn cancel(&mut self, slot: usize) {
        let Some(slot) = self.slots.get_mut(slot) else {
            return;
        };
        (slot.taken, slot.started, slot.ready) = (false, false, false);
        (slot.left, slot.next) = (0, None);
        slot.chunks.clear();
    }

    /// Runs a chunk of the prompt that has waited longest, or where there is none, a token of every
    /// sequence that has one.
    ///
    /// # Errors
    /// The backend failed.
    pub fn step(&mut self) -> Result<Ran, EngineError> {
        match self.prefill()? {
            Ran::Nothing => self.decode(),
            ran => Ok(ran),
        }
    }

    /// Runs a chunk of the prompt that has waited longest, in its slot alone.
    ///
    /// # Errors
    /// The backend failed.
    pub fn prefill(&mut self) -> Result<Ran, EngineError> {
        let waiting = self.slots.iter().enumerate();
        let waiting = waiting.filter(|(_, slot)| !slot.chunks.is_empty());
        match waiting.min_by_key(|(_, slot)| slot.turn) {
            Some((index, _)) => self.prefill_slot(index),
            None => Ok(Ran::Nothing),
        }
    }

    /// Runs the next chunk of the prompt in `slot`, if it has one.
    ///
    /// # Errors
    /// The backend failed.
    pub fn prefill_slot(&mut self, index: usize) -> Result<Ran, EngineError> {
        if self.chunks(index).is_empty() {
            return Ok(Ran::Nothing);
        }
        self.take_back();
        let slot = &mut self.slots[index];
        let Some(Chunk { engine_len, tokens }) = slot.chunks.pop() else {
            return Ok(Ran::Nothing);
        };
        let given = &slot.prompt[slot.prompt.len() - slot.left..][..tokens];
        let _span = tracing::debug_span!("prefill", slot = index, engine_len, tokens).entered();
        let ran = self.session.run_slot(index, engine_len, given);
        let ran = ran.map(|_| ());
        (slot.left, slot.started) = (slot.left - tokens, true);
        slot.ready = slot.chunks.is_empty();
        self.or_lost(ran, |slot, _| slot == index)?;
        Ok(Ran::Prefill {
            slot: index,
            tokens,
        })
    }

    /// Runs a token of every sequence that has one.
    ///
    /// # Errors
    /// The backend failed.
    pub fn decode(&mut self) -> Result<Ran, EngineError> {
        if self.slots.iter().all(|slot| slot.next.is_none()) {
            return Ok(Ran::Nothing);
        }
        self.take_back();
        let inputs = self.input_ids.iter_mut().zip(&mut self.seq_length);
        let mut slots = 0;
        for (slot, (id, length)) in self.slots.iter_mut().zip(inputs) {
            let next = slot.next.take();
            slot.ready = next.is_some();
            *id = next.unwrap_or(0).into();
            *length = slot.ready.into();
            slots += usize::from(slot.ready);
        }
        let ran = self.session.run(1, &self.input_ids, &self.seq_length);
        let ran = ran.map(|_| ());
        self.or_lost(ran, |_, slot| slot.ready)?;
        Ok(Ran::Decode { slots })
    }

    /// Logits `[V]` after the last token of `slot`, until the next step; `None` where the last step left
    /// none. They may hold what is no number, see [`Step::checked_logits`](crate::backend::Step::checked_logits).
    pub fn logits(&self, slot: usize) -> Option<&[f32]> {
        if !self.slots.get(slot)?.ready {
            return None;
        }
        self.session.last_step().ok()?.last_logits(slot)
    }

    /// The same after token `index` of the chunk that the last step ran in `slot`; `None` too where the
    /// package returns the last token's only.
    pub fn logits_at(&self, slot: usize, index: usize) -> Option<&[f32]> {
        let started = self.slots.get(slot)?.started;
        started.then(|| self.session.last_step().ok()?.logits_at(slot, index))?
    }

    /// Whether `slot` has a sequence. A step that fails may cost some theirs.
    pub fn holds(&self, slot: usize) -> bool {
        self.slots.get(slot).is_some_and(|slot| slot.taken)
    }

    /// Whether the sequence in `slot` has a token for the next [`decode`](Self::decode).
    pub fn decodes(&self, slot: usize) -> bool {
        self.slots.get(slot).is_some_and(|slot| slot.next.is_some())
    }

    /// Tokens of the sequence in `slot` that have run.
    pub fn past_length(&self, slot: usize) -> usize {
        match self.slots.get(slot) {
            Some(found) if found.started => self.session.past_length(slot),
            _ => 0,
        }
    }

    /// Chunks of the prompt in `slot` that have not run, the last first.
    pub fn chunks(&self, slot: usize) -> &[Chunk] {
        self.slots.get(slot).map_or(&[], |slot| &slot.chunks)
    }

    /// Copies what the tokens of `slot` from `from` on have left there.
    ///
    /// # Errors
    /// There are none, or the backend failed.
    pub fn read_delta(&mut self, slot: usize, from: usize) -> Result<StateDelta, EngineError> {
        self.expect(slot, "a sequence", |slot| slot.taken)?;
        Ok(self.session.read_delta(slot, from)?)
    }

    /// Goes past the next chunks of the prompt in `slot`, of which `deltas` are what is left, as if they had run.
    ///
    /// # Errors
    /// They do not end where one of those chunks does, do not follow what has run, or are of another package; the
    /// prompt is where it was. Or the backend failed.
    pub fn skip(&mut self, slot: usize, deltas: &[&StateDelta]) -> Result<(), EngineError> {
        let goal = deltas.last().map_or(0, |delta| delta.to);
        let mut done = self.past_length(slot);
        let mut chunks = self.chunks(slot).len();
        while done < goal && chunks > 0 {
            chunks -= 1;
            done += self.slots[slot].chunks[chunks].tokens;
        }
        if done != goal || goal == 0 {
            let wrong = format!("slot {slot}: expected the end of a chunk, found token {goal}");
            return Err(EngineError::Refused(wrong));
        }
        let written = self.session.write_deltas(slot, deltas);
        let place = &mut self.slots[slot];
        if written.is_ok() {
            place.started = true;
            place.left = place.chunks[..chunks]
                .iter()
                .map(|chunk| chunk.tokens)
                .sum();
            place.chunks.truncate(chunks);
        }
        self.or_lost(written, |_, _| false)
    }

    /// Copies what the sequence in `slot` has left there, whose tokens have all run or not.
    ///
    /// # Errors
    /// There is none, or the backend failed.
    pub fn read_state(&mut self, slot: usize) -> Result<SlotState, EngineError> {
        self.expect(slot, "a sequence", |slot| slot.taken)?;
        Ok(self.session.read_state(slot)?)
    }

    /// Begins a sequence in a free slot with what another has left; it waits for a token.
    ///
    /// # Errors
    /// The slot is not free, or the state is of another package or kind of backend.
    pub fn write_state(&mut self, slot: usize, state: &SlotState) -> Result<(), EngineError> {
        self.expect(slot, "no sequence", |slot| !slot.taken)?;
        self.session.write_state(slot, state)?;
        let slot = &mut self.slots[slot];
        (slot.taken, slot.started) = (true, state.past_length > 0);
        Ok(())
    }

    fn push(&mut self, index: usize, tokens: &[u32]) -> Result<(), EngineError> {
        let limits = &self.limits;
        let mut chunks = plan(tokens.len(), &limits.lengths, limits.max_seq_len)?;
        chunks.reverse();
        self.turns += 1;
        let slot = &mut self.slots[index];
        (slot.taken, slot.turn, slot.left) = (true, self.turns, tokens.len());
        slot.prompt.clear();
        slot.prompt.extend(tokens);
        slot.chunks = chunks;
        Ok(())
    }

    /// What the last step left is no longer to be had.
    fn take_back(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.ready = false);
    }

    /// A run that failed has cost its sequences theirs, and those whose state it took along.
    fn or_lost(
        &mut self,
        ran: Result<(), BackendError>,
        of_run: impl Fn(usize, &Slot) -> bool,
    ) -> Result<(), EngineError> {
        let Err(error) = ran else { return Ok(()) };
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let gone = slot.started && self.session.past_length(index) == 0;
            if gone || of_run(index, slot) {
                self.cancel(index);
            }
        }
        Err(error.into())
    }

    fn expect_waiting(&self, slot: usize) -> Result<(), EngineError> {
        self.expect(slot, "a sequence that waits for a token", |slot| {
            slot.taken && slot.left == 0 && slot.next.is_none()
        })
    }

    fn expect(
        &self,
        slot: usize,
        expected: &str,
        fits: impl Fn(&Slot) -> bool,
    ) -> Result<(), EngineError> {
        let found = match self.slots.get(slot) {
            Some(found) if fits(found) => return Ok(()),
            Some(found) => found.state(),
            None => "no such slot",
        };
        let wrong = format!("slot {slot}: expected {expected}, found {found}");
        Err(EngineError::Refused(wrong))
    }
}
