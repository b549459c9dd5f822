//! Matrices as block-wise integers, see [`ratplus_graphs::precision`].

mod block;

use block::{Block, larger};
use ratplus_graphs::precision::{IntegerLayout, Quantization};
use serde::Serialize;
use std::collections::BTreeMap;

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
        // As large as they get: a vector that grows would hold up to twice as much. Blocks leave at once.
        let tensors = quantization.tensors("", shape);
        let mut bytes = tensors.iter().map(|(_, tensor)| tensor.bytes()).skip(1);
        let mut reserved = || Vec::with_capacity(bytes.next().unwrap_or(0));
        Self {
            done: Rows {
                scales: reserved(),
                zero_points: reserved(),
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

    /// Takes little-endian f32 and gives the blocks as far as they are complete.
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
        Ok(std::mem::take(&mut self.done.blocks))
    }

    /// The bytes of every tensor after the blocks, by name.
    pub(crate) fn finish(self, name: String) -> (BTreeMap<String, Vec<u8>>, QuantizedWeight) {
        let quantization = self.quantization;
        let stored = quantization.tensors(&name, self.shape);
        let size = stored.iter().map(|(_, tensor)| tensor.bytes() as u64).sum();
        let names = stored.into_iter().skip(1).map(|(name, _)| name);
        let tensors = names
            .zip([self.done.scales, self.done.zero_points])
            .collect();
        let lost = QuantizedWeight {
            bytes: size,
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

/// Quantised rows, and what they lost.
#[derive(Default)]
struct Rows {
    blocks: Vec<u8>,
    scales: Vec<u8>,
    zero_points: Vec<u8>,
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
        let mut rows = Self::default();
        let mut block = Block::default();
        for (index, row) in values.chunks_exact(columns).enumerate() {
            if let Some(column) = row.iter().position(|value| !value.is_finite()) {
                let index = [first + index, column];
                return Err(NotFinite { index });
            }
            for (index, values) in row.chunks(quantization.block_size).enumerate() {
                block.fit(quantization, values);
                rows.lose(values, &block);
                rows.push(quantization, &block, index);
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
        self.blocks.extend(rows.blocks);
        self.scales.extend(rows.scales);
        self.zero_points.extend(rows.zero_points);
        self.squared_error += rows.squared_error;
        self.squares += rows.squares;
        self.max_error = self.max_error.max(rows.max_error);
    }

    /// A block, the `index`th of its row.
    fn push(&mut self, quantization: Quantization, block: &Block, index: usize) {
        let integers = &block.integers[..quantization.block_size];
        // Signed integers are those of the range around its middle, in two's complement.
        let sign = match quantization.layout {
            IntegerLayout::Product => 0,
            IntegerLayout::Dequantized => quantization.middle() as u8,
        };
        match quantization.bits {
            4 => self
                .blocks
                .extend(integers.as_chunks().0.iter().map(|pair| {
                    let [low, high] = pair.map(|integer: u8| integer ^ sign);
                    low | high << 4
                })),
            _ => self
                .blocks
                .extend(integers.iter().map(|integer| integer ^ sign)),
        }
        self.scales.extend_from_slice(&block.scale.to_le_bytes());
        if quantization.symmetric {
            return;
        }
        let zero = block.zero_point as u8;
        let halves = quantization.bits == 4 && index % 2 == 1;
        match self.zero_points.last_mut().filter(|_| halves) {
            Some(pair) => *pair |= zero << 4,
            None => self.zero_points.push(zero),
        }
    }
}

#[cfg(test)]
mod tests;
