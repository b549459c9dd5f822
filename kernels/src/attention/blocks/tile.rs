//! Queries of neighbouring tokens, in which a block is read once for all that chose it.

use super::super::queries::{BLOCK, Queries, partial_floats};
use super::super::rows::Rows;
use super::super::single::finish;
use super::super::{Head, LOG2_E};
use super::BlockCall;
use super::choice::{TOGETHER, greatest, probe, probe_floats, score};
use crate::element::Element;
use crate::isa::kernel;
use crate::rope::rotate;
use crate::scratch::{Carver, with_scratch};
use crate::simd::{MAX_LANES, Simd};
use ratplus_graphs::pattern::Pattern;
use std::ops::Range;
use std::slice;

/// Queries of a tile, about.
pub(super) const QUERIES: usize = 256;

/// Computes the outputs of `head`'s queries of the chunk's `tokens`.
///
/// # Safety
/// As `block_top_k_attention`; tokens are valid and have been stored, and no other task has these outputs.
pub(super) unsafe fn attend<T: Element, C: Element>(
    call: &BlockCall<T, C>,
    index: usize,
    head: &Head,
    tokens: Range<usize>,
) {
    let sizes = Sizes::new(call, tokens.len() * head.queries);
    with_scratch(sizes.floats(), |floats| {
        // SAFETY: forwarded; the scratch has room.
        unsafe {
            let tile = Tile::new(&sizes, head, tokens, floats);
            attend_tile::<T, C>(call.attention.isa, call, index, head, &tile);
        }
    });
}

kernel! {
    /// [`attend`], with working memory.
    fn attend_tile<T, C>(call: &BlockCall<T, C>, index: usize, head: &Head, tile: &Tile) = tile_body
}

/// Sizes of working memory: for the longest sequence, so that no later step takes more.
struct Sizes {
    queries: usize,
    dim: usize,
    /// Blocks of the longest sequence.
    blocks: usize,
    /// Blocks that a query chooses at most.
    chosen: usize,
    /// Of [`TOGETHER`] queries.
    probes: usize,
}

impl Sizes {
    fn new<T, C>(call: &BlockCall<T, C>, queries: usize) -> Self {
        let params = call.params;
        let dim = params.attention.head_dim;
        let blocks = params.blocks.blocks(params.attention.layout.max_seq_len());
        Self {
            queries,
            dim,
            blocks,
            chosen: (params.blocks.top_k as usize - 1).min(blocks),
            probes: TOGETHER * probe_floats(params.blocks.score, dim),
        }
    }

    fn each(&self) -> [usize; 10] {
        let count = self.queries;
        [
            Queries::floats(count, self.dim),
            count * partial_floats(self.dim),
            self.dim.next_multiple_of(MAX_LANES),
            self.probes,
            TOGETHER * self.blocks,
            2 * self.blocks,
            count * self.chosen,
            count * self.chosen,
            self.blocks + 1,
            count,
        ]
    }

    fn floats(&self) -> usize {
        self.each().into_iter().map(Carver::size).sum()
    }
}

/// Working memory of a tile.
struct Tile {
    tokens: Range<usize>,
    /// Query heads of a token.
    heads: usize,
    queries: *mut f32,
    partials: *mut f32,
    rotated: *mut f32,
    probes: *mut f32,
    /// `[TOGETHER, blocks]`
    scores: *mut f32,
    blocks: usize,
    ranked: *mut u64,
    /// `[queries, most]`: blocks, ascending.
    chosen: *mut u32,
    most: usize,
    /// `[queries, most]`: queries, by the blocks that they chose.
    choosers: *mut u32,
    /// Where those of each block begin, and where the last one's end.
    begins: *mut u32,
    /// Queries that see the same keys.
    members: *mut u32,
}

impl Tile {
    /// # Safety
    /// `floats` has [`Sizes::floats`].
    unsafe fn new(sizes: &Sizes, head: &Head, tokens: Range<usize>, floats: *mut f32) -> Self {
        let mut carver = Carver::new(floats);
        // SAFETY: as the caller vouches. Parts begin at whole cache lines.
        let [
            queries,
            partials,
            rotated,
            probes,
            scores,
            ranked,
            chosen,
            choosers,
            begins,
            members,
        ] = sizes.each().map(|floats| unsafe { carver.take(floats) });
        Self {
            tokens,
            heads: head.queries,
            queries,
            partials,
            rotated,
            probes,
            scores,
            blocks: sizes.blocks,
            ranked: ranked.cast(),
            chosen: chosen.cast(),
            most: sizes.chosen,
            choosers: choosers.cast(),
            begins: begins.cast(),
            members: members.cast(),
        }
    }

    fn count(&self) -> usize {
        self.tokens.len() * self.heads
    }

    /// The chunk's token of a query.
    fn token(&self, n: usize) -> usize {
        self.tokens.start + n / self.heads
    }
}

