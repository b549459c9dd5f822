//! Attributes of the attention.

use super::{Op, SchemaErrors};
use crate::cache::CacheLayout;
use crate::pattern::Pattern;
use crate::spec::LayerPatterns;

/// Attributes of [`Op::DilatedAttention`], checked.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionAttributes {
    /// One pattern per head.
    pub patterns: Vec<Pattern>,
    /// Factor on the scores, `1 / sqrt(head_dim)` for RAT+.
    pub scale: f32,
}

/// [`AttentionAttributes`] as an ONNX node carries them.
#[derive(Clone, Debug, PartialEq)]
pub struct RawAttentionAttributes {
    /// Number of heads.
    pub num_heads: i64,
    /// One value, or one per head.
    pub dilation: Vec<i64>,
    /// One value, or one per head.
    pub local_window: Vec<i64>,
    /// One value, or one per head.
    pub initial: Vec<i64>,
    /// Factor on the scores.
    pub scale: f32,
}

/// More heads than any model has; bounds allocations that follow an attribute.
const MAX_HEADS: i64 = 1 << 16;

impl AttentionAttributes {
    /// Number of heads.
    pub fn num_heads(&self) -> usize {
        self.patterns.len()
    }

    /// The cache layout for sequences of up to `max_seq_len` tokens.
    pub fn cache_layout(&self, max_seq_len: usize) -> CacheLayout {
        CacheLayout::new(&self.patterns, max_seq_len)
    }

    /// What a node carries: one value per list where all heads agree, else one per head.
    pub fn to_raw(&self) -> RawAttentionAttributes {
        let patterns = match LayerPatterns::collapse(self.patterns.clone()) {
            LayerPatterns::Uniform(pattern) => vec![pattern],
            LayerPatterns::PerHead(patterns) => patterns,
        };
        let list = |f: fn(&Pattern) -> i64| patterns.iter().map(f).collect();
        RawAttentionAttributes {
            num_heads: self.num_heads() as i64,
            dilation: list(Pattern::dilation_or_minus_one),
            local_window: list(|pattern| pattern.local_window.into()),
            initial: list(|pattern| pattern.initial.into()),
            scale: self.scale,
        }
    }
}

impl TryFrom<RawAttentionAttributes> for AttentionAttributes {
    type Error = SchemaErrors;

    fn try_from(raw: RawAttentionAttributes) -> Result<Self, SchemaErrors> {
        let mut errors = Vec::new();
        let heads = raw.num_heads;
        if !(1..=MAX_HEADS).contains(&heads) {
            errors.push(format!(
                "attribute num_heads: expected 1 to {MAX_HEADS}, found {heads}"
            ));
        }
        for (name, list) in [
            ("dilation", &raw.dilation),
            ("local_window", &raw.local_window),
            ("initial", &raw.initial),
        ] {
            if list.len() != 1 && list.len() as i64 != heads {
                errors.push(format!(
                    "attribute {name}: expected one value or one per head ({heads}), found {}",
                    list.len()
                ));
            }
        }
        if !raw.scale.is_finite() {
            errors.push(format!(
                "attribute scale: expected a finite number, found {}",
                raw.scale
            ));
        }
        if !errors.is_empty() {
            return Err(SchemaErrors::new(Op::DilatedAttention, errors));
        }
        let at = |list: &[i64], head: usize| if list.len() == 1 { list[0] } else { list[head] };
        let mut patterns = Vec::new();
        for head in 0..heads as usize {
            let pattern = Pattern::new(
                at(&raw.dilation, head),
                at(&raw.local_window, head),
                at(&raw.initial, head),
            );
            match pattern {
                Ok(pattern) => patterns.push(pattern),
                Err(error) => errors.push(format!("head {head}: attribute {error}")),
            }
        }
        if errors.is_empty() {
            Ok(Self {
                patterns,
                scale: raw.scale,
            })
        } else {
            Err(SchemaErrors::new(Op::DilatedAttention, errors))
        }
    }
}
