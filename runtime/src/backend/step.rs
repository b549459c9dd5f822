use super::{NonFiniteLogits, Session, finite};

/// The results of one run, until the next.
pub struct Step<'a> {
    pub(super) session: &'a Session,
    pub(super) engine: usize,
}

impl<'a> Step<'a> {
    /// Static length of the engine that ran.
    fn length(&self) -> usize {
        self.session.engines[self.engine].seq_len
    }

    /// All logits: `[B, V]` at each slot's last valid token, or `[B, L, V]`. Rows of padding and
    /// of idle slots mean nothing.
    pub fn logits(&self) -> &'a [f32] {
        self.session.driver.logits(self.engine)
    }

    /// Shape of [`logits`](Self::logits).
    pub fn logits_shape(&self) -> Vec<usize> {
        let (session, length) = (self.session, self.length());
        match session.returns_all_logits() {
            false => vec![session.batch(), session.vocab_size()],
            true => vec![session.batch(), length, session.vocab_size()],
        }
    }

    /// Logits `[V]` after token `index` of the chunk of `slot`; `None` for padding, idle slots, and
    /// where the package returns the last token's only.
    pub fn logits_at(&self, slot: usize, index: usize) -> Option<&'a [f32]> {
        let length = usize::try_from(*self.session.seq_length.get(slot)?).ok()?;
        if index >= length {
            return None;
        }
        let row = match self.session.returns_all_logits() {
            false => (index + 1 == length).then_some(slot)?,
            true => slot * self.length() + index,
        };
        let vocab_size = self.session.vocab_size();
        self.logits().get(row * vocab_size..(row + 1) * vocab_size)
    }

    /// Logits `[V]` after the last token of `slot`; `None` for an idle slot.
    pub fn last_logits(&self, slot: usize) -> Option<&'a [f32]> {
        let length = usize::try_from(*self.session.seq_length.get(slot)?).ok()?;
        self.logits_at(slot, length.checked_sub(1)?)
    }

    /// The slot's result: its [`last_logits`](Self::last_logits) where all are numbers, or which is
    /// not; `None` for an idle slot.
    ///
    /// A step that came back without an error may hold slots that failed and slots that did not: a
    /// damaged weight or state spoils the sequence that meets it, and no other.
    pub fn checked_logits(&self, slot: usize) -> Option<Result<&'a [f32], NonFiniteLogits>> {
        let length = usize::try_from(*self.session.seq_length.get(slot)?).ok()?;
        self.checked_logits_at(slot, length.checked_sub(1)?)
    }

    /// [`logits_at`](Self::logits_at) in the same way. A token that is not a number can spoil those
    /// before it in its chunk, too: products with a weight of 0.
    pub fn checked_logits_at(
        &self,
        slot: usize,
        index: usize,
    ) -> Option<Result<&'a [f32], NonFiniteLogits>> {
        let logits = self.logits_at(slot, index)?;
        let past = self.session.past_length[slot] - self.session.seq_length[slot];
        let step = past as usize + index + 1;
        Some(finite(logits).map_err(|source| NonFiniteLogits { step, slot, source }))
    }
}
