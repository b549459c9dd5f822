//! Problems of block top-k attention, and what they come to in f64 over the whole history.

use super::model::rotate;
use super::{Real, assert_bits, random};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::blocks::{BlockTopK, Score};
use ratplus_graphs::ops::BlockTopKAttention;
use ratplus_graphs::pattern::Pattern;

/// A node, and all tokens of its slots.
pub(super) struct Problem<T> {
    pub(super) operator: BlockTopKAttention,
    pub(super) dim: usize,
    pub(super) max: usize,
    pub(super) batch: usize,
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
    /// `[batch, max, heads * dim]`
    pub(super) query: Vec<T>,
    /// `[batch, max, kv_heads * dim]`
    pub(super) key: Vec<T>,
    pub(super) value: Vec<T>,
}

/// Everything that a sequence of calls leaves.
#[derive(Clone)]
pub(super) struct Left<T> {
    /// `[batch, max, heads * dim]`; what was not computed is poison.
    pub(super) output: Vec<T>,
    pub(super) cache: [Vec<T>; 2],
    pub(super) summary: Vec<f32>,
}

pub(super) fn blocks(size: i64, top_k: i64, score: Score, beside: (i64, i64, i64)) -> BlockTopK {
    let beside = Pattern::new(beside.0, beside.1, beside.2).unwrap();
    BlockTopK::new(size, top_k, score, beside).unwrap()
}

impl<T: Real> Problem<T> {
    /// Queries and keys of quarters under quarter turns: every score of a block is exact, so that a choice can be
    /// compared, and ties are many.
    pub(super) fn new(
        rng: &mut ChaCha8Rng,
        blocks: BlockTopK,
        [kv_heads, group]: [usize; 2],
        dim: usize,
        max: usize,
        batch: usize,
    ) -> Self {
        let turns: Vec<usize> = (0..max * dim / 2).map(|_| rng.random_range(0..4)).collect();
        let table = |of: [f32; 4]| turns.iter().map(|&turn| of[turn]).collect();
        let count = batch * max * kv_heads * dim;
        let mut quarters = |count: usize| -> Vec<T> {
            let mut quarter = || f64::from(rng.random_range(-8..=8)) / 4.0;
            (0..count).map(|_| T::of(quarter())).collect()
        };
        let (query, key) = (quarters(count * group), quarters(count));
        Self {
            operator: BlockTopKAttention {
                num_heads: kv_heads * group,
                num_kv_heads: kv_heads,
                blocks,
                scale: 1.0 / (dim as f32).sqrt(),
            },
            dim,
            max,
            batch,
            cos: table([1.0, 0.0, -1.0, 0.0]),
            sin: table([0.0, 1.0, 0.0, -1.0]),
            query,
            key,
            value: random::<T>(rng, count, 1.0),
        }
    }

    /// With the tables and numbers of a model, where no score is exact.
    pub(super) fn like_models(mut self, rng: &mut ChaCha8Rng) -> Self {
        let half = self.dim / 2;
        let angle = |i: usize| {
            let (position, d) = (i / half, i % half);
            position as f64 * 10000f64.powf(-(d as f64) / half as f64)
        };
        let count = self.max * half;
        self.cos = (0..count).map(|i| angle(i).cos() as f32).collect();
        self.sin = (0..count).map(|i| angle(i).sin() as f32).collect();
        self.query = random(rng, self.query.len(), 2.0);
        self.key = random(rng, self.key.len(), 2.0);
        self
    }

    pub(super) fn widths(&self) -> [usize; 2] {
        [self.operator.num_heads, self.operator.num_kv_heads].map(|heads| heads * self.dim)
    }

    pub(super) fn cache_len(&self) -> usize {
        self.batch * self.operator.num_kv_heads * self.max * self.dim
    }

    pub(super) fn summary_rows(&self) -> usize {
        self.operator.num_kv_heads * self.operator.blocks.summary_rows(self.max)
    }

    /// A chunk's part of `tokens`, poison past each slot's end.
    pub(super) fn cut(
        &self,
        tokens: &[T],
        width: usize,
        past: &[i64],
        seq: &[i64],
        seq_len: usize,
    ) -> Vec<T> {
        let mut chunk = vec![T::poison(); self.batch * seq_len * width];
        for slot in 0..self.batch {
            let from = (slot * self.max + past[slot] as usize) * width;
            let to = slot * seq_len * width;
            let count = seq[slot] as usize * width;
            chunk[to..to + count].copy_from_slice(&tokens[from..from + count]);
        }
        chunk
    }

    /// The rows of one head of one slot.
    fn head(&self, tokens: &[T], width: usize, slot: usize, head: usize) -> Vec<Vec<f64>> {
        let row = |position: usize| {
            let at = (slot * self.max + position) * width + head * self.dim;
            tokens[at..at + self.dim].iter().map(|x| x.real()).collect()
        };
        (0..self.max).map(row).collect()
    }

    fn rotated(&self, rows: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
        let rows = rows.into_iter().enumerate();
        rows.map(|(position, row)| rotate(&row, position, &self.cos, &self.sin))
            .collect()
    }

    /// The summary of the keys of a block.
    fn summary(&self, keys: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let of = |f: fn(f64, f64) -> f64| -> Vec<f64> {
            let channel = |d: usize| keys.iter().map(|key| key[d]).reduce(f).unwrap();
            (0..self.dim).map(channel).collect()
        };
        match self.operator.blocks.score {
            Score::Bounds => vec![of(f64::min), of(f64::max)],
            Score::Mean => vec![of(|a, b| a + b)],
        }
    }

