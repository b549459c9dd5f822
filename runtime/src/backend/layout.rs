//! Where the tensors of engines lie in memory.

use super::builder::OpenedEngine;
use crate::raw::Visible;
use ratplus_graphs::ops::{ElementType, TensorType};
use ratplus_graphs::package::{
    INPUT_IDS, LOGITS, LogitsMode, Manifest, PAST_LENGTH, SEQ_LENGTH, state_tensors,
};
use std::ops::Range;

/// Tensors that share a buffer start at multiples of this, and TensorRT's have to everywhere.
pub(super) const ALIGNMENT: usize = 256;

/// Place of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub tensor: TensorType,
    /// Index of the buffer.
    pub buffer: usize,
    /// First byte.
    pub offset: usize,
}

impl Field {
    /// The part of `slots` in the tensor of all `batch` slots, which lie one after the other.
    pub fn part(&self, slots: &Range<usize>, batch: usize) -> Self {
        let mut tensor = self.tensor.clone();
        if let Some(first) = tensor.shape.first_mut() {
            *first = *first / batch * slots.len();
        }
        Self {
            tensor,
            buffer: self.buffer,
            offset: self.offset + self.tensor.bytes() / batch * slots.start,
        }
    }
}

/// A tensor of an engine and its place, for one place of its slots.
pub(super) struct Bound<'a> {
    pub name: &'a str,
    pub output: bool,
    /// As the engine sees it.
    pub field: Field,
}

/// Tensors of one engine.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EngineLayout {
    /// Slots that it runs.
    pub batch: usize,
    /// In one buffer: on a GPU, one copy.
    pub input_ids: Field,
    pub past_length: Field,
    pub seq_length: Field,
    /// Of all slots, as the host sees them, and so the extra outputs. Engines of one shape share it.
    pub logits: Field,
    pub taps: Vec<(String, Field)>,
}

/// A state of all slots.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StateLayout {
    pub past: String,
    pub present: String,
    /// Equal where the update is in place.
    pub sides: [Field; 2],
}

/// Fields and buffers of all engines.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Slots.
    pub batch: usize,
    /// Whether the engine's memory is not the host's.
    pub on_device: bool,
    /// Size of each, as the host sees it, and whether the host sees it.
    pub buffers: Vec<(usize, Visible)>,
    pub engines: Vec<EngineLayout>,
    pub states: Vec<StateLayout>,
}

impl Layout {
    pub fn new(
        manifest: &Manifest,
        engines: &[OpenedEngine],
        in_place: bool,
        on_device: bool,
    ) -> Self {
        let mut layout = Self {
            batch: manifest.batch,
            on_device,
            buffers: Vec::new(),
            engines: Vec::new(),
            states: Vec::new(),
        };
        let mut shared: Vec<(usize, Field)> = Vec::new();
        for engine in engines {
            let [past_length, seq_length, input_ids] = layout.add_inputs(engine);
            let output = |layout: &mut Self, tensor: TensorType| {
                let part = tensor.bytes() / manifest.batch * engine.batch;
                layout.add(tensor, Visible::InParts(part))
            };
            let mut known = shared.iter().filter(|(batch, _)| *batch == engine.batch);
            let logits = match (manifest.logits, known.next()) {
                (LogitsMode::Last, Some((_, field))) => field.clone(),
                _ => output(&mut layout, logits_tensor(manifest, engine.seq_len)),
            };
            shared.push((engine.batch, logits.clone()));
            let taps = engine.taps.iter().map(|(name, tensor)| {
                let field = output(&mut layout, tensor.clone());
                (name.clone(), field)
            });
            let taps = taps.collect();
            layout.engines.push(EngineLayout {
                batch: engine.batch,
                input_ids,
                past_length,
                seq_length,
                logits,
                taps,
            });
        }
        for (past, present, tensor) in state_tensors(&manifest.model, &manifest.shape()) {
            let first = layout.add(tensor.clone(), Visible::ToEngine);
            let second = match in_place {
                true => first.clone(),
                false => layout.add(tensor, Visible::ToEngine),
            };
            layout.states.push(StateLayout {
                past,
                present,
                sides: [first, second],
            });
        }
        layout
    }

