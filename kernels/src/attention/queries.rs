//! Query heads that read the same keys, a block of them at a time: in decoding these are read once for all.

use super::rows::Rows;
use crate::element::Element;
use crate::simd::{MAX_LANES, Simd, exp2, prefetch, reduce_add_all};
use std::array::from_fn;

/// Keys that are added at once, at most.
pub(super) const BLOCK: usize = 32;

/// f32 that [`Queries`] leave for each part of each query head: sums, their largest score, the weights' total, and
/// working memory.
pub(super) fn partial_floats(dim: usize) -> usize {
    dim.next_multiple_of(MAX_LANES) + MAX_LANES
}

/// Query heads that see the same keys, and what they have summed.
pub(super) struct Queries {
    count: usize,
    dim: usize,
    /// `dim` up to whole vectors.
    padded: usize,
    /// `[count, padded]`, zero past `dim`.
    rotated: *mut f32,
    /// `[count, BLOCK]`
    weights: *mut f32,
    /// `[count, partial_floats]`
    sums: *mut f32,
}

impl Queries {
    /// f32 of working memory for so many.
    pub(super) fn floats(count: usize, dim: usize) -> usize {
        count * (dim.next_multiple_of(MAX_LANES) + BLOCK)
    }

    /// `count` queries that have seen nothing, which [`rotated`](Self::rotated) takes.
    ///
    /// # Safety
    /// `floats` has [`Queries::floats`], `partials` [`partial_floats`] for each query.
    #[inline(always)]
    pub(super) unsafe fn new(
        count: usize,
        dim: usize,
        floats: *mut f32,
        partials: *mut f32,
    ) -> Self {
        let padded = dim.next_multiple_of(MAX_LANES);
        let queries = Self {
            count,
            dim,
            padded,
            rotated: floats,
            weights: floats.wrapping_add(count * padded),
            sums: partials,
        };
        // SAFETY: as the caller vouches.
        unsafe {
            std::ptr::write_bytes(floats, 0, count * padded);
            for n in 0..count {
                std::ptr::write_bytes(queries.sums(n), 0, padded);
                *queries.max(n) = f32::MIN;
                *queries.total(n) = 0.0;
            }
        }
        queries
    }

    /// Where query `n` belongs, rotated and scaled: `dim` elements.
    #[inline(always)]
    pub(super) fn rotated(&self, n: usize) -> *mut f32 {
        self.rotated.wrapping_add(n * self.padded)
    }

    #[inline(always)]
    pub(super) fn sums(&self, n: usize) -> *mut f32 {
        self.sums.wrapping_add(n * partial_floats(self.dim))
    }

    #[inline(always)]
    fn weights(&self, n: usize) -> *mut f32 {
        self.weights.wrapping_add(n * BLOCK)
    }

    #[inline(always)]
    fn max(&self, n: usize) -> *mut f32 {
        self.sums(n).wrapping_add(self.padded)
    }

    #[inline(always)]
    pub(super) fn total(&self, n: usize) -> *mut f32 {
        self.sums(n).wrapping_add(self.padded + 1)
    }

    /// The factor for what was summed before the last block.
    #[inline(always)]
    fn rescale(&self, n: usize) -> *mut f32 {
        self.sums(n).wrapping_add(self.padded + 2)
    }

    /// Adds at most [`BLOCK`] keys to the sums of all queries, each read and widened once for up to six of them. Each query
    /// has the bits that it has alone. Values are fetched while keys are read, and the keys ahead while values are.
    ///
    /// # Safety
    /// Rows have `dim` elements; the machine has `S`.
    #[inline(always)]
    pub(super) unsafe fn add<S: Simd, C: Element>(&self, rows: &Rows<C>) {
        // SAFETY: forwarded.
        unsafe { self.add_to::<S, C>(rows, self.count, |n| n) }
    }

    /// [`add`](Self::add) to `count` queries alone, which `member` names.
    ///
    /// # Safety
    /// As there; no query is named twice.
    #[inline(always)]
    pub(super) unsafe fn add_to<S: Simd, C: Element>(
        &self,
        rows: &Rows<C>,
        count: usize,
        member: impl Fn(usize) -> usize,
    ) {
        macro_rules! together {
            ($run:ident) => {
                let mut n = 0;
                while n < count {
                    n += match count - n {
                        6.. => {
                            self.$run::<S, C, 6>(rows, from_fn(|q| member(n + q)), n == 0);
                            6
                        }
                        4.. => {
                            self.$run::<S, C, 4>(rows, from_fn(|q| member(n + q)), n == 0);
                            4
                        }
                        2.. => {
                            self.$run::<S, C, 2>(rows, from_fn(|q| member(n + q)), n == 0);
                            2
                        }
                        _ => {
                            self.$run::<S, C, 1>(rows, [member(n)], n == 0);
                            1
                        }
                    };
                }
            };
        }
        // SAFETY: forwarded.
        unsafe {
            together!(scores);
            together!(weigh);
            together!(accumulate);
        }
    }

