//! bf16 by tiles.
//!
//! 16 rows of the matrix, as they are stored, are the left operand; the right one is 16 rows of the input
//! at most, laid out once as `[depth, rows]` pairs. A sum is made of a step of the depth after another,
//! whatever its place in a tile and however the depth is cut: sums are kept as f32 between its parts.

use super::Call;
use super::columns::Part;
#[cfg(test)]
use super::matrix::Unit;
use super::matrix::{Form, unpack};
use super::rows::write_row;
use crate::element::Element;
use crate::scratch::Carver;
use crate::simd::amx::{Registers, Tiles};
use crate::simd::{Simd, prefetch};
use std::ops::Range;

/// Rows of a tile.
const TILE: usize = 16;
/// f32 of the depth in a tile, pairs of bf16.
pub(super) const STEP: usize = 16;
/// f32 of the depth that are multiplied at a time: of 32 rows of the matrix, what the first cache holds.
const DEPTH: usize = 256;
/// The same where the matrix is read once: a page of each row.
const ONCE_DEPTH: usize = 1024;
/// Bytes of a row that are fetched ahead where the matrix is read once.
const AHEAD: usize = 8 * 64;
/// Rows and columns that are transposed at a time.
const SQUARE: usize = 8;

/// Rows of a group, the columns of its tiles.
pub(super) fn group<T>(call: &Call<'_, T>) -> usize {
    call.rows.len().next_power_of_two().min(TILE)
}

/// f32 of scratch for laying out a group.
pub(super) fn lay_out_floats<T>(call: &Call<'_, T>) -> usize {
    SQUARE * call.stride
}

/// Lays out a group of rows: `[depth, group]` pairs, those of missing rows zero.
///
/// # Safety
/// There is such a group, which nobody else writes, and [`lay_out_floats`] of scratch; the machine has `S`.
#[inline(always)]
pub(super) unsafe fn lay_out<S: Simd, T: Element>(
    call: &Call<'_, T>,
    index: usize,
    scratch: *mut f32,
) {
    let (depth, group) = (call.form.depth(call.params.operator), group(call));
    let first = index * group;
    // SAFETY: the caller's contract; `depth` is a multiple of [`SQUARE`].
    unsafe {
        let to = call.x.add(first * depth);
        for column in (0..group).step_by(SQUARE) {
            let columns = SQUARE.min(group - column);
            for n in 0..columns {
                let row = scratch.add(n * call.stride);
                match first + column + n {
                    index if index < call.rows.len() => write_row::<S, T>(call, index, row),
                    _ => std::ptr::write_bytes(row, 0, depth),
                }
            }
            if columns == SQUARE {
                for k in (0..depth).step_by(SQUARE) {
                    let to = to.add(k * group + column);
                    S::transpose8(scratch.add(k), call.stride, to, group);
                }
            } else {
                for k in 0..depth {
                    for n in 0..columns {
                        *to.add(k * group + n) = *scratch.add(n * call.stride + k);
                    }
                }
            }
        }
    }
}

/// From column to column of the sums before they are transposed.
fn sums_stride(rows: usize) -> usize {
    rows.next_multiple_of(TILE) + 16
}

/// From row to row of a copied part of the matrix.
const COPY_STRIDE: usize = ONCE_DEPTH + 16;

/// f32 of scratch that [`sums`] needs for `columns` columns of `rows` rows.
pub(super) fn sums_floats(columns: usize, rows: usize) -> usize {
    let columns = columns.next_multiple_of(TILE);
    Carver::size(columns * sums_stride(rows))
        + Carver::size(TILE * COPY_STRIDE)
        + Carver::size(columns * STEP)
}

