//! What a call's sizes decide: grids, the workspace, and how tokens and keys are cut.

use super::{ATTEND_WARPS, BlockTopKWays, SCORE_QUERIES, SCORE_TILE};
use ratplus_graphs::ops::{Axis, BlockTopKAttention, Inferred};

/// Keys of a share.
pub(super) const SHARE_KEYS: usize = 64;
/// Bytes of scores that are kept at a time where that is more than one token's.
const SCORE_BYTES: usize = 64 << 20;
/// Bytes of partial results up to which keys are shared out.
const PARTIAL_BYTES: usize = 64 << 20;
/// Warps of the attention that a multiprocessor holds at once; the kernel's launch bounds.
const RESIDENT_WARPS: usize = 16;
/// Blocks along a grid's second axis.
const MAX_GRID_Y: usize = 65535;

/// Sizes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub batch: usize,
    pub seq_len: usize,
    pub num_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub max_seq_len: usize,
    /// `S`, at most the longest sequence.
    pub block_size: usize,
    /// Blocks of the longest sequence.
    pub blocks: usize,
    /// Rows of a summary.
    pub parts: usize,
    /// Most blocks that a query chooses.
    pub most_chosen: usize,
    /// Tokens that are scored at a time.
    pub slice: usize,
    /// Shares of the query with the most keys.
    pub shares: usize,
    /// Whether a warp computes a share, not a query.
    pub in_shares: bool,
}

pub(super) fn ceil(count: usize, of: usize) -> usize {
    count.div_ceil(of)
}

impl Sizes {
    pub fn new(
        multiprocessors: usize,
        operator: &BlockTopKAttention,
        node: &Inferred,
        ways: BlockTopKWays,
    ) -> Self {
        let blocks = operator.blocks;
        let max_seq_len = node.dims[Axis::MaxSeqLen];
        let count = blocks.blocks(max_seq_len);
        let block_size = (blocks.block_size as usize).min(max_seq_len.max(1));
        let most_chosen = (blocks.top_k as usize - 1).min(count.saturating_sub(1));
        let beside = blocks.beside;
        let candidates = [beside.local_window, beside.initial].map(|of| of as usize);
        let dilated = beside
            .dilation
            .map_or(0, |dilation| max_seq_len / dilation.get() as usize);
        let candidates = (candidates[0] + candidates[1] + dilated).min(max_seq_len);
        let keys = (most_chosen + 1) * block_size + candidates;
        let mut sizes = Self {
            batch: node.dims[Axis::Batch],
            seq_len: node.dims[Axis::SeqLen],
            num_heads: operator.num_heads,
            kv_heads: operator.num_kv_heads,
            head_dim: node.dims[Axis::HeadDim],
            max_seq_len,
            block_size,
            blocks: count,
            parts: blocks.score.parts(),
            most_chosen,
            slice: 1,
            shares: ceil(keys, SHARE_KEYS),
            in_shares: true,
        };
        let by_grid = MAX_GRID_Y / sizes.kv_heads * SCORE_QUERIES / sizes.group();
        let fitting = (SCORE_BYTES / sizes.score_bytes().max(1)).min(by_grid);
        sizes.slice = ways.slice.unwrap_or(fitting).clamp(1, sizes.seq_len.max(1));
        let warps = sizes.batch * sizes.num_heads * sizes.seq_len;
        let few = warps < multiprocessors * RESIDENT_WARPS;
        let worth_it = few && sizes.shares > 1 && sizes.partial_bytes() <= PARTIAL_BYTES;
        sizes.in_shares = ways.in_shares.unwrap_or(worth_it);
        sizes
    }

    fn group(&self) -> usize {
        self.num_heads / self.kv_heads
    }

    /// Whether any query has more earlier blocks than it sees.
    pub fn chooses(&self) -> bool {
        (1..self.blocks.saturating_sub(1)).contains(&self.most_chosen)
    }

    /// Blocks of keys that a chunk writes to.
    pub fn touched(&self) -> usize {
        ceil(self.seq_len.saturating_sub(1), self.block_size) + 1
    }

