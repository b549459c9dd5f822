//! One block: the integers, the scale and the zero point.
//!
//! They are those with the least squared error among a few: ranges that cover the block and ranges
//! that clip its largest values. For the integers that a range gives, the best scale has a closed
//! form, `sum(x c) / sum(c c)` over values `x` and integers less the zero point `c`.

use ratplus_graphs::precision::{BLOCK_SIZES, IntegerLayout, Quantization};

/// Weights of the largest block.
const MOST: usize = BLOCK_SIZES[BLOCK_SIZES.len() - 1];

/// A block as integers.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub scale: f32,
    pub zero_point: u32,
    /// One for each value, then zero points.
    pub integers: [u8; MOST],
    /// The integers less the zero point.
    pub centred: [f32; MOST],
}

impl Default for Block {
    fn default() -> Self {
        Self {
            scale: 0.0,
            zero_point: 0,
            integers: [0; MOST],
            centred: [0.0; MOST],
        }
    }
}

/// Parts of the range that candidates cover: clipping the largest values may cost less than coarse
/// steps cost all others.
const COVERED: [f32; 5] = [1.0, 0.94, 0.88, 0.81, 0.73];
/// With eight bits there is nothing to gain by it.
const WHOLE: [f32; 1] = [1.0];

impl Block {
    /// Finds the integers, the scale and the zero point.
    pub fn fit(&mut self, quantization: Quantization, values: &[f32]) {
        let (low, high) = range(values);
        let (levels, middle) = (quantization.largest(), quantization.middle());
        let covered = match quantization.bits {
            4 => &COVERED[..],
            _ => &WHOLE,
        };
        let signed = quantization.layout == IntegerLayout::Dequantized;
        // Symmetric blocks have one integer more below the middle than above. It goes to the larger
        // side, by a negative scale where the layout may have one, and the other is clipped; or neither
        // side has it.
        let both = quantization
            .symmetric
            .then_some(middle as f32 / (middle - 1) as f32);
        let mut best: Option<(Fitted, u32)> = None;
        for covered in covered.iter().copied().chain(both) {
            let (scale, zero_point) = if quantization.symmetric {
                let (largest, steps) = match (-low > high, signed) {
                    (true, _) => (-low, middle),
                    (false, true) => (high, middle - 1),
                    (false, false) => (-high, middle),
                };
                (covered * largest / steps as f32, middle)
            } else {
                let levels = levels as f32;
                // Of two finite values the difference may not be.
                let step = match (high - low) / levels {
                    step if step.is_finite() => step,
                    _ => high / levels - low / levels,
                };
                let scale = covered * step;
                let zero_point = match scale > 0.0 {
                    true => (-covered * low / scale).round(),
                    false => 0.0,
                };
                (scale, (zero_point as u32).min(quantization.largest()))
            };
            let found = self.round(values, scale, zero_point, levels);
            best = match (found, best) {
                (Some(found), Some((known, _))) if known.squared_error <= found.squared_error => {
                    best
                }
                (Some(found), _) => Some((found, zero_point)),
                (None, _) => best,
            };
        }
        // Once more with the scale that the best integers like best: nothing gets worse by it.
        let refined = best.and_then(|(found, zero_point)| {
            let refined = self.round(values, found.scale, zero_point, levels)?;
            Some((refined.scale, zero_point))
        });
        // TensorRT takes positive scales alone, and f16 has none below this.
        const LEAST_SIGNED: f32 = 1.0 / (1 << 24) as f32;
        let refined = refined.filter(|&(scale, _)| !signed || scale >= LEAST_SIGNED);
        let zeros = if signed { 1.0 } else { 0.0 };
        (self.scale, self.zero_point) = refined.unwrap_or((zeros, middle));
        if refined.is_none() {
            self.centred.fill(0.0);
        }
        // The integer of a small number in the lowest bits of a float.
        const INTEGERS: f32 = 8_388_608.0;
        let zero = self.zero_point as f32;
        let count = values.len();
        let (integers, padding) = self.integers.split_at_mut(count);
        for (integer, &centred) in integers.iter_mut().zip(&self.centred) {
            *integer = (centred + zero + INTEGERS).to_bits() as u8;
        }
        padding.fill(self.zero_point as u8);
    }

    /// Rounds the values into `centred`; none where the scale divides nothing.
    fn round(
        &mut self,
        values: &[f32],
        scale: f32,
        zero_point: u32,
        levels: u32,
    ) -> Option<Fitted> {
        // Adding and taking away this leaves the nearest integer of a small number.
        const ROUND: f32 = 12_582_912.0;
        const LANES: usize = 8;
        let inverse = 1.0 / scale;
        if !inverse.is_finite() || inverse == 0.0 {
            return None;
        }
        let zero = zero_point as f32;
        let (least, most) = (-zero, levels as f32 - zero);
        // In steps of the scale, so that nothing overflows: sums of e e, e c and c c, where e is what
        // is left of x after c.
        let (mut left, mut products, mut integers) = ([0.0f32; LANES], [0.0; LANES], [0.0; LANES]);
        let mut add = |values: [f32; LANES]| {
            let steps = values.map(|value| value * inverse);
            let centred = steps.map(|steps| larger(least, smaller(most, steps)) + ROUND - ROUND);
            for lane in 0..LANES {
                let error = steps[lane] - centred[lane];
                left[lane] += error * error;
                products[lane] += error * centred[lane];
                integers[lane] += centred[lane] * centred[lane];
            }
            centred
        };
        let (whole, rest) = values.as_chunks::<LANES>();
        let (centred, _) = self.centred.as_chunks_mut::<LANES>();
        for (&values, centred) in whole.iter().zip(&mut *centred) {
            *centred = add(values);
        }
        if !rest.is_empty() {
            // Zeros, which are integers, add nothing.
            let mut last = [0.0; LANES];
            last[..rest.len()].copy_from_slice(rest);
            centred[whole.len()] = add(last);
        }
        let sum = |lanes: [f32; LANES]| lanes.iter().map(|&sum| f64::from(sum)).sum::<f64>();
        let (left, products, integers) = (sum(left), sum(products), sum(integers));
        let better = (f64::from(scale) * (1.0 + products / integers)) as f32;
        if integers == 0.0 || !better.is_finite() {
            return None;
        }
        Some(Fitted {
            scale: better,
            squared_error: (left - products * products / integers).max(0.0)
                * f64::from(scale).powi(2),
        })
    }
}

/// The least and the largest value, 0 among them.
fn range(values: &[f32]) -> (f32, f32) {
    const LANES: usize = 8;
    let (mut low, mut high) = ([0.0f32; LANES], [0.0f32; LANES]);
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for lane in 0..LANES {
            low[lane] = smaller(low[lane], values[lane]);
            high[lane] = larger(high[lane], values[lane]);
        }
    }
    let least = low.iter().chain(rest).copied().fold(0.0, smaller);
    (least, high.iter().chain(rest).copied().fold(0.0, larger))
}

/// `f32::min` of numbers: without its care for NaN it is one instruction.
fn smaller(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

/// `f32::max` of numbers.
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// What rounding with a scale gave.
#[derive(Clone, Copy)]
struct Fitted {
    /// The best one for the same integers.
    scale: f32,
    /// With it.
    squared_error: f64,
}
