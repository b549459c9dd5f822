//! `BlockTopKAttention` on a GPU.
//!
//! A launch a step: the chunk's cache rows, the summaries of the blocks that it writes to, scores of earlier
//! blocks, the choice, the attention. Scores of a long chunk are kept for some of its tokens at a time.

mod sizes;

use super::limits::{check_alignment, fit_i32, grid_axis, kernel_name};
use super::operator::LaunchBlock;
use super::params::{Lengths, twin};
use super::workspace::Workspace;
use super::{CudaError, CudaKernel, CudaPlan, Device, DevicePtr, Function, KernelParams, Stream};
use ratplus_graphs::ops::block_top_k_attention::{Inputs, Outputs};
use ratplus_graphs::ops::{BlockTopKAttention, ElementType, Inferred};
use sizes::{Sizes, ceil};

twin! {
    params_are_the_kernels:
    #[derive(Default)]
    BlockTopKParams {
        lengths: Lengths,
        query: DevicePtr,
        key: DevicePtr,
        value: DevicePtr,
        cache_key: DevicePtr,
        cache_value: DevicePtr,
        summary: DevicePtr,
        cos: DevicePtr,
        sin: DevicePtr,
        output: DevicePtr,
        score: DevicePtr,
        chosen: DevicePtr,
        partial: DevicePtr,
        scale: f32,
        num_heads: i32,
        group: i32,
        head_dim: i32,
        block_size: i32,
        blocks: i32,
        parts: i32,
        most_chosen: i32,
        dilation: i32,
        window: i32,
        initial: i32,
        first_token: i32,
        slice: i32,
        shares: i32,
    }
}

// SAFETY: the twin of `ratplus::BlockTopKParams`, tested.
unsafe impl KernelParams for BlockTopKParams {}

/// Threads of a block of any of the kernels.
const THREADS: u32 = 128;
/// Rows that a block of the kernel that keeps them has.
const KEEP_ROWS: usize = 16;
/// Queries, and blocks of keys, that a block of the kernel that scores has.
const SCORE_QUERIES: usize = 8;
const SCORE_TILE: usize = 64;
/// Words of shared memory of a block that picks.
const PICK_WORDS: usize = 2 * ATTEND_WARPS + 2 * THREADS as usize;
/// Warps of a block of the attention, a query or a share each.
const ATTEND_WARPS: usize = 4;
/// Keys are counted in 32 bits, and a query's list has chosen blocks, its own and candidates.
const MAX_POSITIONS: usize = 1 << 29;
const MAX_HEAD_DIM: usize = 512;

/// Ways of going about it, which all have the same bits; what the shape chooses where none is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockTopKWays {
    /// Whether a warp computes the attention of a share of a query's keys, not of a query.
    pub in_shares: Option<bool>,
    /// Tokens that are scored at a time.
    pub slice: Option<usize>,
}

/// Its launches for one shape on one device.
#[derive(Debug)]
pub struct BlockTopKPlan {
    device: &'static Device,
    sizes: Sizes,
    kernels: Kernels,
    /// Everything but the addresses.
    params: BlockTopKParams,
    /// Bytes of one side of the cache, and of the summaries.
    cache_bytes: usize,
    summary_bytes: usize,
}

#[derive(Debug)]
struct Kernels {
    keep: Function,
    summary: Function,
    /// Not where a query sees all earlier blocks.
    choose: Option<Choose>,
    attend: Attend,
}

#[derive(Debug)]
struct Choose {
    score: Function,
    pick: Function,
}

#[derive(Debug)]
enum Attend {
    /// A warp a query.
    Whole(Function),
    /// A warp a share of a query's keys.
    Shares { share: Function, join: Function },
}

