//! A few rows: the matrix is unpacked in registers, at the memory's speed. Sums are made as
//! [`Dots`](crate::simd::Dots) makes them.

use super::LinearParams;
use super::matrix::{Form, is_interleaved, zero_point};
use crate::element::Element;
use crate::simd::{COLUMNS, Simd, prefetch, write_sums};
use half::{bf16, f16};
use ratplus_graphs::ops::{ElementType, linear::WeightType};

/// Rows of a register block at most.
const fn most<S: Simd>() -> usize {
    if S::LANES == 16 { 4 } else { 2 }
}

/// Whether `rows` rows are computed so: the matrix is stored in another type than it is multiplied in,
/// and in whole pairs of vectors.
pub(super) fn is_chosen<S: Simd, T>(params: &LinearParams<'_, T>, form: Form, rows: usize) -> bool {
    let pair = 2 * S::LANES;
    let whole = match params.operator.weight {
        WeightType::Float(_) => params.operator.in_features.is_multiple_of(pair),
        WeightType::Blocks { bits: 4, .. } => is_interleaved::<S>(params.operator),
        WeightType::Blocks { block_size, .. } => block_size.is_multiple_of(pair),
    };
    rows <= 2 * most::<S>() && form == Form::Floats && whole && form.direct(params).is_none()
}

/// A part of the depth of a few rows and some columns.
pub(super) struct Few {
    /// First column.
    pub column: usize,
    /// How many.
    pub columns: usize,
    /// How many rows.
    pub rows: usize,
    /// First f32 of the depth.
    pub first: usize,
    /// How many, in whole pairs of vectors; those past the matrix's end count as zero.
    pub depth: usize,
    /// `[rows, ..]` from `first` on.
    pub x: *const f32,
    /// Row stride of `x`.
    pub x_stride: usize,
    /// `[rows, columns]`
    pub c: *mut f32,
    /// Row stride of `c`.
    pub c_stride: usize,
}

/// # Safety
/// The part lies within the matrices; the machine has `S`.
#[inline(always)]
pub(super) unsafe fn few<S: Simd, T>(params: &LinearParams<'_, T>, part: &Few) {
    // SAFETY: forwarded.
    unsafe {
        match params.operator.weight {
            WeightType::Float(ElementType::F16) => all::<S, T, Floats<f16>>(params, part),
            WeightType::Float(ElementType::BF16) => all::<S, T, Floats<bf16>>(params, part),
            WeightType::Float(_) => all::<S, T, Floats<f32>>(params, part),
            WeightType::Blocks { bits: 4, .. } => all::<S, T, Nibbles>(params, part),
            WeightType::Blocks { .. } => all::<S, T, Bytes>(params, part),
        }
    }
}

/// A row of the matrix, two vectors at a time.
trait Stored: Copy {
    /// The row `row`, of which `first` is the first element.
    ///
    /// # Safety
    /// The matrix has both.
    unsafe fn new<T>(params: &LinearParams<'_, T>, row: usize, first: usize) -> Self;

    /// The vectors `k` elements further on.
    ///
    /// # Safety
    /// The row has them; the machine has `S`.
    unsafe fn pair<S: Simd>(&self, k: usize) -> [S::V; 2];

    /// Has the caches fetch what lies `bytes` after the vectors `k` elements further on.
    fn fetch(&self, k: usize, bytes: usize);
}

#[derive(Clone, Copy)]
struct Floats<W>(*const W);

impl<W: Element> Stored for Floats<W> {
    #[inline(always)]
    unsafe fn new<T>(params: &LinearParams<'_, T>, row: usize, first: usize) -> Self {
        let at = row * params.operator.in_features + first;
        Self(params.weight.cast::<W>().wrapping_add(at))
    }

    #[inline(always)]
    unsafe fn pair<S: Simd>(&self, k: usize) -> [S::V; 2] {
        // SAFETY: the caller's contract.
        unsafe {
            let from = self.0.add(k);
            [W::load::<S>(from), W::load::<S>(from.add(S::LANES))]
        }
    }

