//! Matrices as block-wise integers, see [`ratplus_graphs::precision`].
//!
//! A block's scale and zero point are those with the least squared error among a few: ranges that
//! cover the block and ranges that clip its largest values. For the integers that a range gives,
//! the best scale has a closed form, `sum(x c) / sum(c c)` over values `x` and integers less the
//! zero point `c`.

use ratplus_graphs::precision::{Plane, Quantization};
use serde::Serialize;

/// What a weight lost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizedWeight {
    /// Its name in the checkpoint and in packages.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Root of the mean squared error over the root of the mean square.
    pub relative_error: f64,
    /// Largest absolute error.
    pub max_error: f64,
    /// Bytes of its tensors in the package.
    pub bytes: u64,
}

/// A value that is not finite has no integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotFinite {
    /// Row and column.
    pub index: [usize; 2],
}

/// Takes a matrix in pieces and quantises whole rows on all cores.
pub(crate) struct Quantizer {
    quantization: Quantization,
    shape: [usize; 2],
    threads: usize,
    /// The start of a row whose end has not come yet.
    pending: Vec<f32>,
    /// The first bytes of a value whose last ones have not come yet.
    split: Vec<u8>,
    done: Rows,
    rows: usize,
}

impl Quantizer {
    pub(crate) fn new(quantization: Quantization, shape: [usize; 2]) -> Self {
        let planes = quantization.planes().iter().enumerate();
        let planes = planes.map(|(index, plane)| {
            // As large as they get: a vector that grows would hold up to twice as much.
            let tensors = plane.tensors(quantization, "", shape);
            let mut bytes = tensors.iter().map(|(_, tensor)| tensor.bytes());
            let mut reserved = || Vec::with_capacity(bytes.next().unwrap_or(0));
            let blocks = reserved();
            PlaneBytes {
                // The first plane's leave at once.
                blocks: if index == 0 { Vec::new() } else { blocks },
                scales: reserved(),
                zero_points: reserved(),
            }
        });
        Self {
            done: Rows {
                planes: planes.collect(),
                ..Rows::default()
            },
            quantization,
            shape,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            pending: Vec::new(),
            split: Vec::new(),
            rows: 0,
        }
    }

    /// Takes little-endian f32 and gives the first node's blocks as far as they are complete.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, NotFinite> {
        if !self.split.is_empty() {
            let missing = bytes.len().min(4 - self.split.len());
            self.split.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if let Ok(value) = <[u8; 4]>::try_from(&*self.split) {
                self.split.clear();
                self.pending.push(f32::from_le_bytes(value));
            }
        }
        let (values, rest) = bytes.as_chunks::<4>();
        let values = values.iter().map(|&value| f32::from_le_bytes(value));
        self.pending.extend(values);
        self.split.extend_from_slice(rest);