#[inline(always)]
unsafe fn tile_body<S: Simd, T: Element, C: Element>(
    call: &BlockCall<T, C>,
    index: usize,
    head: &Head,
    tile: &Tile,
) {
    let params = call.attention.params;
    let (blocks, dim) = (call.params.blocks, params.head_dim);
    let size = blocks.block_size as usize;
    let count = tile.count();
    let position = |n: usize| head.past + tile.token(n);
    // SAFETY: working memory has room for the tile; rows are of stored tokens.
    unsafe {
        let queries = Queries::new(count, dim, tile.queries, tile.partials);
        for n in 0..count {
            let out = queries.rotated(n);
            rotated::<S, T, C>(call, head, tile, n, params.scale * LOG2_E, out);
        }
        choose::<S, T, C>(call, index, head, tile);
        let chosen = |n: usize| {
            let count = blocks.chosen(position(n)).min(tile.most);
            slice::from_raw_parts(tile.chosen.add(n * tile.most).cast_const(), count)
        };
        let members = slice::from_raw_parts_mut(tile.members, count);
        let [keys, values] = call.attention.present(head, 0).map(<*mut C>::cast_const);
        let rows = |first: usize, step: usize, count: usize| Rows {
            key: keys.wrapping_add(first * dim),
            key_stride: step * dim,
            value: values.wrapping_add(first * dim),
            value_stride: step * dim,
            count,
            ahead: keys.wrapping_add((first + step * count) * dim),
        };

        // Chosen blocks, then a query's own, then what it sees besides: an order of its own.
        let mut listed = by_block(tile, chosen).peekable();
        while let Some((block, choosers)) = listed.next() {
            let those = choosers.len();
            let next = listed.peek().map(|&(next, _)| next);
            let next = next.unwrap_or(blocks.block_of(position(0)));
            for first in (0..size).step_by(BLOCK) {
                let mut rows = rows(block * size + first, 1, BLOCK.min(size - first));
                if first + BLOCK >= size {
                    rows.ahead = keys.wrapping_add(next * size * dim);
                }
                queries.add_to::<S, C>(&rows, those, |n| choosers[n] as usize);
            }
        }
        let (first, last) = (position(0), position(count - 1));
        for block in blocks.block_of(first)..=blocks.block_of(last) {
            for start in (block * size..((block + 1) * size).min(last + 1)).step_by(BLOCK) {
                let end = (start + BLOCK).min((block + 1) * size);
                let mut those = 0;
                for n in (0..count).filter(|&n| blocks.block_of(position(n)) == block) {
                    let seen = (position(n) + 1).clamp(start, end) - start;
                    if seen == end - start {
                        members[those] = n as u32;
                        those += 1;
                    } else if seen > 0 {
                        queries.add_to::<S, C>(&rows(start, 1, seen), 1, |_| n);
                    }
                }
                if those > 0 {
                    let rows = rows(start, 1, end - start);
                    queries.add_to::<S, C>(&rows, those, |n| members[n] as usize);
                }
            }
        }
        if blocks.beside != Pattern::NONE {
            for n in 0..count {
                let own = blocks.block_of(position(n)) as u32;
                let mut from = 0;
                for &block in chosen(n).iter().chain([&own]) {
                    let gap = from..block as usize * size;
                    beside(&blocks.beside, position(n), gap, |first, step, keys| {
                        for skip in (0..keys).step_by(BLOCK) {
                            let rows = rows(first + skip * step, step, BLOCK.min(keys - skip));
                            queries.add_to::<S, C>(&rows, 1, |_| n);
                        }
                    });
                    from = (block as usize + 1) * size;
                }
            }
        }
        for n in 0..count {
            let at = call
                .attention
                .query_token(head, n % tile.heads, tile.token(n));
            finish::<S, T>(
                queries.sums(n),
                dim,
                *queries.total(n),
                params.output.add(at),
            );
        }
    }
}

/// Blocks that were chosen, ascending, each with the queries that chose it, ascending too.
///
/// # Safety
/// Working memory has room for the tile, and nothing else writes it until the last block was taken.
#[inline(always)]
unsafe fn by_block<'a>(
    tile: &'a Tile,
    chosen: impl Fn(usize) -> &'a [u32],
) -> impl Iterator<Item = (usize, &'a [u32])> {
    let count = tile.count();
    // SAFETY: as the caller vouches.
    let (choosers, begins) = unsafe {
        (
            slice::from_raw_parts_mut(tile.choosers, count * tile.most),
            slice::from_raw_parts_mut(tile.begins, tile.blocks + 1),
        )
    };
    // A single query's are in order: nothing is counted.
    let single = if count == 1 { chosen(0) } else { &[] };
    // Where each block's choosers begin, and where the last one's end.
    let begins = if count == 1 {
        choosers[..single.len()].fill(0);
        let begins = &mut begins[..=single.len()];
        (0..).zip(&mut *begins).for_each(|(at, begin)| *begin = at);
        begins
    } else {
        // What is greatest is last.
        let last = (0..count).filter_map(|n| chosen(n).last()).max();
        let begins = &mut begins[..last.map_or(1, |&last| last as usize + 2)];
        begins.fill(0);
        (0..count)
            .flat_map(&chosen)
            .for_each(|&block| begins[block as usize] += 1);
        let mut total = 0;
        for begin in &mut *begins {
            total += *begin;
            *begin = total;
        }
        // From ends to beginnings.
        for n in (0..count).rev() {
            for &block in chosen(n) {
                let at = &mut begins[block as usize];
                *at -= 1;
                choosers[*at as usize] = n as u32;
            }
        }
        begins
    };
    let (begins, choosers) = (&*begins, &*choosers);
    let listed = begins.windows(2).enumerate();
    let listed = listed.filter(|(_, range)| range[0] < range[1]);
    listed.map(move |(at, range)| {
        let block = single.get(at).map_or(at, |&block| block as usize);
        (block, &choosers[range[0] as usize..range[1] as usize])
    })
}

