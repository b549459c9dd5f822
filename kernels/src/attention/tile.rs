//! Tiles of queries against blocks of packed keys.

use super::keys::{Run, Source, self_apart, visible_runs};
use super::rows::Rows;
use super::single::finish;
use super::{Call, Head, LOG2_E};
use crate::element::Element;
use crate::isa::kernel;
use crate::rope::rotate;
use crate::scratch::{Carver, with_scratch};
use crate::simd::{Gemm, MAX_LANES, Simd, exp2, exp2_one};
use std::ops::Range;

/// Queries of a tile.
pub(super) const QUERIES: usize = 64;
/// Fewer queries run one at a time: packing keys would not pay.
pub(super) const WORTH: usize = 8;
/// Keys packed at a time, a multiple of 8 and of every vector length.
const KEYS: usize = 64;

/// Computes the outputs of the chunk's `tokens`, at most [`QUERIES`].
///
/// # Safety
/// As `dilated_attention`; the tokens are valid, no other task has their outputs, and `rotated`
/// holds the chunk's keys.
pub(super) unsafe fn attend<T: Element>(
    call: &Call<T>,
    head: &Head,
    tokens: Range<usize>,
    rotated: *const T,
) {
    with_scratch(Tile::floats(call.params.head_dim), |floats| {
        // SAFETY: forwarded; the scratch has room for the tile.
        unsafe {
            let tile = Tile::new(floats, call.params.head_dim, tokens);
            let keys = rotated.add(call.rotated(head));
            attend_tile::<T>(call.isa, call, head, &tile, keys);
        }
    });
}

kernel! {
    /// [`attend`], with the head's rotated keys.
    fn attend_tile<T>(call: &Call<T>, head: &Head, tile: &Tile, keys: *const T) = tile_body
}

/// Working memory of a tile. Rows of queries, values and sums are `padded` long; beyond
/// `head_dim` they hold zeros.
struct Tile {
    tokens: Range<usize>,
    padded: usize,
    /// `[QUERIES, padded]`, rotated and scaled.
    query: *mut f32,
    /// `[padded, KEYS]`
    key: *mut f32,
    /// `[KEYS, padded]`
    value: *mut f32,
    /// `[QUERIES, KEYS]`: scores, then weights.
    weight: *mut f32,
    /// `[QUERIES, padded]`: weighted sums of values.
    sums: *mut f32,
    /// `[8, padded]`: keys on their way to `key`.
    staged: *mut f32,
    /// `[QUERIES]`: the largest score so far.
    max: *mut f32,
    /// `[QUERIES]`: the sum of the weights so far.
    total: *mut f32,
    /// `[QUERIES]`: the factor for earlier sums.
    rescale: *mut f32,
    /// `[KEYS]`: the first query, counted from the tile's, that sees the key.
    first: *mut f32,
    /// `[KEYS]`: the last query that sees the key.
    last: *mut f32,
}

impl Tile {
    fn floats(dim: usize) -> usize {
        let padded = dim.next_multiple_of(MAX_LANES);
        (2 * QUERIES + 2 * KEYS + 8) * padded + QUERIES * KEYS + 3 * QUERIES + 2 * KEYS
    }

    /// # Safety
    /// `floats` has [`Tile::floats`]. Every part is a multiple of a cache line.
    unsafe fn new(floats: *mut f32, dim: usize, tokens: Range<usize>) -> Self {
        let padded = dim.next_multiple_of(MAX_LANES);
        let mut carver = Carver::new(floats);
        // SAFETY: the parts add up to `Tile::floats`.
        unsafe {
            Self {
                tokens,
                padded,
                query: carver.take(QUERIES * padded),
                key: carver.take(KEYS * padded),
                value: carver.take(KEYS * padded),
                weight: carver.take(QUERIES * KEYS),
                sums: carver.take(QUERIES * padded),
                staged: carver.take(8 * padded),
                max: carver.take(QUERIES),
                total: carver.take(QUERIES),
                rescale: carver.take(QUERIES),
                first: carver.take(KEYS),
                last: carver.take(KEYS),
            }
        }
    }
}

/// Keys gathered for a block.
struct Block<T> {
    keys: [*const T; KEYS],
    values: [*const T; KEYS],
    count: usize,
    /// The queries, counted from the tile's first, that see any of the keys.
    seen_by: Range<usize>,
    /// Some of them do not see some key.
    masked: bool,
}

impl<T> Block<T> {
    const EMPTY: Self = Self {
        keys: [std::ptr::null(); KEYS],
        values: [std::ptr::null(); KEYS],
        count: 0,
        seen_by: 0..0,
        masked: false,
    };

