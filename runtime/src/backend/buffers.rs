//! Memory of engines that are bound to it once.

use super::BackendError;
use super::driver::{Sides, StepInputs};
use super::error::failed;
use super::layout::{Field, Layout};
use crate::raw::{CudaError, Memory, Plain};
use half::{bf16, f16};
use ratplus_graphs::ops::ElementType;
use std::borrow::Cow;

/// What errors call the state of all slots.
pub(super) const SEQUENCES: &str = "the sequences";
/// What errors call [`Buffers::begin`] and [`Buffers::give_idle`].
pub(super) const UPLOAD: &str = "copying tokens to the GPU";

/// Inputs and outputs of all engines, and the state of all slots.
pub(super) struct Buffers {
    pub layout: Layout,
    pub memory: Memory,
    pub in_place: bool,
    sides: Sides,
}

impl Buffers {
    /// `memory` has the layout's buffers.
    pub fn new(layout: Layout, memory: Memory, in_place: bool) -> Self {
        Self {
            sides: Sides::new(layout.batch, in_place),
            layout,
            memory,
            in_place,
        }
    }

    /// (first slot, side that is read) of everything that an engine is bound to, in the order of
    /// [`begin`](Self::begin)'s indices.
    pub fn bindings(&self, engine: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let sides = self.sides.count();
        let places = self.layout.places(engine);
        places.flat_map(move |slot| (0..sides).map(move |side| (slot, side)))
    }

    /// Writes what an engine is given at a step at `slot`, and brings its slots to one side; which of
    /// its bindings has to run.
    pub fn begin(
        &mut self,
        engine: usize,
        slot: usize,
        inputs: StepInputs<'_>,
    ) -> Result<usize, CudaError> {
        let (layout, memory) = (&self.layout, &mut self.memory);
        let slots = layout.slots(engine, slot);
        let copy = |slot: usize, from: usize| {
            for state in &layout.states {
                let [from, to] = [from, 1 - from]
                    .map(|side| state.sides[side].part(&(slot..slot + 1), layout.batch));
                let bytes = from.tensor.bytes();
                memory.copy((from.buffer, from.offset), (to.buffer, to.offset), bytes)?;
            }
            Ok(())
        };
        let side = self.sides.gather(slots, inputs.past_length, copy)?;
        self.give(engine, inputs)?;
        Ok(slot / self.layout.engines[engine].batch * self.sides.count() + side)
    }

    /// Writes what an engine is given at a step.
    pub fn give(&mut self, engine: usize, inputs: StepInputs<'_>) -> Result<(), CudaError> {
        let engine = &self.layout.engines[engine];
        for (field, data) in [
            (&engine.input_ids, inputs.input_ids),
            (&engine.past_length, inputs.past_length),
            (&engine.seq_length, inputs.seq_length),
        ] {
            self.memory
                .slice_mut(field.buffer, field.offset, data.len())
                .copy_from_slice(data);
        }
        self.memory.upload(engine.input_ids.buffer)
    }

    /// The run is through.
    pub fn end(&mut self, engine: usize, slot: usize) {
        self.sides.swap(self.layout.slots(engine, slot));
    }

    /// Brings logits and extra outputs of an engine that ran at `slot` to the host.
    pub fn fetch(&mut self, engine: usize, slot: usize) -> Result<(), CudaError> {
        let (layout, slots) = (&self.layout, self.layout.slots(engine, slot));
        let engine = &layout.engines[engine];
        let taps = engine.taps.iter().map(|(_, field)| field);
        for field in [&engine.logits].into_iter().chain(taps) {
            let each = field.tensor.bytes() / layout.batch;
            let (offset, count) = (each * slots.start, each * slots.len());
            let own = if layout.on_device { 0 } else { offset };
            self.memory.download(field.buffer, own, offset, count)?;
        }
        self.memory.wait()
    }

    /// Gives an engine a step that leaves every state as it is, whichever binding runs.
    pub fn give_idle(&mut self, engine: usize) -> Result<(), CudaError> {
        let layout = &self.layout.engines[engine];
        let ids = vec![0; layout.input_ids.tensor.elements()];
        let lengths = vec![0; layout.batch];
        let inputs = StepInputs {
            input_ids: &ids,
            past_length: &lengths,
            seq_length: &lengths,
        };
        self.give(engine, inputs)
    }

    fn numbers<T: Plain>(&self, field: &Field) -> &[T] {
        let count = field.tensor.elements();
        self.memory.slice(field.buffer, field.offset, count)
    }

    pub fn logits(&self, engine: usize) -> &[f32] {
        self.numbers(&self.layout.engines[engine].logits)
    }

    pub fn tap(&self, engine: usize, index: usize) -> Cow<'_, [f32]> {
        let (_, field) = &self.layout.engines[engine].taps[index];
        let widen = |convert: fn(u16) -> f32| {
            let bits = self.numbers::<u16>(field);
            Cow::Owned(bits.iter().map(|&bits| convert(bits)).collect())
        };
        match field.tensor.dtype {
            ElementType::F16 => widen(|bits| f16::from_bits(bits).to_f32()),
            ElementType::BF16 => widen(|bits| bf16::from_bits(bits).to_f32()),
            _ => Cow::Borrowed(self.numbers(field)),
        }
    }

    pub fn slot_bytes(&self, state: usize) -> usize {
        self.layout.states[state].sides[0].tensor.bytes() / self.layout.batch
    }

    /// Where the slot's part of a state lies now.
    fn state(&self, state: usize, slot: usize) -> Field {
        let side = &self.layout.states[state].sides[self.sides.of(slot)];
        side.part(&(slot..slot + 1), self.layout.batch)
    }

    pub fn read_state(
        &self,
        state: usize,
        slot: usize,
        at: usize,
        bytes: &mut [u8],
    ) -> Result<(), BackendError> {
        let Field { buffer, offset, .. } = self.state(state, slot);
        let read = self.memory.read(buffer, offset + at, bytes);
        read.map_err(failed(SEQUENCES, "reading a state"))
    }

    pub fn write_state(
        &mut self,
        state: usize,
        slot: usize,
        at: usize,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        let Field { buffer, offset, .. } = self.state(state, slot);
        let written = self.memory.write(buffer, offset + at, bytes);
        written.map_err(failed(SEQUENCES, "writing a state"))
    }
}