    /// The greatest scores, of equal ones the lowest blocks first.
    fn chosen(&self, query: &[f64], summaries: &[Vec<Vec<f64>>], position: usize) -> Vec<usize> {
        let blocks = self.operator.blocks;
        let score = |block: &usize| -> f64 {
            let summary = &summaries[*block];
            let bound = |d: usize| {
                let of_part = summary.iter().map(|row| query[d] * row[d]);
                of_part.fold(f64::NEG_INFINITY, f64::max)
            };
            (0..self.dim).map(bound).sum()
        };
        let mut earlier: Vec<_> = (0..blocks.block_of(position)).collect();
        earlier.sort_by(|a, b| score(b).partial_cmp(&score(a)).unwrap());
        earlier.truncate(blocks.chosen(position));
        earlier
    }

    /// Compares everything with f64 over the whole history.
    pub(super) fn check(&self, left: &Left<T>, lengths: &[usize], place: &str) {
        let [width, kv_width] = self.widths();
        let blocks = self.operator.blocks;
        for (slot, &length) in lengths.iter().enumerate() {
            for kv_head in 0..self.operator.num_kv_heads {
                let keys = self.rotated(self.head(&self.key, kv_width, slot, kv_head));
                let values = self.head(&self.value, kv_width, slot, kv_head);
                let at = slot * self.operator.num_kv_heads + kv_head;
                for position in 0..self.max {
                    let row = (at * self.max + position) * self.dim;
                    let row = row..row + self.dim;
                    for (cache, want) in left.cache.iter().zip([&keys, &values]) {
                        let found = &cache[row.clone()];
                        match position < length {
                            true => assert!(
                                found
                                    .iter()
                                    .zip(&want[position])
                                    .all(|(a, b)| a.real() == *b),
                                "{place}: row {position}"
                            ),
                            false => assert_bits(found, &vec![T::poison(); self.dim], place),
                        }
                    }
                }
                let own_keys = |block: usize| {
                    let size = blocks.block_size as usize;
                    &keys[(block * size).min(length)..((block + 1) * size).min(length)]
                };
                let mut summaries = Vec::new();
                let parts = blocks.score.parts();
                for block in 0..blocks.blocks(self.max) {
                    let row = (at * blocks.blocks(self.max) + block) * parts * self.dim;
                    let found = &left.summary[row..row + parts * self.dim];
                    if own_keys(block).is_empty() {
                        assert!(found.iter().all(|x| x.is_nan()), "{place}: summary {block}");
                        continue;
                    }
                    let want = self.summary(own_keys(block));
                    let found = found.iter().map(|&x| f64::from(x));
                    assert!(
                        found.eq(want.iter().flatten().copied()),
                        "{place}: summary {block}"
                    );
                    summaries.push(want);
                }
                let group = self.operator.num_heads / self.operator.num_kv_heads;
                for head in kv_head * group..(kv_head + 1) * group {
                    let queries = self.rotated(self.head(&self.query, width, slot, head));
                    for (position, query) in queries.iter().enumerate().take(length) {
                        let chosen = self.chosen(query, &summaries, position);
                        let seen: Vec<usize> = (0..=position)
                            .filter(|&key| {
                                let block = blocks.block_of(key);
                                block == blocks.block_of(position)
                                    || chosen.contains(&block)
                                    || blocks.beside.visible(position, key)
                            })
                            .collect();
                        let dot = |key: &usize| -> f64 {
                            let products = query.iter().zip(&keys[*key]).map(|(q, k)| q * k);
                            products.sum::<f64>() * f64::from(self.operator.scale)
                        };
                        let top = seen.iter().map(dot).fold(f64::NEG_INFINITY, f64::max);
                        let weight = |key: &usize| (dot(key) - top).exp();
                        let total: f64 = seen.iter().map(weight).sum();
                        let at = (slot * self.max + position) * width + head * self.dim;
                        let output = &left.output[at..at + self.dim];
                        for (d, found) in output.iter().enumerate() {
                            let mixed = seen.iter().map(|key| weight(key) * values[*key][d]);
                            let want = mixed.sum::<f64>() / total;
                            let found = found.real();
                            let most = 2e-5 + 1.01 * T::UNIT * want.abs() + T::SUBNORMAL;
                            assert!(
                                (found - want).abs() <= most,
                                "{place}: slot {slot}, head {head}, position {position}: {found} is not {want}"
                            );
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn assert_same<T: Real>(found: &Left<T>, expected: &Left<T>, place: &str) {
    assert_bits(&found.output, &expected.output, place);
    for side in 0..2 {
        assert_bits(&found.cache[side], &expected.cache[side], place);
    }
    assert_bits(&found.summary, &expected.summary, place);
}

/// Size, `K`, what is beside, key-value heads, group, channels, longest sequence.
pub(super) type Case = (i64, i64, (i64, i64, i64), usize, usize, usize, usize);

pub(super) const CASES: [Case; 8] = [
    // Blocks that do not divide M.
    (8, 3, (-1, 0, 0), 2, 1, 16, 75),
    (16, 2, (-1, 0, 0), 1, 2, 64, 100),
    (4, 4, (-1, 0, 0), 1, 3, 128, 66),
    // Blocks of one key, and blocks longer than a chunk.
    (1, 6, (-1, 0, 0), 1, 2, 6, 65),
    (70, 2, (-1, 0, 0), 1, 2, 6, 150),
    // A block of its own alone, and all blocks.
    (8, 1, (5, 3, 2), 1, 1, 16, 70),
    (8, 1 << 30, (-1, 0, 0), 1, 1, 16, 70),
    // Keys besides, in and out of chosen blocks, one of them across shares.
    (5, 3, (7, 9, 6), 1, 2, 16, 130),
];