    /// Adds a key that is seen by the queries from `first` to `last`.
    #[inline(always)]
    fn push(&mut self, key: *const T, value: *const T, first: usize, last: usize) {
        self.keys[self.count] = key;
        self.values[self.count] = value;
        let own = first..last + 1;
        if self.count == 0 {
            self.seen_by = own;
        } else if self.seen_by != own {
            let all = &self.seen_by;
            self.seen_by = all.start.min(own.start)..all.end.max(own.end);
            self.masked = true;
        }
        self.count += 1;
    }

    fn clear(&mut self) {
        self.count = 0;
        self.seen_by = 0..0;
        self.masked = false;
    }
}

#[inline(always)]
unsafe fn tile_body<S: Simd, T: Element>(call: &Call<T>, head: &Head, tile: &Tile, keys: *const T) {
    let queries = head.past + tile.tokens.start..head.past + tile.tokens.end;
    let apart = self_apart(&head.cache);
    let mut block = Block::EMPTY;
    // SAFETY: runs lie within the chunk and the head's rows.
    unsafe {
        start::<S, T>(call, head, tile, keys, apart);
        for run in &visible_runs(&head.cache, head.past, queries.clone(), apart) {
            if run.count == 0 {
                continue;
            }
            let rows = Rows::new(call, head, run, keys);
            for n in 0..rows.count {
                let key = rows.key.add(n * rows.key_stride);
                let value = rows.value.add(n * rows.value_stride);
                let (first, last) = span(head, &queries, run, n, apart);
                *tile.first.add(block.count) = first as f32;
                *tile.last.add(block.count) = last as f32;
                block.push(key, value, first, last);
                if block.count == KEYS {
                    add_block::<S, T>(call.params.head_dim, tile, &block);
                    block.clear();
                }
            }
        }
        if block.count > 0 {
            add_block::<S, T>(call.params.head_dim, tile, &block);
        }
        for (row, t) in tile.tokens.clone().enumerate() {
            let sums = tile.sums.add(row * tile.padded);
            let out = call.params.output.add(call.token(head, t));
            finish::<S, T>(sums, call.params.head_dim, *tile.total.add(row), out);
        }
    }
}

/// The queries, counted from the first, that see key `n` of `run`: from the first to the last of
/// the result. Both are below `2 * queries.len()`.
#[inline(always)]
fn span(head: &Head, queries: &Range<usize>, run: &Run, n: usize, apart: bool) -> (usize, usize) {
    let end = queries.len() - 1;
    if matches!(run.source, Source::Cache(_)) && run.lasting {
        return (0, end);
    }
    let position = run.start + n * run.step;
    let pattern = &head.cache.pattern;
    let first = (position + usize::from(apart)).saturating_sub(queries.start);
    let last = if run.lasting || pattern.is_dilated(position) {
        end
    } else {
        (position + pattern.local_window as usize - queries.start).min(end)
    };
    (first, last)
}

/// Rotates the queries, and starts the sums: empty, or with each query's own key.
#[inline(always)]
unsafe fn start<S: Simd, T: Element>(
    call: &Call<T>,
    head: &Head,
    tile: &Tile,
    keys: *const T,
    apart: bool,
) {
    let params = call.params;
    let (dim, padded) = (params.head_dim, tile.padded);
    let half = dim / 2;
    // SAFETY: tokens are valid, so their positions are below `M`.
    unsafe {
        for (row, t) in tile.tokens.clone().enumerate() {
            let query = tile.query.add(row * padded);
            let sums = tile.sums.add(row * padded);
            for d in dim..padded {
                *query.add(d) = 0.0;
            }
            let table = (head.past + t) * half;
            rotate::<S, T, f32>(
                params.query.add(call.token(head, t)),
                params.cos.add(table),
                params.sin.add(table),
                half,
                params.scale * LOG2_E,
                query,
            );
            if apart {
                widen::<S, T>(keys.add(t * dim), dim, padded, tile.staged);
                let mut dot = S::splat(0.0);
                for d in (0..padded).step_by(S::LANES) {
                    dot = S::mul_add(S::load(query.add(d)), S::load(tile.staged.add(d)), dot);
                }
                widen::<S, T>(params.value.add(call.token(head, t)), dim, padded, sums);
                *tile.max.add(row) = S::reduce_add(dot);
                *tile.total.add(row) = 1.0;
            } else {
                std::ptr::write_bytes(sums, 0, padded);
                *tile.max.add(row) = f32::MIN;
                *tile.total.add(row) = 0.0;
            }
        }
    }
}

