//! `BlockTopKAttention` as hosts run it.

use super::{BlockTopKParams, block_top_k_attention_on};
use crate::attention::AttentionParams;
use crate::attention::operator::AttentionPlan;
use crate::element::with_element;
use crate::operator::{CpuKernel, Processor};
use ratplus_graphs::blocks::BlockTopK;
use ratplus_graphs::ops::block_top_k_attention::{Inputs, Outputs};
use ratplus_graphs::ops::{Axis, BlockTopKAttention, Inferred, LengthError};

/// Sizes, types and patterns of one node.
#[derive(Clone, Debug)]
pub struct BlockTopKPlan {
    attention: AttentionPlan,
    blocks: BlockTopK,
}

impl CpuKernel for BlockTopKAttention {
    type Plan = BlockTopKPlan;

    fn plan(&self, node: &Inferred) -> BlockTopKPlan {
        let layout = self.cache_layout(node.dims[Axis::MaxSeqLen]);
        BlockTopKPlan {
            attention: AttentionPlan::new(node, self.num_heads, layout, self.scale),
            blocks: self.blocks,
        }
    }

    fn workspace_bytes(_: &BlockTopKPlan) -> usize {
        0
    }

    unsafe fn run(
        plan: &BlockTopKPlan,
        inputs: &Inputs<*const u8>,
        outputs: &Outputs<*mut u8>,
        _: *mut u8,
        on: Processor<'_>,
    ) -> Result<(), LengthError> {
        let BlockTopKPlan {
            attention: plan,
            blocks,
        } = plan;
        with_element!(plan.element, T => with_element!(plan.cache, C => {
            let params = BlockTopKParams::<T, C> {
                attention: AttentionParams {
                    layout: &plan.layout,
                    num_heads: plan.num_heads,
                    scale: plan.scale,
                    batch: plan.batch,
                    seq_len: plan.seq_len,
                    head_dim: plan.head_dim,
                    query: inputs.query.cast(),
                    key: inputs.key.cast(),
                    value: inputs.value.cast(),
                    past_key: inputs.past_key.cast(),
                    past_value: inputs.past_value.cast(),
                    past_length: inputs.past_length.cast(),
                    seq_length: inputs.seq_length.cast(),
                    cos: inputs.cos.cast(),
                    sin: inputs.sin.cast(),
                    output: outputs.output.cast(),
                    present_key: outputs.present_key.cast(),
                    present_value: outputs.present_value.cast(),
                    workspace: std::ptr::null_mut(),
                },
                blocks: *blocks,
                past_block: inputs.past_block.cast(),
                present_block: outputs.present_block.cast(),
            };
            // SAFETY: forwarded.
            unsafe { block_top_k_attention_on(on.isa, &params, on.threads) }
        }))
    }
}
