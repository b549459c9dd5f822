//! Tiles of queries against blocks of keys.
//!
//! Scores are computed as `[keys, queries]`: queries lie in the lanes of vectors, so that a softmax
//! needs nothing across lanes, and no key is transposed.

use super::keys::{Run, self_apart, visible_runs};
use super::panel::{Keys, Panel};
use super::rows::{Rows, Sources};
use super::update::token_rows;
use super::{Call, Head, LOG2_E};
use crate::element::Element;
use crate::isa::kernel;
use crate::rope::rotate;
use crate::scratch::{Carver, with_scratch};
use crate::simd::{MAX_LANES, Simd, prefetch};
use std::ops::Range;

/// Queries of a tile, a multiple of every panel.
pub(super) const QUERIES: usize = 128;
/// Fewer queries run one at a time: a panel would be mostly empty.
pub(crate) const WORTH: usize = 8;
/// Keys of a block.
pub(super) const KEYS: usize = 64;
/// Rows that are transposed at a time.
const STAGED: usize = 8;

/// Computes the outputs of the chunk's `tokens`, at most [`QUERIES`].
///
/// # Safety
/// As `dilated_attention`; the tokens are valid, no other task has their outputs, and `sources` has
/// the chunk.
pub(super) unsafe fn attend<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    tokens: Range<usize>,
    sources: &Sources<C>,
) {
    with_scratch(Tile::<C>::floats(call.params.head_dim), |floats| {
        // SAFETY: forwarded; the scratch has room for the tile.
        unsafe {
            let tile = Tile::new(floats, call.params.head_dim, tokens);
            attend_tile::<T, C>(call.isa, call, head, &tile, sources);
        }
    });
}

kernel! {
    /// [`attend`], with working memory.
    fn attend_tile<T, C>(call: &Call<T, C>, head: &Head, tile: &Tile<C>, sources: &Sources<C>)
        = tile_body
}

/// Working memory of a tile.
struct Tile<C> {
    tokens: Range<usize>,
    /// `head_dim` up to whole vectors.
    padded: usize,
    /// The queries' panels, each [`Panel::floats`].
    panels: *mut f32,
    /// `[KEYS, padded]`: a block's keys. Copying them, even where they are f32, costs less than
    /// waiting for them within the products.
    key: *mut f32,
    /// `[KEYS, padded]`
    value: *mut f32,
    /// `[STAGED, padded]`: queries on their way into a panel.
    staged: *mut f32,
    /// `[padded]`: a row as the cache keeps it.
    kept: *mut C,
    /// `[KEYS]`: the first query, counted from the tile's, that sees a key.
    first: *mut f32,
    /// `[KEYS]`: the last one.
    last: *mut f32,
}

impl<C> Tile<C> {
    fn floats(dim: usize) -> usize {
        let padded = dim.next_multiple_of(MAX_LANES);
        QUERIES * Panel::floats_a_query(dim) + (2 * KEYS + STAGED + 1) * padded + 2 * KEYS
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
                panels: carver.take(QUERIES * Panel::floats_a_query(dim)),
                key: carver.take(KEYS * padded),
                value: carver.take(KEYS * padded),
                staged: carver.take(STAGED * padded),
                kept: carver.take(padded).cast(),
                first: carver.take(KEYS),
                last: carver.take(KEYS),
            }
        }
    }

    /// The panel with number `index`.
    ///
    /// # Safety
    /// The tile has it.
    #[inline(always)]
    unsafe fn panel<S: Simd>(&self, index: usize, dim: usize) -> Panel {
        let start = index * S::PANEL;
        // SAFETY: as the caller vouches.
        unsafe {
            let floats = self.panels.add(start * Panel::floats_a_query(dim));
            Panel::new::<S>(floats, dim, start, self.tokens.len())
        }
    }

    /// Adds a block of keys to every panel.
    ///
    /// # Safety
    /// As [`Panel::add`].
    #[inline(always)]
    unsafe fn add<S: Simd>(&self, keys: &Keys, dim: usize) {
        for index in 0..self.tokens.len().div_ceil(S::PANEL) {
            // SAFETY: forwarded; the tile has the panel.
            unsafe { self.panel::<S>(index, dim).add::<S>(keys) }
        }
    }
}

#[inline(always)]
unsafe fn tile_body<S: Simd, T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    tile: &Tile<C>,
    sources: &Sources<C>,
) {
    let dim = call.params.head_dim;
    let queries = head.past + tile.tokens.start..head.past + tile.tokens.end;
    let apart = self_apart(&head.cache);
    let stored = head.past + head.tokens;
    let panels = tile.tokens.len().div_ceil(S::PANEL);
    // SAFETY: runs lie within the chunk and the head's rows; panels within the tile.
    unsafe {
        for index in 0..panels {
            let panel = tile.panel::<S>(index, dim);
            start::<S, T, C>(call, head, tile, &panel, apart);
        }
        // Runs share blocks.
        let mut gathered = Keys {
            key: tile.key,
            value: tile.value,
            stride: tile.padded,
            count: 0,
            first: tile.first,
            last: tile.last,
        };
        for run in &visible_runs(&head.cache, head.past, stored, queries.clone(), apart) {
            let rows = Rows::new(sources, run);
            for row in 0..run.count {
                let n = gathered.count;
                let key = rows.key.add(row * rows.key_stride);
                let value = rows.value.add(row * rows.value_stride);
                widen::<S, C>(key, dim, tile.key.add(n * tile.padded));
                widen::<S, C>(value, dim, tile.value.add(n * tile.padded));
                gathered.set_span(n, span(head, &queries, run, row, apart));
                gathered.count += 1;
                if gathered.count == KEYS {
                    tile.add::<S>(&gathered, dim);
                    gathered.count = 0;
                }
            }
        }
        if gathered.count > 0 {
            tile.add::<S>(&gathered, dim);
        }
        for index in 0..panels {
            let panel = tile.panel::<S>(index, dim);
            finish::<S, T, C>(call, head, tile, &panel);
        }
    }
}

