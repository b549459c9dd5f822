//! `BlockTopKAttention` in loops over positions.

use crate::Rounding;
use crate::choice::{self, Choices};
use crate::operator::{Reference, Values};
use ratplus_graphs::blocks::Score;
use ratplus_graphs::ops::block_top_k_attention::{Inputs, Outputs};
use ratplus_graphs::ops::{Axis, BlockTopKAttention, Inferred};
use std::rc::Rc;

impl Reference for BlockTopKAttention {
    /// Scores of blocks and of keys, softmax and sums are f64; rotated keys and values are rounded to the cache's
    /// type before use, and sums of blocks to f32 with every key. Rotated queries are not rounded.
    fn run(
        &self,
        node: &Inferred,
        inputs: &Inputs<Values<'_>>,
        mut outputs: Outputs<&mut [f32]>,
        rounding: Rounding,
    ) {
        let [batch, seq_len, dim, max_seq_len] =
            [Axis::Batch, Axis::SeqLen, Axis::HeadDim, Axis::MaxSeqLen].map(|axis| node.dims[axis]);
        outputs.present_key.copy_from_slice(inputs.past_key.f32s());
        outputs
            .present_value
            .copy_from_slice(inputs.past_value.f32s());
        outputs
            .present_block
            .copy_from_slice(inputs.past_block.f32s());
        let given = choice::next();
        for slot in 0..batch {
            let past = inputs.past_length.i64s()[slot] as usize;
            let length = inputs.seq_length.i64s()[slot] as usize;
            for head in 0..self.num_kv_heads {
                let call = Head {
                    operator: self,
                    inputs,
                    rounding,
                    given: given.as_ref(),
                    dim,
                    slot,
                    head,
                    seq_len,
                    first_row: (slot * self.num_kv_heads + head) * max_seq_len,
                    first_summary: (slot * self.num_kv_heads + head)
                        * self.blocks.summary_rows(max_seq_len),
                };
                for token in 0..length {
                    call.store(past, token, &mut outputs);
                }
                for token in 0..length {
                    call.attend(past, token, &mut outputs);
                }
            }
        }
    }
}

/// One key-value head of one slot.
struct Head<'a> {
    operator: &'a BlockTopKAttention,
    inputs: &'a Inputs<Values<'a>>,
    rounding: Rounding,
    /// Choices in place of its own, and which of them.
    given: Option<&'a (Rc<dyn Choices>, usize)>,
    dim: usize,
    slot: usize,
    head: usize,
    seq_len: usize,
    /// In `[B * R]`.
    first_row: usize,
    /// In `[B * Rb]`.
    first_summary: usize,
}

