//! Which kernels compute an attention, and what their blocks are.

use crate::cuda::limits::kernel_name;
use crate::cuda::operator::LaunchBlock;
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::ops::ElementType;

/// Sizes and the scale of one call; the cache's layout comes beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// `T`: f32, f16 or bf16.
    pub element: ElementType,
    /// `B`.
    pub batch: usize,
    /// `L`.
    pub seq_len: usize,
    /// Query heads a key-value head.
    pub group: usize,
    /// `dh`, an even number.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
}

/// Which kernels compute an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionMethod {
    /// One launch for one token a sequence.
    Decode,
    /// Tiles of 128 queries by `mma.sync`.
    Tiles,
    /// Tiles of 64 queries by `mma.sync`, two blocks a multiprocessor.
    SmallTiles,
    /// Tiles of 128 queries by `wgmma`, on GPUs of compute capability 9.0.
    Hopper,
    /// Tiles of 64 queries by `wgmma`, two blocks a multiprocessor.
    SmallHopper,
    /// A block a query, any head_dim up to 512.
    Any,
}

/// Keys that few tiles cover: blocks then start and end more than they compute.
const FEW_KEYS: usize = 1024;

impl AttentionShape {
    /// Whether the kernels for tiles of queries take it.
    pub(super) fn has_tiles(&self) -> bool {
        matches!(self.head_dim, 64 | 128)
            && matches!(self.element, ElementType::F16 | ElementType::BF16)
    }

    /// The method of choice.
    pub fn method(&self, layout: &CacheLayout) -> AttentionMethod {
        match (self.head_dim, self.seq_len) {
            (64 | 128, 1) => AttentionMethod::Decode,
            _ if !self.has_tiles() => AttentionMethod::Any,
            _ if most_rows(layout) <= FEW_KEYS => AttentionMethod::SmallTiles,
            _ => AttentionMethod::Tiles,
        }
    }
}

/// Rows of the head that has the most: no query of a head sees more keys.
pub(super) fn most_rows(layout: &CacheLayout) -> usize {
    let rows = layout.heads().iter().map(|head| head.rows);
    rows.max().unwrap_or(0)
}

/// A block of one of the attention kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AttentionBlock {
    /// Queries that it computes.
    pub queries: usize,
    pub threads: u32,
    /// Its dynamic shared memory.
    pub shared_bytes: usize,
}

const DECODE_WARPS: usize = 4;
const ANY_WARPS: usize = 4;
/// What blocks of `mma.sync` know of their keys.
const PLAN_BYTES: usize = 144;

impl AttentionBlock {
    pub fn new(method: AttentionMethod, head_dim: usize) -> Self {
        const STAGES: usize = 2;
        const BARRIERS: usize = 4 * STAGES * size_of::<u64>();
        let floats = |warps: usize, floats: usize| Self {
            queries: 1,
            threads: 32 * warps as u32,
            shared_bytes: floats * size_of::<f32>(),
        };
        let (queries, keys, threads, rest) = match method {
            // Two numbers and a row a warp; two rows of the token itself.
            AttentionMethod::Decode => {
                let rows = DECODE_WARPS + 2;
                return floats(DECODE_WARPS, 2 * DECODE_WARPS + rows * head_dim);
            }
            AttentionMethod::Any => {
                return floats(ANY_WARPS, 2 * ANY_WARPS + ANY_WARPS * head_dim);
            }
            // Warps of 32 queries, or of 16.
            AttentionMethod::Tiles if head_dim == 64 => (128, 64, 128, PLAN_BYTES),
            AttentionMethod::Tiles => (128, 64, 256, PLAN_BYTES),
            AttentionMethod::SmallTiles => (64, 64, 128, PLAN_BYTES),
            AttentionMethod::Hopper => (128, 128, 384, BARRIERS),
            AttentionMethod::SmallHopper => (64, 64, 256, BARRIERS),
        };
        // Queries, keys and values of 16 bits, a score a query.
        let rows = queries + 2 * STAGES * keys;
        Self {
            queries,
            threads,
            shared_bytes: rows * head_dim * 2 + queries * size_of::<f32>() + rest,
        }
    }
}

