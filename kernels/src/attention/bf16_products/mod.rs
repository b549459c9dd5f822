//! Tiles of bf16 queries against blocks of bf16 keys, multiplied as bf16 and summed as f32.
//!
//! As in [`tile`](super::tile) scores are `[keys, queries]`, and here sums are `[head_dim,
//! queries]`: both products then take the cache's rows, or their transpose, as they are on the left
//! and pairs of rows on the right, which is what tiles and dot products of bf16 multiply.

mod panel;

use super::keys::{self_apart, visible_runs};
use super::rows::{Rows, Sources};
use super::tile::{fetch_tokens, span};
use super::{Call, Head, LOG2_E};
use crate::element::Element;
use crate::isa::Isa;
use crate::rope::rotate;
use crate::scratch::{Carver, with_scratch};
use crate::simd::amx::{Registers, Tiles};
use crate::simd::{Avx512, Simd};
use half::bf16;
use panel::{DEPTH, Keys, PANEL, Panel, Product, softmax};
use ratplus_graphs::ops::ElementType;
use std::arch::x86_64::*;
use std::ops::Range;

/// Panels of a tile, which share the packed values.
const PANELS: usize = 2;
/// Keys of a block.
const KEYS: usize = 64;
/// Rows that are transposed at a time.
const STAGED: usize = 8;

/// Whether a call's tiles are computed here.
pub(super) fn is_chosen<T: Element, C: Element>(call: &Call<T, C>) -> bool {
    T::TYPE == ElementType::BF16
        && C::TYPE == ElementType::BF16
        && multiplies_bf16(call.isa, call.params.head_dim)
        && call.params.scale.is_normal()
}

/// Whether tiles of bf16 are multiplied as such.
pub(crate) fn multiplies_bf16(isa: Isa, head_dim: usize) -> bool {
    matches!(isa, Isa::Amx | Isa::Avx512Bf16) && head_dim.is_multiple_of(DEPTH)
}

/// The factor on scores, which are powers of two: applied after the products, so that queries are
/// rounded as the model's are.
fn factor<T: Element, C: Element>(call: &Call<T, C>) -> f32 {
    call.params.scale.abs() * LOG2_E
}

/// Computes the outputs of the chunk's `tokens`, at most [`QUERIES`](super::tile::QUERIES).
///
/// # Safety
/// As [`tile::attend`](super::tile::attend), and [`is_chosen`].
pub(super) unsafe fn attend<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    tokens: Range<usize>,
    sources: &Sources<C>,
) {
    const { assert!(PANEL * PANELS == super::tile::QUERIES) };
    with_scratch(Tile::floats(call.params.head_dim), |floats| {
        // SAFETY: forwarded; the machine has what `is_chosen` asked for, and the scratch has room.
        unsafe {
            let tile = Tile::new(floats, call.params.head_dim, tokens);
            if matches!(call.isa, Isa::Amx) {
                let tiles = Tiles::new(16);
                attend_tile::<T, C, true>(call, head, &tile, sources);
                drop(tiles);
            } else {
                attend_tile::<T, C, false>(call, head, &tile, sources);
            }
        }
    });
}

/// Working memory of a tile.
struct Tile {
    tokens: Range<usize>,
    dim: usize,
    panels: [Panel; PANELS],
    /// `[KEYS, dim]`: keys of short runs.
    key: *mut bf16,
    /// `[KEYS, dim]`
    value: *mut bf16,
    /// `[dim, KEYS]`: a block's values.
    packed: *mut bf16,
    /// `[STAGED, dim]` f32, or as many pairs.
    staged: *mut f32,
    /// `[dim]`
    kept: *mut bf16,
    /// `[2, KEYS]`: the first query, counted from the tile's, that sees a key.
    first: *mut f32,
    /// `[2, KEYS]`: the last one.
    last: *mut f32,
}

impl Tile {
    fn floats(dim: usize) -> usize {
        let panel = PANEL * (dim / 2 + dim + KEYS + KEYS / 2 + 2);
        PANELS * panel + 3 * KEYS * dim / 2 + STAGED * dim + dim / 2 + 4 * KEYS
    }

    /// # Safety
    /// `floats` has [`Tile::floats`]. Every part is a multiple of a cache line: `dim` is one of
    /// [`DEPTH`].
    unsafe fn new(floats: *mut f32, dim: usize, tokens: Range<usize>) -> Self {
        let mut carver = Carver::new(floats);
        // SAFETY: the parts add up to `Tile::floats`.
        unsafe {
            let panels = std::array::from_fn(|_| Panel {
                query: carver.take(PANEL * dim / 2),
                sums: carver.take(PANEL * dim),
                score: carver.take(PANEL * KEYS),
                weight: carver.take(PANEL * KEYS / 2),
                max: carver.take(PANEL),
                total: carver.take(PANEL),
            });
            Self {
                tokens,
                dim,
                panels,
                key: carver.take(KEYS * dim / 2).cast(),
                value: carver.take(KEYS * dim / 2).cast(),
                packed: carver.take(KEYS * dim / 2).cast(),
                staged: carver.take(STAGED * dim),
                kept: carver.take(dim / 2).cast(),
                first: carver.take(2 * KEYS),
                last: carver.take(2 * KEYS),
            }
        }
    }

