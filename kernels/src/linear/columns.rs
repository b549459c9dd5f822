//! Some columns of all rows.

use super::Call;
use super::few::{self, Few};
use super::finish::finish_row;
#[cfg(target_arch = "x86_64")]
use super::lanes;
use super::matrix::{Form, unpack};
#[cfg(target_arch = "x86_64")]
use super::tiles;
use crate::element::Element;
use crate::scratch::Carver;
#[cfg(target_arch = "x86_64")]
use crate::simd::dots_bf16;
use crate::simd::{Dots, MAX_LANES, Simd};
use std::ops::Range;

/// f32 of the depth that are summed before their sum is added to the total: what a few rows of both
/// operands have in the first cache. Part of the result: sums have this order for any number of rows.
const DEPTH: usize = 1024;
/// From column to column of an unpacked matrix.
const UNPACKED_STRIDE: usize = DEPTH + 16;
/// Columns of a task at most.
const WIDTH: usize = 64;
/// Rows whose sums are kept at a time.
const ROWS: usize = 480;
/// Few rows: the matrix is read at the memory's speed.
pub(super) const FEW: usize = 16;

/// Columns of a task. Results do not depend on it.
pub(super) fn width<T>(call: &Call<'_, T>, threads: usize) -> usize {
    let columns = call.params.operator.out_features;
    let spread = columns.div_ceil(4 * threads.max(1));
    spread.next_multiple_of(16).clamp(16, WIDTH)
}

/// What is computed at a time: some rows and columns, and where their sums go.
pub(super) struct Part {
    /// Columns of the output, from a multiple of 16 after the task's first.
    pub columns: Range<usize>,
    /// The call's rows, from a multiple of 16 on.
    pub rows: Range<usize>,
    /// `[rows, columns]`, with room for a multiple of 8 rows and [`WIDTH`] columns.
    pub to: *mut f32,
    /// Row stride of `to`.
    pub stride: usize,
}

/// f32 of scratch that a task of so many columns needs.
pub(super) fn scratch_floats<T>(call: &Call<'_, T>, all: usize) -> usize {
    let kept = call.rows.len().min(ROWS);
    let own = match call.form {
        #[cfg(target_arch = "x86_64")]
        Form::Tiles(_) => tiles::sums_floats(all, kept),
        #[cfg(target_arch = "x86_64")]
        Form::Lanes(_) => lanes::PANEL_FLOATS,
        _ => unpacked(call, all) * UNPACKED_STRIDE,
    };
    Carver::size(kept.next_multiple_of(8) * WIDTH) + own
}

/// # Safety
/// There are at most [`WIDTH`] columns, which nobody else writes, and [`scratch_floats`] of scratch; rows
/// are laid out; the machine has `S`.
#[inline(always)]
pub(super) unsafe fn columns_body<S: Simd, T: Element>(
    call: &Call<'_, T>,
    first: usize,
    last: usize,
    scratch: *mut f32,
) {
    let params = call.params;
    let mut carver = Carver::new(scratch);
    // SAFETY: the scratch has as much; the caller's contract.
    unsafe {
        let sums = carver.take(call.rows.len().min(ROWS).next_multiple_of(8) * WIDTH);
        let own = carver.take(0);
        for start in (0..call.rows.len()).step_by(ROWS) {
            let part = Part {
                columns: first..last,
                rows: start..call.rows.len().min(start + ROWS),
                to: sums,
                stride: WIDTH,
            };
            match call.form {
                #[cfg(target_arch = "x86_64")]
                Form::Tiles(_) => tiles::sums::<S, T>(call, &part, own),
                #[cfg(target_arch = "x86_64")]
                Form::Lanes(product) => lanes::sums(call, product, &part, own),
                _ => dots::<S, T>(call, &part, own),
            }
            for (at, row) in part.rows.enumerate() {
                let to = call.rows[row] as usize;
                finish_row::<S, T>(params, sums.add(at * WIDTH), to, first, last);
            }
        }
        for &row in call.unused {
            let to = row as usize * params.operator.out_features + first;
            // All zero bytes are +0 in every element type, all bits a NaN.
            let byte = if is_nan::<S, T>(call, row as usize) {
                0xff
            } else {
                0
            };
            std::ptr::write_bytes(params.output.add(to), byte, last - first);
        }
    }
}

