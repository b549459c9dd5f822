//! One query at a time: decoding, and the few queries that are not worth a tile.

use super::keys::{self_apart, visible_runs};
use super::rows::{Rows, Sources};
use super::{Call, Head, LOG2_E, update};
use crate::element::Element;
use crate::isa::kernel;
use crate::rope::rotate;
use crate::scratch::{Carver, with_scratch};
use crate::simd::{MAX_LANES, Simd, exp2, exp2_one, prefetch};

/// Keys between two rescalings of the sums.
const BLOCK: usize = 32;

/// Keys of a part: what a query sees is summed in parts of as many, whoever computes them.
const PART: usize = 512;

/// Parts of what `head`'s query at `position` sees.
pub(super) fn parts(head: &Head, position: usize) -> usize {
    head.cache.pattern.visible_count(position).div_ceil(PART)
}

/// f32 that [`decode_part`] leaves for each part.
pub(super) fn partial_floats(dim: usize) -> usize {
    dim.next_multiple_of(MAX_LANES) + MAX_LANES
}

/// Runs the only token of a chunk and updates the cache.
///
/// # Safety
/// As `dilated_attention`; the chunk has one token and no other task has this head.
pub(super) unsafe fn decode<T: Element, C: Element>(call: &Call<T, C>, head: &Head) {
    // SAFETY: forwarded.
    unsafe {
        if head.tokens == 0 {
            finish_decode(call, head, std::ptr::null());
            return;
        }
        let most = parts(head, call.params.layout.max_seq_len() - 1);
        with_scratch(most * partial_floats(call.params.head_dim), |partials| {
            for part in 0..parts(head, head.past) {
                decode_part(call, head, part, partials);
            }
            finish_decode(call, head, partials);
        });
    }
}

/// Computes one part of the only token of a chunk, to its place in the head's `partials`.
///
/// # Safety
/// As `dilated_attention`; the head is not idle and has the part.
pub(super) unsafe fn decode_part<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    part: usize,
    partials: *mut f32,
) {
    let params = call.params;
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
    let query = Query {
        t: 0,
        stored: head.past,
        part,
    };
    with_own_token(call, head, 0, &sources, |sources, scratch| {
        // SAFETY: forwarded.
        unsafe { attend::<T, C>(call.isa, call, head, &query, sources, partials, scratch) }
    });
}

/// Makes the output of the only token of a chunk from its parts, and updates the cache.
///
/// # Safety
/// As `dilated_attention`; no other task has this head, whose parts have been computed unless it is
/// idle.
pub(super) unsafe fn finish_decode<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    partials: *const f32,
) {
    let params = call.params;
    // SAFETY: forwarded.
    unsafe {
        update::copy_past(call, head);
        let out = params.output.add(call.token(head, 0));
        if head.tokens == 0 {
            std::ptr::write_bytes(out, 0, params.head_dim);
            return;
        }
        merge::<T>(
            call.isa,
            partials.cast_mut(),
            parts(head, head.past),
            params.head_dim,
            out,
        );
        update::write_token(call, head);
    }
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
    let dim = call.params.head_dim;
    let parts = parts(head, head.past + t);
    with_scratch(parts * partial_floats(dim), |partials| {
        for part in 0..parts {
            let query = Query {
                t,
                stored: head.past + head.tokens,
                part,
            };
            let run = |sources: &Sources<C>, scratch| {
                // SAFETY: forwarded.
                unsafe { attend::<T, C>(call.isa, call, head, &query, sources, partials, scratch) }
            };
            if self_apart(&head.cache) {
                with_own_token(call, head, t, sources, run);
            } else {
                with_scratch(query_floats(dim), |scratch| run(sources, scratch));
            }
        }
        // SAFETY: forwarded; the parts have been computed.
        unsafe {
            let out = call.params.output.add(call.token(head, t));
            merge::<T>(call.isa, partials, parts, dim, out);
        }
    });
}

/// One part of what a token sees.
struct Query {
    /// The chunk's token.
    t: usize,
    /// Tokens for which the rows that last are written.
    stored: usize,
    part: usize,
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
            update::token(call, head, t, key, value);
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
    dim.next_multiple_of(MAX_LANES) + BLOCK
}

kernel! {
    /// One part of a token's attention, to its place in `partials`; `scratch` has [`query_floats`].
    fn attend<T, C>(
        call: &Call<T, C>,
        head: &Head,
        query: &Query,
        sources: &Sources<C>,
        partials: *mut f32,
        scratch: *mut f32,
    ) = attend_body
}