/// Calls `run` with the first position, the distance and the number of keys, run by run, that the pattern shows the
/// query at `position` of those at `gap`, each once.
fn beside(
    pattern: &Pattern,
    position: usize,
    gap: Range<usize>,
    mut run: impl FnMut(usize, usize, usize),
) {
    let cut = |at: usize| at.clamp(gap.start, gap.end.max(gap.start));
    let initial = cut(pattern.initial as usize);
    let window = cut(position.saturating_sub(pattern.local_window as usize)).max(initial);
    run(gap.start, 1, initial - gap.start);
    if let Some(dilation) = pattern.dilation {
        let dilation = dilation.get() as usize;
        let first = (initial + 1).next_multiple_of(dilation) - 1;
        run(
            first,
            dilation,
            (window.max(first) - first).div_ceil(dilation),
        );
    }
    run(window, 1, gap.end.max(window) - window);
}

/// Writes a query after rotary embedding, times `factor`.
#[inline(always)]
unsafe fn rotated<S: Simd, T: Element, C: Element>(
    call: &BlockCall<T, C>,
    head: &Head,
    tile: &Tile,
    n: usize,
    factor: f32,
    out: *mut f32,
) {
    let params = call.attention.params;
    let half = params.head_dim / 2;
    let token = tile.token(n);
    let position = head.past + token;
    // SAFETY: the token is valid, so its position is below `M`.
    unsafe {
        let query = call.attention.query_token(head, n % tile.heads, token);
        rotate::<S, T, f32>(
            params.query.add(query),
            params.cos.add(position * half),
            params.sin.add(position * half),
            half,
            factor,
            out,
        );
    }
}

/// Writes which blocks each query chooses.
#[inline(always)]
unsafe fn choose<S: Simd, T: Element, C: Element>(
    call: &BlockCall<T, C>,
    index: usize,
    head: &Head,
    tile: &Tile,
) {
    let (blocks, dim) = (call.params.blocks, call.params.attention.head_dim);
    let probe_floats = probe_floats(blocks.score, dim);
    let count = tile.count();
    if tile.most == 0 {
        return;
    }
    let own = |n: usize| blocks.block_of(head.past + tile.token(n));
    // SAFETY: working memory has room for the tile; earlier blocks have summaries.
    unsafe {
        std::ptr::write_bytes(tile.rotated, 0, dim.next_multiple_of(MAX_LANES));
        let ranked = slice::from_raw_parts_mut(tile.ranked, tile.blocks);
        for first in (0..count).step_by(TOGETHER) {
            let those = TOGETHER.min(count - first);
            // Where all are chosen, nobody asks for scores.
            let most = own(first + those - 1);
            if most > blocks.chosen(head.past + tile.token(first + those - 1)) {
                for n in 0..those {
                    rotated::<S, T, C>(call, head, tile, first + n, 1.0, tile.rotated);
                    let probe_n = tile.probes.add(n * probe_floats);
                    probe::<S>(blocks.score, tile.rotated.cast_const(), dim, probe_n);
                }
                let probe_of = |n: usize| tile.probes.add(n * probe_floats).cast_const();
                if those == TOGETHER {
                    let probes: [_; TOGETHER] = std::array::from_fn(probe_of);
                    score::<S, T, C, TOGETHER>(call, index, probes, most, tile.scores, tile.blocks);
                } else {
                    for n in 0..those {
                        let scores = tile.scores.add(n * tile.blocks);
                        score::<S, T, C, 1>(call, index, [probe_of(n)], most, scores, tile.blocks);
                    }
                }
            }
            for n in 0..those {
                let scores = tile.scores.add(n * tile.blocks).cast_const();
                let scores = slice::from_raw_parts(scores, own(first + n));
                let chosen = tile.chosen.add((first + n) * tile.most);
                let chosen = slice::from_raw_parts_mut(chosen, tile.most.min(scores.len()));
                greatest(scores, ranked, chosen);
            }
        }
    }
}