/// Columns whose matrix is unpacked at a time: in the first cache, or all of a task's; none where it is
/// multiplied as it is stored.
fn unpacked<T>(call: &Call<'_, T>, all: usize) -> usize {
    match call.rows.len() {
        _ if call.form.direct(call.params).is_some() => 0,
        0..=FEW => 4,
        _ => all,
    }
}

/// Sums along vectors of both operands.
///
/// # Safety
/// As [`columns_body`].
#[inline(always)]
unsafe fn dots<S: Simd, T: Element>(call: &Call<'_, T>, part: &Part, unpacked_columns: *mut f32) {
    let (params, rows) = (call.params, part.rows.len());
    let depth = call.form.depth(params.operator);
    let direct = call.form.direct(params);
    let all = part.columns.len();
    let in_registers = few::is_chosen::<S, T>(params, call.form, call.rows.len());
    let at_a_time = match unpacked(call, all) {
        _ if in_registers => all,
        0 => all,
        columns => columns,
    };
    // SAFETY: the caller's contract.
    unsafe {
        let x = call.x.add(part.rows.start * call.stride);
        for column in (0..all).step_by(at_a_time) {
            let columns = at_a_time.min(all - column);
            for k in (0..depth).step_by(DEPTH) {
                let count = DEPTH.min(depth - k);
                let (x, c) = (x.add(k), part.to.add(column));
                if in_registers {
                    let few = Few {
                        column: part.columns.start + column,
                        columns,
                        rows,
                        first: k,
                        depth: count,
                        x,
                        x_stride: call.stride,
                        c,
                        c_stride: part.stride,
                    };
                    few::few::<S, T>(params, &few);
                    continue;
                }
                let first = part.columns.start + column;
                let (w, w_stride) = match direct {
                    Some((w, stride)) => (w.add(first * stride + k), stride),
                    None => {
                        for at in 0..columns {
                            let to = unpacked_columns.add(at * UNPACKED_STRIDE);
                            unpack::<S, T>(params, call.form, first + at, k, count, to);
                        }
                        (unpacked_columns.cast_const(), UNPACKED_STRIDE)
                    }
                };
                let few = rows <= FEW && direct.is_some();
                let dots = Dots {
                    columns,
                    rows,
                    depth: count,
                    w,
                    w_stride,
                    x,
                    x_stride: call.stride,
                    c,
                    c_stride: part.stride,
                    add: k > 0,
                    ahead: if few { 16 * w_stride } else { 0 },
                };
                match call.form {
                    Form::Floats => S::dots(&dots),
                    #[cfg(target_arch = "x86_64")]
                    _ => dots_bf16(&dots),
                    #[cfg(not(target_arch = "x86_64"))]
                    _ => {}
                }
            }
        }
    }
}

/// Whether a row that is not computed is NaN: where the slot's length does not fit, or an operator before
/// this one found that and made the row NaN.
///
/// # Safety
/// As [`columns_body`].
#[inline(always)]
unsafe fn is_nan<S: Simd, T: Element>(call: &Call<'_, T>, row: usize) -> bool {
    let params = call.params;
    let mut first = [0.0; MAX_LANES];
    // SAFETY: the caller's contract; no vector has more lanes.
    unsafe {
        let length = *params.seq_length.add(row / params.seq_len);
        let from = params.input.add(row * params.operator.in_features);
        S::store(first.as_mut_ptr(), T::load_partial::<S>(from, 1));
        !(0..=params.seq_len as i64).contains(&length) || first[0].is_nan()
    }
}
