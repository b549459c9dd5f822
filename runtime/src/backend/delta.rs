//! What a run of tokens adds to what a slot holds.

use super::{BackendError, Session};
use ratplus_graphs::none_wrong;
use ratplus_graphs::package::written_pieces;
use std::ops::Range;

/// What tokens `from..to` of a sequence have left in a slot: the cache rows that hold them, and the
/// recurrence state after them. Those of a whole sequence, one after the other, are its state.
///
/// It has the rows of tokens that a query at `to` or later can see, so that what is long ago takes
/// dilated rows alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDelta {
    /// The first token.
    pub from: usize,
    /// One past the last.
    pub to: usize,
    /// [`written_pieces`], one after the other.
    pub bytes: Vec<u8>,
}

/// A piece of a state, in bytes of the slot's part.
pub(super) struct Piece {
    pub state: usize,
    pub bytes: Range<usize>,
    lasts: Option<usize>,
}

impl Session {
    /// What tokens `from` and later have left in `slot`.
    ///
    /// # Errors
    /// The slot has no such tokens, or the GPU failed.
    pub fn read_delta(&mut self, slot: usize, from: usize) -> Result<StateDelta, BackendError> {
        let to = self.past_length(slot);
        if from >= to {
            let wrong = format!("slot {slot}: expected tokens after the first {from}, found {to}");
            return Err(BackendError::State(vec![wrong]));
        }
        let pieces = self.pieces(from..to);
        let mut bytes = vec![0; pieces.iter().map(|piece| piece.bytes.len()).sum()];
        let mut rest = &mut bytes[..];
        for piece in pieces {
            let (own, more) = rest.split_at_mut(piece.bytes.len());
            let at = piece.bytes.start;
            self.driver.read_state(piece.state, slot, at, own)?;
            rest = more;
        }
        Ok(StateDelta { from, to, bytes })
    }

    /// Has `slot` hold its sequence with `deltas`, what the tokens after its own have left, in order.
    ///
    /// # Errors
    /// [`BackendError::State`]: they do not follow it and one another, or are not of this package and backend;
    /// the slot is as it was. After any other error the slot starts over.
    pub fn write_deltas(
        &mut self,
        slot: usize,
        deltas: &[&StateDelta],
    ) -> Result<(), BackendError> {
        let mut end = self.past_length(slot);
        let mut problems = Vec::new();
        for delta in deltas {
            if delta.from != end || delta.to <= delta.from || delta.to > self.max_seq_len() {
                problems.push(format!(
                    "tokens: expected some from {end} on, {} at most, found {} to {}",
                    self.max_seq_len(),
                    delta.from,
                    delta.to
                ));
                break;
            }
            end = delta.to;
            let expected = self.delta_bytes(delta.from..delta.to);
            if delta.bytes.len() != expected {
                problems.push(format!(
                    "tokens {} to {}: expected {expected} bytes on {}, found {}",
                    delta.from,
                    delta.to,
                    self.backend(),
                    delta.bytes.len()
                ));
            }
        }
        none_wrong(problems).map_err(BackendError::State)?;
        self.past_length[slot] = 0;
        for delta in deltas {
            let mut rest = &delta.bytes[..];
            for piece in self.pieces(delta.from..delta.to) {
                let (own, more) = rest.split_at(piece.bytes.len());
                rest = more;
                // What later deltas write over, or nothing reads.
                if piece.lasts.is_none_or(|tokens| delta.to + tokens >= end) {
                    let at = piece.bytes.start;
                    self.driver.write_state(piece.state, slot, at, own)?;
                }
            }
        }
        self.past_length[slot] = end as i64;
        Ok(())
    }

    /// Bytes of what tokens leave in a slot.
    pub(crate) fn delta_bytes(&self, tokens: Range<usize>) -> usize {
        self.pieces(tokens)
            .iter()
            .map(|piece| piece.bytes.len())
            .sum()
    }

    /// Where what `tokens` have left lies.
    pub(super) fn pieces(&self, tokens: Range<usize>) -> Vec<Piece> {
        let pieces = written_pieces(&self.manifest().model, self.max_seq_len(), tokens);
        let pieces = pieces.into_iter().map(|piece| {
            // A backend may keep another type than the package's.
            let size = self.driver.slot_bytes(piece.state) / piece.of.max(1);
            Piece {
                state: piece.state,
                bytes: piece.elements.start * size..piece.elements.end * size,
                lasts: piece.lasts,
            }
        });
        pieces.collect()
    }
}
