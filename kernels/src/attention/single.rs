//! One query at a time: decoding, and the few queries that are not worth a tile.

use super::keys::visible_runs;
use super::rows::Rows;
use super::{Call, Head, LOG2_E, update};
use crate::element::Element;
use crate::isa::kernel;
use crate::rope::rotate;
use crate::scratch::{Carver, with_scratch};
use crate::simd::{MAX_LANES, Simd, exp2, exp2_one};

/// Keys between two rescalings of the sums.
const BLOCK: usize = 32;

/// Runs the only token of a chunk and updates the cache.
///
/// # Safety
/// As `dilated_attention`; the chunk has one token and no other task has this head.
pub(super) unsafe fn decode<T: Element>(call: &Call<T>, head: &Head) {
    let dim = call.params.head_dim;
    // SAFETY: forwarded.
    unsafe {
        update::copy_past(call, head);
        if head.tokens == 0 {
            std::ptr::write_bytes(call.params.output.add(call.token(head, 0)), 0, dim);
            return;
        }
    }
    let key_floats = (dim * size_of::<T>()).div_ceil(size_of::<f32>());
    with_scratch(Carver::size(key_floats) + query_floats(dim), |floats| {
        let mut carver = Carver::new(floats);
        // SAFETY: the scratch has room for the key and the query.
        unsafe {
            let key: *mut T = carver.take(key_floats).cast();
            rotate_key(call.isa, call, head, key);
            attend::<T>(call.isa, call, head, 0, key, carver.take(0));
            update::write_token(call, head, 0, key);
        }
    });
}

/// Computes the output of the chunk's token `t`; `rotated` holds the chunk's keys.
///
/// # Safety
/// As `dilated_attention`; the token is valid and no other task has its output.
pub(super) unsafe fn query<T: Element>(call: &Call<T>, head: &Head, t: usize, rotated: *const T) {
    with_scratch(query_floats(call.params.head_dim), |floats| {
        // SAFETY: forwarded; the scratch has room.
        unsafe {
            let keys = rotated.add(call.rotated(head));
            attend::<T>(call.isa, call, head, t, keys, floats);
        }
    });
}

/// Scratch of [`attend`].
fn query_floats(dim: usize) -> usize {
    2 * dim.next_multiple_of(MAX_LANES) + BLOCK
}

kernel! {
    /// Rotates the head's key of a chunk of one token.
    fn rotate_key<T>(call: &Call<T>, head: &Head, key: *mut T) = rotate_key_body
}

#[inline(always)]
unsafe fn rotate_key_body<S: Simd, T: Element>(call: &Call<T>, head: &Head, key: *mut T) {
    let params = call.params;
    let half = params.head_dim / 2;
    // SAFETY: the token is valid, so its position is below `M`.
    unsafe {
        rotate::<S, T, T>(
            params.key.add(call.token(head, 0)),
            params.cos.add(head.past * half),
            params.sin.add(head.past * half),
            half,
            1.0,
            key,
        );
    }
}

kernel! {
    /// Attention of the chunk's token `t`: `keys` are the head's rotated keys of the chunk,
    /// `scratch` has [`query_floats`].
    fn attend<T>(call: &Call<T>, head: &Head, t: usize, keys: *const T, scratch: *mut f32)
        = attend_body
}

#[inline(always)]
unsafe fn attend_body<S: Simd, T: Element>(
    call: &Call<T>,
    head: &Head,
    t: usize,
    keys: *const T,
    scratch: *mut f32,
) {
    let params = call.params;
    let dim = params.head_dim;
    let half = dim / 2;
    let position = head.past + t;
    // SAFETY: the scratch has room for the parts; rows come from the runs that this query sees.
    unsafe {
        let padded = dim.next_multiple_of(MAX_LANES);
        let query = scratch;
        let sums = scratch.add(padded);
        let weights = scratch.add(2 * padded);
        std::ptr::write_bytes(query, 0, 2 * padded);
        rotate::<S, T, f32>(
            params.query.add(call.token(head, t)),
            params.cos.add(position * half),
            params.sin.add(position * half),
            half,
            params.scale * LOG2_E,
            query,
        );
        let (mut max, mut total) = (f32::MIN, 0.0);
        for run in &visible_runs(&head.cache, head.past, position..position + 1, false) {
            if run.count == 0 {
                continue;
            }
            let rows = Rows::new(call, head, run, keys);
            let mut done = 0;
            while done < rows.count {
                let part = rows.part(done, BLOCK.min(rows.count - done));
                done += part.count;
                scores::<S, T>(&part, dim, query, weights);
                let rescale = softmax::<S>(weights, part.count, &mut max, &mut total);
                accumulate::<S, T>(&part, dim, weights, rescale, sums);
            }
        }
        finish::<S, T>(sums, dim, total, params.output.add(call.token(head, t)));
    }
}

/// Writes the product of every row's key with `query` to `out`.
#[inline(always)]
unsafe fn scores<S: Simd, T: Element>(
    rows: &Rows<T>,
    dim: usize,
    query: *const f32,
    out: *mut f32,
) {
    // SAFETY: `query` is zero up to a whole vector past `dim`; rows have `dim` elements.
    unsafe {
        let mut row = 0;
        while row + 4 <= rows.count {
            dots::<S, T, 4>(rows, row, dim, query, out);
            row += 4;
        }
        while row < rows.count {
            dots::<S, T, 1>(rows, row, dim, query, out);
            row += 1;
        }
    }
}