/// Writes the sums of a part.
///
/// # Safety
/// The part lies within the matrices, of which all rows are laid out, and there are [`sums_floats`] of
/// scratch; the machine has `S` and the form's tiles.
#[inline(always)]
pub(super) unsafe fn sums<S: Simd, T: Element>(call: &Call<'_, T>, part: &Part, scratch: *mut f32) {
    // SAFETY: forwarded.
    unsafe {
        match call.form {
            #[cfg(test)]
            Form::Tiles(Unit::Manual) => {
                sums_in::<S, T, crate::tests::tiles::Manual>(call, part, scratch);
            }
            _ => sums_in::<S, T, Tiles>(call, part, scratch),
        }
    }
}

/// # Safety
/// As [`sums`].
#[inline(always)]
unsafe fn sums_in<S: Simd, T: Element, R: Registers>(
    call: &Call<'_, T>,
    part: &Part,
    scratch: *mut f32,
) {
    let (depth, group) = (call.form.depth(call.params.operator), group(call));
    let columns = part.columns.len();
    let groups = part.rows.len().div_ceil(group);
    let most = if call.rows.len() <= TILE {
        ONCE_DEPTH
    } else {
        DEPTH
    };
    // Steps that the matrix has whole.
    let whole = call.params.operator.in_features / (2 * STEP) * STEP;
    let stride = sums_stride(part.rows.len());
    let mut carver = Carver::new(scratch);
    // SAFETY: the scratch has as much; the caller's contract. Tiles of columns past the last read copies,
    // and their sums lie within `sums_stride` and whole tiles of columns.
    unsafe {
        let sums = carver.take(columns.next_multiple_of(TILE) * stride);
        let copy = carver.take(TILE * COPY_STRIDE);
        let ends = carver.take(columns.next_multiple_of(TILE) * STEP);
        let mut tiles = R::new(group);
        let mut k = 0;
        while k < depth {
            let count = if k < whole { most.min(whole - k) } else { STEP };
            for column in (0..columns).step_by(2 * TILE) {
                let left = [column, column + TILE].map(|column| {
                    let first = part.columns.start + column;
                    let rows = first..part.columns.end.min(first + TILE);
                    match (k < whole, rows.len()) {
                        (_, 0) => (std::ptr::null(), 0),
                        (true, TILE) => stored(call, first, k),
                        (true, _) => copied::<S, T>(call, rows, k, count, (copy, COPY_STRIDE)),
                        (false, _) => {
                            let to = ends.wrapping_add(column * STEP);
                            copied::<S, T>(call, rows, k, count, (to, STEP))
                        }
                    }
                });
                for index in (0..groups).step_by(2) {
                    let right = call
                        .x
                        .add((part.rows.start + index * group) * depth + k * group);
                    let product = Product {
                        left,
                        right: [right.cast(), right.wrapping_add(group * depth).cast()],
                        width: group,
                        steps: count / STEP,
                        sums: sums.add(column * stride + index * group),
                        stride,
                        adds: k > 0,
                        fetches: groups == 1,
                    };
                    match (column + TILE < columns, index + 1 < groups) {
                        (true, true) => product.run::<R, true, true>(&mut tiles),
                        (true, false) => product.run::<R, true, false>(&mut tiles),
                        (false, true) => product.run::<R, false, true>(&mut tiles),
                        (false, false) => product.run::<R, false, false>(&mut tiles),
                    }
                }
            }
            k += count;
        }
        for column in (0..columns).step_by(SQUARE) {
            for row in (0..part.rows.len()).step_by(SQUARE) {
                let to = part.to.add(row * part.stride + column);
                S::transpose8(sums.add(column * stride + row), stride, to, part.stride);
            }
        }
    }
}

/// A tile of the matrix: its address, and bytes from row to row.
type Left = (*const u8, usize);

/// The tile whose first row is `row`, from `k` f32 of the depth on, where it is stored.
#[inline(always)]
fn stored<T>(call: &Call<'_, T>, row: usize, k: usize) -> Left {
    let bytes = 2 * call.params.operator.in_features;
    let at = row * bytes + k * size_of::<f32>();
    (call.params.weight.wrapping_add(at), bytes)
}

