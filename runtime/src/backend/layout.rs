//! Which tensor lies where.

use crate::backend::session::Plan;
use crate::raw::{Memory, Visible};
use ratplus_graphs::manifest::{LogitsMode, Manifest, state_tensors};
use ratplus_graphs::ops::{ElementType, TensorType};

/// Tensors that share a buffer start at multiples of this.
const ALIGNMENT: usize = 256;

/// Place of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub tensor: TensorType,
    /// Index of the buffer.
    pub buffer: usize,
    /// First byte.
    pub offset: usize,
}

/// What an engine is given at every step, in one buffer: on a GPU, one copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepInputs {
    pub buffer: usize,
    /// Fields.
    pub past_length: usize,
    pub seq_length: usize,
    pub input_ids: usize,
}

/// Fields and buffers of all engines.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub fields: Vec<Field>,
    /// Size of each, and whether the host sees it.
    pub buffers: Vec<(usize, Visible)>,
    /// One per engine.
    pub inputs: Vec<StepInputs>,
    /// One field per engine; the same where the shapes agree.
    pub logits: Vec<usize>,
    /// Per engine, one field per extra output.
    pub taps: Vec<Vec<usize>>,
    /// Per state, the fields of both sides; equal where the update is in place.
    pub states: Vec<[usize; 2]>,
}

impl Layout {
    pub fn new(plan: &Plan, in_place: bool) -> Self {
        let manifest = &plan.manifest;
        let mut layout = Self {
            fields: Vec::new(),
            buffers: Vec::new(),
            inputs: Vec::new(),
            logits: Vec::new(),
            taps: Vec::new(),
            states: Vec::new(),
        };
        let mut shared = None;
        for (&index, extra) in plan.engines.iter().zip(&plan.taps) {
            let seq_len = manifest.engines[index].seq_len;
            layout.add_inputs(manifest.batch, seq_len);
            let tensor = logits_tensor(manifest, seq_len);
            let logits = match (manifest.logits, shared) {
                (LogitsMode::Last, Some(field)) => field,
                _ => layout.add(tensor, Visible::ToBoth),
            };
            shared = Some(logits);
            layout.logits.push(logits);
            let taps = extra.iter();
            let taps = taps.map(|(_, tensor)| layout.add(tensor.clone(), Visible::ToBoth));
            let taps = taps.collect();
            layout.taps.push(taps);
        }
        for (_, _, tensor) in state_tensors(&manifest.model, &manifest.shape()) {
            let first = layout.add(tensor.clone(), Visible::ToEngine);
            let second = if in_place {
                first
            } else {
                layout.add(tensor, Visible::ToEngine)
            };
            layout.states.push([first, second]);
        }
        layout
    }

    /// Writes what an engine is given at a step to where the host sees it.
    pub fn write_inputs(
        &self,
        memory: &mut Memory,
        engine: usize,
        input_ids: &[i64],
        past_length: &[i64],
        seq_length: &[i64],
    ) {
        let inputs = self.inputs[engine];
        for (field, data) in [
            (inputs.input_ids, input_ids),
            (inputs.past_length, past_length),
            (inputs.seq_length, seq_length),
        ] {
            let Field { buffer, offset, .. } = self.fields[field];
            memory
                .slice_mut(buffer, offset, data.len())
                .copy_from_slice(data);
        }
    }

    /// `input_ids`, and lengths, of a step that leaves every state as it is.
    pub fn idle_inputs(&self, engine: usize) -> (Vec<i64>, Vec<i64>) {
        let inputs = self.inputs[engine];
        let zeros = |field: usize| vec![0; self.fields[field].tensor.elements()];
        (zeros(inputs.input_ids), zeros(inputs.seq_length))
    }

    /// Bytes of one side of a state.
    pub fn state_bytes(&self, state: usize) -> usize {
        let [first, _] = self.states[state];
        self.fields[first].tensor.bytes()
    }

    /// A tensor in a buffer of its own.
    fn add(&mut self, tensor: TensorType, visible: Visible) -> usize {
        self.buffers.push((tensor.bytes(), visible));
        self.fields.push(Field {
            tensor,
            buffer: self.buffers.len() - 1,
            offset: 0,
        });
        self.fields.len() - 1
    }