    pub fn score_grid(&self, tokens: usize) -> [usize; 2] {
        let queries = ceil(tokens * self.group(), SCORE_QUERIES);
        [ceil(self.blocks, SCORE_TILE), self.kv_heads * queries]
    }

    /// Blocks along x of a token where a warp computes a share.
    pub fn share_blocks(&self) -> usize {
        ceil(self.shares, ATTEND_WARPS)
    }

    pub fn score_bytes(&self) -> usize {
        match self.chooses() {
            true => self.batch * self.num_heads * self.slice * self.blocks * size_of::<u32>(),
            false => 0,
        }
    }

    pub fn chosen_bytes(&self) -> usize {
        match self.chooses() {
            true => self.queries() * self.most_chosen * size_of::<i32>(),
            false => 0,
        }
    }

    pub fn partial_bytes(&self) -> usize {
        match self.in_shares {
            true => self.queries() * self.shares * (self.head_dim + 2) * size_of::<f32>(),
            false => 0,
        }
    }

    fn queries(&self) -> usize {
        self.batch * self.num_heads * self.seq_len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratplus_graphs::blocks::{BlockTopK, Score};
    use ratplus_graphs::ops::{Definition, ElementType, TensorType};
    use ratplus_graphs::pattern::Pattern;

    /// Of 32 heads of 128 on a GPU of 132 multiprocessors.
    fn sizes(batch: usize, seq_len: usize, max_seq_len: usize, top_k: i64) -> Sizes {
        let (kv_heads, dim) = (8, 128);
        let blocks = BlockTopK::new(64, top_k, Score::Bounds, Pattern::NONE).unwrap();
        let operator = BlockTopKAttention {
            num_heads: 32,
            num_kv_heads: kv_heads,
            blocks,
            scale: 1.0,
        };
        let of = |dtype: ElementType, shape: &[usize]| TensorType::new(dtype, shape);
        let (half, float, int) = (ElementType::BF16, ElementType::F32, ElementType::I64);
        let rows = [batch, kv_heads * max_seq_len, dim];
        let summaries = [batch, kv_heads * blocks.summary_rows(max_seq_len), dim];
        let inputs = [
            of(half, &[batch, seq_len, 32 * dim]),
            of(half, &[batch, seq_len, kv_heads * dim]),
            of(half, &[batch, seq_len, kv_heads * dim]),
            of(half, &rows),
            of(half, &rows),
            of(float, &summaries),
            of(int, &[batch]),
            of(int, &[batch]),
            of(float, &[max_seq_len, dim / 2]),
            of(float, &[max_seq_len, dim / 2]),
        ];
        let node = operator.infer(&inputs).unwrap();
        Sizes::new(132, &operator, &node, BlockTopKWays::default())
    }

    #[test]
    fn long_chunks_are_scored_in_slices() {
        let short = sizes(1, 512, 4096, 8);
        assert_eq!(short.slice, 512);
        // 8 KB of scores a query.
        let long = sizes(1, 4096, 1 << 17, 64);
        assert_eq!(long.slice, 256);
        assert!(long.score_bytes() <= SCORE_BYTES);
        // One token at least.
        let wide = sizes(512, 64, 1 << 18, 64);
        assert_eq!(wide.slice, 1);
        for sizes in [short, long, wide] {
            assert!(sizes.score_grid(sizes.slice)[1] <= MAX_GRID_Y);
        }
    }

    #[test]
    fn keys_of_few_queries_are_shared_out() {
        let decode = sizes(1, 1, 1 << 17, 64);
        assert_eq!((decode.shares, decode.in_shares), (64, true));
        assert!(!sizes(1, 512, 1 << 17, 64).in_shares);
        assert_eq!(sizes(1, 512, 1 << 17, 64).partial_bytes(), 0);
        // Nothing to choose from.
        let dense = sizes(1, 1, 4096, 64);
        assert!(!dense.chooses() && dense.score_bytes() + dense.chosen_bytes() == 0);
    }

    #[test]
    fn a_chunk_touches_the_blocks_of_any_start() {
        for (seq_len, touched) in [(1, 1), (2, 2), (64, 2), (65, 2), (66, 3), (512, 9)] {
            assert_eq!(sizes(1, seq_len, 4096, 8).touched(), touched, "{seq_len}");
        }
    }
}
