//! `DilatedAttention`: rotary embedding, attention to the keys that each key-value head's pattern
//! makes visible, and the cache update (arXiv 2602.18196). Query head `h` reads key-value head
//! `h / (num_heads / num_kv_heads)`, rounded down.

mod body;
mod rows;

use super::attention::{Heads, check_sizes};
use super::body::{BodyShape, Call};
use super::schema::aliases;
use super::{Attributes, Axis, Definition, Inferred, Op, Ports, Schema};
use crate::cache::CacheLayout;
use crate::none_wrong;
use crate::pattern::Pattern;

super::schema::ports! {
    /// Inputs of [`DilatedAttention`].
    Inputs {
        /// `[B, L, N]` of `T`, before rotary embedding.
        query: T [Batch, SeqLen, Channels],
        /// `[B, L, Nkv]` of `T`, before rotary embedding.
        key: T [Batch, SeqLen, KvChannels],
        /// `[B, L, Nkv]` of `T`.
        value: T [Batch, SeqLen, KvChannels],
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
        /// Number of query heads.
        num_heads: i64,
        /// Number of key-value heads, a divisor of `num_heads`, which it is where a node is without it.
        num_kv_heads: Option<i64>,
        /// `D`: one value, or one per key-value head.
        dilation: Vec<i64>,
        /// `W`: one value, or one per key-value head.
        local_window: Vec<i64>,
        /// `I`: one value, or one per key-value head.
        initial: Vec<i64>,
        /// Factor on the scores.
        scale: f32,
    }
}

/// The operator; see the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct DilatedAttention {
    /// Query heads, a multiple of the key-value heads.
    pub num_heads: usize,
    /// One pattern per key-value head.
    pub patterns: Vec<Pattern>,
    /// Factor on the scores, `1 / sqrt(head_dim)` for RAT+. Finite.
    pub scale: f32,
}

impl DilatedAttention {
    /// Of heads that each have keys of their own, one pattern a head.
    pub fn ungrouped(patterns: Vec<Pattern>, scale: f32) -> Self {
        Self {
            num_heads: patterns.len(),
            patterns,
            scale,
        }
    }

    /// Number of key-value heads.
    pub fn num_kv_heads(&self) -> usize {
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
        let heads = Heads::new(raw.num_heads, raw.num_kv_heads, raw.scale, &mut errors);
        for (name, list) in [
            ("dilation", &raw.dilation),
            ("local_window", &raw.local_window),
            ("initial", &raw.initial),
        ] {
            if list.len() != 1 && list.len() != heads.kv {
                errors.push(format!(
                    "attribute {name}: expected one value or one per {} ({}), found {}",
                    match raw.num_kv_heads {
                        None => "head",
                        Some(_) => "key-value head",
                    },
                    heads.kv,
                    list.len()
                ));
            }
        }
        none_wrong(errors)?;
        let at = |list: &[i64], head: usize| if list.len() == 1 { list[0] } else { list[head] };
        let (mut patterns, mut errors) = (Vec::new(), Vec::new());
        for head in 0..heads.kv {
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
        Ok(Self {
            num_heads: heads.query,
            patterns,
            scale: raw.scale,
        })
    }

    /// One value per list where all heads agree, else one per head.
    fn attributes(&self) -> RawAttributes {
        let (first, others) = match &*self.patterns {
            [first, others @ ..] => (std::slice::from_ref(first), others),
            [] => (&[][..], &[][..]),
        };
        let same = others.iter().all(|pattern| first.contains(pattern));
        let patterns = if same { first } else { &*self.patterns };
        let list = |f: fn(&Pattern) -> i64| patterns.iter().map(f).collect();
        RawAttributes {
            num_heads: self.num_heads as i64,
            num_kv_heads: (self.num_kv_heads() != self.num_heads)
                .then_some(self.num_kv_heads() as i64),
            dilation: list(Pattern::dilation_or_minus_one),
            local_window: list(|pattern| pattern.local_window.into()),
            initial: list(|pattern| pattern.initial.into()),
            scale: self.scale,
        }
    }

    /// `N` is `num_heads x dh` and `Nkv` `num_kv_heads x dh`, `R` the sum of the heads' rows for `M`, and `L` at most `M`.
    fn check(&self, node: &Inferred, errors: &mut Vec<String>) {
        let heads = Heads {
            query: self.num_heads,
            kv: self.num_kv_heads(),
        };
        check_sizes(heads, node, errors);
        let dims = &node.dims;
        if let (Some(rows), Some(max_seq_len)) = (dims.get(Axis::Rows), dims.get(Axis::MaxSeqLen)) {
            let expected = self.cache_layout(max_seq_len).rows();
            if rows != expected {
                errors.push(format!(
                    "R: the patterns keep {expected} rows for sequences of {max_seq_len}, found {rows}"
                ));
            }
        }
    }

    fn in_function(name: &str, shape: &BodyShape) -> bool {
        name != "num_kv_heads" || shape.num_kv_heads != shape.num_heads
    }

    fn body(call: Call<'_, '_, Self>) {
        body::write(call);
    }
}
