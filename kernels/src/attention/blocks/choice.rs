//! Which blocks a query chooses.

use super::BlockCall;
use super::summary::load;
use crate::element::Element;
use crate::simd::{MAX_LANES, Simd, reduce_add_all};
use ratplus_graphs::blocks::Score;

/// Queries whose products with a summary are computed together: it is read once for them.
pub(super) const TOGETHER: usize = 4;

/// f32 of a query as blocks are scored with it: for bounds what is positive of it, and what is negative.
pub(super) fn probe_floats(score: Score, dim: usize) -> usize {
    score.parts() * dim.next_multiple_of(MAX_LANES)
}

/// Scores that are compared at once.
const AT_ONCE: usize = 8;
/// Groups of scores that a floor is taken from at most.
const MOST_GROUPS: usize = 256;

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
    let params = call.params;
    let scoring = Scoring {
        summaries: params
            .present_block
            .cast_const()
            .wrapping_add(call.summaries(index)),
        parts: params.blocks.score.parts(),
        dim: params.attention.head_dim,
        probes,
        scores,
        stride,
    };
    // SAFETY: as the caller vouches.
    unsafe {
        // As many sums as there are registers for, far apart: the machine reads four streams faster than one.
        let mut block = 0;
        if Q == 1 || S::LANES == MAX_LANES {
            let apart = count / 4;
            (0..apart).for_each(|block| scoring.blocks::<S, 4>(block, apart));
            block = 4 * apart;
        }
        while block + 2 <= count {
            scoring.blocks::<S, 2>(block, 1);
            block += 2;
        }
        if block < count {
            scoring.blocks::<S, 1>(block, 0);
        }
    }
}

/// Queries and the summaries that they are scored with.
struct Scoring<const Q: usize> {
    summaries: *const f32,
    parts: usize,
    dim: usize,
    probes: [*const f32; Q],
    scores: *mut f32,
    stride: usize,
}

impl<const Q: usize> Scoring<Q> {
    /// Writes the scores of `N` blocks from `first` on that are so far `apart`, each summed in one order.
    ///
    /// # Safety
    /// As [`score`].
    #[inline(always)]
    unsafe fn blocks<S: Simd, const N: usize>(&self, first: usize, apart: usize) {
        let (parts, dim) = (self.parts, self.dim);
        let padded = dim.next_multiple_of(MAX_LANES);
        // SAFETY: as the caller vouches.
        unsafe {
            let summaries = self.summaries.add(first * parts * dim);
            let mut acc = [[S::splat(0.0); N]; Q];
            for part in 0..parts {
                let mut d = 0;
                while d < dim {
                    let lanes = S::LANES.min(dim - d);
                    let mut rows = [S::splat(0.0); N];
                    for (n, row) in rows.iter_mut().enumerate() {
                        *row = load::<S, f32>(
                            summaries.add((n * apart * parts + part) * dim + d),
                            lanes,
                        );
                    }
                    for (acc, probe) in acc.iter_mut().zip(self.probes) {
                        let q = S::load(probe.add(part * padded + d));
                        for (acc, &row) in acc.iter_mut().zip(&rows) {
                            *acc = S::mul_add(row, q, *acc);
                        }
                    }
                    d += lanes;
                }
            }
            for (q, sums) in reduce_add_all::<S, N, Q>(acc).into_iter().enumerate() {
                let scores = self.scores.add(q * self.stride + first);
                for (n, sum) in sums.into_iter().enumerate() {
                    *scores.add(n * apart) = sum;
                }
            }
        }
    }
}

/// Writes the `chosen.len()` blocks with the greatest scores, of equal ones the lower, ascending; `ranked` has room
/// for each score.
#[inline(always)]
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
    let least = floor(scores, count);
    // Not so what is no number.
    let below = |score: f32| score < least;
    let mut held = 0;
    for (first, some) in (0u32..).step_by(AT_ONCE).zip(scores.chunks(AT_ONCE)) {
        // Nearly always all are.
        if some.iter().fold(true, |all, &score| all & below(score)) {
            continue;
        }
        for (block, &score) in (first..).zip(some) {
            ranked[held] = u64::from(ascending(score)) << 32 | u64::from(!block);
            held += usize::from(!below(score));
        }
    }
    let ranked = &mut ranked[..held];
    ranked.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
    for (chosen, ranked) in chosen.iter_mut().zip(&*ranked) {
        *chosen = !(*ranked as u32);
    }
    chosen.sort_unstable();
}

/// A score that at least `count` reach, and few more: among the greatest of groups of scores, the one in place `count`.
#[inline(always)]
fn floor(scores: &[f32], count: usize) -> f32 {
    // With four times the groups hardly one has two of the greatest.
    let groups = (4 * count).next_multiple_of(AT_ONCE);
    if groups > MOST_GROUPS || scores.len() < 2 * groups {
        return f32::NEG_INFINITY;
    }
    let mut most = [f32::NEG_INFINITY; MOST_GROUPS];
    let most = &mut most[..groups];
    for some in scores.chunks_exact(groups) {
        for (most, &score) in most.iter_mut().zip(some) {
            // What is no number is not greater.
            *most = if score > *most { score } else { *most };
        }
    }
    *most
        .select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a))
        .1
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

    #[test]
    fn the_greatest_of_many_are_those_of_a_sort() {
        // Ascending, descending, in no order with many equal ones, and mostly no numbers.
        let any = |n: u32| (n.wrapping_mul(2_654_435_761) >> 16) as f32;
        let orders: [&dyn Fn(u32) -> f32; 4] = [
            &|n| n as f32,
            &|n| -(n as f32),
            &|n| any(n) % 50.0 - 25.0,
            &|n| match n % 8 {
                0 => any(n),
                1 => f32::NEG_INFINITY,
                _ => f32::NAN,
            },
        ];
        for (order, count) in orders
            .iter()
            .flat_map(|order| [1, 2, 15, 70].map(|count| (order, count)))
        {
            for blocks in [count as u32 + 1, 2 * count as u32, 128, 1000] {
                let scores: Vec<_> = (0..blocks).map(order).collect();
                let score = |block: u32| scores[block as usize];
                let mut sorted: Vec<_> = (0..blocks).collect();
                sorted.sort_by(|&a, &b| {
                    let numbers_first = score(a).is_nan().cmp(&score(b).is_nan());
                    numbers_first.then(score(b).total_cmp(&score(a)))
                });
                sorted.truncate(count);
                sorted.sort_unstable();
                assert_eq!(chosen(&scores, count), sorted, "{count} of {blocks}");
            }
        }
    }
}