    /// Writes the product of every row's key with the queries `at` to their weights; the first of those that see
    /// the rows fetches.
    #[inline(always)]
    unsafe fn scores<S: Simd, T: Element, const Q: usize>(
        &self,
        rows: &Rows<T>,
        at: [usize; Q],
        first: bool,
    ) {
        // SAFETY: queries are zero up to a whole vector past `dim`; rows have `dim` elements.
        unsafe {
            let mut row = 0;
            while row + 4 <= rows.count {
                if first {
                    for n in row..row + 4 {
                        let value = rows.value.wrapping_add(n * rows.value_stride);
                        prefetch(value, self.dim * size_of::<T>());
                    }
                }
                if Q <= 2 || S::LANES == MAX_LANES {
                    self.dots::<S, T, 4, Q>(rows, row, at);
                } else {
                    self.dots::<S, T, 2, Q>(rows, row, at);
                    self.dots::<S, T, 2, Q>(rows, row + 2, at);
                }
                row += 4;
            }
            while row < rows.count {
                for n in at {
                    self.dots::<S, T, 1, 1>(rows, row, [n]);
                }
                row += 1;
            }
        }
    }

    /// `N` products of each query from `row` on.
    #[inline(always)]
    unsafe fn dots<S: Simd, T: Element, const N: usize, const Q: usize>(
        &self,
        rows: &Rows<T>,
        row: usize,
        at: [usize; Q],
    ) {
        let dim = self.dim;
        // SAFETY: the caller vouches for `N` rows of `dim` elements from `row` on, for as many scores, and
        // for queries that are zero up to a whole vector past `dim`.
        unsafe {
            let mut acc = [[S::splat(0.0); N]; Q];
            let key = rows.key.add(row * rows.key_stride);
            let query = at.map(|n| self.rotated(n));
            let mut d = 0;
            while d + S::LANES <= dim {
                let mut keys = [S::splat(0.0); N];
                for (n, k) in keys.iter_mut().enumerate() {
                    *k = T::load::<S>(key.add(n * rows.key_stride + d));
                }
                for (q, acc) in acc.iter_mut().enumerate() {
                    let q = S::load(query[q].add(d));
                    for (acc, &k) in acc.iter_mut().zip(&keys) {
                        *acc = S::mul_add(k, q, *acc);
                    }
                }
                d += S::LANES;
            }
            if d < dim {
                for (n, row) in (0..N).map(|n| (n, key.add(n * rows.key_stride + d))) {
                    let k = T::load_partial::<S>(row, dim - d);
                    for (q, acc) in acc.iter_mut().enumerate() {
                        let q = S::load(query[q].add(d));
                        acc[n] = S::mul_add(k, q, acc[n]);
                    }
                }
            }
            for (sums, n) in reduce_add_all::<S, N, Q>(acc).into_iter().zip(at) {
                self.weights(n).add(row).cast::<[f32; N]>().write(sums);
            }
        }
    }

    /// Turns scores into weights relative to the running maximum, of the queries `at`.
    #[inline(always)]
    unsafe fn weigh<S: Simd, T, const Q: usize>(&self, rows: &Rows<T>, at: [usize; Q], _: bool) {
        let weights = at.map(|n| self.weights(n));
        // SAFETY: weights have room for `BLOCK`, a multiple of every vector length.
        unsafe {
            let mut largest = at.map(|n| S::splat(*self.max(n)));
            for (&weights, largest) in weights.iter().zip(&mut largest) {
                for i in rows.count..rows.count.next_multiple_of(S::LANES) {
                    *weights.add(i) = f32::NEG_INFINITY;
                }
                for i in (0..rows.count).step_by(S::LANES) {
                    *largest = S::max(*largest, S::load(weights.add(i)));
                }
            }
            let mut rescale = [0.0; MAX_LANES];
            for ((&n, largest), rescale) in at.iter().zip(largest).zip(&mut rescale) {
                let new = S::reduce_max(largest);
                *rescale = *self.max(n) - new;
                *self.max(n) = new;
            }
            for q in (0..Q).step_by(S::LANES) {
                let exponents = rescale.as_mut_ptr().add(q);
                S::store(exponents, exp2::<S>(S::load(exponents)));
            }
            let mut sums = [[S::splat(0.0); Q]];
            for ((&n, weights), sum) in at.iter().zip(weights).zip(&mut sums[0]) {
                let max = S::splat(*self.max(n));
                for i in (0..rows.count).step_by(S::LANES) {
                    let weight = exp2::<S>(S::sub(S::load(weights.add(i)), max));
                    S::store(weights.add(i), weight);
                    *sum = S::add(*sum, weight);
                }
            }
            let [sums] = reduce_add_all::<S, Q, 1>(sums);
            for ((&n, sum), rescale) in at.iter().zip(sums).zip(rescale) {
                *self.total(n) = *self.total(n) * rescale + sum;
                *self.rescale(n) = rescale;
            }
        }
    }

