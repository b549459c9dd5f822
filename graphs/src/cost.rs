//! What a model costs to run, in closed form: cache bytes and FLOPs a token, against dense
//! attention.
//!
//! A multiply-add counts as two FLOPs. Only what grows with the model is counted: linear layers
//! and attention scores and sums; norms, activations, rotary embedding and softmax are not.

use crate::cache::head_rows;
use crate::model::Weight;
use crate::package::PackageShape;
use crate::spec::ModelSpec;
use serde::Serialize;

/// Costs of one token at a given context.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TokenCost {
    /// Tokens in the sequence, this one included.
    pub context: usize,
    /// FLOPs of attention with the model's patterns.
    pub attention_flops: f64,
    /// FLOPs of dense attention.
    pub dense_attention_flops: f64,
    /// FLOPs of everything else.
    pub linear_flops: f64,
    /// Bytes of keys, values and blocks' summaries that a cache for this context has to hold.
    pub cache_bytes: f64,
    /// The same for dense attention.
    pub dense_cache_bytes: f64,
}

/// Bytes of one sequence's state at `max_seq_len`: what an engine binds, divided by the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StateBytes {
    /// Keys and values.
    pub cache: u64,
    /// Summaries of blocks.
    pub summaries: u64,
    /// The recurrence's state.
    pub recurrent: u64,
    /// Keys and values of dense attention over the same length.
    pub dense_cache: u64,
}

/// Number of parameters; a matrix that head and embedding share counts once.
pub fn parameters(spec: &ModelSpec) -> u64 {
    let distinct = Weight::distinct(spec).into_iter();
    distinct.map(|weight| elements(weight, spec)).sum()
}

fn elements(weight: Weight, spec: &ModelSpec) -> u64 {
    let sizes = weight.shape(spec).into_iter().map(|size| size as u64);
    sizes.product()
}

/// Costs of the token that makes a sequence `context` tokens long; `element_bytes` is the size
/// of one cached element.
pub fn token_cost(spec: &ModelSpec, context: usize, element_bytes: usize) -> TokenCost {
    let query = context.saturating_sub(1);
    let head_dim = spec.d_head as f64;
    let (mut keys, mut rows, mut summaries, mut scores) = (0usize, 0usize, 0usize, 0usize);
    for (layer, patterns) in spec.patterns.iter().enumerate() {
        match patterns.normalized(context).block_top_k() {
            Some(blocks) => {
                // Scores of earlier blocks count as keys of which there is a product, not a sum.
                let scored = blocks.block_of(query) * blocks.score.parts();
                scores += spec.kv_heads() * scored;
                keys += spec.kv_heads() * blocks.visible_count(query);
                rows += spec.kv_heads() * context;
            }
            None => {
                for pattern in spec.kept_patterns(layer) {
                    let pattern = pattern.normalized(context);
                    keys += pattern.visible_count(query);
                    rows += head_rows(pattern, context);
                }
            }
        }
        summaries += spec.summary_rows(layer, context);
    }
    let group = spec.num_heads() / spec.kv_heads().max(1);
    let kv_heads = (spec.num_layers * spec.kv_heads()) as f64;
    // One row of the embedding is read, not multiplied.
    let places = Weight::all(spec)
        .into_iter()
        .filter(|&place| place != Weight::Embedding);
    let multiplied: u64 = places.map(|weight| elements(weight, spec)).sum();
    let cache = |rows: f64| rows * head_dim * 2.0 * element_bytes as f64;
    TokenCost {
        context,
        attention_flops: head_dim * ((4 * keys + 2 * scores) * group) as f64,
        dense_attention_flops: 4.0 * head_dim * kv_heads * (group * context) as f64,
        linear_flops: 2.0 * multiplied as f64,
        cache_bytes: cache(rows as f64) + (4 * summaries) as f64 * head_dim,
        dense_cache_bytes: cache(kv_heads * context as f64),
    }
}

/// State bytes of one sequence in a package of `shape`.
pub fn state_bytes(spec: &ModelSpec, shape: &PackageShape) -> StateBytes {
    let element = shape.cache_dtype.size() as u64;
    let rows: usize = (0..spec.num_layers)
        .map(|layer| spec.cache_layout(layer, shape.max_seq_len).rows())
        .sum();
    let row = 2 * spec.d_head as u64 * element;
    let summaries: usize = (0..spec.num_layers)
        .map(|layer| spec.summary_rows(layer, shape.max_seq_len))
        .sum();
    let heads = (spec.num_layers * spec.kv_heads()) as u64;
    let recurrent = if spec.recurrence {
        2 * 4 * (spec.num_layers * spec.d_kv()) as u64
    } else {
        0
    };
    StateBytes {
        cache: rows as u64 * row,
        summaries: 4 * (summaries * spec.d_head) as u64,
        recurrent,
        dense_cache: heads * shape.max_seq_len as u64 * row,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::ElementType;
    use crate::package::{LogitsMode, state_tensors};
    use crate::pattern::Pattern;
    use crate::spec::LayerPatterns;

    fn spec(dilation: i64) -> ModelSpec {
        let pattern = Pattern::new(dilation, 0, 0).unwrap();
        ModelSpec {
            vocab_size: 10,
            d_model: 8,
            num_layers: 2,
            d_head: 4,
            d_ffn: 32,
            patterns: vec![LayerPatterns::Uniform(pattern); 2],
            ..ModelSpec::default()
        }
    }

    #[test]
    fn state_bytes_are_those_of_the_bound_tensors() {
        for dilation in [-1, 1, 3, 16] {
            let spec = spec(dilation);
            let shape = PackageShape {
                batch: 3,
                max_seq_len: 100,
                dtype: ElementType::BF16,
                cache_dtype: ElementType::F32,
                logits: LogitsMode::Last,
            };
            let bound: usize = state_tensors(&spec, &shape)
                .iter()
                .map(|(_, _, t)| t.bytes())
                .sum();
            let bytes = state_bytes(&spec, &shape);
            assert_eq!(
                3 * (bytes.cache + bytes.summaries + bytes.recurrent),
                bound as u64
            );
        }
    }

    #[test]
    fn a_shared_matrix_is_one_and_multiplied_once() {
        let two = spec(4);
        let tied = ModelSpec {
            tie_embedding: true,
            ..two.clone()
        };
        assert_eq!(parameters(&two) - parameters(&tied), 10 * 8);
        assert_eq!(
            token_cost(&two, 9, 4).linear_flops,
            token_cost(&tied, 9, 4).linear_flops
        );
    }

    #[test]
    fn dense_patterns_cost_what_dense_attention_costs() {
        let cost = token_cost(&spec(1), 64, 4);
        assert_eq!(cost.attention_flops, cost.dense_attention_flops);
        assert_eq!(cost.cache_bytes, cost.dense_cache_bytes);
        // 2 layers x 2 heads x 64 keys x 4 channels x (2 for scores + 2 for sums)
        assert_eq!(cost.attention_flops, 4096.0);
        let sparse = token_cost(&spec(16), 64, 4);
        assert_eq!(sparse.cache_bytes * 16.0, cost.cache_bytes);
    }
}
