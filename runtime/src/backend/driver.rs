//! What a backend is to a session.

use super::builder::Opening;
use super::{BackendError, BackendKind, EngineImplementations, OperatorTime, ort};
use std::borrow::Cow;
use std::ops::Range;

/// What an engine is given at a step, for the slots that it runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepInputs<'a> {
    /// `[n, L]`.
    pub input_ids: &'a [i64],
    /// `[n]`.
    pub past_length: &'a [i64],
    /// `[n]`.
    pub seq_length: &'a [i64],
}

/// The engines of a session on one backend, and the state of all slots.
pub(super) trait Driver: Send {
    /// Which implementation ran each custom node of each engine.
    fn implementations(&self) -> &[EngineImplementations];

    /// Whether past and present of a state are the same memory.
    fn in_place(&self) -> bool;

    /// Bytes of one slot's part of a state, as the backend keeps it.
    fn slot_bytes(&self, state: usize) -> usize;

    /// Runs an engine on its slots, the first of which is `slot`. The inputs fit.
    fn run(
        &mut self,
        engine: usize,
        slot: usize,
        inputs: StepInputs<'_>,
    ) -> Result<(), BackendError>;

    /// Logits of all slots that the engine's last runs left: `[B, V]` or `[B, L, V]`.
    fn logits(&self, engine: usize) -> &[f32];

    /// An extra output of all slots in f32; `None` where the backend has none.
    fn tap(&self, engine: usize, index: usize) -> Option<Cow<'_, [f32]>>;

    /// Reads bytes of the slot's part of a state, from `at` on, within [`slot_bytes`](Self::slot_bytes).
    fn read_state(
        &mut self,
        state: usize,
        slot: usize,
        at: usize,
        bytes: &mut [u8],
    ) -> Result<(), BackendError>;

    /// Writes bytes of the slot's part of a state in the same way.
    fn write_state(
        &mut self,
        state: usize,
        slot: usize,
        at: usize,
        bytes: &[u8],
    ) -> Result<(), BackendError>;

    /// See [`inspection::make_resident`](super::inspection::make_resident).
    fn make_resident(&mut self) {}

    /// See [`inspection::end_profile`](super::inspection::end_profile).
    fn end_profile(self: Box<Self>) -> Result<Vec<(String, Vec<OperatorTime>)>, BackendError> {
        Ok(Vec::new())
    }
}

/// What [`open`] asks of the package alone.
pub(super) fn check(opening: &Opening<'_>) -> Result<(), BackendError> {
    match opening.kind {
        BackendKind::OrtCpu | BackendKind::OrtCuda | BackendKind::OrtFallback => {
            ort::check(opening)
        }
        #[cfg(feature = "tensorrt")]
        BackendKind::TensorRt | BackendKind::TensorRtRtx => super::tensorrt::check(opening),
        _ => Ok(()),
    }
}

/// Opens the engines on the backend that is asked for; this build has it.
pub(super) fn open(opening: &Opening<'_>) -> Result<Box<dyn Driver>, BackendError> {
    match opening.kind {
        BackendKind::OrtCpu | BackendKind::OrtCuda | BackendKind::OrtFallback => ort::open(opening),
        #[cfg(feature = "tensorrt")]
        BackendKind::TensorRt | BackendKind::TensorRtRtx => super::tensorrt::open(opening),
        #[cfg(feature = "tract")]
        BackendKind::Tract => super::tract::open(opening),
        #[cfg(not(all(feature = "tensorrt", feature = "tract")))]
        _ => unreachable!("a missing feature was refused"),
    }
}

/// Of each slot, which of two sides holds its state. Engines that update in place have one side.
pub(super) struct Sides {
    of: Vec<usize>,
    in_place: bool,
}

impl Sides {
    pub fn new(batch: usize, in_place: bool) -> Self {
        Self {
            of: vec![0; batch],
            in_place,
        }
    }

    pub fn of(&self, slot: usize) -> usize {
        self.of[slot]
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        if self.in_place { 1 } else { 2 }
    }

    /// The side that a run over `slots` reads, once `copy(slot, from)` has brought over the state of
    /// those on the other; a slot that has seen nothing has none.
    pub fn gather<E>(
        &mut self,
        slots: Range<usize>,
        past_length: &[i64],
        mut copy: impl FnMut(usize, usize) -> Result<(), E>,
    ) -> Result<usize, E> {
        let seen = || {
            slots
                .clone()
                .zip(past_length)
                .filter(|(_, past)| **past > 0)
        };
        let second = seen().filter(|(slot, _)| self.of[*slot] == 1).count();
        let side = usize::from(2 * second > seen().count());
        for (slot, _) in seen() {
            if self.of[slot] != side {
                copy(slot, self.of[slot])?;
            }
        }
        self.of[slots].fill(side);
        Ok(side)
    }

    /// A run has written the other side of `slots`.
    pub fn swap(&mut self, slots: Range<usize>) {
        if !self.in_place {
            self.of[slots].iter_mut().for_each(|side| *side = 1 - *side);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_that_run_apart_are_gathered_with_the_fewest_copies() {
        let mut sides = Sides::new(4, false);
        let mut copied = Vec::new();
        let mut gather = |sides: &mut Sides, slots, past: &[i64]| {
            let found = sides.gather(slots, past, |slot, from| {
                copied.push((slot, from));
                Ok::<_, ()>(())
            });
            (found.unwrap(), std::mem::take(&mut copied))
        };
        assert_eq!(gather(&mut sides, 0..4, &[1; 4]), (0, vec![]));
        for slot in [0, 2, 3] {
            sides.swap(slot..slot + 1);
        }
        assert_eq!(gather(&mut sides, 2..3, &[1]), (1, vec![]));
        // Slot 1 joins the others; then nothing is left to copy.
        assert_eq!(gather(&mut sides, 0..4, &[1; 4]), (1, vec![(1, 0)]));
        sides.swap(0..4);
        assert_eq!(gather(&mut sides, 0..4, &[1; 4]), (0, vec![]));
        // What has seen nothing is brought nowhere.
        sides.swap(1..3);
        assert_eq!(gather(&mut sides, 0..4, &[5, 0, 7, 0]), (0, vec![(2, 1)]));
        sides.swap(0..1);
        assert_eq!(gather(&mut sides, 0..4, &[0; 4]), (0, vec![]));
        let mut one = Sides::new(2, true);
        one.swap(0..1);
        assert_eq!(gather(&mut one, 0..2, &[1; 2]), (0, vec![]));
    }
}
