use crate::error::check_slices;
use crate::{AttentionRounding, ReferenceError};
use ratplus_graphs::cache::HeadCache;
use ratplus_graphs::ops::{AttentionAttributes, Op, check_lengths};

/// Sizes of one [`dilated_attention`] call; the number of rows `R` follows from the patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// `B`.
    pub batch: usize,
    /// `L`.
    pub seq_len: usize,
    /// `dh`.
    pub head_dim: usize,
    /// `M`.
    pub max_seq_len: usize,
}

/// Inputs of `DilatedAttention`, in the ports' order and layout, `T` and `C` carried in f32.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInputs<'a> {
    /// `[B, L, H * dh]`.
    pub query: &'a [f32],
    /// `[B, L, H * dh]`.
    pub key: &'a [f32],
    /// `[B, L, H * dh]`.
    pub value: &'a [f32],
    /// `[B, R, dh]`.
    pub past_key: &'a [f32],
    /// `[B, R, dh]`.
    pub past_value: &'a [f32],
    /// `[B]`.
    pub past_length: &'a [i64],
    /// `[B]`.
    pub seq_length: &'a [i64],
    /// `[M, dh / 2]`.
    pub cos: &'a [f32],
    /// `[M, dh / 2]`.
    pub sin: &'a [f32],
}

/// Outputs of `DilatedAttention`; every element is written.
#[derive(Debug)]
pub struct AttentionOutputs<'a> {
    /// `[B, L, H * dh]`, rounded; padding is 0.
    pub output: &'a mut [f32],
    /// `[B, R, dh]`, new rows rounded.
    pub present_key: &'a mut [f32],
    /// `[B, R, dh]`, new rows rounded.
    pub present_value: &'a mut [f32],
}

/// `DilatedAttention`. Scores, softmax and sums are f64; rotated keys and values are rounded to
/// the cache's type before use, so that it does not matter whether a later query reads them from
/// the chunk or from the cache. Rotated queries are not rounded.
///
/// # Errors
/// A slice's length contradicts `shape`, or a slot's lengths are out of range.
pub fn dilated_attention(
    attributes: &AttentionAttributes,
    shape: AttentionShape,
    inputs: &AttentionInputs<'_>,
    outputs: &mut AttentionOutputs<'_>,
    rounding: AttentionRounding,
) -> Result<(), ReferenceError> {
    let op = Op::DilatedAttention;
    let AttentionShape {
        batch,
        seq_len,
        head_dim,
        max_seq_len,
    } = shape;
    let layout = attributes.cache_layout(max_seq_len);
    let chunk = batch * seq_len * attributes.num_heads() * head_dim;
    let cache = batch * layout.rows() * head_dim;
    let table = max_seq_len * (head_dim / 2);
    check_slices(
        op,
        &[
            ("query", chunk, inputs.query.len()),
            ("key", chunk, inputs.key.len()),
            ("value", chunk, inputs.value.len()),
            ("past_key", cache, inputs.past_key.len()),
            ("past_value", cache, inputs.past_value.len()),
            ("past_length", batch, inputs.past_length.len()),
            ("seq_length", batch, inputs.seq_length.len()),
            ("cos", table, inputs.cos.len()),
            ("sin", table, inputs.sin.len()),
            ("output", chunk, outputs.output.len()),
            ("present_key", cache, outputs.present_key.len()),
            ("present_value", cache, outputs.present_value.len()),
        ],
    )?;
    check_lengths(
        inputs.past_length,
        inputs.seq_length,
        seq_len,
        Some(max_seq_len),
    )
    .map_err(|error| ReferenceError::Lengths { op, error })?;
    outputs.output.fill(0.0);
    outputs.present_key.copy_from_slice(inputs.past_key);
    outputs.present_value.copy_from_slice(inputs.past_value);
    for slot in 0..batch {
        for (index, head) in layout.heads().iter().enumerate() {
            let call = HeadCall {
                shape,
                inputs,
                head,
                slot,
                width: attributes.num_heads() * head_dim,
                column: index * head_dim,
                first_row: slot * layout.rows() + head.offset,
                scale: f64::from(attributes.scale),
                rounding,
            };
            call.run(outputs);
        }
    }
    Ok(())
}

/// One head of one slot.
struct HeadCall<'a> {
    shape: AttentionShape,
    inputs: &'a AttentionInputs<'a>,
    head: &'a HeadCache,
    slot: usize,
    /// `H * dh`.
    width: usize,
    /// First channel of the head.
    column: usize,
    /// First row of the head in `[B * R]`.
    first_row: usize,
    scale: f64,
    rounding: AttentionRounding,
}

impl HeadCall<'_> {
    fn run(&self, outputs: &mut AttentionOutputs<'_>) {
        let dim = self.shape.head_dim;
        let past = self.inputs.past_length[self.slot] as usize;
        let length = self.inputs.seq_length[self.slot] as usize;
        let AttentionRounding { activations, cache } = self.rounding;
        let keys: Vec<Vec<f32>> = (0..length)
            .map(|row| {
                let key = self.rotated(self.inputs.key, row, past + row);
                key.iter().map(|&x| cache(x as f32)).collect()
            })
            .collect();
        let values: Vec<Vec<f32>> = (0..length)
            .map(|row| {
                let value = &self.inputs.value[self.token(row)..][..dim];
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
                        &self.inputs.past_key[at..at + dim],
                        &self.inputs.past_value[at..at + dim],
                    )
                });
            let own = (0..=row)
                .filter(|other| pattern.visible(position, past + other))
                .map(|other| (&*keys[other], &*values[other]));
            let seen: Vec<_> = before.chain(own).collect();
            let mixed = self.mix(&self.rotated(self.inputs.query, row, position), &seen);
            for (output, value) in outputs.output[self.token(row)..].iter_mut().zip(mixed) {
                *output = activations(value as f32);
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

    /// Index of the head's first channel of the chunk's token `row`.
    fn token(&self, row: usize) -> usize {
        (self.slot * self.shape.seq_len + row) * self.width + self.column
    }

    fn rotated(&self, tokens: &[f32], row: usize, position: usize) -> Vec<f64> {
        let dim = self.shape.head_dim;
        let half = dim / 2;
        let token = &tokens[self.token(row)..][..dim];
        let table = |table: &[f32], channel: usize| f64::from(table[position * half + channel]);
        let mut turned = vec![0.0; dim];
        for channel in 0..half {
            let cos = table(self.inputs.cos, channel);
            let sin = table(self.inputs.sin, channel);
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
        let mut mixed = vec![0.0; self.shape.head_dim];
        for (weight, (_, value)) in weights.iter().zip(seen) {
            for (sum, &value) in mixed.iter_mut().zip(*value) {
                *sum += weight / total * f64::from(value);
            }
        }
        mixed
    }
}