impl Head<'_> {
    /// Writes a token of the chunk to the cache and to its block's summary.
    fn store(&self, past: usize, token: usize, outputs: &mut Outputs<&mut [f32]>) {
        let (dim, position) = (self.dim, past + token);
        let heads = self.operator.num_kv_heads;
        let from = ((self.slot * self.seq_len + token) * heads + self.head) * dim;
        let key = self.rotated(&self.inputs.key.f32s()[from..from + dim], position);
        let value = &self.inputs.value.f32s()[from..from + dim];
        let row = (self.first_row + position) * dim;
        let blocks = self.operator.blocks;
        let parts = blocks.score.parts();
        let summary = (self.first_summary + blocks.block_of(position) * parts) * dim;
        let begins = position.is_multiple_of(blocks.block_size as usize);
        for channel in 0..dim {
            let key = (self.rounding.cache)(key[channel] as f32);
            outputs.present_key[row + channel] = key;
            outputs.present_value[row + channel] = (self.rounding.cache)(value[channel]);
            for part in 0..parts {
                let held = &mut outputs.present_block[summary + part * dim + channel];
                *held = match (begins, blocks.score, part) {
                    (true, _, _) => key,
                    (false, Score::Mean, _) => *held + key,
                    (false, Score::Bounds, 0) => held.min(key),
                    (false, Score::Bounds, _) => held.max(key),
                };
            }
        }
    }

    /// Attends with a token of the chunk, which has been stored, in every query head of the group.
    fn attend(&self, past: usize, token: usize, outputs: &mut Outputs<&mut [f32]>) {
        let (dim, position) = (self.dim, past + token);
        let operator = self.operator;
        let group = operator.num_heads / operator.num_kv_heads;
        for head in self.head * group..(self.head + 1) * group {
            let at = ((self.slot * self.seq_len + token) * operator.num_heads + head) * dim;
            let query = self.rotated(&self.inputs.query.f32s()[at..at + dim], position);
            let chosen = match self.given {
                Some((choices, nth)) => {
                    let chosen = choices.chosen(*nth, self.slot, position, head).iter();
                    chosen.map(|&block| block as usize).collect()
                }
                None => self.choose(&query, position, outputs.present_block),
            };
            let own = operator.blocks.block_of(position);
            let sees = |&key: &usize| {
                let block = operator.blocks.block_of(key);
                block == own
                    || chosen.contains(&block)
                    || operator.blocks.beside.visible(position, key)
            };
            let seen: Vec<usize> = (0..=position).filter(sees).collect();
            let row = |position: usize| (self.first_row + position) * dim;
            let scores: Vec<f64> = seen
                .iter()
                .map(|&position| {
                    let key = &outputs.present_key[row(position)..][..dim];
                    dot(&query, key) * f64::from(operator.scale)
                })
                .collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            for channel in 0..dim {
                let values = seen
                    .iter()
                    .map(|&position| f64::from(outputs.present_value[row(position) + channel]));
                let mixed: f64 = weights.iter().zip(values).map(|(w, v)| w * v).sum();
                outputs.output[at + channel] = (self.rounding.activations)((mixed / total) as f32);
            }
        }
    }

    /// The earlier blocks that the query sees whole.
    fn choose(&self, query: &[f64], position: usize, summaries: &[f32]) -> Vec<usize> {
        let (dim, blocks) = (self.dim, self.operator.blocks);
        let parts = blocks.score.parts();
        let score = |block: usize| {
            let summary = &summaries[(self.first_summary + block * parts) * dim..][..parts * dim];
            match blocks.score {
                Score::Mean => dot(query, summary),
                Score::Bounds => {
                    let (least, greatest) = summary.split_at(dim);
                    let bounds = least.iter().zip(greatest);
                    let products = query.iter().zip(bounds).map(|(&q, (&least, &greatest))| {
                        (q * f64::from(least)).max(q * f64::from(greatest))
                    });
                    products.sum()
                }
            }
        };
        let mut ranked: Vec<_> = (0..blocks.block_of(position))
            .map(|block| match score(block) {
                none if none.is_nan() => (f64::NEG_INFINITY, block),
                // Zeros are equal.
                score => (score + 0.0, block),
            })
            .collect();
        // A stable sort: of equal ones the lower block is first.
        ranked.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let first = ranked.into_iter().take(blocks.top_k as usize - 1);
        first.map(|(_, block)| block).collect()
    }

    fn rotated(&self, token: &[f32], position: usize) -> Vec<f64> {
        let (dim, half) = (self.dim, self.dim / 2);
        let (cos, sin) = (self.inputs.cos.f32s(), self.inputs.sin.f32s());
        let mut turned = vec![0.0; dim];
        for channel in 0..half {
            let cos = f64::from(cos[position * half + channel]);
            let sin = f64::from(sin[position * half + channel]);
            let (low, high) = (f64::from(token[channel]), f64::from(token[channel + half]));
            turned[channel] = low * cos - high * sin;
            turned[channel + half] = high * cos + low * sin;
        }
        turned
    }
}

fn dot(query: &[f64], row: &[f32]) -> f64 {
    let products = query.iter().zip(row).map(|(q, &x)| q * f64::from(x));
    products.sum()
}