    /// `sums = rescale sums + weights values` of the queries `at`.
    #[inline(always)]
    unsafe fn accumulate<S: Simd, T: Element, const Q: usize>(
        &self,
        rows: &Rows<T>,
        at: [usize; Q],
        first: bool,
    ) {
        let dim = self.dim;
        // SAFETY: columns stay below `dim`, or within the padding of the sums.
        unsafe {
            let mut d = 0;
            if Q == 1 {
                while d + 8 * S::LANES <= dim {
                    self.columns::<S, T, 8, Q>(rows, d, at, first);
                    d += 8 * S::LANES;
                }
            }
            if Q <= 2 || S::LANES == MAX_LANES {
                while d + 4 * S::LANES <= dim {
                    self.columns::<S, T, 4, Q>(rows, d, at, first);
                    d += 4 * S::LANES;
                }
            }
            while Q > 1 && d + 2 * S::LANES <= dim {
                self.columns::<S, T, 2, Q>(rows, d, at, first);
                d += 2 * S::LANES;
            }
            while d + S::LANES <= dim {
                for n in at {
                    self.columns::<S, T, 1, 1>(rows, d, [n], false);
                }
                d += S::LANES;
            }
            if d < dim {
                for n in at {
                    let (sums, weights) = (self.sums(n).add(d), self.weights(n));
                    let mut acc = S::mul(S::load(sums), S::splat(*self.rescale(n)));
                    for row in 0..rows.count {
                        let value = rows.value.add(row * rows.value_stride + d);
                        let v = T::load_partial::<S>(value, dim - d);
                        acc = S::mul_add(v, S::splat(*weights.add(row)), acc);
                    }
                    S::store(sums, acc);
                }
            }
        }
    }

    /// `N` vectors of columns from `d` on.
    #[inline(always)]
    unsafe fn columns<S: Simd, T: Element, const N: usize, const Q: usize>(
        &self,
        rows: &Rows<T>,
        d: usize,
        at: [usize; Q],
        first: bool,
    ) {
        let dim = self.dim;
        // SAFETY: the caller vouches for `N` whole vectors from `d` on, in every row and in the sums, and
        // for one weight of each row.
        unsafe {
            let mut acc = [[S::splat(0.0); N]; Q];
            for (q, acc) in acc.iter_mut().enumerate() {
                let rescale = S::splat(*self.rescale(at[q]));
                for (n, acc) in acc.iter_mut().enumerate() {
                    let sums = self.sums(at[q]).add(d + n * S::LANES);
                    *acc = S::mul(S::load(sums), rescale);
                }
            }
            // Of many queries, which take long, each pass over the values has its share of the keys ahead fetched.
            let ahead = match Q {
                1 | 2 if d == 0 => 0..rows.count,
                1 | 2 => 0..0,
                _ => {
                    let share = rows.count.div_ceil(dim / (N * S::LANES));
                    let from = d / (N * S::LANES) * share;
                    from..from + share
                }
            };
            for row in 0..rows.count {
                if first && ahead.contains(&row) {
                    let key = rows.ahead.wrapping_add(row * rows.key_stride);
                    prefetch(key, dim * size_of::<T>());
                }
                let value = rows.value.add(row * rows.value_stride + d);
                let mut values = [S::splat(0.0); N];
                for (n, v) in values.iter_mut().enumerate() {
                    *v = T::load::<S>(value.add(n * S::LANES));
                }
                for (q, acc) in acc.iter_mut().enumerate() {
                    let weight = S::splat(*self.weights(at[q]).add(row));
                    for (acc, &v) in acc.iter_mut().zip(&values) {
                        *acc = S::mul_add(v, weight, *acc);
                    }
                }
            }
            for (q, acc) in acc.iter().enumerate() {
                for (n, &acc) in acc.iter().enumerate() {
                    S::store(self.sums(at[q]).add(d + n * S::LANES), acc);
                }
            }
        }
    }
}
