//! Rows of the input as they are multiplied: what comes before the product, rounded to `T`.

#[cfg(target_arch = "x86_64")]
use super::lanes::{self, Product};
use super::matrix::{Form, is_interleaved};
#[cfg(target_arch = "x86_64")]
use super::tiles;
use super::{Call, finish::rounded};
use crate::element::{Element, sealed::Convert};
use crate::simd::{Simd, sigmoid};
use half::bf16;
use ratplus_graphs::ops::Linear;
use ratplus_graphs::precision::Activations;
use std::slice;

/// Rows that are laid out together.
pub(super) fn together<T>(call: &Call<'_, T>) -> usize {
    match call.form {
        #[cfg(target_arch = "x86_64")]
        Form::Tiles(_) => tiles::group(call),
        _ => 1,
    }
}

/// f32 of scratch that laying them out needs.
pub(super) fn scratch_floats<T>(call: &Call<'_, T>) -> usize {
    match call.form {
        #[cfg(target_arch = "x86_64")]
        Form::Tiles(_) => tiles::lay_out_floats(call),
        _ => 0,
    }
}

/// # Safety
/// `index` is one of the call's rows, or of its groups of [`together`], which nobody else writes; there is
/// [`scratch_floats`] of scratch; the machine has `S`.
#[inline(always)]
pub(super) unsafe fn rows_body<S: Simd, T: Element>(
    call: &Call<'_, T>,
    index: usize,
    scratch: *mut f32,
) {
    #[cfg(not(target_arch = "x86_64"))]
    let _ = scratch;
    // SAFETY: forwarded; rows have `stride` f32.
    unsafe {
        match call.form {
            #[cfg(target_arch = "x86_64")]
            Form::Tiles(_) => tiles::lay_out::<S, T>(call, index, scratch),
            _ => write_row::<S, T>(call, index, call.x.add(index * call.stride)),
        }
    }
}

/// Writes one of the call's rows to `to`, which has room for what the form makes of it.
///
/// # Safety
/// There is such a row; the machine has `S`.
#[inline(always)]
pub(super) unsafe fn write_row<S: Simd, T: Element>(
    call: &Call<'_, T>,
    index: usize,
    to: *mut f32,
) {
    let params = call.params;
    let columns = params.operator.in_features;
    let depth = call.form.depth(params.operator);
    let source = call.rows[index] as usize * columns;
    // SAFETY: the caller's contract; rows have `depth` f32.
    unsafe {
        let from = params.input.add(source);
        let gate = (!params.gate.is_null()).then(|| params.gate.wrapping_add(source));
        let root = match params.operator.epsilon {
            Some(epsilon) if !params.norm.is_null() => {
                let mean = mean_square::<S, T>(from, columns);
                Some(S::splat((mean + epsilon).sqrt()))
            }
            _ => None,
        };
        let value = |k: usize, count: usize| {
            let load = |from: *const T| match count == S::LANES {
                true => T::load::<S>(from.add(k)),
                false => T::load_partial::<S>(from.add(k), count),
            };
            let x = load(from);
            match (root, gate) {
                (Some(root), _) => rounded::<S, T>(S::mul(S::div(x, root), load(params.norm))),
                (_, Some(gate)) => rounded::<S, T>(S::mul(x, sigmoid::<S>(load(gate)))),
                _ => x,
            }
        };
        match call.form {
            Form::Floats => {
                let mut k = 0;
                while k < columns {
                    let count = S::LANES.min(columns - k);
                    // Lanes past the end are zero.
                    S::store(to.add(k), value(k, count));
                    k += S::LANES;
                }
                std::ptr::write_bytes(to.add(k), 0, depth - k);
                round_to_bytes(params.operator, slice::from_raw_parts_mut(to, depth));
                if is_interleaved::<S>(params.operator) {
                    for k in (0..depth).step_by(2 * S::LANES) {
                        interleave::<S>(to.add(k));
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            Form::Lanes(product) => {
                let operator = params.operator;
                let stored = operator.blocks() * operator.block_size();
                let mut values = [0.0; lanes::DEPTH];
                for first in (0..stored).step_by(lanes::DEPTH) {
                    let values = &mut values[..lanes::DEPTH.min(stored - first)];
                    let there = values.len().min(columns.saturating_sub(first));
                    let mut k = 0;
                    while k < there {
                        let v = value(first + k, S::LANES.min(there - k));
                        // Lanes past the end are zero; blocks are whole vectors.
                        S::store(values.as_mut_ptr().add(k), v);
                        k += S::LANES;
                    }
                    values[k..].fill(0.0);
                    if product != Product::Bytes {
                        round_to_bytes(operator, values);
                    }
                    lanes::lay_out(product, operator, first / operator.block_size(), values, to);
                }
            }
            _ => {
                let to = to.cast::<bf16>();
                let mut k = 0;
                while k < columns {
                    let count = S::LANES.min(columns - k);
                    bf16::store::<S>(to.add(k), value(k, count));
                    k += S::LANES;
                }
                std::ptr::write_bytes(to.add(k), 0, 2 * depth - k);
            }
        }
    }
}

/// Rounds blocks of a row to 8 bits and a scale, where the operator says so.
#[inline(always)]
fn round_to_bytes(operator: &Linear, values: &mut [f32]) {
    if operator.activations != Activations::Int8 {
        return;
    }
    for block in values.chunks_mut(operator.block_size()) {
        let largest = block.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let scale = largest / 127.0;
        let by = if scale == 0.0 { 1.0 } else { scale };
        for x in block {
            *x = (*x / by).round_ties_even().clamp(-128.0, 127.0) * scale;
        }
    }
}

/// # Safety
/// There are so many elements; the machine has `S`.
#[inline(always)]
unsafe fn mean_square<S: Simd, T: Element>(from: *const T, count: usize) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [S::splat(0.0); 4];
        let mut k = 0;
        while k < count {
            let rest = count - k;
            let x = match rest >= S::LANES {
                true => T::load::<S>(from.add(k)),
                false => T::load_partial::<S>(from.add(k), rest),
            };
            let sum = &mut sums[k / S::LANES % 4];
            *sum = S::mul_add(x, x, *sum);
            k += S::LANES;
        }
        let sum = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
        S::reduce_add(sum) / count as f32
    }
}

/// Puts the even elements of two vectors before the odd ones, as bytes of two elements are unpacked.
///
/// # Safety
/// There are two vectors.
#[inline(always)]
unsafe fn interleave<S: Simd>(at: *mut f32) {
    let mut both = [0.0; 2 * crate::simd::MAX_LANES];
    // SAFETY: the caller's contract.
    unsafe {
        for i in 0..S::LANES {
            both[i] = *at.add(2 * i);
            both[S::LANES + i] = *at.add(2 * i + 1);
        }
        std::ptr::copy_nonoverlapping(both.as_ptr(), at, 2 * S::LANES);
    }
}
