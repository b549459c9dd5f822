//! The engines of a package: static shapes, files, inputs and outputs.

use super::{INPUT_IDS, LOGITS, PAST_LENGTH, PackageShape, SEQ_LENGTH, Target, state_tensors};
use crate::ops::{ElementType, TensorType};
use crate::spec::ModelSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A named input or output of an engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    /// Name in the graph.
    pub name: String,
    /// Type and shape.
    #[serde(flatten)]
    pub tensor: TensorType,
}

impl TensorInfo {
    /// A tensor of this name and type.
    pub fn new(name: impl Into<String>, dtype: ElementType, shape: impl Into<Vec<usize>>) -> Self {
        Self {
            name: name.into(),
            tensor: TensorType::new(dtype, shape),
        }
    }
}

/// Static sizes of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EngineSize {
    /// Sequences that a run advances.
    pub batch: usize,
    /// Tokens of each; 1 is decode.
    pub seq_len: usize,
}

impl EngineSize {
    /// `decode`, `decode_b8`, `prefill_512`.
    pub fn name(self) -> String {
        let name = match self.seq_len {
            1 => "decode".into(),
            length => format!("prefill_{length}"),
        };
        match self.batch {
            1 => name,
            batch => format!("{name}_b{batch}"),
        }
    }
}

/// The model for chunks of a static length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// What its files are called.
    pub name: String,
    /// Sequences that a run advances.
    pub batch: usize,
    /// Tokens per sequence and run; 1 is decode.
    pub seq_len: usize,
    /// Its ONNX file in the package for each target.
    pub files: BTreeMap<Target, String>,
    /// Graph inputs in order.
    pub inputs: Vec<TensorInfo>,
    /// Graph outputs in order.
    pub outputs: Vec<TensorInfo>,
}

impl Engine {
    /// Its file for `target`, where the package has one.
    pub fn file(&self, target: Target) -> Option<&str> {
        self.files.get(&target).map(String::as_str)
    }
}

impl PackageShape {
    /// The engines of a package for these static lengths.
    pub fn engines(&self, spec: &ModelSpec, targets: &[Target], lengths: &[usize]) -> Vec<Engine> {
        let sizes = self.engine_sizes(lengths).into_iter();
        sizes.map(|size| self.engine(spec, targets, size)).collect()
    }

    /// Sizes of engines that advance one slot, and of one more that decodes all of them: a prompt
    /// does not compute the other slots. In manifest order: by length, batch 1 first.
    pub fn engine_sizes(&self, lengths: &[usize]) -> Vec<EngineSize> {
        let sizes = lengths.iter().flat_map(|&seq_len| {
            let all = (seq_len == 1 && self.batch > 1).then_some(self.batch);
            let batches = [1].into_iter().chain(all);
            batches.map(move |batch| EngineSize { batch, seq_len })
        });
        sizes.collect()
    }

    /// Inputs and outputs, in graph order, of an engine that advances every slot by chunks of
    /// `seq_len` tokens.
    pub fn tensors(&self, spec: &ModelSpec, seq_len: usize) -> (Vec<TensorInfo>, Vec<TensorInfo>) {
        let batch = self.batch;
        let mut inputs = vec![
            TensorInfo::new(INPUT_IDS, ElementType::I64, [batch, seq_len]),
            TensorInfo::new(PAST_LENGTH, ElementType::I64, [batch]),
            TensorInfo::new(SEQ_LENGTH, ElementType::I64, [batch]),
        ];
        let mut outputs = vec![TensorInfo {
            name: LOGITS.into(),
            tensor: self.logits_tensor(spec, seq_len),
        }];
        for (past, present, tensor) in state_tensors(spec, self) {
            inputs.push(TensorInfo {
                name: past,
                tensor: tensor.clone(),
            });
            outputs.push(TensorInfo {
                name: present,
                tensor,
            });
        }
        (inputs, outputs)
    }

    /// An engine's description.
    fn engine(&self, spec: &ModelSpec, targets: &[Target], size: EngineSize) -> Engine {
        let (EngineSize { batch, seq_len }, name) = (size, size.name());
        let (inputs, outputs) = self.with_batch(batch).tensors(spec, seq_len);
        let files = targets.iter().map(|target| (*target, target.file(&name)));
        Engine {
            files: files.collect(),
            name,
            batch,
            seq_len,
            inputs,
            outputs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::LogitsMode;

    fn shape(batch: usize) -> PackageShape {
        PackageShape {
            batch,
            max_seq_len: 16,
            dtype: ElementType::BF16,
            cache_dtype: ElementType::F16,
            logits: LogitsMode::All,
        }
    }

    #[test]
    fn prompts_take_engines_of_one_slot_and_decoding_one_of_all() {
        let names = |batch| -> Vec<_> {
            let sizes = shape(batch).engine_sizes(&[1, 64, 512]);
            sizes.into_iter().map(EngineSize::name).collect()
        };
        assert_eq!(names(1), ["decode", "prefill_64", "prefill_512"]);
        assert_eq!(
            names(8),
            ["decode", "decode_b8", "prefill_64", "prefill_512"]
        );
    }

    #[test]
    fn an_engine_of_one_slot_takes_that_slot_of_every_state() {
        let (spec, shape) = (ModelSpec::default(), shape(3));
        let size = |batch| EngineSize { batch, seq_len: 4 };
        let engine = |batch| shape.engine(&spec, &[], size(batch));
        let (all, one) = (engine(3), engine(1));
        assert_eq!(one.inputs.len(), all.inputs.len());
        let states = all.inputs[3..].iter().zip(&one.inputs[3..]);
        for (all, one) in states.chain(all.outputs[1..].iter().zip(&one.outputs[1..])) {
            assert_eq!(all.name, one.name);
            let slots = [0, 1, 2].map(|slot| all.tensor.slots(slot..slot + 1));
            let size = one.tensor.bytes();
            assert_eq!(slots, [0..size, size..2 * size, 2 * size..3 * size]);
            assert_eq!(all.tensor.slots(0..3), 0..all.tensor.bytes());
        }
        assert_eq!(one.inputs[0].tensor.shape, [1, 4]);
        assert_eq!(one.outputs[0].tensor.shape, [1, 4, spec.vocab_size]);
    }
}