#[inline(always)]
unsafe fn attend_body<S: Simd, T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    query: &Query,
    sources: &Sources<C>,
    partials: *mut f32,
    scratch: *mut f32,
) {
    let params = call.params;
    let dim = params.head_dim;
    let half = dim / 2;
    let position = head.past + query.t;
    // SAFETY: the scratch has room for the parts; rows come from the runs that this query sees.
    unsafe {
        let padded = dim.next_multiple_of(MAX_LANES);
        let rotated = scratch;
        let weights = scratch.add(padded);
        let sums = partials.add(query.part * partial_floats(dim));
        std::ptr::write_bytes(rotated, 0, padded);
        std::ptr::write_bytes(sums, 0, padded);
        rotate::<S, T, f32>(
            params.query.add(call.token(head, query.t)),
            params.cos.add(position * half),
            params.sin.add(position * half),
            half,
            params.scale * LOG2_E,
            rotated,
        );
        let (mut max, mut total) = (f32::MIN, 0.0);
        let own = position..position + 1;
        // Keys before the part, then keys left in it.
        let (mut skip, mut left) = (query.part * PART, PART);
        for run in &visible_runs(&head.cache, head.past, query.stored, own, false) {
            let rows = Rows::new(sources, run);
            let mut done = skip.min(run.count);
            skip -= done;
            while done < run.count && left > 0 {
                let part = rows.part(done, BLOCK.min(run.count - done).min(left));
                done += part.count;
                left -= part.count;
                scores::<S, C>(&part, dim, rotated, weights);
                let rescale = softmax::<S>(weights, part.count, &mut max, &mut total);
                accumulate::<S, C>(&part, dim, weights, rescale, sums);
            }
        }
        *sums.add(padded) = max;
        *sums.add(padded + 1) = total;
    }
}

kernel! {
    /// Makes the output `out` of `parts` parts, in order.
    fn merge<T>(partials: *mut f32, parts: usize, dim: usize, out: *mut T) = merge_body
}

#[inline(always)]
unsafe fn merge_body<S: Simd, T: Element>(
    partials: *mut f32,
    parts: usize,
    dim: usize,
    out: *mut T,
) {
    let padded = dim.next_multiple_of(MAX_LANES);
    // SAFETY: each part has `partial_floats`.
    unsafe {
        let (mut max, mut total) = (*partials.add(padded), *partials.add(padded + 1));
        for part in 1..parts {
            let other = partials.add(part * partial_floats(dim));
            let (other_max, other_total) = (*other.add(padded), *other.add(padded + 1));
            let most = max.max(other_max);
            let factors = [max, other_max].map(|max| exp2_one::<S>(max - most));
            max = most;
            total = total * factors[0] + other_total * factors[1];
            for d in (0..padded).step_by(S::LANES) {
                let own = S::mul(S::load(partials.add(d)), S::splat(factors[0]));
                let sum = S::mul_add(S::load(other.add(d)), S::splat(factors[1]), own);
                S::store(partials.add(d), sum);
            }
        }
        finish::<S, T>(partials, dim, total, out);
    }
}

/// Whether rows are fetched a block ahead: values while keys are read, the next keys while values are.
/// A row of f32 is so many lines that the machine's own fetching keeps up; measured, it gains nothing.
#[inline(always)]
const fn fetched<T: Element>() -> bool {
    size_of::<T>() < size_of::<f32>()
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
            if fetched::<T>() {
                for n in row..row + 4 {
                    let value = rows.value.wrapping_add(n * rows.value_stride);
                    prefetch(value, dim * size_of::<T>());
                }
            }
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
    // SAFETY: the caller vouches for `N` rows of `dim` elements from `row` on, for as many scores, and
    // for a query that is zero up to a whole vector past `dim`.
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
    // SAFETY: the caller vouches for `N` whole vectors from `d` on, in every row and in `sums`, and for
    // one weight of each row.
    unsafe {
        let mut acc = [S::splat(0.0); N];
        for (n, acc) in acc.iter_mut().enumerate() {
            *acc = S::mul(S::load(sums.add(d + n * S::LANES)), S::splat(rescale));
        }
        for row in 0..rows.count {
            if fetched::<T>() && d == 0 {
                let next = (row + BLOCK) * rows.key_stride;
                prefetch(rows.key.wrapping_add(next), N * S::LANES * size_of::<T>());
            }
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
