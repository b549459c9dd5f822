//! A panel of queries: as many as the columns of one register block.

use super::tile::KEYS;
use crate::simd::{Gemm, Into, MAX_LANES, Simd, exp2};
use std::ops::Range;

/// A block of keys and values in f32.
pub(super) struct Keys {
    /// `[count, head_dim]`
    pub key: *const f32,
    /// `[count, head_dim]`
    pub value: *const f32,
    /// Between rows, which are readable up to whole vectors.
    pub stride: usize,
    /// At most [`KEYS`].
    pub count: usize,
    /// `[count]`: the first query, counted from the tile's, that sees the key.
    pub first: *mut f32,
    /// `[count]`: the last one.
    pub last: *mut f32,
}

impl Keys {
    /// Sets the first and the last query that sees key `n`.
    ///
    /// # Safety
    /// There is room for it.
    #[inline(always)]
    pub(super) unsafe fn set_span(&self, n: usize, [first, last]: [usize; 2]) {
        // SAFETY: as the caller vouches.
        unsafe {
            *self.first.add(n) = first as f32;
            *self.last.add(n) = last as f32;
        }
    }

    /// The keys that some query from `first` to `last` sees, from the first such key to the last,
    /// and how many pairs of these queries and keys see each other.
    #[inline(always)]
    fn seen(&self, first: usize, last: usize) -> (Range<usize>, usize) {
        let (first, last) = (first as f32, last as f32);
        let (mut start, mut end, mut pairs) = (self.count, 0, 0.0);
        for n in 0..self.count {
            // SAFETY: below `count`.
            let (from, to) = unsafe { (*self.first.add(n), *self.last.add(n)) };
            let queries = to.min(last) - from.max(first) + 1.0;
            if queries > 0.0 {
                start = start.min(n);
                end = n + 1;
                pairs += queries;
            }
        }
        (start..end.max(start), pairs as usize)
    }
}

/// Up to [`Simd::PANEL`] queries, one a column, and their sums.
pub(super) struct Panel {
    /// The first query, counted from the tile's.
    pub start: usize,
    /// Queries, the other columns belong to none.
    pub count: usize,
    dim: usize,
    /// `head_dim` up to whole vectors.
    padded: usize,
    /// `[head_dim, PANEL]`, rotated and scaled.
    pub query: *mut f32,
    /// `[PANEL, padded]`: weighted sums of values.
    pub sums: *mut f32,
    /// `[KEYS, PANEL]`: scores, then weights.
    weight: *mut f32,
    /// `[PANEL]`: the largest score so far.
    pub max: *mut f32,
    /// `[PANEL]`: the sum of the weights so far.
    pub total: *mut f32,
    /// `[PANEL]`: the factor for earlier sums.
    rescale: *mut f32,
}

impl Panel {
    /// Working memory over [`Simd::PANEL`], a multiple of a cache line for two queries or more.
    pub(super) fn floats_a_query(dim: usize) -> usize {
        2 * dim.next_multiple_of(MAX_LANES) + KEYS + 4
    }

    /// # Safety
    /// `floats` has [`Panel::floats_a_query`] for each column.
    #[inline(always)]
    pub(super) unsafe fn new<S: Simd>(
        floats: *mut f32,
        dim: usize,
        start: usize,
        tokens: usize,
    ) -> Self {
        let padded = dim.next_multiple_of(MAX_LANES);
        // SAFETY: the parts add up to less than the caller vouches for.
        unsafe {
            let weight = floats.add(2 * padded * S::PANEL);
            let max = weight.add(KEYS * S::PANEL);
            Self {
                start,
                count: S::PANEL.min(tokens - start),
                dim,
                padded,
                query: floats,
                sums: floats.add(padded * S::PANEL),
                weight,
                max,
                total: max.add(S::PANEL),
                rescale: max.add(2 * S::PANEL),
            }
        }
    }

    /// No key was seen.
    ///
    /// # Safety
    /// The machine has `S`.
    #[inline(always)]
    pub(super) unsafe fn clear<S: Simd>(&self) {
        // SAFETY: all within the panel's memory.
        unsafe {
            std::ptr::write_bytes(self.sums, 0, self.padded * S::PANEL);
            for column in (0..S::PANEL).step_by(S::LANES) {
                S::store(self.max.add(column), S::splat(f32::MIN));
                S::store(self.total.add(column), S::splat(0.0));
            }
        }
    }