/// Name of the main kernel; the method takes the shape.
pub(super) fn kernel(
    method: AttentionMethod,
    element: ElementType,
    head_dim: usize,
) -> &'static str {
    use AttentionMethod::{Any, Decode, Hopper, SmallHopper, SmallTiles, Tiles};
    match (method, head_dim) {
        (Decode, 64) => kernel_name!(element, "dilated_attention_decode_", "_64"),
        (Decode, _) => kernel_name!(element, "dilated_attention_decode_", "_128"),
        (Tiles, 64) => kernel_name!(element, "dilated_attention_prefill_", "_64"),
        (Tiles, _) => kernel_name!(element, "dilated_attention_prefill_", "_128"),
        (SmallTiles, 64) => kernel_name!(element, "dilated_attention_prefill_short_", "_64"),
        (SmallTiles, _) => kernel_name!(element, "dilated_attention_prefill_short_", "_128"),
        (Hopper, 64) => kernel_name!(element, "dilated_attention_hopper_", "_64"),
        (Hopper, _) => kernel_name!(element, "dilated_attention_hopper_", "_128"),
        (SmallHopper, 64) => kernel_name!(element, "dilated_attention_hopper_short_", "_64"),
        (SmallHopper, _) => kernel_name!(element, "dilated_attention_hopper_short_", "_128"),
        (Any, ..=128) => kernel_name!(element, "dilated_attention_any_", "_128"),
        (Any, _) => kernel_name!(element, "dilated_attention_any_", "_512"),
    }
}

/// The blocks of the kernels that ask for shared memory.
pub(super) fn launch_blocks() -> Vec<LaunchBlock> {
    use AttentionMethod::{Any, Decode, Hopper, SmallHopper, SmallTiles, Tiles};
    let mut blocks = Vec::new();
    for element in ElementType::ACTIVATIONS {
        for (method, dims) in [
            (Decode, [64, 128]),
            (Tiles, [64, 128]),
            (SmallTiles, [64, 128]),
            (Hopper, [64, 128]),
            (SmallHopper, [64, 128]),
            (Any, [128, 512]),
        ] {
            let tiles = !matches!(method, Decode | Any);
            for head_dim in dims
                .into_iter()
                .filter(|_| !tiles || element != ElementType::F32)
            {
                let block = AttentionBlock::new(method, head_dim);
                blocks.push(LaunchBlock {
                    kernel: kernel(method, element, head_dim),
                    threads: block.threads,
                    shared_bytes: block.shared_bytes,
                });
            }
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::constants::constant;

    #[test]
    fn blocks_are_those_of_the_kernels() {
        let decode = include_str!("../../../cuda/attention_decode.cuh");
        assert_eq!(32 * DECODE_WARPS, constant(decode, "DECODE_THREADS"));
        let prefill = include_str!("../../../cuda/attention_prefill.cuh");
        assert_eq!(PLAN_BYTES, constant(prefill, "PLAN_BYTES"));
        let any = include_str!("../../../cuda/attention_any.cuh");
        assert_eq!(ANY_WARPS, constant(any, "ANY_WARPS"));
    }

    #[test]
    fn methods_follow_the_shape() {
        use ratplus_graphs::pattern::Pattern;
        let dense = |rows| CacheLayout::new(&[Pattern::DENSE], rows);
        let shape = |element, seq_len, head_dim| AttentionShape {
            element,
            batch: 1,
            seq_len,
            group: 1,
            head_dim,
            scale: 1.0,
        };
        let bf16 = ElementType::BF16;
        let method = |shape: AttentionShape, rows| shape.method(&dense(rows));
        assert_eq!(method(shape(bf16, 1, 128), 9999), AttentionMethod::Decode);
        assert_eq!(method(shape(bf16, 2, 128), 1025), AttentionMethod::Tiles);
        assert_eq!(
            method(shape(bf16, 2, 64), 1024),
            AttentionMethod::SmallTiles
        );
        assert_eq!(method(shape(bf16, 1, 80), 64), AttentionMethod::Any);
        assert_eq!(
            method(shape(ElementType::F32, 2, 64), 64),
            AttentionMethod::Any
        );
        assert_eq!(
            method(shape(ElementType::F32, 1, 64), 64),
            AttentionMethod::Decode
        );
    }
}