/// Converts `dim` elements to f32 and fills up with zeros.
#[inline(always)]
unsafe fn widen<S: Simd, T: Element>(from: *const T, dim: usize, padded: usize, to: *mut f32) {
    // SAFETY: offsets are below `dim` in `from` and below `padded` in `to`.
    unsafe {
        let mut d = 0;
        while d + S::LANES <= dim {
            S::store(to.add(d), T::load::<S>(from.add(d)));
            d += S::LANES;
        }
        if d < dim {
            S::store(to.add(d), T::load_partial::<S>(from.add(d), dim - d));
            d += S::LANES;
        }
        while d < padded {
            S::store(to.add(d), S::splat(0.0));
            d += S::LANES;
        }
    }
}

/// Adds a block of keys to the tile's sums.
#[inline(always)]
unsafe fn add_block<S: Simd, T: Element>(dim: usize, tile: &Tile, block: &Block<T>) {
    let padded = tile.padded;
    let cols = block.count.next_multiple_of(S::LANES.max(8));
    let (first, rows) = (block.seen_by.start, block.seen_by.len());
    // SAFETY: `cols <= KEYS`; the gathered rows have `dim` elements.
    unsafe {
        for group in (0..cols).step_by(8) {
            for n in 0..8 {
                let staged = tile.staged.add(n * padded);
                if group + n < block.count {
                    widen::<S, T>(block.keys[group + n], dim, padded, staged);
                } else {
                    std::ptr::write_bytes(staged, 0, padded);
                }
            }
            for d in (0..padded).step_by(8) {
                let to = tile.key.add(d * KEYS + group);
                S::transpose8(tile.staged.add(d), padded, to, KEYS);
            }
        }
        for n in 0..block.count {
            widen::<S, T>(block.values[n], dim, padded, tile.value.add(n * padded));
        }
        for n in block.count..cols {
            // No query is that late.
            *tile.first.add(n) = f32::INFINITY;
        }
        S::gemm(&Gemm {
            rows,
            cols,
            depth: dim,
            a: tile.query.add(first * padded),
            a_stride: padded,
            b: tile.key,
            b_stride: KEYS,
            c: tile.weight.add(first * KEYS),
            c_stride: KEYS,
            scale: std::ptr::null(),
        });
        let masked = block.masked || block.count < cols;
        for row in block.seen_by.clone() {
            if masked {
                mask::<S>(tile, row, cols);
            }
            softmax::<S>(tile, row, cols);
        }
        S::gemm(&Gemm {
            rows,
            cols: padded,
            depth: block.count,
            a: tile.weight.add(first * KEYS),
            a_stride: KEYS,
            b: tile.value,
            b_stride: padded,
            c: tile.sums.add(first * padded),
            c_stride: padded,
            scale: tile.rescale.add(first),
        });
    }
}

/// Takes the keys that `row` does not see out of its scores.
#[inline(always)]
unsafe fn mask<S: Simd>(tile: &Tile, row: usize, cols: usize) {
    // SAFETY: `cols <= KEYS`.
    unsafe {
        let scores = tile.weight.add(row * KEYS);
        let query = S::splat(row as f32);
        for i in (0..cols).step_by(S::LANES) {
            let (first, last) = (S::load(tile.first.add(i)), S::load(tile.last.add(i)));
            let kept = S::keep_between(S::load(scores.add(i)), first, query, last);
            S::store(scores.add(i), kept);
        }
    }
}

/// Turns the scores of `row` into weights relative to its largest score so far.
#[inline(always)]
unsafe fn softmax<S: Simd>(tile: &Tile, row: usize, cols: usize) {
    // SAFETY: `cols <= KEYS`.
    unsafe {
        let scores = tile.weight.add(row * KEYS);
        let old = *tile.max.add(row);
        let mut largest = S::splat(old);
        for i in (0..cols).step_by(S::LANES) {
            largest = S::max(largest, S::load(scores.add(i)));
        }
        // A row whose keys are all masked keeps the finite start, and its weights are zero.
        let new = S::reduce_max(largest);
        let mut sum = S::splat(0.0);
        let offset = S::splat(new);
        for i in (0..cols).step_by(S::LANES) {
            let weight = exp2::<S>(S::sub(S::load(scores.add(i)), offset));
            S::store(scores.add(i), weight);
            sum = S::add(sum, weight);
        }
        let mut rescale = 1.0;
        if new != old {
            rescale = exp2_one::<S>(old - new);
        }
        *tile.max.add(row) = new;
        *tile.rescale.add(row) = rescale;
        *tile.total.add(row) = *tile.total.add(row) * rescale + S::reduce_add(sum);
    }
}