    /// The columns of panel `index` that are queries.
    fn columns(&self, index: usize) -> usize {
        self.tokens.len().saturating_sub(index * PANEL).min(PANEL)
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn attend_tile<T: Element, C: Element, const AMX: bool>(
    call: &Call<T, C>,
    head: &Head,
    tile: &Tile,
    sources: &Sources<C>,
) {
    let dim = tile.dim;
    let queries = head.past + tile.tokens.start..head.past + tile.tokens.end;
    let apart = self_apart(&head.cache);
    let stored = head.past + head.tokens;
    // SAFETY: runs lie within the chunk and the head's rows.
    unsafe {
        for index in 0..PANELS {
            if tile.columns(index) > 0 {
                start(call, head, tile, index, apart);
            }
        }
        let mut gathered = Keys {
            key: tile.key,
            key_stride: dim,
            value: tile.value,
            value_stride: dim,
            count: 0,
            first: tile.first,
            last: tile.last,
        };
        for run in &visible_runs(&head.cache, head.past, stored, queries.clone(), apart) {
            let rows = Rows::new(sources, run);
            let mut done = 0;
            while run.count - done >= KEYS {
                let keys = Keys {
                    key: rows.key.add(done * rows.key_stride).cast(),
                    key_stride: rows.key_stride,
                    value: rows.value.add(done * rows.value_stride).cast(),
                    value_stride: rows.value_stride,
                    count: KEYS,
                    first: tile.first.add(KEYS),
                    last: tile.last.add(KEYS),
                };
                for n in 0..KEYS {
                    let [first, last] = span(head, &queries, run, done + n, apart);
                    *keys.first.add(n) = first as f32;
                    *keys.last.add(n) = last as f32;
                }
                add::<AMX>(tile, &keys, factor(call));
                done += KEYS;
            }
            while done < run.count {
                let n = gathered.count;
                let key = rows.key.add(done * rows.key_stride).cast();
                let value = rows.value.add(done * rows.value_stride).cast();
                std::ptr::copy_nonoverlapping(key, tile.key.add(n * dim), dim);
                std::ptr::copy_nonoverlapping(value, tile.value.add(n * dim), dim);
                let [first, last] = span(head, &queries, run, done, apart);
                *tile.first.add(n) = first as f32;
                *tile.last.add(n) = last as f32;
                gathered.count += 1;
                if gathered.count == KEYS {
                    add::<AMX>(tile, &gathered, factor(call));
                    gathered.count = 0;
                }
                done += 1;
            }
        }
        if gathered.count > 0 {
            // Products go by thirty-two keys: what is past the last one is finite, and nobody's.
            let end = gathered.count.next_multiple_of(DEPTH);
            let rest = (end - gathered.count) * dim;
            std::ptr::write_bytes(tile.key.add(gathered.count * dim), 0, rest);
            std::ptr::write_bytes(tile.value.add(gathered.count * dim), 0, rest);
            for n in gathered.count..end {
                *tile.first.add(n) = f32::INFINITY;
                *tile.last.add(n) = -1.0;
            }
            gathered.count = end;
            add::<AMX>(tile, &gathered, factor(call));
        }
        for index in 0..PANELS {
            if tile.columns(index) > 0 {
                finish(call, head, tile, index);
            }
        }
    }
}

/// Adds a block, of a multiple of [`DEPTH`] keys, to every panel that sees any of it.
#[inline(always)]
unsafe fn add<const AMX: bool>(tile: &Tile, keys: &Keys, factor: f32) {
    let mut packed = false;
    // SAFETY: the rows are readable.
    unsafe {
        for (index, panel) in tile.panels.iter().enumerate() {
            let columns = tile.columns(index);
            if columns == 0 {
                break;
            }
            let start = index * PANEL;
            let (first, last) = (start as f32, (start + columns - 1) as f32);
            let (mut seen, mut all) = (false, true);
            for n in 0..keys.count {
                let (from, to) = (*keys.first.add(n), *keys.last.add(n));
                seen |= from <= last && to >= first;
                all &= from <= first && to >= last;
            }
            if !seen {
                continue;
            }
            if !packed {
                pack(tile, keys);
                packed = true;
            }
            Product {
                rows: keys.count,
                depth: tile.dim,
                a: keys.key,
                a_stride: keys.key_stride,
                b: panel.query,
                c: panel.score,
                adds: false,
            }
            .run::<AMX>();
            if all {
                softmax::<false>(tile.dim, panel, keys, start, factor);
            } else {
                softmax::<true>(tile.dim, panel, keys, start, factor);
            }
            Product {
                rows: tile.dim,
                depth: keys.count,
                a: tile.packed,
                a_stride: KEYS,
                b: panel.weight,
                c: panel.sums,
                adds: true,
            }
            .run::<AMX>();
        }
    }
}

/// Transposes the block's values.
#[inline(always)]
unsafe fn pack(tile: &Tile, keys: &Keys) {
    let dim = tile.dim;
    // SAFETY: `KEYS / 2` pairs of `dim` fit `packed`; a group of pairs fits `staged`.
    unsafe {
        let packed: *mut f32 = tile.packed.cast();
        for group in (0..keys.count / 2).step_by(STAGED) {
            for pair in 0..STAGED {
                let row = keys.value.add(2 * (group + pair) * keys.value_stride);
                let next = row.add(keys.value_stride);
                let staged = tile.staged.add(pair * dim);
                for d in (0..dim).step_by(16) {
                    let low = _mm256_loadu_si256(row.add(d).cast());
                    let high = _mm256_loadu_si256(next.add(d).cast());
                    let (low, high) = (_mm512_cvtepu16_epi32(low), _mm512_cvtepu16_epi32(high));
                    let both = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                    _mm512_storeu_si512(staged.add(d).cast(), both);
                }
            }
            for d in (0..dim).step_by(STAGED) {
                let to = packed.add(d * (KEYS / 2) + group);
                Avx512::transpose8(tile.staged.add(d), dim, to, KEYS / 2);
            }
        }
    }
}

/// Rotates the panel's queries, and starts its sums: empty, or with each query's own key.
#[inline(always)]
unsafe fn start<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    tile: &Tile,
    index: usize,
    apart: bool,
) {
    let (params, panel) = (call.params, &tile.panels[index]);
    let (dim, half) = (tile.dim, tile.dim / 2);
    // SAFETY: tokens are valid, so their positions are below `M`.
    unsafe {
        std::ptr::write_bytes(panel.sums, 0, dim * PANEL);
        for column in (0..PANEL).step_by(16) {
            _mm512_storeu_ps(panel.max.add(column), _mm512_set1_ps(f32::MIN));
            _mm512_storeu_ps(panel.total.add(column), _mm512_setzero_ps());
        }
        for group in (0..PANEL).step_by(STAGED) {
            let next = index * PANEL + group + STAGED;
            fetch_tokens(call, head, &tile.tokens, next..next + STAGED, apart);
            // The group's queries as bf16, in the scores' place.
            let rounded: *mut bf16 = panel.score.cast();
            for n in 0..STAGED {
                let (column, own) = (group + n, tile.staged.add(n * dim));
                let row = index * PANEL + column;
                let query = rounded.add(n * dim);
                if row >= tile.tokens.len() {
                    std::ptr::write_bytes(query, 0, dim);
                    std::ptr::write_bytes(own, 0, dim);
                    continue;
                }
                let t = tile.tokens.start + row;
                let (token, table) = (call.token(head, t), (head.past + t) * half);
                let (cos, sin) = (params.cos.add(table), params.sin.add(table));
                let sign = params.scale.signum();
                let from = params.query.add(call.query_token(head, 0, t));
                rotate::<Avx512, T, bf16>(from, cos, sin, half, sign, query);
                if apart {
                    let key = params.key.add(token);
                    rotate::<Avx512, T, bf16>(key, cos, sin, half, 1.0, tile.kept);
                    let mut dot = _mm512_setzero_ps();
                    for d in (0..dim).step_by(16) {
                        let query = Avx512::load_bf16(query.add(d).cast());
                        let key = Avx512::load_bf16(tile.kept.add(d).cast());
                        dot = _mm512_fmadd_ps(query, key, dot);
                    }
                    *panel.max.add(column) = _mm512_reduce_add_ps(dot);
                    *panel.total.add(column) = 1.0;
                    let value: *const u16 = params.value.add(token).cast();
                    for d in (0..dim).step_by(16) {
                        _mm512_storeu_ps(own.add(d), Avx512::load_bf16(value.add(d)));
                    }
                }
            }
            for d in (0..half).step_by(STAGED) {
                let from: *const f32 = rounded.cast();
                let to = panel.query.add(d * PANEL + group);
                Avx512::transpose8(from.add(d), half, to, PANEL);
            }
            if apart {
                for d in (0..dim).step_by(STAGED) {
                    let to = panel.sums.add(d * PANEL + group);
                    Avx512::transpose8(tile.staged.add(d), dim, to, PANEL);
                }
            }
        }
    }
}

/// Stores the panel's outputs.
#[inline(always)]
unsafe fn finish<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    tile: &Tile,
    index: usize,
) {
    let (dim, columns, panel) = (tile.dim, tile.columns(index), &tile.panels[index]);
    // SAFETY: columns are valid tokens of the tile.
    unsafe {
        for group in (0..columns).step_by(STAGED) {
            for d in (0..dim).step_by(STAGED) {
                let from = panel.sums.add(d * PANEL + group);
                Avx512::transpose8(from, PANEL, tile.staged.add(d), dim);
            }
            for n in 0..STAGED.min(columns - group) {
                let column = group + n;
                let t = tile.tokens.start + index * PANEL + column;
                let out = call.params.output.add(call.query_token(head, 0, t));
                let sums = tile.staged.add(n * dim);
                super::single::finish::<Avx512, T>(sums, dim, *panel.total.add(column), out);
            }
        }
    }
}
