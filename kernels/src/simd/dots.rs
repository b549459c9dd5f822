//! Products of rows with rows: both operands run along the depth, so that neither is rearranged.
//!
//! A sum is made of whole vectors in order, from the first to the last, then of the vector's lanes in
//! one order, then added to what was there. So its bits do not depend on the other sums.

use super::Simd;
use super::gemm::Multiply;

/// `c = x w^T`, added to `c` where `add`.
pub struct Dots {
    /// Rows of `w`, columns of `c`.
    pub columns: usize,
    /// Rows of `x` and `c`.
    pub rows: usize,
    /// Columns of `w` and `x`: a multiple of the lanes of a vector.
    pub depth: usize,
    /// `[columns, depth]`
    pub w: *const f32,
    /// Row stride of `w`.
    pub w_stride: usize,
    /// `[rows, depth]`
    pub x: *const f32,
    /// Row stride of `x`.
    pub x_stride: usize,
    /// `[rows, columns]`
    pub c: *mut f32,
    /// Row stride of `c`.
    pub c_stride: usize,
    /// Whether `c` has sums already.
    pub add: bool,
    /// Bytes ahead of `w` to fetch; 0 for none.
    pub ahead: usize,
}

/// Columns of a register block.
pub(crate) const COLUMNS: usize = 4;

/// Writes the sums of the lanes of `MR` rows and the first `columns` columns to `c`, or adds them to it.
///
/// # Safety
/// `c` has as many rows and columns; the machine has `S`.
#[inline(always)]
pub(crate) unsafe fn write_sums<S: Simd, const MR: usize>(
    lanes: [[S::V; MR]; COLUMNS],
    columns: usize,
    (c, c_stride): (*mut f32, usize),
    add: bool,
) {
    let [first, second, third, fourth] = lanes;
    let rows = first.into_iter().zip(second).zip(third).zip(fourth);
    for (m, (((a, b), third), fourth)) in rows.enumerate() {
        // SAFETY: the caller's contract.
        unsafe {
            let sums = S::reduce_add_each([a, b, third, fourth]);
            for (n, sum) in sums.into_iter().enumerate().take(columns) {
                let to = c.add(m * c_stride + n);
                *to = if add { *to + sum } else { sum };
            }
        }
    }
}

/// `MR` rows and [`COLUMNS`] columns in registers, of which the first `columns` count.
///
/// # Safety
/// The block lies within the matrices.
#[inline(always)]
unsafe fn block<S: Simd, M: Multiply<S>, const MR: usize>(
    d: &Dots,
    row: usize,
    column: usize,
    columns: usize,
) {
    // SAFETY: the caller's contract; columns past the last are the last one again.
    unsafe {
        let mut acc = [[S::splat(0.0); MR]; COLUMNS];
        let w: [*const f32; COLUMNS] =
            std::array::from_fn(|n| d.w.add((column + n.min(columns - 1)) * d.w_stride));
        let x = d.x.add(row * d.x_stride);
        let mut k = 0;
        while k < d.depth {
            for (sums, w) in acc.iter_mut().zip(&w) {
                if d.ahead > 0 {
                    super::prefetch(w.wrapping_add(k).wrapping_byte_add(d.ahead), 1);
                }
                let w = S::load(w.add(k));
                for (m, sum) in sums.iter_mut().enumerate() {
                    *sum = M::mul_add(S::load(x.add(m * d.x_stride + k)), w, *sum);
                }
            }
            k += S::LANES;
        }
        let c = d.c.add(row * d.c_stride + column);
        write_sums::<S, MR>(acc, columns, (c, d.c_stride), d.add);
    }
}

/// All columns of `MR` rows.
///
/// # Safety
/// The rows lie within the matrices.
#[inline(always)]
unsafe fn rows<S: Simd, M: Multiply<S>, const MR: usize>(d: &Dots, row: usize) {
    let mut column = 0;
    while column < d.columns {
        let columns = COLUMNS.min(d.columns - column);
        // SAFETY: the caller's contract.
        unsafe { block::<S, M, MR>(d, row, column, columns) };
        column += COLUMNS;
    }
}

/// Rows of a register block at most.
const ROWS: usize = 6;

/// Runs `d` in register blocks of at most `most` rows.
///
/// # Safety
/// The matrices are readable and `c` is writable and apart from them; the machine has `S`.
#[inline(always)]
pub(super) unsafe fn run<S: Simd, M: Multiply<S>>(d: &Dots, most: usize) {
    let mut row = 0;
    while row < d.rows {
        let left = d.rows - row;
        // Two blocks of like size where one would be small.
        let block = match left < 2 * most {
            true if left > most => left.div_ceil(2),
            _ => left.min(most),
        };
        // SAFETY: rows stay below `d.rows`.
        unsafe {
            match block {
                ROWS => rows::<S, M, ROWS>(d, row),
                5 => rows::<S, M, 5>(d, row),
                4 => rows::<S, M, 4>(d, row),
                3 => rows::<S, M, 3>(d, row),
                2 => rows::<S, M, 2>(d, row),
                _ => rows::<S, M, 1>(d, row),
            }
        }
        row += block;
    }
}
