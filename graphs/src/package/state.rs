//! Names, types and shapes of what crosses a step.

use crate::ops::{ElementType, TensorType};
use crate::spec::ModelSpec;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Which positions of a chunk the graph returns logits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogitsMode {
    /// `[B, V]`, at each sequence's last valid token.
    Last,
    /// `[B, L, V]`.
    All,
}

/// Graph input `input_ids`, `[B, L]` i64.
pub const INPUT_IDS: &str = "input_ids";
/// Graph input `past_length`, `[B]` i64.
pub const PAST_LENGTH: &str = "past_length";
/// Graph input `seq_length`, `[B]` i64.
pub const SEQ_LENGTH: &str = "seq_length";
/// Graph output `logits`, f32.
pub const LOGITS: &str = "logits";

/// One kind of tensor that crosses a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateKind {
    /// Keys after rotary embedding, `[B, R, d_head]`.
    Key,
    /// Values, `[B, R, d_head]`.
    Value,
    /// Summaries of blocks, `[B, Rb, d_head]` f32, of layers whose queries choose blocks.
    Block,
    /// Last gated key before rotary embedding, `[B, d_kv]` f32.
    RecurrentKey,
    /// Last gated value, `[B, d_kv]` f32.
    RecurrentValue,
}

impl StateKind {
    /// Every kind, in the order graphs list them.
    pub const ALL: [Self; 5] = [
        Self::Key,
        Self::Value,
        Self::Block,
        Self::RecurrentKey,
        Self::RecurrentValue,
    ];

    /// Those of a layer, in the order graphs list them.
    pub fn of_layer(spec: &ModelSpec, layer: usize) -> impl Iterator<Item = Self> + use<> {
        let chooses = spec.block_top_k(layer).is_some();
        let recurrence = spec.recurrence;
        Self::ALL.into_iter().filter(move |kind| match kind {
            Self::Key | Self::Value => true,
            Self::Block => chooses,
            Self::RecurrentKey | Self::RecurrentValue => recurrence,
        })
    }

    /// Those that any layer has, in the order of a layer.
    pub fn of_any_layer(spec: &ModelSpec) -> Vec<Self> {
        let found: Vec<_> = Self::of_model(spec).map(|(_, kind)| kind).collect();
        let all = Self::ALL.into_iter();
        all.filter(|kind| found.contains(kind)).collect()
    }

    /// Those of a model with their layers, in the order of [`state_tensors`].
    pub fn of_model(spec: &ModelSpec) -> impl Iterator<Item = (usize, Self)> {
        (0..spec.num_layers)
            .flat_map(|layer| Self::of_layer(spec, layer).map(move |kind| (layer, kind)))
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Value => "value",
            Self::Block => "block",
            Self::RecurrentKey => "recurrent_key",
            Self::RecurrentValue => "recurrent_value",
        }
    }

    /// Name of the graph input.
    pub fn past_name(self, layer: usize) -> String {
        format!("past_key_values.{layer}.{}", self.suffix())
    }

    /// Name of the graph output.
    pub fn present_name(self, layer: usize) -> String {
        format!("present.{layer}.{}", self.suffix())
    }

    /// Type of its elements.
    pub fn dtype(self, shape: &PackageShape) -> ElementType {
        match self {
            Self::Key | Self::Value => shape.cache_dtype,
            Self::Block | Self::RecurrentKey | Self::RecurrentValue => ElementType::F32,
        }
    }

    /// Shape of one slot's part for one layer.
    pub fn slot_shape(self, spec: &ModelSpec, layer: usize, max_seq_len: usize) -> Vec<usize> {
        match self {
            Self::Key | Self::Value => {
                vec![spec.cache_layout(layer, max_seq_len).rows(), spec.d_head]
            }
            Self::Block => vec![spec.summary_rows(layer, max_seq_len), spec.d_head],
            Self::RecurrentKey | Self::RecurrentValue => vec![spec.d_kv()],
        }
    }

    /// Type of the tensor for one layer.
    pub fn tensor(self, spec: &ModelSpec, layer: usize, shape: &PackageShape) -> TensorType {
        let slot = self.slot_shape(spec, layer, shape.max_seq_len);
        let dims: Vec<usize> = [shape.batch].into_iter().chain(slot).collect();
        TensorType::new(self.dtype(shape), dims)
    }
}

/// What a package fixes besides the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackageShape {
    /// `B`.
    pub batch: usize,
    /// `M`.
    pub max_seq_len: usize,
    /// Type of weights and activations.
    pub dtype: ElementType,
    /// Type of the KV cache.
    pub cache_dtype: ElementType,
    /// Shape of the logits.
    pub logits: LogitsMode,
}

impl PackageShape {
    /// [`Manifest::cache_dtype`](super::Manifest::cache_dtype).
    pub fn own_cache_dtype(&self) -> Option<ElementType> {
        (self.cache_dtype != self.dtype).then_some(self.cache_dtype)
    }

    /// The types in words, the cache's where it has its own.
    pub fn types(&self) -> String {
        match self.own_cache_dtype() {
            None => self.dtype.to_string(),
            Some(cache) => format!("{}, cache {cache}", self.dtype),
        }
    }

    /// The same for another batch.
    pub fn with_batch(&self, batch: usize) -> Self {
        Self { batch, ..*self }
    }

    /// Type of the logits of chunks of `seq_len` tokens.
    pub fn logits_tensor(&self, spec: &ModelSpec, seq_len: usize) -> TensorType {
        let shape = match self.logits {
            LogitsMode::Last => vec![self.batch, spec.vocab_size],
            LogitsMode::All => vec![self.batch, seq_len, spec.vocab_size],
        };
        TensorType::new(ElementType::F32, shape)
    }

    /// Whether every value has the range and precision of f32.
    pub fn is_f32(&self) -> bool {
        [self.dtype, self.cache_dtype] == [ElementType::F32; 2]
    }
}

impl TensorType {
    /// Bytes of `slots` in a tensor of the package's batch, which is its first dimension.
    pub fn slots(&self, slots: Range<usize>) -> Range<usize> {
        let slot = self.bytes() / self.shape.first().copied().unwrap_or(1).max(1);
        slots.start * slot..slots.end * slot
    }
}

/// Every state tensor in graph order: (past name, present name, type).
pub fn state_tensors(spec: &ModelSpec, shape: &PackageShape) -> Vec<(String, String, TensorType)> {
    let states = StateKind::of_model(spec).map(|(layer, kind)| {
        (
            kind.past_name(layer),
            kind.present_name(layer),
            kind.tensor(spec, layer, shape),
        )
    });
    states.collect()
}