/// A copy of `count` f32 of `rows` from `k` on, zeros past the matrix's end.
///
/// # Safety
/// There is room for a tile's rows; the machine has `S`.
#[inline(always)]
unsafe fn copied<S: Simd, T>(
    call: &Call<'_, T>,
    rows: Range<usize>,
    k: usize,
    count: usize,
    (to, stride): (*mut f32, usize),
) -> Left {
    // SAFETY: the caller's contract.
    unsafe {
        for n in 0..TILE {
            let (to, row) = (to.add(n * stride), rows.start + n);
            match row < rows.end {
                true => unpack::<S, T>(call.params, Form::Pairs, row, k, count, to),
                false => std::ptr::write_bytes(to, 0, count),
            }
        }
    }
    (to.cast_const().cast(), stride * size_of::<f32>())
}

/// Two tiles of the matrix by two groups of rows, or one of either.
struct Product {
    left: [Left; 2],
    right: [*const u8; 2],
    /// Rows of a group.
    width: usize,
    /// One at least.
    steps: usize,
    /// `[16 or 32, rows]`
    sums: *mut f32,
    /// Row stride of `sums`.
    stride: usize,
    /// Whether there are sums already.
    adds: bool,
    /// Whether the matrix is fetched ahead.
    fetches: bool,
}

impl Product {
    /// # Safety
    /// Operands are readable and sums writable: of 32 columns where `WIDE`, of two groups where `LONG`;
    /// `tiles` are as wide as a group.
    #[inline(always)]
    unsafe fn run<R: Registers, const WIDE: bool, const LONG: bool>(&self, tiles: &mut R) {
        let [(mut left, left_stride), (mut next_left, next_left_stride)] = self.left;
        let [mut right, mut next_right] = self.right;
        let right_stride = self.width * size_of::<f32>();
        let sums: *mut u8 = self.sums.cast();
        let stride = self.stride * size_of::<f32>();
        let next_sums = sums.wrapping_add(TILE * stride);
        // SAFETY: the caller's contract.
        unsafe {
            if self.adds {
                tiles.load::<0>(sums, stride);
                if LONG {
                    tiles.load::<1>(sums.add(right_stride), stride);
                }
                if WIDE {
                    tiles.load::<2>(next_sums, stride);
                }
                if WIDE && LONG {
                    tiles.load::<3>(next_sums.add(right_stride), stride);
                }
            } else {
                tiles.zero::<0>();
                tiles.zero::<1>();
                tiles.zero::<2>();
                tiles.zero::<3>();
            }
            for _ in 0..self.steps {
                if self.fetches {
                    fetch(left, left_stride);
                }
                tiles.load::<4>(left, left_stride);
                tiles.load::<6>(right, right_stride);
                tiles.dot::<0, 4, 6>();
                if LONG {
                    tiles.load::<7>(next_right, right_stride);
                    tiles.dot::<1, 4, 7>();
                }
                if WIDE {
                    if self.fetches {
                        fetch(next_left, next_left_stride);
                    }
                    tiles.load::<5>(next_left, next_left_stride);
                    tiles.dot::<2, 5, 6>();
                }
                if WIDE && LONG {
                    tiles.dot::<3, 5, 7>();
                }
                left = left.wrapping_add(STEP * size_of::<f32>());
                next_left = next_left.wrapping_add(STEP * size_of::<f32>());
                right = right.wrapping_add(STEP * right_stride);
                next_right = next_right.wrapping_add(STEP * right_stride);
            }
            tiles.store::<0>(sums, stride);
            if LONG {
                tiles.store::<1>(sums.add(right_stride), stride);
            }
            if WIDE {
                tiles.store::<2>(next_sums, stride);
            }
            if WIDE && LONG {
                tiles.store::<3>(next_sums.add(right_stride), stride);
            }
        }
    }
}

/// Has the caches fetch what comes [`AHEAD`] after a tile.
#[inline(always)]
fn fetch(tile: *const u8, stride: usize) {
    for row in 0..TILE {
        prefetch(tile.wrapping_add(row * stride + AHEAD), 1);
    }
}