    #[inline(always)]
    fn fetch(&self, k: usize, bytes: usize) {
        prefetch(self.0.wrapping_add(k).wrapping_byte_add(bytes), 1);
    }
}

/// Integers of a row, of as many bits.
#[derive(Clone, Copy)]
struct Integers<const BITS: usize> {
    from: *const u8,
    scales: *const f32,
    points: *const u8,
    /// Row, first block, blocks of a row.
    place: [usize; 3],
    shift: u32,
}

type Nibbles = Integers<4>;
type Bytes = Integers<8>;

impl<const BITS: usize> Integers<BITS> {
    /// Zero point and scale.
    #[inline(always)]
    unsafe fn block<S: Simd>(&self, k: usize) -> (S::V, S::V) {
        let [row, first, blocks] = self.place;
        let block = k >> self.shift;
        // SAFETY: the caller's contract.
        unsafe {
            let zero = zero_point(self.points, BITS as u32, [row, first + block, blocks]);
            (S::splat(zero), S::splat(*self.scales.add(block)))
        }
    }
}

impl<const BITS: usize> Stored for Integers<BITS> {
    #[inline(always)]
    unsafe fn new<T>(params: &LinearParams<'_, T>, row: usize, first: usize) -> Self {
        let block_size = match params.operator.weight {
            WeightType::Blocks { block_size, .. } => block_size,
            WeightType::Float(_) => 1,
        };
        let blocks = params.operator.blocks();
        let at = (row * blocks * block_size + first) * BITS / 8;
        Self {
            from: params.weight.wrapping_add(at),
            scales: params
                .scales
                .wrapping_add(row * blocks + first / block_size),
            points: params.zero_points,
            place: [row, first / block_size, blocks],
            shift: block_size.trailing_zeros(),
        }
    }

    #[inline(always)]
    unsafe fn pair<S: Simd>(&self, k: usize) -> [S::V; 2] {
        // SAFETY: the caller's contract.
        unsafe {
            let (zero, scale) = self.block::<S>(k);
            if BITS == 4 {
                return S::load_u4(self.from.add(k / 2), zero, scale);
            }
            let from = self.from.add(k);
            let (low, high) = (S::load_u8(from), S::load_u8(from.add(S::LANES)));
            [
                S::mul(S::sub(low, zero), scale),
                S::mul(S::sub(high, zero), scale),
            ]
        }
    }

    #[inline(always)]
    fn fetch(&self, k: usize, bytes: usize) {
        prefetch(self.from.wrapping_add(k * BITS / 8 + bytes), 1);
    }
}

/// All rows, as many at a time as there are registers for.
///
/// # Safety
/// As [`few`].
#[inline(always)]
unsafe fn all<S: Simd, T, W: Stored>(params: &LinearParams<'_, T>, part: &Few) {
    let most = most::<S>();
    let mut row = 0;
    // SAFETY: forwarded.
    unsafe {
        while row < part.rows {
            let left = part.rows - row;
            match left.min(most) {
                4 => columns::<S, T, W, 4>(params, part, row),
                3 => columns::<S, T, W, 3>(params, part, row),
                2 => columns::<S, T, W, 2>(params, part, row),
                _ => columns::<S, T, W, 1>(params, part, row),
            }
            row += most;
        }
    }
}

/// # Safety
/// As [`few`], and there are `MR` rows from `row` on.
#[inline(always)]
unsafe fn columns<S: Simd, T, W: Stored, const MR: usize>(
    params: &LinearParams<'_, T>,
    part: &Few,
    row: usize,
) {
    let operator = params.operator;
    let stored = match operator.weight {
        WeightType::Float(_) => operator.in_features,
        WeightType::Blocks { block_size, .. } => operator.blocks() * block_size,
    };
    let depth = part.depth.min(stored - part.first);
    // The next columns are fetched while these are computed.
    let ahead = COLUMNS * row_bytes(params, stored);
    // SAFETY: the caller's contract.
    unsafe {
        let x = part.x.add(row * part.x_stride);
        for column in (0..part.columns).step_by(COLUMNS) {
            let there = COLUMNS.min(part.columns - column);
            // Columns past the last are the last one again.
            let w: [W; COLUMNS] = std::array::from_fn(|n| {
                W::new(params, part.column + column + n.min(there - 1), part.first)
            });
            let mut acc = [[S::splat(0.0); MR]; COLUMNS];
            let mut k = 0;
            while k < depth {
                for (sums, w) in acc.iter_mut().zip(&w) {
                    w.fetch(k, ahead);
                    let [low, high] = w.pair::<S>(k);
                    for (m, sum) in sums.iter_mut().enumerate() {
                        let x = x.add(m * part.x_stride + k);
                        *sum = S::mul_add(S::load(x), low, *sum);
                        *sum = S::mul_add(S::load(x.add(S::LANES)), high, *sum);
                    }
                }
                k += 2 * S::LANES;
            }
            let c = part.c.add(row * part.c_stride + column);
            write_sums::<S, MR>(acc, there, (c, part.c_stride), part.first > 0);
        }
    }
}

/// Bytes of a row of the matrix, of which `elements` are stored.
fn row_bytes<T>(params: &LinearParams<'_, T>, elements: usize) -> usize {
    match params.operator.weight {
        WeightType::Float(dtype) => elements * dtype.size(),
        WeightType::Blocks { bits, .. } => elements * bits as usize / 8,
    }
}
