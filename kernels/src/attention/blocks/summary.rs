//! Summaries of blocks.

use super::super::Head;
use super::BlockCall;
use crate::element::{Element, sealed::Convert};
use crate::isa::kernel;
use crate::simd::Simd;
use ratplus_graphs::blocks::Score;
use std::ptr::copy_nonoverlapping;

/// Adds the chunk's keys, which are stored, to the summaries of their blocks.
///
/// # Safety
/// As `block_top_k_attention`; no other task has this head.
pub(super) unsafe fn update<T: Element, C: Element>(
    call: &BlockCall<T, C>,
    index: usize,
    head: &Head,
) {
    let params = call.params;
    let (at, end) = (call.summaries(index), call.summaries(index + 1));
    if !std::ptr::eq(params.past_block, params.present_block) {
        // SAFETY: the head's rows, in buffers that do not overlap.
        unsafe {
            copy_nonoverlapping(
                params.past_block.add(at),
                params.present_block.add(at),
                end - at,
            );
        }
    }
    // SAFETY: forwarded.
    unsafe { add::<T, C>(call.attention.isa, call, index, head) }
}

kernel! {
    /// [`update`], without the copy.
    fn add<T, C>(call: &BlockCall<T, C>, index: usize, head: &Head) = add_body
}

#[inline(always)]
unsafe fn add_body<S: Simd, T: Element, C: Element>(
    call: &BlockCall<T, C>,
    index: usize,
    head: &Head,
) {
    let (blocks, dim) = (call.params.blocks, call.params.attention.head_dim);
    let size = blocks.block_size as usize;
    let parts = blocks.score.parts();
    for position in head.past..head.past + head.tokens {
        // SAFETY: the position has a row and a block.
        unsafe {
            let [key, _] = call.attention.present(head, position);
            let key = key.cast_const();
            let at = call.summaries(index) + blocks.block_of(position) * parts * dim;
            let summary = call.params.present_block.add(at);
            let first = position.is_multiple_of(size);
            let mut d = 0;
            while d < dim {
                let lanes = S::LANES.min(dim - d);
                let x = load::<S, C>(key.add(d), lanes);
                for part in 0..parts {
                    let held = summary.add(part * dim + d);
                    let old = if first {
                        x
                    } else {
                        load::<S, f32>(held.cast_const(), lanes)
                    };
                    let new = match (first, blocks.score, part) {
                        (true, _, _) => x,
                        (false, Score::Mean, _) => S::add(old, x),
                        (false, Score::Bounds, 0) => {
                            let minus = S::splat(-1.0);
                            let [a, b] = [S::mul(old, minus), S::mul(x, minus)];
                            S::mul(S::max(a, b), minus)
                        }
                        (false, Score::Bounds, _) => S::max(old, x),
                    };
                    match lanes == S::LANES {
                        true => S::store(held, new),
                        false => f32::store_partial::<S>(held, new, lanes),
                    }
                }
                d += lanes;
            }
        }
    }
}

/// `lanes` elements, and zeros.
///
/// # Safety
/// There are as many; the machine has `S`.
#[inline(always)]
pub(super) unsafe fn load<S: Simd, C: Element>(from: *const C, lanes: usize) -> S::V {
    // SAFETY: as the caller vouches.
    unsafe {
        match lanes == S::LANES {
            true => C::load::<S>(from),
            false => C::load_partial::<S>(from, lanes),
        }
    }
}
