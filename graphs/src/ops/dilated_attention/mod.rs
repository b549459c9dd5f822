//! `DilatedAttention`: rotary embedding, attention to the keys that each head's pattern makes
//! visible, and the cache update (arXiv 2602.18196).

mod body;
mod rows;

use super::body::Call;
use super::schema::aliases;
use super::{Attributes, Axis, Definition, Inferred, Op, Ports, Schema};
use crate::cache::CacheLayout;
use crate::none_wrong;
use crate::pattern::Pattern;
use crate::spec::LayerPatterns;

super::schema::ports! {
    /// Inputs of [`DilatedAttention`].
    Inputs {
        /// `[B, L, N]` of `T`, before rotary embedding.
        query: T [Batch, SeqLen, Channels],
        /// `[B, L, N]` of `T`, before rotary embedding.
        key: T [Batch, SeqLen, Channels],
        /// `[B, L, N]` of `T`.
        value: T [Batch, SeqLen, Channels],
        /// `[B, R, dh]` of `C`: keys after rotary embedding. Rows not yet written may hold anything.
        past_key: C [Batch, Rows, HeadDim],
        /// `[B, R, dh]` of `C`. Rows not yet written may hold anything.
        past_value: C [Batch, Rows, HeadDim],
        /// `[B]` i64: tokens before this chunk.
        past_length: I64 [Batch],
        /// `[B]` i64: valid tokens of this chunk.
        seq_length: I64 [Batch],
        /// `[M, dh / 2]` f32.
        cos: F32 [MaxSeqLen, HalfHeadDim],
        /// `[M, dh / 2]` f32.
        sin: F32 [MaxSeqLen, HalfHeadDim],
    }
}

super::schema::ports! {
    /// Outputs of [`DilatedAttention`].
    Outputs {
        /// `[B, L, N]` of `T`: the result; rows at or past `seq_length` mean nothing.
        output: T [Batch, SeqLen, Channels],
        /// `[B, R, dh]` of `C`: the cache after this chunk; may be `past_key`.
        present_key: C [Batch, Rows, HeadDim],
        /// `[B, R, dh]` of `C`: the cache after this chunk; may be `past_value`.
        present_value: C [Batch, Rows, HeadDim],
    }
}

super::attributes::attributes! {
    /// [`DilatedAttention`] as a node carries it.
    RawAttributes {
        /// Number of heads.
        num_heads: i64,
        /// `D`: one value, or one per head.
        dilation: Vec<i64>,
        /// `W`: one value, or one per head.
        local_window: Vec<i64>,
        /// `I`: one value, or one per head.
        initial: Vec<i64>,
        /// Factor on the scores.
        scale: f32,
    }
}

/// The operator; see the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct DilatedAttention {
    /// One pattern per head.
    pub patterns: Vec<Pattern>,
    /// Factor on the scores, `1 / sqrt(head_dim)` for RAT+. Finite.
    pub scale: f32,
}

/// More heads than any model has; bounds allocations that follow an attribute.
const MAX_HEADS: i64 = 1 << 16;

impl DilatedAttention {
    /// Number of heads.
    pub fn num_heads(&self) -> usize {
        self.patterns.len()
    }

    /// The cache layout for sequences of up to `max_seq_len` tokens.
    pub fn cache_layout(&self, max_seq_len: usize) -> CacheLayout {
        CacheLayout::new(&self.patterns, max_seq_len)
    }
}

impl Definition for DilatedAttention {
    const OP: Op = Op::DilatedAttention;
    const SCHEMA: Schema = Schema {
        name: "DilatedAttention",
        inputs: Inputs::<()>::PORTS,
        outputs: Outputs::<()>::PORTS,
        aliases: &aliases::<Inputs<()>, Outputs<()>, _>([
            ("past_key", "present_key"),
            ("past_value", "present_value"),
        ]),
        attributes: RawAttributes::SPECS,
    };
    type Inputs<P> = Inputs<P>;
    type Outputs<P> = Outputs<P>;
    type Attributes = RawAttributes;

    fn new(raw: RawAttributes) -> Result<Self, Vec<String>> {
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
        none_wrong(errors)?;
        let at = |list: &[i64], head: usize| if list.len() == 1 { list[0] } else { list[head] };
        let (mut patterns, mut errors) = (Vec::new(), Vec::new());
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
        none_wrong(errors)?;
        let scale = raw.scale;
        Ok(Self { patterns, scale })
    }

    /// One value per list where all heads agree, else one per head.
    fn attributes(&self) -> RawAttributes {
        let patterns = match LayerPatterns::collapse(self.patterns.clone()) {
            LayerPatterns::Uniform(pattern) => vec![pattern],
            LayerPatterns::PerHead(patterns) => patterns,
        };
        let list = |f: fn(&Pattern) -> i64| patterns.iter().map(f).collect();
        RawAttributes {
            num_heads: self.num_heads() as i64,
            dilation: list(Pattern::dilation_or_minus_one),
            local_window: list(|pattern| pattern.local_window.into()),
            initial: list(|pattern| pattern.initial.into()),
            scale: self.scale,
        }
    }

    /// `N` is `num_heads x dh`, `R` the sum of the heads' rows for `M`, and `L` at most `M`.
    fn check(&self, node: &Inferred, errors: &mut Vec<String>) {
        use Axis::{Channels, HalfHeadDim, HeadDim, MaxSeqLen, Rows, SeqLen};
        let dims = &node.dims;
        if let (Some(channels), Some(head_dim)) = (dims.get(Channels), dims.get(HeadDim)) {
            let heads = self.num_heads();
            if heads.checked_mul(head_dim) != Some(channels) {
                errors.push(format!(
                    "N: expected num_heads x dh = {heads} x {head_dim}, found {channels}"
                ));
            }
            if head_dim == 0 || head_dim % 2 == 1 {
                errors.push(format!("dh: expected an even number, found {head_dim}"));
            }
            if let Some(half) = dims.get(HalfHeadDim)
                && half != head_dim / 2
            {
                errors.push(format!(
                    "cos, sin: expected dh/2 = {}, found {half}",
                    head_dim / 2
                ));
            }
        }
        if let (Some(rows), Some(max_seq_len)) = (dims.get(Rows), dims.get(MaxSeqLen)) {
            let expected = self.cache_layout(max_seq_len).rows();
            if rows != expected {
                errors.push(format!(
                    "R: the patterns keep {expected} rows for sequences of {max_seq_len}, found {rows}"
                ));
            }
        }
        if let (Some(seq_len), Some(max_seq_len)) = (dims.get(SeqLen), dims.get(MaxSeqLen))
            && seq_len > max_seq_len
        {
            errors.push(format!(
                "L: expected at most M = {max_seq_len}, found {seq_len}"
            ));
        }
    }

    fn body(call: Call<'_, '_, Self>) {
        body::write(call);
    }
}
