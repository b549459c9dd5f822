//! `DilatedAttention`.

use crate::{Reference, Rounding, Values};
use ratplus_graphs::cache::HeadCache;
use ratplus_graphs::ops::dilated_attention::{Inputs, Outputs};
use ratplus_graphs::ops::{Axis, DilatedAttention, Inferred};

impl Reference for DilatedAttention {
    /// Scores, softmax and sums are f64; rotated keys and values are rounded to the cache's type
    /// before use, so that it does not matter whether a later query reads them from the chunk or
    /// from the cache. Rotated queries are not rounded.
    fn run(
        &self,
        node: &Inferred,
        inputs: &Inputs<Values<'_>>,
        mut outputs: Outputs<&mut [f32]>,
        rounding: Rounding,
    ) {
        let [batch, seq_len, head_dim] =
            [Axis::Batch, Axis::SeqLen, Axis::HeadDim].map(|axis| node.dims[axis]);
        let layout = self.cache_layout(node.dims[Axis::MaxSeqLen]);
        outputs.present_key.copy_from_slice(inputs.past_key.f32s());
        outputs
            .present_value
            .copy_from_slice(inputs.past_value.f32s());
        for slot in 0..batch {
            for (index, head) in layout.heads().iter().enumerate() {
                let call = HeadCall {
                    inputs,
                    head,
                    slot,
                    seq_len,
                    head_dim,
                    width: self.num_kv_heads() * head_dim,
                    column: index * head_dim,
                    num_heads: self.num_heads,
                    group: self.num_heads / self.num_kv_heads(),
                    first_row: slot * layout.rows() + head.offset,
                    scale: f64::from(self.scale),
                    rounding,
                };
                call.run(&mut outputs);
            }
        }
    }
}

/// One key-value head of one slot, and the query heads that read it.
struct HeadCall<'a> {
    inputs: &'a Inputs<Values<'a>>,
    head: &'a HeadCache,
    slot: usize,
    seq_len: usize,
    head_dim: usize,
    /// `Hkv * dh`.
    width: usize,
    /// First channel of the head in it.
    column: usize,
    num_heads: usize,
    /// Query heads that read it.
    group: usize,
    /// First row of the head in `[B * R]`.
    first_row: usize,
    scale: f64,
    rounding: Rounding,
}

impl HeadCall<'_> {
    fn run(&self, outputs: &mut Outputs<&mut [f32]>) {
        let dim = self.head_dim;
        let past = self.inputs.past_length.i64s()[self.slot] as usize;
        let length = self.inputs.seq_length.i64s()[self.slot] as usize;
        let Rounding { activations, cache } = self.rounding;
        let keys: Vec<Vec<f32>> = (0..length)
            .map(|row| {
                let key = &self.inputs.key.f32s()[self.token(row)..][..dim];
                let key = self.rotated(key, past + row);
                key.iter().map(|&x| cache(x as f32)).collect()
            })
            .collect();
        let values: Vec<Vec<f32>> = (0..length)
            .map(|row| {
                let value = &self.inputs.value.f32s()[self.token(row)..][..dim];
                value.iter().map(|&x| cache(x)).collect()
            })
            .collect();
        let cached = self.cached(past);
        for row in 0..length {
            let position = past + row;
            let pattern = self.head.pattern;
            let before = cached
                .iter()
                .filter(|(held, _)| pattern.visible(position, *held))
                .map(|&(_, row)| {
                    let at = row * dim;
                    (
                        &self.inputs.past_key.f32s()[at..at + dim],
                        &self.inputs.past_value.f32s()[at..at + dim],
                    )
                });
            let own = (0..=row)
                .filter(|other| pattern.visible(position, past + other))
                .map(|other| (&*keys[other], &*values[other]));
            let seen: Vec<_> = before.chain(own).collect();
            let first = self.column / dim * self.group;
            for head in first..first + self.group {
                let at = ((self.slot * self.seq_len + row) * self.num_heads + head) * dim;
                let query = self.rotated(&self.inputs.query.f32s()[at..at + dim], position);
                let mixed = self.mix(&query, &seen);
                for (output, value) in outputs.output[at..at + dim].iter_mut().zip(mixed) {
                    *output = activations(value as f32);
                }
            }
        }
        for (token, (key, value)) in keys.iter().zip(&values).enumerate() {
            for row in self.head.rows_of_position(past + token) {
                let at = (self.first_row + row) * dim;
                outputs.present_key[at..at + dim].copy_from_slice(key);
                outputs.present_value[at..at + dim].copy_from_slice(value);
            }
        }
    }

    /// Index of the head's first channel in keys and values of the chunk's token `row`.
    fn token(&self, row: usize) -> usize {
        (self.slot * self.seq_len + row) * self.width + self.column
    }

    fn rotated(&self, token: &[f32], position: usize) -> Vec<f64> {
        let dim = self.head_dim;
        let half = dim / 2;
        let table = |table: &[f32], channel: usize| f64::from(table[position * half + channel]);
        let mut turned = vec![0.0; dim];
        for channel in 0..half {
            let cos = table(self.inputs.cos.f32s(), channel);
            let sin = table(self.inputs.sin.f32s(), channel);
            let (low, high) = (f64::from(token[channel]), f64::from(token[channel + half]));
            turned[channel] = low * cos - high * sin;
            turned[channel + half] = high * cos + low * sin;
        }
        turned
    }

    /// Each cached position once, ascending, with a row of `[B * R]` that holds it.
    fn cached(&self, past: usize) -> Vec<(usize, usize)> {
        let mut held: Vec<_> = (0..self.head.rows)
            .filter_map(|row| {
                let position = self.head.position_of_row(row, past)?;
                Some((position, self.first_row + row))
            })
            .collect();
        held.sort_unstable();
        held.dedup_by_key(|&mut (position, _)| position);
        held
    }

    fn mix(&self, query: &[f64], seen: &[(&[f32], &[f32])]) -> Vec<f64> {
        let scores: Vec<f64> = seen
            .iter()
            .map(|(key, _)| {
                let products = query.iter().zip(*key).map(|(q, &k)| q * f64::from(k));
                products.sum::<f64>() * self.scale
            })
            .collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut mixed = vec![0.0; self.head_dim];
        for (weight, (_, value)) in weights.iter().zip(seen) {
            for (sum, &value) in mixed.iter_mut().zip(*value) {
                *sum += weight / total * f64::from(value);
            }
        }
        mixed
    }
}