        let columns = self.shape[1];
        let rows = self.pending.len() / columns;
        let at_once = rows.div_ceil(self.threads).max(1);
        let parts = self.pending[..rows * columns].chunks(at_once * columns);
        let (quantization, first) = (self.quantization, self.rows);
        let quantized: Vec<_> = std::thread::scope(|scope| {
            let started: Vec<_> = parts
                .enumerate()
                .map(|(index, part)| {
                    let first = first + index * at_once;
                    scope.spawn(move || Rows::quantize(quantization, part, columns, first))
                })
                .collect();
            started.into_iter().map(|thread| thread.join()).collect()
        });
        for rows in quantized {
            match rows {
                Ok(rows) => self.done.append(rows?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        self.pending.drain(..rows * columns);
        self.rows += rows;
        Ok(std::mem::take(&mut self.done.planes[0].blocks))
    }

    /// The bytes of every tensor after the first node's blocks, in file order.
    pub(crate) fn finish(self, name: String) -> (Vec<Vec<u8>>, QuantizedWeight) {
        let quantization = self.quantization;
        let mut tensors = Vec::new();
        for (&plane, bytes) in quantization.planes().iter().zip(self.done.planes) {
            tensors.extend([bytes.blocks, bytes.scales]);
            if plane.has_zero_points(quantization) {
                tensors.push(bytes.zero_points);
            }
        }
        tensors.remove(0);
        let planes = quantization.planes().iter();
        let stored = planes.flat_map(|plane| plane.tensors(quantization, &name, self.shape));
        let lost = QuantizedWeight {
            bytes: stored.map(|(_, tensor)| tensor.bytes() as u64).sum(),
            name,
            shape: self.shape,
            relative_error: match self.done.squares {
                0.0 => 0.0,
                squares => (self.done.squared_error / squares).sqrt(),
            },
            max_error: self.done.max_error,
        };
        (tensors, lost)
    }
}

/// The constants of one node.
#[derive(Clone, Debug, Default)]
struct PlaneBytes {
    blocks: Vec<u8>,
    scales: Vec<u8>,
    zero_points: Vec<u8>,
}

/// Quantised rows, and what they lost.
#[derive(Default)]
struct Rows {
    planes: Vec<PlaneBytes>,
    squared_error: f64,
    squares: f64,
    max_error: f64,
}

impl Rows {
    /// `first` is the number of the first row in the matrix.
    fn quantize(
        quantization: Quantization,
        values: &[f32],
        columns: usize,
        first: usize,
    ) -> Result<Self, NotFinite> {
        let mut rows = Self {
            planes: vec![PlaneBytes::default(); quantization.planes().len()],
            ..Self::default()
        };
        let mut block = Block::default();
        for (index, row) in values.chunks_exact(columns).enumerate() {
            if let Some(column) = row.iter().position(|value| !value.is_finite()) {
                let index = [first + index, column];
                return Err(NotFinite { index });
            }
            for (index, values) in row.chunks(quantization.block_size).enumerate() {
                block.fit(quantization, values);
                rows.lose(values, &block);
                for (&plane, bytes) in quantization.planes().iter().zip(&mut rows.planes) {
                    bytes.push(quantization, plane, &block, index);
                }
            }
        }
        Ok(rows)
    }

    fn lose(&mut self, values: &[f32], block: &Block) {
        const LANES: usize = 4;
        let (mut errors, mut squares, mut most) =
            ([0.0f64; LANES], [0.0f64; LANES], [0.0f32; LANES]);
        let mut add = |lane: usize, value: f32, centred: f32| {
            let error = value - block.scale * centred;
            errors[lane] += f64::from(error) * f64::from(error);
            squares[lane] += f64::from(value) * f64::from(value);
            most[lane] = larger(most[lane], error.abs());
        };
        let (whole, rest) = values.as_chunks::<LANES>();
        let (centred, _) = block.centred.as_chunks::<LANES>();
        for (values, centred) in whole.iter().zip(centred) {
            for lane in 0..LANES {
                add(lane, values[lane], centred[lane]);
            }
        }
        for (&value, &centred) in rest.iter().zip(&block.centred[values.len() - rest.len()..]) {
            add(0, value, centred);
        }
        self.squared_error += errors.iter().sum::<f64>();
        self.squares += squares.iter().sum::<f64>();
        self.max_error = self
            .max_error
            .max(f64::from(most.into_iter().fold(0.0, larger)));
    }

    fn append(&mut self, rows: Self) {
        for (all, more) in self.planes.iter_mut().zip(rows.planes) {
            all.blocks.extend(more.blocks);
            all.scales.extend(more.scales);
            all.zero_points.extend(more.zero_points);
        }
        self.squared_error += rows.squared_error;
        self.squares += rows.squares;
        self.max_error = self.max_error.max(rows.max_error);
    }
}

impl PlaneBytes {
    fn push(&mut self, quantization: Quantization, plane: Plane, block: &Block, index: usize) {
        let shift = plane.shift;
        let (pairs, _) = block.integers[..quantization.block_size].as_chunks::<2>();
        self.blocks.extend(
            pairs
                .iter()
                .map(|[low, high]| (low >> shift & 0xf) | (high >> shift & 0xf) << 4),
        );
        let scale = block.scale * (1u32 << shift) as f32;
        self.scales.extend_from_slice(&scale.to_le_bytes());
        if !plane.has_zero_points(quantization) {
            return;
        }
        let zero = (block.zero_point >> shift) as u8 & 0xf;
        match self.zero_points.last_mut().filter(|_| index % 2 == 1) {
            Some(pair) => *pair |= zero << 4,
            None => self.zero_points.push(zero),
        }
    }
}

/// A block as integers.
#[derive(Clone, Debug)]
struct Block {
    scale: f32,
    zero_point: u32,
    /// One for each value, then zero points.
    integers: [u8; 256],
    /// The integers less the zero point.
    centred: [f32; 256],
}

impl Default for Block {
    fn default() -> Self {
        Self {
            scale: 0.0,
            zero_point: 0,
            integers: [0; 256],
            centred: [0.0; 256],
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
    fn fit(&mut self, quantization: Quantization, values: &[f32]) {
        let (low, high) = range(values);
        let (levels, middle) = (quantization.largest(), quantization.middle());
        let covered = match quantization.bits {
            4 => &COVERED[..],
            _ => &WHOLE,
        };
        // Symmetric blocks have one integer more below the middle than above. It goes to the larger
        // side, and the other is clipped; or neither side has it.
        let both = quantization
            .symmetric
            .then_some(middle as f32 / (middle - 1) as f32);
        let mut best: Option<(Fitted, u32)> = None;
        for covered in covered.iter().copied().chain(both) {
            let (scale, zero_point) = if quantization.symmetric {
                let largest = if -low > high { low } else { high };
                (-covered * largest / middle as f32, middle)
            } else {
                let scale = covered * (high - low) / levels as f32;
                let zero_point = match scale > 0.0 {
                    true => (-covered * low / scale).round(),
                    false => 0.0,
                };
                (scale, (zero_point as u32).min(levels))
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
        (self.scale, self.zero_point) = refined.unwrap_or((0.0, middle));
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
fn larger(a: f32, b: f32) -> f32 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [(u32, usize, bool); 6] = [
        (4, 16, true),
        (4, 32, false),
        (4, 256, true),
        (8, 32, true),
        (8, 64, false),
        (8, 128, true),
    ];

    fn quantization((bits, block_size, symmetric): (u32, usize, bool)) -> Quantization {
        Quantization {
            bits,
            block_size,
            symmetric,
        }
    }

    /// Quantises in pieces of `piece` bytes and restores from the tensors' bytes alone.
    fn round_trip(
        quantization: Quantization,
        shape: [usize; 2],
        values: &[f32],
        piece: usize,
    ) -> (Vec<f32>, QuantizedWeight) {
        let mut quantizer = Quantizer::new(quantization, shape);
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut first = Vec::new();
        for piece in bytes.chunks(piece) {
            first.extend(quantizer.push(piece).unwrap());
        }
        let (rest, lost) = quantizer.finish("w".into());
        let mut tensors = [first].into_iter().chain(rest);
        let (blocks, bytes) = (quantization.blocks(shape[1]), quantization.block_size / 2);
        let mut found = vec![0.0; values.len()];
        for plane in quantization.planes() {
            for (name, tensor) in plane.tensors(quantization, "w", shape).iter().skip(3) {
                assert!(name.ends_with("zero_points") && tensor.shape.len() == 1);
            }
            let integers = tensors.next().unwrap();
            let scales = tensors.next().unwrap();
            let zeros = plane
                .has_zero_points(quantization)
                .then(|| tensors.next().unwrap());
            assert_eq!(integers.len(), shape[0] * blocks * bytes);
            let nibble = |bytes: &[u8], index: usize| bytes[index / 2] >> (4 * (index % 2)) & 15;
            for row in 0..shape[0] {
                for column in 0..shape[1] {
                    let block = column / quantization.block_size;
                    let at = row * blocks + block;
                    let scale = f32::from_le_bytes(scales[4 * at..4 * at + 4].try_into().unwrap());
                    let row_bytes = &integers[row * blocks * bytes..];
                    let q = nibble(
                        row_bytes,
                        block * bytes * 2 + column % quantization.block_size,
                    );
                    let zero = zeros
                        .as_ref()
                        .map_or(8, |zeros| nibble(&zeros[row * blocks.div_ceil(2)..], block));
                    found[row * shape[1] + column] += scale * (f32::from(q) - f32::from(zero));
                }
            }
        }
        assert_eq!(tensors.next(), None);
        (found, lost)
    }

    /// What rounding to the nearest of equal steps over the block's range would do.
    fn naive_squares(quantization: Quantization, values: &[f32]) -> f64 {
        let extreme = |pick: fn(f32, f32) -> f32| values.iter().copied().fold(0.0, pick);
        let (low, high) = (extreme(f32::min), extreme(f32::max));
        let levels = quantization.largest() as f32;
        let (step, zero) = match quantization.symmetric {
            true => (low.abs().max(high) / (levels / 2.0).floor(), 0.0),
            false => (
                (high - low) / levels,
                (-low * levels / (high - low)).round(),
            ),
        };
        let error = |&value: &f32| {
            let q = (value / step + zero).round();
            let q = match quantization.symmetric {
                true => q,
                false => q.clamp(0.0, levels),
            };
            f64::from(value - step * (q - zero)).powi(2)
        };
        if step > 0.0 {
            values.iter().map(error).sum()
        } else {
            0.0
        }
    }

    fn weights(count: usize) -> impl Strategy<Value = Vec<f32>> {
        let one = prop_oneof![
            8 => -1.0f32..1.0,
            1 => Just(0.0),
            1 => -30.0f32..30.0,
            1 => (-1.0f32..1.0).prop_map(|value| value * 1e-30),
        ];
        proptest::collection::vec(one, count)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Never worse than the naive way, in whatever pieces the bytes come, and the reported
        /// error is the one that the stored bytes have.
        #[test]
        fn nothing_is_lost_that_need_not_be(
            which in 0..ALL.len(),
            (columns, values) in (1usize..300).prop_flat_map(|n| (Just(n), weights(3 * n))),
            piece in 1usize..700,
        ) {
            let quantization = quantization(ALL[which]);
            let (found, lost) = round_trip(quantization, [3, columns], &values, piece);
            let squares = |pairs: &mut dyn Iterator<Item = (f32, f32)>| -> f64 {
                pairs.map(|(a, b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
            };
            let all = squares(&mut values.iter().copied().zip(found.iter().copied()));
            let norm: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
            let expected = if norm > 0.0 { (all / norm).sqrt() } else { 0.0 };
            prop_assert!((lost.relative_error - expected).abs() <= 1e-3 * expected + 1e-7);
            for (row, found) in values.chunks(columns).zip(found.chunks(columns)) {
                let blocks = row.chunks(quantization.block_size);
                for (block, found) in blocks.zip(found.chunks(quantization.block_size)) {
                    let ours = squares(&mut block.iter().copied().zip(found.iter().copied()));
                    let naive = naive_squares(quantization, block);
                    let norm: f64 = block.iter().map(|&v| f64::from(v).powi(2)).sum();
                    prop_assert!(ours <= 1.01 * naive + 1e-11 * norm, "{ours:e} against {naive:e}");
                }
            }
        }
    }

    #[test]
    fn values_on_the_grid_come_back_exactly() {
        for which in ALL {
            let quantization = quantization(which);
            let middle = quantization.middle() as i32;
            let low = if quantization.symmetric { -middle } else { -3 };
            let levels = quantization.largest() as i32;
            // Every block has both ends of the range.
            let steps = |i: i32| match i % quantization.block_size as i32 {
                0 => 0,
                1 => levels,
                _ => (i * 7) % (levels + 1),
            };
            let values: Vec<f32> = (0..quantization.block_size as i32 * 2 + 5)
                .map(|i| 0.25 * (low + steps(i)) as f32)
                .collect();
            let (found, lost) = round_trip(quantization, [1, values.len()], &values, 11);
            assert_eq!(found, values, "{quantization}");
            assert_eq!((lost.relative_error, lost.max_error), (0.0, 0.0));
        }
    }

    #[test]
    fn zeros_and_tiny_values_stay_finite() {
        for which in ALL {
            let quantization = quantization(which);
            for value in [
                0.0,
                f32::from_bits(1),
                1e-42,
                f32::MIN_POSITIVE,
                1e-35,
                1e30,
            ] {
                let (found, lost) = round_trip(quantization, [2, 40], &[value; 80], 64);
                assert!(
                    found.iter().all(|v| v.is_finite()),
                    "{quantization} {value:e}"
                );
                assert!(lost.relative_error.is_finite());
                // Below, a step is no number to divide by, and the block is 0.
                if value == 0.0 || value >= 1e-35 {
                    let near = |v: &f32| (v - value).abs() <= 0.01 * value;
                    assert!(
                        found.iter().all(near),
                        "{quantization} {value:e}: {}",
                        found[0]
                    );
                }
            }
        }
    }

    #[test]
    fn a_value_that_is_not_finite_is_named() {
        let mut quantizer = Quantizer::new(quantization((4, 32, true)), [2, 3]);
        let values = [0.0, 1.0, 2.0, 3.0, f32::NAN, 5.0];
        let bytes: Vec<u8> = values.iter().flat_map(|v: &f32| v.to_le_bytes()).collect();
        assert_eq!(quantizer.push(&bytes), Err(NotFinite { index: [1, 1] }));
    }
}
