//! One token at a time: decoding, where the query heads of a key-value head share what they read, and the few queries
//! that are not worth a tile.

use super::keys::{self_apart, visible_runs};
use super::queries::{Queries, partial_floats};
use super::rows::{Rows, Sources};
use super::{Call, Head, LOG2_E, update};
use crate::element::Element;
use crate::isa::kernel;
use crate::rope::rotate;
use crate::scratch::{Carver, with_scratch};
use crate::simd::{MAX_LANES, Simd, exp2_one};

/// Keys of a part: what a query sees is summed in parts of as many, whoever computes them.
const PART: usize = 512;

/// Keys of a part that are added at once. Measured: with twice as many bf16 ones are read a sixth slower.
const KEYS: usize = 16;

/// Parts of what `head`'s query at `position` sees.
pub(super) fn parts(head: &Head, position: usize) -> usize {
    head.cache.pattern.visible_count(position).div_ceil(PART)
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
        let most = parts(head, call.params.layout.max_seq_len() - 1) * head.queries;
        with_scratch(most * partial_floats(call.params.head_dim), |partials| {
            for part in 0..parts(head, head.past) {
                decode_part(call, head, part, partials);
            }
            finish_decode(call, head, partials);
        });
    }
}

/// Computes one part of the only token of a chunk, to its place in the head's `partials`: part after part, and in each
/// one query head after the other.
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
        if head.tokens == 0 {
            let out = params.output.add(call.query_token(head, 0, 0));
            std::ptr::write_bytes(out, 0, head.queries * params.head_dim);
            return;
        }
        merge_all(call, head, 0, partials.cast_mut());
        update::write_token(call, head);
    }
}

/// Makes the outputs of the chunk's token `t` of their parts.
///
/// # Safety
/// As `dilated_attention`; the parts have been computed, and no other task has these outputs.
unsafe fn merge_all<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    t: usize,
    partials: *mut f32,
) {
    let dim = call.params.head_dim;
    for n in 0..head.queries {
        // SAFETY: forwarded.
        unsafe {
            let parts = Parts {
                first: partials.add(n * partial_floats(dim)),
                stride: head.queries * partial_floats(dim),
                count: parts(head, head.past + t),
            };
            let out = call.params.output.add(call.query_token(head, n, t));
            merge::<T>(call.isa, &parts, dim, out);
        }
    }
}

/// Computes the outputs of the chunk's token `t`.
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
    with_scratch(parts * head.queries * partial_floats(dim), |partials| {
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
                with_scratch(Queries::floats(head.queries, dim), |scratch| {
                    run(sources, scratch)
                });
            }
        }
        // SAFETY: forwarded; the parts have been computed.
        unsafe { merge_all(call, head, t, partials) }
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

/// Calls `work` with sources whose chunk is the token `t` alone, and [`Queries::floats`].
fn with_own_token<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    t: usize,
    sources: &Sources<C>,
    work: impl FnOnce(&Sources<C>, *mut f32),
) {
    let dim = call.params.head_dim;
    let row = (dim * size_of::<C>()).div_ceil(size_of::<f32>());
    with_scratch(
        2 * Carver::size(row) + Queries::floats(head.queries, dim),
        |floats| {
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
        },
    );
}

kernel! {
    /// One part of a token's attention, to its place in `partials`; `scratch` has [`Queries::floats`].
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
        let sums = partials.add(query.part * head.queries * partial_floats(dim));
        let queries = Queries::new(head.queries, dim, scratch, sums);
        for n in 0..head.queries {
            rotate::<S, T, f32>(
                params.query.add(call.query_token(head, n, query.t)),
                params.cos.add(position * half),
                params.sin.add(position * half),
                half,
                params.scale * LOG2_E,
                queries.rotated(n),
            );
        }
        let own = position..position + 1;
        // Keys before the part, then keys left in it.
        let (mut skip, mut left) = (query.part * PART, PART);
        for run in &visible_runs(&head.cache, head.past, query.stored, own, false) {
            let rows = Rows::new(sources, run);
            let mut done = skip.min(run.count);
            skip -= done;
            while done < run.count && left > 0 {
                let part = rows.part(done, KEYS.min(run.count - done).min(left));
                done += part.count;
                left -= part.count;
                queries.add::<S, C>(&part);
            }
        }
    }
}

/// The parts of one query's result.
struct Parts {
    first: *mut f32,
    /// f32 between them.
    stride: usize,
    count: usize,
}

kernel! {
    /// Makes the output `out` of parts, in order.
    fn merge<T>(parts: &Parts, dim: usize, out: *mut T) = merge_body
}

#[inline(always)]
unsafe fn merge_body<S: Simd, T: Element>(parts: &Parts, dim: usize, out: *mut T) {
    let padded = dim.next_multiple_of(MAX_LANES);
    let partials = parts.first;
    // SAFETY: each part has `partial_floats`.
    unsafe {
        let (mut max, mut total) = (*partials.add(padded), *partials.add(padded + 1));
        for part in 1..parts.count {
            let other = partials.add(part * parts.stride);
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