    /// Adds a block of keys to the sums.
    ///
    /// # Safety
    /// The rows are readable; the machine has `S`.
    #[inline(always)]
    pub(super) unsafe fn add<S: Simd>(&self, keys: &Keys) {
        let (seen, pairs) = keys.seen(self.start, self.start + self.count - 1);
        if pairs == 0 {
            return;
        }
        let vectors = S::PANEL / S::LANES;
        let all = seen.len() * self.count;
        // SAFETY: rows and columns lie within block and panel.
        unsafe {
            // A whole panel is worth a quarter of its products for nothing.
            if 4 * pairs >= 3 * all {
                self.score::<S>(keys, seen.clone(), 0, vectors);
                match (vectors, pairs < all) {
                    (4, false) => self.softmax::<S, 4, false>(keys, seen.clone(), 0),
                    (4, true) => self.softmax::<S, 4, true>(keys, seen.clone(), 0),
                    (_, false) => self.softmax::<S, 2, false>(keys, seen.clone(), 0),
                    (_, true) => self.softmax::<S, 2, true>(keys, seen.clone(), 0),
                }
                self.sum::<S>(keys, seen, 0, self.count);
                return;
            }
            for column in (0..self.count).step_by(S::LANES) {
                let queries = S::LANES.min(self.count - column);
                let first = self.start + column;
                let (seen, pairs) = keys.seen(first, first + queries - 1);
                if pairs == 0 {
                    continue;
                }
                self.score::<S>(keys, seen.clone(), column, 1);
                if pairs < seen.len() * queries {
                    self.softmax::<S, 1, true>(keys, seen.clone(), column);
                } else {
                    self.softmax::<S, 1, false>(keys, seen.clone(), column);
                }
                self.sum::<S>(keys, seen, column, queries);
            }
        }
    }

    /// Scores of the keys `seen` for `vectors` of queries from `column` on.
    #[inline(always)]
    unsafe fn score<S: Simd>(
        &self,
        keys: &Keys,
        seen: Range<usize>,
        column: usize,
        vectors: usize,
    ) {
        // SAFETY: the caller vouches for keys of the block and columns of the panel; `weight` has a
        // panel's row for each key.
        unsafe {
            S::gemm(&Gemm {
                rows: seen.len(),
                vectors,
                depth: self.dim,
                a: keys.key.add(seen.start * keys.stride),
                a_stride: keys.stride,
                transposed: false,
                b: self.query.add(column),
                b_stride: S::PANEL,
                c: self.weight.add(seen.start * S::PANEL + column),
                c_stride: S::PANEL,
                into: Into::Zeros,
            });
        }
    }

    /// Adds the values `seen`, weighted, to the sums of `count` queries from `column` on.
    #[inline(always)]
    unsafe fn sum<S: Simd>(&self, keys: &Keys, seen: Range<usize>, column: usize, count: usize) {
        // SAFETY: the caller vouches for keys of the block and columns of the panel; the sums are
        // padded to whole vectors.
        unsafe {
            S::gemm(&Gemm {
                rows: count,
                vectors: self.dim.div_ceil(S::LANES),
                depth: seen.len(),
                a: self.weight.add(seen.start * S::PANEL + column),
                a_stride: S::PANEL,
                transposed: true,
                b: keys.value.add(seen.start * keys.stride),
                b_stride: keys.stride,
                c: self.sums.add(column * self.padded),
                c_stride: self.padded,
                into: Into::Scaled(self.rescale.add(column)),
            });
        }
    }

    /// Turns the scores of `N` vectors of queries into weights relative to each query's largest
    /// score so far.
    #[inline(always)]
    unsafe fn softmax<S: Simd, const N: usize, const MASKED: bool>(
        &self,
        keys: &Keys,
        seen: Range<usize>,
        column: usize,
    ) {
        // SAFETY: the caller vouches for keys of the block and `N` vectors of columns of the panel, in
        // all arrays of the panel; each key has its span.
        unsafe {
            let mut old = [S::splat(0.0); N];
            for (n, old) in old.iter_mut().enumerate() {
                *old = S::load(self.max.add(column + n * S::LANES));
            }
            let mut query = old;
            for (n, query) in query.iter_mut().enumerate() {
                let first = (self.start + column + n * S::LANES) as f32;
                *query = S::add(S::splat(first), S::load(LANE_NUMBERS.as_ptr()));
            }
            let mut new = old;
            for row in seen.clone() {
                let scores = self.weight.add(row * S::PANEL + column);
                for (n, new) in new.iter_mut().enumerate() {
                    let at = scores.add(n * S::LANES);
                    let mut score = S::load(at);
                    if MASKED {
                        let first = S::splat(*keys.first.add(row));
                        let last = S::splat(*keys.last.add(row));
                        score = S::keep_between(score, first, query[n], last);
                        S::store(at, score);
                    }
                    *new = S::max(score, *new);
                }
            }
            // A query whose keys are all masked keeps the finite start, and its weights are zero.
            let mut sum = [S::splat(0.0); N];
            for row in seen {
                let scores = self.weight.add(row * S::PANEL + column);
                for (n, sum) in sum.iter_mut().enumerate() {
                    let at = scores.add(n * S::LANES);
                    let weight = exp2::<S>(S::sub(S::load(at), new[n]));
                    S::store(at, weight);
                    *sum = S::add(*sum, weight);
                }
            }
            for n in 0..N {
                let at = column + n * S::LANES;
                let rescale = exp2::<S>(S::sub(old[n], new[n]));
                S::store(self.max.add(at), new[n]);
                S::store(self.rescale.add(at), rescale);
                let total = S::load(self.total.add(at));
                S::store(self.total.add(at), S::mul_add(total, rescale, sum[n]));
            }
        }
    }
}

/// Each lane's number.
static LANE_NUMBERS: [f32; MAX_LANES] = {
    let mut numbers = [0.0; MAX_LANES];
    let mut lane = 0;
    while lane < MAX_LANES {
        numbers[lane] = lane as f32;
        lane += 1;
    }
    numbers
};