    /// First slots of the places that an engine may run at.
    pub fn places(&self, engine: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.batch).step_by(self.engines[engine].batch)
    }

    /// The slots of an engine that runs at `slot`.
    pub fn slots(&self, engine: usize, slot: usize) -> Range<usize> {
        slot..slot + self.engines[engine].batch
    }

    /// Every tensor of an engine that runs at `slot` and reads states from `side`.
    pub fn bound(
        &self,
        engine: usize,
        slot: usize,
        side: usize,
    ) -> impl Iterator<Item = Bound<'_>> {
        let slots = self.slots(engine, slot);
        let engine = &self.engines[engine];
        let bound = |name, output, field| Bound {
            name,
            output,
            field,
        };
        let inputs = [
            bound(INPUT_IDS, false, engine.input_ids.clone()),
            bound(PAST_LENGTH, false, engine.past_length.clone()),
            bound(SEQ_LENGTH, false, engine.seq_length.clone()),
        ];
        let part = move |field: &Field| field.part(&slots, self.batch);
        let own = |field: &Field| {
            let mut field = part(field);
            // Device memory holds the slots of one run, aligned.
            field.offset = if self.on_device { 0 } else { field.offset };
            field
        };
        let logits = bound(LOGITS, true, own(&engine.logits));
        let taps = engine.taps.iter();
        let taps: Vec<_> = taps
            .map(|(name, field)| bound(name, true, own(field)))
            .collect();
        let states = self.states.iter().flat_map(move |state| {
            [
                bound(&state.past, false, part(&state.sides[side])),
                bound(&state.present, true, part(&state.sides[1 - side])),
            ]
        });
        inputs.into_iter().chain([logits]).chain(taps).chain(states)
    }

    /// A tensor in a buffer of its own.
    fn add(&mut self, tensor: TensorType, visible: Visible) -> Field {
        self.buffers.push((tensor.bytes(), visible));
        Field {
            tensor,
            buffer: self.buffers.len() - 1,
            offset: 0,
        }
    }

    fn add_inputs(&mut self, engine: &OpenedEngine) -> [Field; 3] {
        let (buffer, mut end) = (self.buffers.len(), 0usize);
        let mut add = |shape: &[usize]| {
            let tensor = TensorType::new(ElementType::I64, shape);
            let offset = end.next_multiple_of(ALIGNMENT);
            end = offset + tensor.bytes();
            Field {
                tensor,
                buffer,
                offset,
            }
        };
        let lengths = [engine.batch];
        let fields = [
            add(&lengths),
            add(&lengths),
            add(&[engine.batch, engine.seq_len]),
        ];
        self.buffers.push((end, Visible::ToBoth));
        fields
    }
}

