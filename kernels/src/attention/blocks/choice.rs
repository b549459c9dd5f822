//! Which blocks a query chooses.

use super::BlockCall;
use super::summary::load;
use crate::element::Element;
use crate::simd::{MAX_LANES, Simd};
use ratplus_graphs::blocks::Score;

/// Queries whose products with a summary are computed together: it is read once for them.
pub(super) const TOGETHER: usize = 4;

/// f32 of a query as blocks are scored with it: for bounds what is positive of it, and what is negative.
pub(super) fn probe_floats(score: Score, dim: usize) -> usize {
    score.parts() * dim.next_multiple_of(MAX_LANES)
}

/// Makes a probe of a rotated query that was not scaled, `dim` elements and zeros up to whole vectors.
///
/// # Safety
/// `query` has as many; `probe` has [`probe_floats`]; the machine has `S`.
#[inline(always)]
pub(super) unsafe fn probe<S: Simd>(score: Score, query: *const f32, dim: usize, probe: *mut f32) {
    let padded = dim.next_multiple_of(MAX_LANES);
    // SAFETY: as the caller vouches.
    unsafe {
        for d in (0..padded).step_by(S::LANES) {
            let q = S::load(query.add(d));
            match score {
                Score::Mean => S::store(probe.add(d), q),
                Score::Bounds => {
                    let above = S::max(q, S::splat(0.0));
                    // With the least values first, as summaries have them.
                    S::store(probe.add(d), S::sub(q, above));
                    S::store(probe.add(padded + d), above);
                }
            }
        }
    }
}

/// Writes the scores of the first `count` blocks with each of the probes, `[Q, stride]`.
///
/// # Safety
/// The key-value head `index` has as many blocks with summaries, `scores` room; the machine has `S`.
#[inline(always)]
pub(super) unsafe fn score<S: Simd, T: Element, C: Element, const Q: usize>(
    call: &BlockCall<T, C>,
    index: usize,
    probes: [*const f32; Q],
    count: usize,
    scores: *mut f32,
    stride: usize,
) {
    let dim = call.params.attention.head_dim;
    let parts = call.params.blocks.score.parts();
    let summaries = call
        .params
        .present_block
        .cast_const()
        .wrapping_add(call.summaries(index));
    // SAFETY: as the caller vouches.
    unsafe {
        let mut block = 0;
        while block + 2 <= count {
            let found = products::<S, 2, Q>(summaries.add(block * parts * dim), parts, dim, probes);
            for (q, found) in found.into_iter().enumerate() {
                for (n, found) in found.into_iter().enumerate() {
                    *scores.add(q * stride + block + n) = found;
                }
            }
            block += 2;
        }
        if block < count {
            let found = products::<S, 1, Q>(summaries.add(block * parts * dim), parts, dim, probes);
            for (q, [found]) in found.into_iter().enumerate() {
                *scores.add(q * stride + block) = found;
            }
        }
    }
}

/// Products of `N` blocks' summaries with each of the probes, each summed in one order.
#[inline(always)]
unsafe fn products<S: Simd, const N: usize, const Q: usize>(
    summaries: *const f32,
    parts: usize,
    dim: usize,
    probes: [*const f32; Q],
) -> [[f32; N]; Q] {
    let padded = dim.next_multiple_of(MAX_LANES);
    // SAFETY: as the caller vouches.
    unsafe {
        let mut acc = [[S::splat(0.0); N]; Q];
        for part in 0..parts {
            let mut d = 0;
            while d < dim {
                let lanes = S::LANES.min(dim - d);
                let mut rows = [S::splat(0.0); N];
                for (n, row) in rows.iter_mut().enumerate() {
                    *row = load::<S, f32>(summaries.add((n * parts + part) * dim + d), lanes);
                }
                for (acc, probe) in acc.iter_mut().zip(probes) {
                    let q = S::load(probe.add(part * padded + d));
                    for (acc, &row) in acc.iter_mut().zip(&rows) {
                        *acc = S::mul_add(row, q, *acc);
                    }
                }
                d += lanes;
            }
        }
        acc.map(|acc| acc.map(|acc| S::reduce_add(acc)))
    }
}

/// Writes the `count` blocks with the greatest scores, of equal ones the lower, ascending; `ranked` has room
/// for each score.
pub(super) fn greatest(scores: &[f32], ranked: &mut [u64], chosen: &mut [u32]) {
    let count = chosen.len();
    if count >= scores.len() {
        for (block, chosen) in (0..).zip(chosen) {
            *chosen = block;
        }
        return;
    }
    if count == 0 {
        return;
    }
    let ranked = &mut ranked[..scores.len()];
    for ((block, &score), ranked) in (0u32..).zip(scores).zip(&mut *ranked) {
        *ranked = u64::from(ascending(score)) << 32 | u64::from(!block);
    }
    ranked.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
    for (chosen, ranked) in chosen.iter_mut().zip(&*ranked) {
        *chosen = !(*ranked as u32);
    }
    chosen.sort_unstable();
}

/// Orders as the scores do; what is no number comes first.
fn ascending(score: f32) -> u32 {
    // Zeros are equal.
    let bits = (score + 0.0).to_bits();
    match bits >> 31 {
        _ if score.is_nan() => 0,
        0 => bits | 1 << 31,
        _ => !bits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(scores: &[f32], count: usize) -> Vec<u32> {
        let mut chosen = vec![0; count.min(scores.len())];
        greatest(scores, &mut vec![0; scores.len()], &mut chosen);
        chosen
    }

    #[test]
    fn the_greatest_are_chosen_and_of_equal_ones_the_lower() {
        assert_eq!(chosen(&[1.0, 3.0, -2.0, 3.0, 0.5], 2), [1, 3]);
        assert_eq!(chosen(&[1.0, 1.0, 1.0], 2), [0, 1]);
        assert_eq!(chosen(&[0.0, -0.0, 0.0], 1), [0]);
        assert_eq!(chosen(&[-0.0, 0.0, -1.0], 1), [0]);
        let infinite = [f32::NEG_INFINITY, f32::NAN, f32::MIN, f32::INFINITY];
        assert_eq!(chosen(&infinite, 2), [2, 3]);
        assert_eq!(chosen(&infinite, 3), [0, 2, 3]);
        assert_eq!(chosen(&[5.0, 4.0], 3), [0, 1]);
        assert_eq!(chosen(&[5.0, 4.0], 0), [0; 0]);
    }
}