impl BlockTopKPlan {
    /// A plan that goes about it in other ways, for comparisons.
    ///
    /// # Errors
    /// As [`CudaKernel::plan`].
    pub fn with_ways(
        device: &'static Device,
        operator: &BlockTopKAttention,
        node: &Inferred,
        ways: BlockTopKWays,
    ) -> Result<Self, CudaError> {
        let unsupported = |what: &str, expected: &str, found: usize| CudaError::Unsupported {
            what: what.into(),
            expected: expected.into(),
            found: found.to_string(),
        };
        let element = node.element;
        let sizes = Sizes::new(
            device.limits().multiprocessors as usize,
            operator,
            node,
            ways,
        );
        let Sizes {
            batch,
            seq_len,
            num_heads,
            kv_heads,
            head_dim,
            max_seq_len,
            ..
        } = sizes;
        if head_dim > MAX_HEAD_DIM || !head_dim.is_multiple_of(2) {
            return Err(unsupported(
                "head_dim",
                "an even number up to 512",
                head_dim,
            ));
        }
        if max_seq_len > MAX_POSITIONS {
            return Err(unsupported("max_seq_len", "at most 2^29", max_seq_len));
        }
        grid_axis("batch", batch)?;
        grid_axis("num_heads", num_heads)?;
        fit_i32(
            "blocks of the attention",
            seq_len.saturating_mul(sizes.share_blocks()),
        )?;
        let function = |part| device.function(part);
        let kernels = Kernels {
            keep: function(kernel_name!(element, "block_top_k_attention_update_keep_"))?,
            summary: function(kernel_name!(
                element,
                "block_top_k_attention_update_summary_"
            ))?,
            choose: match sizes.chooses() {
                false => None,
                true => Some(Choose {
                    score: function(score(element))?,
                    pick: function(PICK)?,
                }),
            },
            attend: match sizes.in_shares {
                false => Attend::Whole(function(whole(element, head_dim))?),
                true => Attend::Shares {
                    share: function(share(element, head_dim))?,
                    join: function(kernel_name!(element, "block_top_k_attention_attend_join_"))?,
                },
            },
        };
        let beside = operator.blocks.beside;
        let cut = |count: u32| (count as usize).min(max_seq_len);
        let dilation = beside
            .dilation
            .map_or(0, |dilation| dilation.get() as usize);
        let params = BlockTopKParams {
            lengths: Lengths {
                error: device.error_flag().device_address(),
                seq_len: fit_i32("seq_len", seq_len)?,
                max_seq_len: max_seq_len as i64,
                ..Lengths::default()
            },
            // With a scale of 0 every visible key has the same weight, as with one so small that no product
            // of it is more than rounding.
            scale: match operator.scale == 0.0 {
                true => f32::MIN_POSITIVE,
                false => operator.scale,
            },
            num_heads: fit_i32("num_heads", num_heads)?,
            group: fit_i32("query heads a key-value head", num_heads / kv_heads)?,
            head_dim: head_dim as i32,
            block_size: sizes.block_size as i32,
            blocks: sizes.blocks as i32,
            parts: sizes.parts as i32,
            most_chosen: sizes.most_chosen as i32,
            // No position is a multiple of more.
            dilation: if dilation > max_seq_len {
                0
            } else {
                dilation as i32
            },
            window: cut(beside.local_window) as i32,
            initial: cut(beside.initial) as i32,
            slice: fit_i32("seq_len", sizes.slice)?,
            shares: fit_i32("shares of the keys", sizes.shares)?,
            ..BlockTopKParams::default()
        };
        Ok(Self {
            device,
            kernels,
            params,
            cache_bytes: batch * kv_heads * max_seq_len * head_dim * element.size(),
            summary_bytes: batch
                * kv_heads
                * sizes.blocks
                * sizes.parts
                * head_dim
                * size_of::<f32>(),
            sizes,
        })
    }

    /// Parts of the workspace: scores, chosen blocks, softmaxes of shares.
    fn carve(&self, start: DevicePtr) -> ([DevicePtr; 3], Workspace) {
        let mut workspace = Workspace::at(start);
        let sizes = &self.sizes;
        let mut part = |bytes: usize| match bytes {
            0 => 0,
            _ => workspace.take(bytes),
        };
        let parts = [
            part(sizes.score_bytes()),
            part(sizes.chosen_bytes()),
            part(sizes.partial_bytes()),
        ];
        (parts, workspace)
    }

    /// # Safety
    /// The addresses in `params` are valid, as for [`launch`](CudaPlan::launch).
    unsafe fn launch_all(&self, params: &BlockTopKParams, stream: Stream) -> Result<(), CudaError> {
        let sizes = &self.sizes;
        let launch =
            |kernel: &Function, [x, y]: [usize; 2], words: usize, params: &BlockTopKParams| {
                let grid = [x as u32, y as u32, sizes.batch as u32];
                let shared_bytes = (words * size_of::<f32>()) as u32;
                // SAFETY: the caller's contract; the grid covers the shape.
                unsafe {
                    self.device
                        .launch(*kernel, grid, THREADS, shared_bytes, params, stream)
                }
            };
        let Kernels {
            keep,
            summary,
            choose,
            attend,
        } = &self.kernels;
        launch(
            keep,
            [ceil(sizes.seq_len, KEEP_ROWS), sizes.kv_heads],
            0,
            params,
        )?;
        launch(summary, [sizes.touched(), sizes.kv_heads], 0, params)?;
        if let Some(Choose { score, pick }) = choose {
            for first in (0..sizes.seq_len).step_by(sizes.slice) {
                let tokens = sizes.slice.min(sizes.seq_len - first);
                let params = BlockTopKParams {
                    first_token: first as i32,
                    slice: tokens as i32,
                    ..*params
                };
                let words = SCORE_QUERIES * sizes.head_dim;
                launch(score, sizes.score_grid(tokens), words, &params)?;
                launch(pick, [tokens, sizes.num_heads], PICK_WORDS, &params)?;
            }
        }
        match attend {
            Attend::Whole(whole) => {
                let blocks = ceil(sizes.seq_len, ATTEND_WARPS);
                launch(whole, [blocks, sizes.num_heads], 0, params)
            }
            Attend::Shares { share, join } => {
                let blocks = sizes.seq_len * sizes.share_blocks();
                launch(share, [blocks, sizes.num_heads], 0, params)?;
                launch(join, [sizes.seq_len, sizes.num_heads], 0, params)
            }
        }
    }
}

impl CudaPlan for BlockTopKPlan {
    type Op = BlockTopKAttention;

