//! The model's sizes and patterns.

mod activation;

pub use activation::Activation;

use crate::blocks::BlockTopK;
use crate::cache::CacheLayout;
use crate::none_wrong;
use crate::pattern::Pattern;
use serde::{Deserialize, Serialize};

/// A RAT+ model as `config.json` describes it.
///
/// ```
/// use ratplus_graphs::{ModelSpec, Pattern};
/// use ratplus_graphs::spec::LayerPatterns;
/// let spec = ModelSpec {
///     vocab_size: 2048,
///     d_model: 256,
///     num_layers: 2,
///     d_head: 64,
///     d_ffn: 1024,
///     patterns: vec![LayerPatterns::Uniform(Pattern::DENSE); 2],
///     ..ModelSpec::default()
/// };
/// assert_eq!(spec.num_heads(), 4);
/// // Every difference is said at once.
/// let errors = ModelSpec { d_head: 60, num_layers: 3, ..spec }.validate().unwrap_err();
/// assert!(errors.0.len() >= 2, "{errors}");
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Always [`MODEL_TYPE`].
    #[serde(default = "model_type")]
    pub model_type: String,
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of (sequence layer, feed-forward layer) pairs.
    pub num_layers: usize,
    /// Channels of one head.
    pub d_head: usize,
    /// Heads that keys and values have, a divisor of the query heads, which read them in groups of
    /// neighbours; none where each has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_kv_heads: Option<usize>,
    /// Width inside the feed-forward layer.
    pub d_ffn: usize,
    /// Base of the rotary frequencies.
    #[serde(default = "rope_base")]
    pub rope_base: f64,
    /// Added to the mean square under the norm's root.
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
    /// Whether keys and values pass the gated recurrence; false for the attention-only baseline.
    #[serde(default = "yes")]
    pub recurrence: bool,
    /// Whether queries and keys are rotated by their positions.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub rope: bool,
    /// The feed-forward layer's nonlinearity.
    #[serde(default, skip_serializing_if = "Activation::is_gelu")]
    pub activation: Activation,
    /// Whether the head multiplies by the embedding's matrix, which is stored once.
    #[serde(default, skip_serializing_if = "is_no")]
    pub tie_embedding: bool,
    /// One entry per layer.
    pub patterns: Vec<LayerPatterns>,
}

/// [`ModelSpec::model_type`].
pub const MODEL_TYPE: &str = "ratplus";

fn model_type() -> String {
    MODEL_TYPE.into()
}

/// The base every released model uses.
pub fn rope_base() -> f64 {
    10000.0
}

/// The epsilon every released model uses.
pub fn norm_eps() -> f64 {
    1e-6
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

fn is_no(value: &bool) -> bool {
    !value
}

/// No sizes and no layers; all else as in every released model, but that head and embedding are two.
impl Default for ModelSpec {
    fn default() -> Self {
        Self {
            model_type: model_type(),
            vocab_size: 0,
            d_model: 0,
            num_layers: 0,
            d_head: 0,
            num_kv_heads: None,
            d_ffn: 0,
            rope_base: rope_base(),
            norm_eps: norm_eps(),
            recurrence: true,
            rope: true,
            activation: Activation::default(),
            tie_embedding: false,
            patterns: Vec::new(),
        }
    }
}

/// One layer's patterns: the same for all heads, one per key-value head, or blocks that queries choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LayerPatterns {
    /// Every head has this pattern.
    Uniform(Pattern),
    /// One pattern per key-value head.
    PerHead(Vec<Pattern>),
    /// Queries choose blocks of keys.
    BlockTopK(BlockTopK),
}

impl LayerPatterns {
    /// The pattern of the keys that each of so many heads keeps: all, where queries choose blocks.
    pub fn kept(&self, num_heads: usize) -> Vec<Pattern> {
        match self {
            Self::Uniform(pattern) => vec![*pattern; num_heads],
            Self::PerHead(patterns) => patterns.clone(),
            Self::BlockTopK(_) => vec![Pattern::DENSE; num_heads],
        }
    }

    /// How queries choose blocks, where they do.
    pub fn block_top_k(&self) -> Option<BlockTopK> {
        match self {
            Self::BlockTopK(blocks) => Some(*blocks),
            Self::Uniform(_) | Self::PerHead(_) => None,
        }
    }

    /// The shortest way to write `patterns`.
    pub fn collapse(patterns: Vec<Pattern>) -> Self {
        match patterns.first() {
            Some(&first) if patterns.iter().all(|&pattern| pattern == first) => {
                Self::Uniform(first)
            }
            _ => Self::PerHead(patterns),
        }
    }