/// The queries, counted from the first, that see key `n` of `run`: from the first to the last of
/// the result. Both are below `2 * queries.len()`.
#[inline(always)]
pub(super) fn span(
    head: &Head,
    queries: &Range<usize>,
    run: &Run,
    n: usize,
    apart: bool,
) -> [usize; 2] {
    let end = queries.len() - 1;
    let position = run.start + n * run.step;
    let pattern = &head.cache.pattern;
    let first = (position + usize::from(apart)).saturating_sub(queries.start);
    let last = if run.lasting || pattern.is_dilated(position) {
        end
    } else {
        (position + pattern.local_window as usize - queries.start).min(end)
    };
    [first, last]
}

/// Rotates the panel's queries, and starts its sums: empty, or with each query's own key.
#[inline(always)]
unsafe fn start<S: Simd, T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    tile: &Tile<C>,
    panel: &Panel,
    apart: bool,
) {
    let params = call.params;
    let (dim, padded) = (params.head_dim, tile.padded);
    let half = dim / 2;
    // SAFETY: tokens are valid, so their positions are below `M`.
    unsafe {
        panel.clear::<S>();
        for group in (0..S::PANEL).step_by(STAGED) {
            let next = panel.start + group + STAGED..panel.start + group + 2 * STAGED;
            fetch_tokens(call, head, &tile.tokens, next, apart);
            for n in 0..STAGED {
                let (column, query) = (group + n, tile.staged.add(n * padded));
                let row = panel.start + column;
                if row >= tile.tokens.len() {
                    std::ptr::write_bytes(query, 0, padded);
                    continue;
                }
                let t = tile.tokens.start + row;
                let table = (head.past + t) * half;
                rotate::<S, T, f32>(
                    params.query.add(call.query_token(head, 0, t)),
                    params.cos.add(table),
                    params.sin.add(table),
                    half,
                    params.scale * LOG2_E,
                    query,
                );
                if apart {
                    let own = panel.sums.add(column * padded);
                    token_rows::<S, T, C>(call, head, t, tile.kept, std::ptr::null_mut());
                    widen::<S, C>(tile.kept, dim, own);
                    *panel.max.add(column) = dot::<S>(query, own, dim);
                    *panel.total.add(column) = 1.0;
                    token_rows::<S, T, C>(call, head, t, std::ptr::null_mut(), tile.kept);
                    widen::<S, C>(tile.kept, dim, own);
                }
            }
            for d in (0..dim).step_by(STAGED) {
                let to = panel.query.add(d * S::PANEL + group);
                S::transpose8(tile.staged.add(d), padded, to, S::PANEL);
            }
        }
    }
}

/// Fetches what [`start`] reads of the tile's tokens `rows`: each is in another page, and waiting
/// for one after the other takes longer than the products where few keys are visible.
#[inline(always)]
pub(super) fn fetch_tokens<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    tokens: &Range<usize>,
    rows: Range<usize>,
    apart: bool,
) {
    let params = call.params;
    let bytes = params.head_dim * size_of::<T>();
    for row in rows.start..rows.end.min(tokens.len()) {
        let t = tokens.start + row;
        prefetch(
            params.query.wrapping_add(call.query_token(head, 0, t)),
            bytes,
        );
        if apart {
            let at = call.token(head, t);
            prefetch(params.key.wrapping_add(at), bytes);
            prefetch(params.value.wrapping_add(at), bytes);
        }
    }
}

/// Stores the panel's outputs.
#[inline(always)]
unsafe fn finish<S: Simd, T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    tile: &Tile<C>,
    panel: &Panel,
) {
    let dim = call.params.head_dim;
    for column in 0..panel.count {
        // SAFETY: a valid token of the tile.
        unsafe {
            let t = tile.tokens.start + panel.start + column;
            let out = call.params.output.add(call.query_token(head, 0, t));
            let sums = panel.sums.add(column * tile.padded);
            super::single::finish::<S, T>(sums, dim, *panel.total.add(column), out);
        }
    }
}

/// The product of two rows of `dim` f32, each with room for a whole vector more.
#[inline(always)]
unsafe fn dot<S: Simd>(a: *const f32, b: *const f32, dim: usize) -> f32 {
    // SAFETY: as the caller vouches.
    unsafe {
        let mut sum = S::splat(0.0);
        let mut d = 0;
        while d + S::LANES <= dim {
            sum = S::mul_add(S::load(a.add(d)), S::load(b.add(d)), sum);
            d += S::LANES;
        }
        let mut rest = 0.0;
        for d in d..dim {
            rest += *a.add(d) * *b.add(d);
        }
        S::reduce_add(sum) + rest
    }
}

/// Converts `dim` elements to f32.
#[inline(always)]
unsafe fn widen<S: Simd, C: Element>(from: *const C, dim: usize, to: *mut f32) {
    // SAFETY: `to` has room for whole vectors.
    unsafe {
        let mut d = 0;
        while d + S::LANES <= dim {
            S::store(to.add(d), C::load::<S>(from.add(d)));
            d += S::LANES;
        }
        if d < dim {
            S::store(to.add(d), C::load_partial::<S>(from.add(d), dim - d));
        }
    }
}
