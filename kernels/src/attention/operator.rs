//! `DilatedAttention` as hosts run it.

use super::{AttentionParams, attention_workspace_bytes, dilated_attention_on};
use crate::element::with_element;
use crate::operator::{CpuKernel, Processor};
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::ops::dilated_attention::{Inputs, Outputs};
use ratplus_graphs::ops::{Axis, DilatedAttention, ElementType, Inferred, LengthError};

/// Sizes, types and cache rows of one node.
#[derive(Clone, Debug)]
pub struct AttentionPlan {
    pub(super) element: ElementType,
    pub(super) cache: ElementType,
    pub(super) batch: usize,
    pub(super) seq_len: usize,
    pub(super) num_heads: usize,
    pub(super) head_dim: usize,
    pub(super) layout: CacheLayout,
    pub(super) scale: f32,
}

impl AttentionPlan {
    pub(super) fn new(node: &Inferred, num_heads: usize, layout: CacheLayout, scale: f32) -> Self {
        Self {
            element: node.element,
            cache: node.cache,
            batch: node.dims[Axis::Batch],
            seq_len: node.dims[Axis::SeqLen],
            num_heads,
            head_dim: node.dims[Axis::HeadDim],
            layout,
            scale,
        }
    }
}

impl CpuKernel for DilatedAttention {
    type Plan = AttentionPlan;

    fn plan(&self, node: &Inferred) -> AttentionPlan {
        let layout = self.cache_layout(node.dims[Axis::MaxSeqLen]);
        AttentionPlan::new(node, self.num_heads, layout, self.scale)
    }

    fn workspace_bytes(plan: &AttentionPlan) -> usize {
        with_element!(plan.element, T => with_element!(plan.cache, C => {
            attention_workspace_bytes::<T, C>(&plan.layout, plan.batch, plan.seq_len, plan.head_dim)
        }))
    }

    unsafe fn run(
        plan: &AttentionPlan,
        inputs: &Inputs<*const u8>,
        outputs: &Outputs<*mut u8>,
        workspace: *mut u8,
        on: Processor<'_>,
    ) -> Result<(), LengthError> {
        with_element!(plan.element, T => with_element!(plan.cache, C => {
            let params = AttentionParams::<T, C> {
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
                workspace,
            };
            // SAFETY: forwarded.
            unsafe { dilated_attention_on(on.isa, &params, on.threads) }
        }))
    }
}