fn logits_tensor(manifest: &Manifest, seq_len: usize) -> TensorType {
    let (batch, vocab_size) = (manifest.batch, manifest.model.vocab_size);
    match manifest.logits {
        LogitsMode::Last => TensorType::new(ElementType::F32, [batch, vocab_size]),
        LogitsMode::All => TensorType::new(ElementType::F32, [batch, seq_len, vocab_size]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratplus_graphs::package::{Fallback, PackageShape};
    use ratplus_graphs::pattern::Pattern;
    use ratplus_graphs::spec::{LayerPatterns, ModelSpec};

    const BATCH: usize = 33;
    const VOCAB: usize = 11;

    fn made(logits: LogitsMode, in_place: bool, on_device: bool) -> Layout {
        let model = ModelSpec {
            vocab_size: VOCAB,
            d_model: 8,
            num_layers: 2,
            d_head: 4,
            d_ffn: 32,
            patterns: vec![LayerPatterns::Uniform(Pattern::new(4, 2, 1).unwrap()); 2],
            ..ModelSpec::default()
        };
        let shape = PackageShape {
            batch: BATCH,
            max_seq_len: 16,
            dtype: ElementType::BF16,
            cache_dtype: ElementType::BF16,
            logits,
        };
        let precision = Default::default();
        let manifest = Manifest::new(model, shape, precision, Fallback::Function, 18, &[1, 7]);
        let engine = |(index, batch, seq_len): (usize, usize, usize)| OpenedEngine {
            index,
            seq_len,
            batch,
            taps: vec![(
                "tap".to_owned(),
                TensorType::new(ElementType::BF16, [BATCH * seq_len, 8]),
            )],
        };
        let engines = [(0, BATCH, 1), (1, 1, 7)].map(engine);
        Layout::new(&manifest, &engines, in_place, on_device)
    }

    #[test]
    fn fields_lie_in_their_buffers_and_do_not_overlap() {
        for (logits, in_place) in [(LogitsMode::Last, true), (LogitsMode::All, false)] {
            let layout = made(logits, in_place, false);
            for engine in 0..2 {
                // Whatever is bound lies in its buffer, and places share inputs only.
                let mut taken = vec![Vec::new(); layout.buffers.len()];
                for slot in layout.places(engine) {
                    for (at, bound) in layout.bound(engine, slot, 0).enumerate() {
                        let Field {
                            tensor,
                            buffer,
                            offset,
                        } = bound.field;
                        let end = offset + tensor.bytes();
                        assert!(end <= layout.buffers[buffer].0, "{}", bound.name);
                        // In place, past and present are one.
                        let once = match at {
                            0..3 => slot == 0,
                            _ => !(in_place && bound.name.starts_with("past")),
                        };
                        if once {
                            taken[buffer].push((offset, end));
                        }
                    }
                }
                for (mut taken, (bytes, _)) in taken.into_iter().zip(&layout.buffers) {
                    taken.sort_unstable();
                    assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0));
                    assert!(taken.last().is_none_or(|last| last.1 == *bytes));
                }
            }
        }
    }

    #[test]
    fn a_step_is_one_copy_each_way_and_states_stay() {
        let layout = made(LogitsMode::Last, true, true);
        for (engine, (batch, length)) in layout.engines.iter().zip([(BATCH, 1), (1, 7)]) {
            let fields = [&engine.past_length, &engine.seq_length, &engine.input_ids];
            let shapes: [&[usize]; 3] = [&[batch], &[batch], &[batch, length]];
            for (field, shape) in fields.into_iter().zip(shapes) {
                assert_eq!(field.buffer, engine.input_ids.buffer);
                assert!(field.offset.is_multiple_of(256));
                assert_eq!(field.tensor.shape, shape);
            }
            let (bytes, visible) = layout.buffers[engine.input_ids.buffer];
            assert_eq!(visible, Visible::ToBoth);
            assert_eq!(bytes, engine.input_ids.offset + 8 * batch * length);
        }
        // One row a slot, of which a device has those of one run, from its memory's start.
        for (engine, (batch, slot)) in [(BATCH, 0), (1, 5)].into_iter().enumerate() {
            let logits = &layout.engines[engine].logits;
            let part = Visible::InParts(4 * batch * VOCAB);
            assert_eq!(layout.buffers[logits.buffer], (4 * BATCH * VOCAB, part));
            let mut bound = layout.bound(engine, slot, 0);
            let bound = bound.find(|bound| bound.name == LOGITS).unwrap();
            assert_eq!(
                (bound.field.offset, bound.field.tensor.shape[0]),
                (0, batch)
            );
        }
        assert_eq!(layout.states.len(), 2 * 4);
        for StateLayout { sides, .. } in &layout.states {
            assert_eq!(sides[0], sides[1]);
            assert_eq!(layout.buffers[sides[0].buffer].1, Visible::ToEngine);
        }
        let beside = made(LogitsMode::All, false, false);
        assert!(
            beside
                .states
                .iter()
                .all(|state| state.sides[0] != state.sides[1])
        );
        assert_ne!(beside.engines[0].logits, beside.engines[1].logits);
    }

    #[test]
    fn an_engine_of_one_slot_has_that_slots_part() {
        let layout = made(LogitsMode::All, false, false);
        assert_eq!(layout.places(0).collect::<Vec<_>>(), [0]);
        assert_eq!(
            layout.places(1).collect::<Vec<_>>(),
            Vec::from_iter(0..BATCH)
        );
        for bound in layout.bound(1, 5, 1) {
            let Field { tensor, offset, .. } = bound.field;
            match bound.name {
                LOGITS => {
                    assert_eq!(tensor.shape, [1, 7, VOCAB]);
                    assert_eq!(offset, 5 * 4 * 7 * VOCAB);
                }
                "tap" => assert_eq!((tensor.shape, offset), (vec![7, 8], 5 * 2 * 7 * 8)),
                INPUT_IDS => assert_eq!(tensor.shape, [1, 7]),
                PAST_LENGTH | SEQ_LENGTH => assert_eq!(tensor.shape, [1]),
                _ => {
                    assert_eq!(tensor.shape[0], 1);
                    assert_eq!(offset, 5 * tensor.bytes());
                }
            }
        }
    }
}