/// `N` products from `row` on.
#[inline(always)]
unsafe fn dots<S: Simd, T: Element, const N: usize>(
    rows: &Rows<T>,
    row: usize,
    dim: usize,
    query: *const f32,
    out: *mut f32,
) {
    // SAFETY: as in `scores`.
    unsafe {
        let mut acc = [S::splat(0.0); N];
        let key = rows.key.add(row * rows.key_stride);
        let mut d = 0;
        while d + S::LANES <= dim {
            let q = S::load(query.add(d));
            for (n, acc) in acc.iter_mut().enumerate() {
                *acc = S::mul_add(T::load::<S>(key.add(n * rows.key_stride + d)), q, *acc);
            }
            d += S::LANES;
        }
        if d < dim {
            let q = S::load(query.add(d));
            for (n, acc) in acc.iter_mut().enumerate() {
                let k = T::load_partial::<S>(key.add(n * rows.key_stride + d), dim - d);
                *acc = S::mul_add(k, q, *acc);
            }
        }
        for (n, &acc) in acc.iter().enumerate() {
            *out.add(row + n) = S::reduce_add(acc);
        }
    }
}

/// Turns `count` scores into weights relative to the running maximum; returns the factor for
/// what was summed before.
#[inline(always)]
unsafe fn softmax<S: Simd>(scores: *mut f32, count: usize, max: &mut f32, total: &mut f32) -> f32 {
    // SAFETY: `scores` has room for `BLOCK`, a multiple of every vector length.
    unsafe {
        for i in count..count.next_multiple_of(S::LANES) {
            *scores.add(i) = f32::NEG_INFINITY;
        }
        let mut largest = S::splat(*max);
        let mut i = 0;
        while i < count {
            largest = S::max(largest, S::load(scores.add(i)));
            i += S::LANES;
        }
        let new = S::reduce_max(largest);
        let rescale = exp2_one::<S>(*max - new);
        let mut sum = S::splat(0.0);
        let mut i = 0;
        while i < count {
            let weight = exp2::<S>(S::sub(S::load(scores.add(i)), S::splat(new)));
            S::store(scores.add(i), weight);
            sum = S::add(sum, weight);
            i += S::LANES;
        }
        *max = new;
        *total = *total * rescale + S::reduce_add(sum);
        rescale
    }
}

/// `sums = rescale sums + weights values`.
#[inline(always)]
unsafe fn accumulate<S: Simd, T: Element>(
    rows: &Rows<T>,
    dim: usize,
    weights: *const f32,
    rescale: f32,
    sums: *mut f32,
) {
    // SAFETY: columns stay below `dim`, or within the padding of `sums`.
    unsafe {
        let mut d = 0;
        while d + 8 * S::LANES <= dim {
            columns::<S, T, 8>(rows, d, weights, rescale, sums);
            d += 8 * S::LANES;
        }
        while d + 4 * S::LANES <= dim {
            columns::<S, T, 4>(rows, d, weights, rescale, sums);
            d += 4 * S::LANES;
        }
        while d + S::LANES <= dim {
            columns::<S, T, 1>(rows, d, weights, rescale, sums);
            d += S::LANES;
        }
        if d < dim {
            let mut acc = S::mul(S::load(sums.add(d)), S::splat(rescale));
            for row in 0..rows.count {
                let v = T::load_partial::<S>(rows.value.add(row * rows.value_stride + d), dim - d);
                acc = S::mul_add(v, S::splat(*weights.add(row)), acc);
            }
            S::store(sums.add(d), acc);
        }
    }
}

/// `N` vectors of columns from `d` on.
#[inline(always)]
unsafe fn columns<S: Simd, T: Element, const N: usize>(
    rows: &Rows<T>,
    d: usize,
    weights: *const f32,
    rescale: f32,
    sums: *mut f32,
) {
    // SAFETY: as in `accumulate`.
    unsafe {
        let mut acc = [S::splat(0.0); N];
        for (n, acc) in acc.iter_mut().enumerate() {
            *acc = S::mul(S::load(sums.add(d + n * S::LANES)), S::splat(rescale));
        }
        for row in 0..rows.count {
            let weight = S::splat(*weights.add(row));
            let value = rows.value.add(row * rows.value_stride + d);
            for (n, acc) in acc.iter_mut().enumerate() {
                *acc = S::mul_add(T::load::<S>(value.add(n * S::LANES)), weight, *acc);
            }
        }
        for (n, &acc) in acc.iter().enumerate() {
            S::store(sums.add(d + n * S::LANES), acc);
        }
    }
}

/// `out = sums / total`
///
/// # Safety
/// `out` has `dim` elements, `sums` as many and room for a whole vector more; the machine has `S`.
#[inline(always)]
pub(super) unsafe fn finish<S: Simd, T: Element>(
    sums: *const f32,
    dim: usize,
    total: f32,
    out: *mut T,
) {
    // SAFETY: columns stay below `dim`, or within the padding of `sums`.
    unsafe {
        let total = S::splat(total);
        let mut d = 0;
        while d + S::LANES <= dim {
            T::store::<S>(out.add(d), S::div(S::load(sums.add(d)), total));
            d += S::LANES;
        }
        if d < dim {
            let rest = S::div(S::load(sums.add(d)), total);
            T::store_partial::<S>(out.add(d), rest, dim - d);
        }
    }
}