    fn add_inputs(&mut self, batch: usize, seq_len: usize) {
        let (buffer, mut end) = (self.buffers.len(), 0usize);
        let mut add = |shape: &[usize]| {
            let tensor = TensorType::new(ElementType::I64, shape);
            let offset = end.next_multiple_of(ALIGNMENT);
            end = offset + tensor.bytes();
            self.fields.push(Field {
                tensor,
                buffer,
                offset,
            });
            self.fields.len() - 1
        };
        let inputs = StepInputs {
            buffer,
            past_length: add(&[batch]),
            seq_length: add(&[batch]),
            input_ids: add(&[batch, seq_len]),
        };
        self.inputs.push(inputs);
        self.buffers.push((end, Visible::ToBoth));
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
    use crate::backend::BackendKind;
    use ratplus_graphs::manifest::{Fallback, PackageShape};
    use ratplus_graphs::pattern::Pattern;
    use ratplus_graphs::spec::{LayerPatterns, ModelSpec};
    use std::sync::Arc;

    const BATCH: usize = 33;
    const VOCAB: usize = 11;

    fn plan(logits: LogitsMode) -> Plan {
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
        let tap = |length| {
            let tensor = TensorType::new(ElementType::BF16, [BATCH * length, 8]);
            vec![("tap".to_owned(), tensor)]
        };
        Plan {
            manifest: Arc::new(manifest),
            kind: BackendKind::OrtCuda,
            engines: vec![0, 1],
            taps: vec![tap(1), tap(7)],
            threads: None,
            passive_wait: false,
            without_rounding: false,
            weight_noise: None,
            device: 0,
            without_cuda_graph: false,
            profile: false,
            onnxruntime: None,
            operators: None,
            tensorrt: None,
            plugins: None,
        }
    }

    #[test]
    fn fields_lie_in_their_buffers_and_do_not_overlap() {
        for (logits, in_place) in [(LogitsMode::Last, true), (LogitsMode::All, false)] {
            let layout = Layout::new(&plan(logits), in_place);
            let mut ends = vec![0; layout.buffers.len()];
            for field in &layout.fields {
                assert!(field.offset >= ends[field.buffer] && field.offset.is_multiple_of(256));
                ends[field.buffer] = field.offset + field.tensor.bytes();
            }
            let sizes: Vec<_> = layout.buffers.iter().map(|(bytes, _)| *bytes).collect();
            assert_eq!(ends, sizes);
        }
    }

    #[test]
    fn a_step_is_one_copy_each_way_and_states_stay() {
        let layout = Layout::new(&plan(LogitsMode::Last), true);
        for (inputs, length) in layout.inputs.iter().zip([1, 7]) {
            let fields = [inputs.past_length, inputs.seq_length, inputs.input_ids];
            let shapes: [&[usize]; 3] = [&[BATCH], &[BATCH], &[BATCH, length]];
            for (field, shape) in fields.into_iter().zip(shapes) {
                assert_eq!(layout.fields[field].buffer, inputs.buffer);
                assert_eq!(layout.fields[field].tensor.shape, shape);
            }
            assert_eq!(layout.buffers[inputs.buffer].1, Visible::ToBoth);
            // Two of 264 bytes, then the tokens.
            assert_eq!(layout.buffers[inputs.buffer].0, 1024 + 8 * BATCH * length);
        }
        // One row a slot, whatever the engine.
        assert_eq!(layout.logits[0], layout.logits[1]);
        let logits = &layout.fields[layout.logits[0]];
        assert_eq!(
            layout.buffers[logits.buffer],
            (4 * BATCH * VOCAB, Visible::ToBoth)
        );
        assert_eq!(layout.states.len(), 2 * 4);
        for [past, present] in &layout.states {
            assert_eq!(past, present);
            let buffer = layout.fields[*past].buffer;
            assert_eq!(layout.buffers[buffer].1, Visible::ToEngine);
        }
        let beside = Layout::new(&plan(LogitsMode::All), false);
        assert!(beside.states.iter().all(|[past, present]| past != present));
        assert_ne!(beside.logits[0], beside.logits[1]);
    }
}
