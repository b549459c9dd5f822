//! `Linear`.

use crate::full::sigmoid;
use crate::{Reference, Rounding, Values};
use ratplus_graphs::ops::linear::{Inputs, Outputs, WeightType};
use ratplus_graphs::ops::{Axis, Inferred, Linear};
use ratplus_graphs::precision::Activations;
use ratplus_graphs::spec::Activation;

impl Reference for Linear {
    fn run(
        &self,
        node: &Inferred,
        inputs: &Inputs<Values<'_>>,
        outputs: Outputs<&mut [f32]>,
        rounding: Rounding,
    ) {
        let [batch, seq_len] = [Axis::Batch, Axis::SeqLen].map(|axis| node.dims[axis]);
        let (columns, rows) = (self.in_features, self.out_features);
        let round = |value: f64| f64::from((rounding.activations)(value as f32));
        let matrix = stored(self, inputs);
        let [norm, gate, residual] = [inputs.norm, inputs.gate, inputs.residual].map(Values::f32s);
        outputs.output.fill(0.0);
        for token in 0..batch * seq_len {
            let length = inputs.seq_length.i64s()[token / seq_len];
            if !(0..=seq_len as i64).contains(&length) {
                outputs.output[token * rows..][..rows].fill(f32::NAN);
                continue;
            }
            let x = &inputs.input.f32s()[token * columns..][..columns];
            if (token % seq_len) as i64 >= length {
                if x[0].is_nan() {
                    outputs.output[token * rows..][..rows].fill(f32::NAN);
                }
                continue;
            }
            let x = x.iter();
            let mut x: Vec<_> = x.map(|&x| f64::from(x)).collect();
            if !norm.is_empty() {
                let mean = x.iter().map(|x| x * x).sum::<f64>() / columns as f64;
                let root = (mean + f64::from(self.epsilon.unwrap_or_default())).sqrt();
                for (x, &weight) in x.iter_mut().zip(norm) {
                    *x = round(*x / root * f64::from(weight));
                }
            }
            if !gate.is_empty() {
                for (x, &logit) in x.iter_mut().zip(&gate[token * columns..]) {
                    *x = round(*x * sigmoid(logit.into()));
                }
            }
            if self.activations == Activations::Int8 {
                x.chunks_mut(self.block_size()).for_each(round_to_bytes);
            }
            for row in 0..rows {
                let at = token * rows + row;
                let weights = &matrix[row * columns..][..columns];
                let mut y: f64 = x.iter().zip(weights).map(|(x, w)| x * w).sum();
                if !residual.is_empty() {
                    y += f64::from(residual[at]);
                }
                if let Some(activation) = self.activation {
                    y = activated(activation, round(y));
                }
                outputs.output[at] = (rounding.activations)(y as f32);
            }
        }
    }
}

/// A block in steps of a 127th of its largest magnitude, in f32 as the operator has it.
fn round_to_bytes(block: &mut [f64]) {
    let largest = block
        .iter()
        .fold(0.0f32, |most, &x| most.max(x.abs() as f32));
    let step = largest / 127.0;
    if step == 0.0 {
        return block.fill(0.0);
    }
    for x in block {
        *x = f64::from((*x as f32 / step).round_ties_even()) * f64::from(step);
    }
}

/// The matrix, `[N, K]`.
fn stored(operator: &Linear, inputs: &Inputs<Values<'_>>) -> Vec<f64> {
    let WeightType::Blocks { bits, block_size } = operator.weight else {
        return inputs.weight.f32s().iter().map(|&w| w.into()).collect();
    };
    // Integers lie one after the other from the start of their row, the lower bits of a byte first.
    let integer = |bytes: &[u8], row: usize, row_of: usize, at: usize| match bits {
        8 => u32::from(bytes[row * row_of + at]),
        _ => u32::from(bytes[row * row_of.div_ceil(2) + at / 2] >> (4 * (at % 2))) & 15,
    };
    let blocks = operator.in_features.div_ceil(block_size);
    let points = inputs.zero_points.u8s();
    let mut matrix = Vec::new();
    for row in 0..operator.out_features {
        for column in 0..operator.in_features {
            let block = column / block_size;
            let zero = match points {
                [] => 1 << (bits - 1),
                points => integer(points, row, blocks, block),
            };
            let found = integer(inputs.weight.u8s(), row, blocks * block_size, column);
            let scale = f64::from(inputs.scales.f32s()[row * blocks + block]);
            matrix.push(scale * (f64::from(found) - f64::from(zero)));
        }
    }
    matrix
}

fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Gelu => x * normal(x),
        Activation::FastGelu => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Silu => x * sigmoid(x),
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0).powi(2),
    }
}

/// The normal distribution's integral up to `x`: its series around 0, its continued fraction far from
/// it.
fn normal(x: f64) -> f64 {
    let density = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
    if x.abs() < 4.0 {
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while term.abs() > 1e-18 {
            n += 2.0;
            term *= x * x / n;
            sum += term;
        }
        return 0.5 + density * sum;
    }
    let fraction = (1..60)
        .rev()
        .fold(x.abs(), |below, n| x.abs() + f64::from(n) / below);
    let tail = density / fraction;
    if x < 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn the_normal_distribution() {
        for (x, expected) in [
            (0.0, 0.5),
            (1.0, 0.841_344_746_068_543),
            (-3.9, 4.809_634_401_760_27e-5),
            (-4.1, 2.065_750_691_254_67e-5),
            (9.0, 1.0),
        ] {
            assert_abs_diff_eq!(normal(x), expected, epsilon = 1e-15);
        }
    }
}