    fn workspace_bytes(&self) -> usize {
        self.carve(0).1.measured()
    }

    unsafe fn launch(
        &self,
        inputs: &Inputs<DevicePtr>,
        outputs: &Outputs<DevicePtr>,
        workspace: DevicePtr,
        node: u32,
        stream: Stream,
    ) -> Result<(), CudaError> {
        check_alignment(&[
            ("query", inputs.query),
            ("key", inputs.key),
            ("value", inputs.value),
            ("past_key", inputs.past_key),
            ("past_value", inputs.past_value),
            ("past_block", inputs.past_block),
            ("cos", inputs.cos),
            ("sin", inputs.sin),
            ("output", outputs.output),
            ("present_key", outputs.present_key),
            ("present_value", outputs.present_value),
            ("present_block", outputs.present_block),
        ])?;
        for (past, present, bytes) in [
            (inputs.past_key, outputs.present_key, self.cache_bytes),
            (inputs.past_value, outputs.present_value, self.cache_bytes),
            (inputs.past_block, outputs.present_block, self.summary_bytes),
        ] {
            if past != present && bytes > 0 {
                // SAFETY: the caller's contract: two buffers of this size.
                unsafe {
                    self.device
                        .copy_device_async(present, past, bytes, stream)?;
                }
            }
        }
        let ([score, chosen, partial], _) = self.carve(workspace);
        let params = BlockTopKParams {
            lengths: Lengths {
                past_length: inputs.past_length,
                seq_length: inputs.seq_length,
                node,
                ..self.params.lengths
            },
            query: inputs.query,
            key: inputs.key,
            value: inputs.value,
            cache_key: outputs.present_key,
            cache_value: outputs.present_value,
            summary: outputs.present_block,
            cos: inputs.cos,
            sin: inputs.sin,
            output: outputs.output,
            score,
            chosen,
            partial,
            ..self.params
        };
        // SAFETY: the caller's contract.
        unsafe { self.launch_all(&params, stream) }
    }
}

impl CudaKernel for BlockTopKAttention {
    type Plan = BlockTopKPlan;

    fn plan(&self, device: &'static Device, node: &Inferred) -> Result<BlockTopKPlan, CudaError> {
        BlockTopKPlan::with_ways(device, self, node, BlockTopKWays::default())
    }

    fn launch_blocks() -> Vec<LaunchBlock> {
        let block = |kernel, words| LaunchBlock {
            kernel,
            threads: THREADS,
            shared_bytes: words * size_of::<f32>(),
        };
        let scores = ElementType::ACTIVATIONS.map(score);
        let scores = scores.map(|kernel| block(kernel, SCORE_QUERIES * MAX_HEAD_DIM));
        let pick = block(PICK, PICK_WORDS);
        scores.into_iter().chain([pick]).collect()
    }
}

const PICK: &str = "ratplus_block_top_k_attention_choose_pick";

fn score(element: ElementType) -> &'static str {
    kernel_name!(element, "block_top_k_attention_choose_score_")
}

fn whole(element: ElementType, head_dim: usize) -> &'static str {
    match head_dim {
        64 => kernel_name!(element, "block_top_k_attention_attend_whole_", "_64"),
        128 => kernel_name!(element, "block_top_k_attention_attend_whole_", "_128"),
        ..128 => kernel_name!(element, "block_top_k_attention_attend_whole_", "_any_128"),
        _ => kernel_name!(element, "block_top_k_attention_attend_whole_", "_any_512"),
    }
}

fn share(element: ElementType, head_dim: usize) -> &'static str {
    match head_dim {
        64 => kernel_name!(element, "block_top_k_attention_attend_share_", "_64"),
        128 => kernel_name!(element, "block_top_k_attention_attend_share_", "_128"),
        ..128 => kernel_name!(element, "block_top_k_attention_attend_share_", "_any_128"),
        _ => kernel_name!(element, "block_top_k_attention_attend_share_", "_any_512"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::constants::constant;
    use super::*;

    #[test]
    fn sizes_are_those_of_the_kernels() {
        let rows = include_str!("../../../cuda/rows.cuh");
        assert_eq!(KEEP_ROWS * constant(rows, "ROW_LANES"), THREADS as usize);
        let choose = include_str!("../../../cuda/block_top_k_attention_choose.cu");
        assert_eq!(SCORE_QUERIES, constant(choose, "SCORE_QUERIES"));
        assert_eq!(SCORE_TILE, constant(choose, "SCORE_TILE"));
        for warps in ["SCORE_WARPS", "PICK_WARPS"] {
            assert_eq!(32 * constant(choose, warps), THREADS as usize, "{warps}");
        }
        let attend = include_str!("../../../cuda/block_top_k_attention_attend.cu");
        assert_eq!(ATTEND_WARPS, constant(attend, "ATTEND_WARPS"));
        assert_eq!(32 * ATTEND_WARPS, THREADS as usize);
        assert_eq!(THREADS as usize, constant(attend, "JOIN_THREADS"));
        assert_eq!(sizes::SHARE_KEYS, constant(attend, "SHARE_KEYS"));
    }
}
