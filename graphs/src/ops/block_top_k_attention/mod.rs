//! `BlockTopKAttention`: rotary embedding, attention to the query's own block, to the earlier blocks that it
//! scores highest and to what a pattern shows besides, and the update of cache and summaries. See
//! [`crate::blocks`] for blocks, scores and summaries. All keys are kept: the row of position `p` of
//! key-value head `h` is `h * M + p`.

mod body;

use super::attention::{Heads, check_sizes};
use super::body::{BodyShape, Call};
use super::schema::aliases;
use super::{Attributes, Axis, Definition, Inferred, Op, Ports, Schema};
use crate::blocks::{BlockTopK, Score};
use crate::cache::CacheLayout;
use crate::none_wrong;
use crate::pattern::Pattern;

super::schema::ports! {
    /// Inputs of [`BlockTopKAttention`].
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
        /// `[B, Rb, dh]` f32: summaries of blocks. Rows of blocks not yet begun may hold anything.
        past_block: F32 [Batch, BlockRows, HeadDim],
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
    /// Outputs of [`BlockTopKAttention`].
    Outputs {
        /// `[B, L, N]` of `T`: the result; rows at or past `seq_length` mean nothing.
        output: T [Batch, SeqLen, Channels],
        /// `[B, R, dh]` of `C`: the cache after this chunk; may be `past_key`.
        present_key: C [Batch, Rows, HeadDim],
        /// `[B, R, dh]` of `C`: the cache after this chunk; may be `past_value`.
        present_value: C [Batch, Rows, HeadDim],
        /// `[B, Rb, dh]` f32: the summaries after this chunk; may be `past_block`.
        present_block: F32 [Batch, BlockRows, HeadDim],
    }
}

super::attributes::attributes! {
    /// [`BlockTopKAttention`] as a node carries it.
    RawAttributes {
        /// Number of query heads.
        num_heads: i64,
        /// Number of key-value heads, a divisor of `num_heads`, which it is where a node is without it.
        num_kv_heads: Option<i64>,
        /// `D` of what is seen of blocks that were not chosen.
        dilation: i64,
        /// `W` of what is seen of blocks that were not chosen.
        local_window: i64,
        /// `I` of what is seen of blocks that were not chosen.
        initial: i64,
        /// `S`: keys of a block.
        block_size: i64,
        /// `K`: blocks that a query sees whole, its own counted.
        top_k: i64,
        /// `bounds` or `mean`.
        score: String,
        /// Factor on the attention's scores; blocks are scored without it.
        scale: f32,
    }
}

/// The operator; see the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct BlockTopKAttention {
    /// Query heads, a multiple of the key-value heads.
    pub num_heads: usize,
    /// Key-value heads.
    pub num_kv_heads: usize,
    /// Which keys are seen.
    pub blocks: BlockTopK,
    /// Factor on the scores, `1 / sqrt(head_dim)` for RAT+. Finite.
    pub scale: f32,
}

impl BlockTopKAttention {
    /// The cache layout for sequences of up to `max_seq_len` tokens: every key.
    pub fn cache_layout(&self, max_seq_len: usize) -> CacheLayout {
        CacheLayout::new(&vec![Pattern::DENSE; self.num_kv_heads], max_seq_len)
    }
}

impl Definition for BlockTopKAttention {
    const OP: Op = Op::BlockTopKAttention;
    const SCHEMA: Schema = Schema {
        name: "BlockTopKAttention",
        inputs: Inputs::<()>::PORTS,
        outputs: Outputs::<()>::PORTS,
        aliases: &aliases::<Inputs<()>, Outputs<()>, _>([
            ("past_key", "present_key"),
            ("past_value", "present_value"),
            ("past_block", "present_block"),
        ]),
        attributes: RawAttributes::SPECS,
    };
    type Inputs<P> = Inputs<P>;
    type Outputs<P> = Outputs<P>;
    type Attributes = RawAttributes;

    fn new(raw: RawAttributes) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let heads = Heads::new(raw.num_heads, raw.num_kv_heads, raw.scale, &mut errors);
        let beside = Pattern::new(raw.dilation, raw.local_window, raw.initial);
        let beside = beside.map_err(|error| errors.push(format!("attribute {error}")));
        let score = Score::named(&raw.score);
        if score.is_none() {
            errors.push(format!(
                "attribute score: expected `bounds` or `mean`, found `{}`",
                raw.score
            ));
        }
        let (beside, score) = (
            beside.unwrap_or(Pattern::NONE),
            score.unwrap_or(Score::Mean),
        );
        match BlockTopK::new(raw.block_size, raw.top_k, score, beside) {
            Ok(blocks) => {
                none_wrong(errors)?;
                Ok(Self {
                    num_heads: heads.query,
                    num_kv_heads: heads.kv,
                    blocks,
                    scale: raw.scale,
                })
            }
            Err(found) => {
                errors.extend(found.into_iter().map(|error| format!("attribute {error}")));
                Err(errors)
            }
        }
    }

    fn attributes(&self) -> RawAttributes {
        let BlockTopK {
            block_size,
            top_k,
            score,
            beside,
        } = self.blocks;
        RawAttributes {
            num_heads: self.num_heads as i64,
            num_kv_heads: (self.num_kv_heads != self.num_heads).then_some(self.num_kv_heads as i64),
            dilation: beside.dilation_or_minus_one(),
            local_window: beside.local_window.into(),
            initial: beside.initial.into(),
            block_size: block_size.into(),
            top_k: top_k.into(),
            score: score.name().into(),
            scale: self.scale,
        }
    }

    /// `N` is `num_heads x dh` and `Nkv` `num_kv_heads x dh`, `R` `num_kv_heads x M`, `Rb` the summaries' rows for `M`, and
    /// `L` at most `M`.
    fn check(&self, node: &Inferred, errors: &mut Vec<String>) {
        let heads = Heads {
            query: self.num_heads,
            kv: self.num_kv_heads,
        };
        check_sizes(heads, node, errors);
        let Some(max_seq_len) = node.dims.get(Axis::MaxSeqLen) else {
            return;
        };
        let blocks = self
            .num_kv_heads
            .checked_mul(self.blocks.summary_rows(max_seq_len));
        for (axis, expected, what) in [
            (
                Axis::Rows,
                self.num_kv_heads.checked_mul(max_seq_len),
                "keys",
            ),
            (Axis::BlockRows, blocks, "summaries"),
        ] {
            if let Some(rows) = node.dims.get(axis)
                && expected != Some(rows)
            {
                errors.push(format!(
                    "{}: expected {} rows of {what} of {} heads for sequences of {max_seq_len}, found {rows}",
                    axis.name(),
                    expected.map_or("too many".into(), |rows| rows.to_string()),
                    self.num_kv_heads
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
