//! What a slot holds, as bytes.

use super::{BackendError, Session};
use ratplus_graphs::none_wrong;
use ratplus_graphs::package::{Manifest, WEIGHTS_FILE};

/// A sequence after a number of tokens: with it, another slot of any session of the same package goes on
/// as this one would have, on the same backend bit for bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// Of the package.
    pub fingerprint: String,
    /// Tokens that the sequence has.
    pub past_length: usize,
    /// Of every state tensor, in the order of [`Session::state_buffers`], the slot's part: rows as
    /// [`ratplus_graphs::cache`] has them, in the package's type (tract: f32). What the sequence has not
    /// written, or cannot see any more, is zero: nothing in it is another's.
    pub tensors: Vec<Vec<u8>>,
}

impl SlotState {
    /// Bytes of all tensors.
    pub fn bytes(&self) -> usize {
        self.tensors.iter().map(Vec::len).sum()
    }
}

/// What packages have in common whose states are the same: weights, model, types and longest sequence.
pub(super) fn fingerprint(manifest: &Manifest) -> String {
    let weights = manifest.files.get(WEIGHTS_FILE);
    let weights = weights.map_or("", |info| info.blake3.as_str());
    let shape = manifest.shape();
    let text = format!(
        "{weights} {:?} {:?} {} {} {}",
        manifest.model, manifest.precision, shape.dtype, shape.cache_dtype, shape.max_seq_len
    );
    blake3::hash(text.as_bytes()).to_string()
}

impl Session {
    /// What a state has to be of: sessions with the same take one another's, on one kind of backend.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Copies what `slot` holds.
    ///
    /// # Errors
    /// The GPU failed.
    pub fn read_state(&mut self, slot: usize) -> Result<SlotState, BackendError> {
        let past_length = self.past_length(slot);
        let mut written = vec![Vec::new(); self.state_buffers().len()];
        if past_length > 0 {
            for piece in self.pieces(0..past_length) {
                written[piece.state].push(piece.bytes);
            }
        }
        let mut tensors = Vec::with_capacity(written.len());
        for (state, mut written) in written.into_iter().enumerate() {
            let mut bytes = vec![0; self.driver.slot_bytes(state)];
            self.driver.read_state(state, slot, 0, &mut bytes)?;
            written.sort_unstable_by_key(|piece| piece.start);
            let mut at = 0;
            for piece in written {
                bytes[at..piece.start].fill(0);
                at = piece.end;
            }
            bytes[at..].fill(0);
            tensors.push(bytes);
        }
        Ok(SlotState {
            fingerprint: self.fingerprint.clone(),
            past_length,
            tensors,
        })
    }

    /// Bytes of the tensors of a [`SlotState`].
    pub(crate) fn slot_sizes(&self) -> Vec<usize> {
        let states = 0..self.state_buffers().len();
        states.map(|state| self.driver.slot_bytes(state)).collect()
    }

    /// Has `slot` hold `state` from now on.
    ///
    /// # Errors
    /// [`BackendError::State`]: it is of another package, or of a backend that keeps states in another
    /// type; the slot is as it was. After any other error the slot starts over.
    pub fn write_state(&mut self, slot: usize, state: &SlotState) -> Result<(), BackendError> {
        let problems = self.unfit(state);
        none_wrong(problems).map_err(BackendError::State)?;
        self.past_length[slot] = 0;
        for (index, bytes) in state.tensors.iter().enumerate() {
            self.driver.write_state(index, slot, 0, bytes)?;
        }
        self.past_length[slot] = state.past_length as i64;
        Ok(())
    }

    /// Why the state is none of this session's.
    fn unfit(&self, state: &SlotState) -> Vec<String> {
        let mut problems = Vec::new();
        if state.fingerprint != self.fingerprint {
            problems.push(format!(
                "fingerprint: expected this package's, {}, found {}",
                self.fingerprint, state.fingerprint
            ));
            return problems;
        }
        if state.past_length > self.max_seq_len() {
            problems.push(format!(
                "past_length: expected at most {}, found {}",
                self.max_seq_len(),
                state.past_length
            ));
        }
        let buffers = self.state_buffers();
        if state.tensors.len() != buffers.len() {
            problems.push(format!(
                "tensors: expected {}, found {}",
                buffers.len(),
                state.tensors.len()
            ));
        }
        for (index, (buffer, bytes)) in buffers.iter().zip(&state.tensors).enumerate() {
            let expected = self.driver.slot_bytes(index);
            if bytes.len() != expected {
                problems.push(format!(
                    "{}: expected {expected} bytes a slot on {}, found {}",
                    buffer.past,
                    self.backend(),
                    bytes.len()
                ));
            }
        }
        problems
    }
}