    /// The same for sequences of at most `max_seq_len` tokens, without what cannot matter: see
    /// [`Pattern::normalized`]; a choice of all blocks is none.
    pub fn normalized(&self, max_seq_len: usize) -> Self {
        let normalized = |pattern: &Pattern| pattern.normalized(max_seq_len);
        match self {
            Self::Uniform(pattern) => Self::Uniform(normalized(pattern)),
            Self::PerHead(patterns) => Self::collapse(patterns.iter().map(normalized).collect()),
            Self::BlockTopK(blocks) if blocks.is_dense(max_seq_len) => {
                Self::Uniform(Pattern::DENSE)
            }
            Self::BlockTopK(blocks) => Self::BlockTopK(blocks.normalized(max_seq_len)),
        }
    }
}

/// Everything that contradicts itself in a [`ModelSpec`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's configuration contradicts itself:\n  {}", .0.join("\n  "))]
pub struct SpecErrors(pub Vec<String>);

impl ModelSpec {
    /// Number of attention heads.
    pub fn num_heads(&self) -> usize {
        self.d_model / self.d_head.max(1)
    }

    /// Number of heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        self.num_kv_heads.unwrap_or(self.num_heads())
    }

    /// Channels of a token's key, value and forget gate.
    pub fn d_kv(&self) -> usize {
        self.kv_heads().saturating_mul(self.d_head)
    }

    /// The pattern of the keys that each key-value head of `layer` keeps: all, where queries choose blocks.
    pub fn kept_patterns(&self, layer: usize) -> Vec<Pattern> {
        self.patterns[layer].kept(self.kv_heads())
    }

    /// How queries of `layer` choose blocks, where they do.
    pub fn block_top_k(&self, layer: usize) -> Option<BlockTopK> {
        self.patterns[layer].block_top_k()
    }

    /// Rows of the summaries of the blocks of `layer`.
    pub fn summary_rows(&self, layer: usize, max_seq_len: usize) -> usize {
        let rows = self.block_top_k(layer);
        let rows = rows.map_or(0, |blocks| blocks.summary_rows(max_seq_len));
        rows.saturating_mul(self.kv_heads())
    }

    /// The cache of `layer` for sequences of up to `max_seq_len` tokens.
    pub fn cache_layout(&self, layer: usize, max_seq_len: usize) -> CacheLayout {
        CacheLayout::new(&self.kept_patterns(layer), max_seq_len)
    }

    /// What is computed in another way than by the released models, in words.
    pub fn differences(&self) -> Vec<String> {
        let released = Self::default();
        let mut differs = Vec::new();
        if !self.recurrence {
            differs.push("no recurrence".to_owned());
        }
        if self.activation != released.activation {
            differs.push(format!("activation {}", self.activation));
        }
        if self.kv_heads() != self.num_heads() {
            differs.push(format!("{} key-value heads", self.kv_heads()));
        }
        if !self.rope {
            differs.push("no rotary embedding".to_owned());
        } else if self.rope_base != released.rope_base {
            differs.push(format!("rope_base {}", self.rope_base));
        }
        if self.norm_eps != released.norm_eps {
            differs.push(format!("norm_eps {}", self.norm_eps));
        }
        differs
    }

    /// Rows of the parts of `in_proj.weight`: output gate, query, key, value, and the forget gate if recurrent.
    pub fn in_proj_widths(&self) -> Vec<usize> {
        let (d, kv) = (self.d_model, self.d_kv());
        let gate = self.recurrence.then_some(kv);
        [d, d, kv, kv].into_iter().chain(gate).collect()
    }

    /// Rows of `in_proj.weight`.
    pub fn in_proj_rows(&self) -> usize {
        self.in_proj_widths().iter().sum()
    }

    /// The same model with every pattern [normalized](LayerPatterns::normalized).
    pub fn normalized(&self, max_seq_len: usize) -> Self {
        let patterns = self.patterns.iter();
        Self {
            patterns: patterns
                .map(|layer| layer.normalized(max_seq_len))
                .collect(),
            ..self.clone()
        }
    }

    /// Checks the fields against one another.
    ///
    /// # Errors
    /// All contradictions at once, each with the field, what was expected and what was found.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        if self.model_type != MODEL_TYPE {
            errors.push(format!(
                "model_type: expected `{MODEL_TYPE}`, found `{}`",
                self.model_type
            ));
        }
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("num_layers", self.num_layers),
            ("d_head", self.d_head),
            ("d_ffn", self.d_ffn),
        ] {
            if value == 0 || value > 1 << 24 {
                errors.push(format!("{field}: expected 1 to 2^24, found {value}"));
            }
        }
        if errors.is_empty() {
            errors.extend(crate::limits::weights(self));
        }
        if self.d_head > 0 && !self.d_model.is_multiple_of(self.d_head) {
            errors.push(format!(
                "d_head: expected a divisor of d_model {}, found {}",
                self.d_model, self.d_head
            ));
        }
        if let Some(heads) = self.num_kv_heads
            && (heads == 0 || heads > self.num_heads() || !self.num_heads().is_multiple_of(heads))
        {
            errors.push(format!(
                "num_kv_heads: expected a divisor of the {} heads, found {heads}",
                self.num_heads()
            ));
        }
        if !self.d_head.is_multiple_of(2) {
            errors.push(format!(
                "d_head: rotary embedding needs an even number, found {}",
                self.d_head
            ));
        }
        for (field, value) in [("rope_base", self.rope_base), ("norm_eps", self.norm_eps)] {
            if !value.is_finite() || value <= 0.0 {
                errors.push(format!(
                    "{field}: expected a positive number, found {value}"
                ));
            }
        }
        if self.patterns.len() != self.num_layers {
            errors.push(format!(
                "patterns: expected one entry per layer ({}), found {}",
                self.num_layers,
                self.patterns.len()
            ));
        }
        for (layer, patterns) in self.patterns.iter().enumerate() {
            if let LayerPatterns::PerHead(patterns) = patterns
                && patterns.len() != self.kv_heads()
            {
                errors.push(format!(
                    "patterns[{layer}]: expected one pattern or one per {} ({}), found {}",
                    match self.num_kv_heads {
                        None => "head",
                        Some(_) => "key-value head",
                    },
                    self.kv_heads(),
                    patterns.len()
                ));
            }
        }
        none_wrong(errors).map_err(SpecErrors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> serde_json::Value {
        serde_json::json!({
            "model_type": "ratplus", "vocab_size": 97, "d_model": 64, "num_layers": 2, "d_head": 16,
            "d_ffn": 256,
            "patterns": [
                {"dilation": 8, "local_window": 8, "initial": 4},
                [{"dilation": 1}, {"dilation": 4}, {"dilation": 8}, {"dilation": -1, "local_window": 16}],
            ],
        })
    }

    #[test]
    fn a_config_has_one_pattern_or_one_per_head() {
        let spec: ModelSpec = serde_json::from_value(config()).unwrap();
        spec.validate().unwrap();
        assert_eq!(
            spec.kept_patterns(0),
            vec![Pattern::new(8, 8, 4).unwrap(); 4]
        );
        assert_eq!(spec.kept_patterns(1)[3], Pattern::new(-1, 16, 0).unwrap());
        assert_eq!(spec.cache_layout(1, 100).rows(), 100 + 25 + 12 + 16);
    }

    #[test]
    fn heads_of_keys_may_be_fewer() {
        let mut value = config();
        value["num_kv_heads"] = 2.into();
        value["patterns"][1] = serde_json::json!([{"dilation": 1}, {"dilation": 4}]);
        let spec: ModelSpec = serde_json::from_value(value.clone()).unwrap();
        spec.validate().unwrap();
        assert_eq!((spec.num_heads(), spec.kv_heads(), spec.d_kv()), (4, 2, 32));
        assert_eq!(spec.in_proj_widths(), [64, 64, 32, 32, 32]);
        assert_eq!(spec.cache_layout(1, 100).rows(), 100 + 25);
        assert_eq!(spec.differences(), ["2 key-value heads"]);
        for wrong in [0, 3, 8] {
            value["num_kv_heads"] = wrong.into();
            let spec: ModelSpec = serde_json::from_value(value.clone()).unwrap();
            let SpecErrors(errors) = spec.validate().unwrap_err();
            let expected =
                format!("num_kv_heads: expected a divisor of the 4 heads, found {wrong}");
            assert_eq!(errors[0], expected);
        }
    }

    #[test]
    fn all_contradictions_are_listed_at_once() {
        let mut value = config();
        value["d_head"] = 15.into();
        value["num_layers"] = 3.into();
        value["norm_eps"] = 0.0.into();
        let spec: ModelSpec = serde_json::from_value(value).unwrap();
        let SpecErrors(errors) = spec.validate().unwrap_err();
        for field in [
            "d_head: expected a divisor",
            "even number",
            "norm_eps",
            "patterns: ",
        ] {
            assert!(
                errors.iter().any(|error| error.contains(field)),
                "{field} in {errors:?}"
            );
        }
    }
}
