//! One query at a time: decoding, and the few queries that are not worth a tile.

use super::keys::{self_apart, visible_runs};
use super::rows::{Rows, Sources};
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
pub(super) unsafe fn decode<T: Element, C: Element>(call: &Call<T, C>, head: &Head) {
    let params = call.params;
    // SAFETY: forwarded.
    unsafe {
        update::copy_past(call, head);
        if head.tokens == 0 {
            let out = params.output.add(call.token(head, 0));
            std::ptr::write_bytes(out, 0, params.head_dim);
            return;
        }
    }
    let at = call.rows(head);
    let past = [params.past_key, params.past_value].map(|rows| rows.wrapping_add(at));
    let sources = Sources {
        past: head.past,
        head_dim: params.head_dim,
        lasting: past,
        ring: past,
        chunk: [std::ptr::null(); 2],
        value_stride: params.head_dim,
    };
    with_own_token(call, head, 0, &sources, |sources, scratch| {
        let [key, value] = sources.chunk;
        // SAFETY: forwarded.
        unsafe {
            attend::<T, C>(call.isa, call, head, 0, head.past, sources, scratch);
            update::write_token(call, head, 0, key, value);
        }
    });
}

/// Computes the output of the chunk's token `t`.
///
/// # Safety
/// As `dilated_attention`; the token is valid, no other task has its output, and `sources` has the
/// chunk.
pub(super) unsafe fn query<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    t: usize,
    sources: &Sources<C>,
) {
    let stored = head.past + head.tokens;
    let run = |sources: &Sources<C>, scratch| {
        // SAFETY: forwarded.
        unsafe { attend::<T, C>(call.isa, call, head, t, stored, sources, scratch) }
    };
    if self_apart(&head.cache) {
        with_own_token(call, head, t, sources, run);
    } else {
        with_scratch(query_floats(call.params.head_dim), |scratch| {
            run(sources, scratch)
        });
    }
}

/// Calls `work` with sources whose chunk is the token `t` alone, and [`query_floats`].
fn with_own_token<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    t: usize,
    sources: &Sources<C>,
    work: impl FnOnce(&Sources<C>, *mut f32),
) {
    let dim = call.params.head_dim;
    let row = (dim * size_of::<C>()).div_ceil(size_of::<f32>());
    with_scratch(2 * Carver::size(row) + query_floats(dim), |floats| {
        let mut carver = Carver::new(floats);
        // SAFETY: the scratch has room for two rows and the query; the token is valid.
        unsafe {
            let key: *mut C = carver.take(row).cast();
            let value: *mut C = carver.take(row).cast();
            own_token(call.isa, call, head, t, key, value);
            let own = Sources {
                past: head.past + t,
                chunk: [key, value],
                value_stride: dim,
                ..*sources
            };
            work(&own, carver.take(0));
        }
    });
}

/// Scratch of [`attend`].
fn query_floats(dim: usize) -> usize {
    2 * dim.next_multiple_of(MAX_LANES) + BLOCK
}

kernel! {
    /// The token `t` as the cache keeps it.
    fn own_token<T, C>(call: &Call<T, C>, head: &Head, t: usize, key: *mut C, value: *mut C)
        = own_token_body
}

#[inline(always)]
unsafe fn own_token_body<S: Simd, T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    t: usize,
    key: *mut C,
    value: *mut C,
) {
    // SAFETY: forwarded.
    unsafe { update::token_rows::<S, T, C>(call, head, t, key, value) }
}

kernel! {
    /// Attention of the chunk's token `t`, when the rows that last are written for `stored` tokens;
    /// `scratch` has [`query_floats`].
    fn attend<T, C>(
        call: &Call<T, C>,
        head: &Head,
        t: usize,
        stored: usize,
        sources: &Sources<C>,
        scratch: *mut f32,
    ) = attend_body
}

#[inline(always)]
unsafe fn attend_body<S: Simd, T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    t: usize,
    stored: usize,
    sources: &Sources<C>,
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
        let own = position..position + 1;
        for run in &visible_runs(&head.cache, head.past, stored, own, false) {
            let rows = Rows::new(sources, run);
            let mut done = 0;
            while done < rows.count {
                let part = rows.part(done, BLOCK.min(rows.count - done));
                done += part.count;
                scores::<S, C>(&part, dim, query, weights);
                let rescale = softmax::<S>(weights, part.count, &mut max, &mut total);
                accumulate::<S, C>(&part, dim, weights, rescale, sums);
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
        let factor = S::splat(1.0 / total);
        let mut d = 0;
        while d + S::LANES <= dim {
            T::store::<S>(out.add(d), S::mul(S::load(sums.add(d)), factor));
            d += S::LANES;
        }
        if d < dim {
            let rest = S::mul(S::load(sums.add(d)), factor);
            T::store_partial::<S>(out.add(d), rest, dim - d);
        }
    }
}
