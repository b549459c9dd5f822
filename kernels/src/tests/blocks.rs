//! Block top-k attention: bits that depend on what a query sees alone, and what it is when it sees everything.

use super::{Real, assert_bits, isas, pools, random, rng};
use crate::{AttentionParams, BlockTopKParams, Isa, ParallelFor, Serial};
use crate::{block_top_k_attention_on, dilated_attention_on};
use half::{bf16, f16};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::blocks::{BlockTopK, Score};
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::pattern::Pattern;

/// A node, and the tokens of each slot.
struct Problem<T> {
    blocks: BlockTopK,
    kv_heads: usize,
    group: usize,
    dim: usize,
    max: usize,
    batch: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// `[batch, max, heads * dim]`
    query: Vec<T>,
    /// `[batch, max, kv_heads * dim]`
    key: Vec<T>,
    value: Vec<T>,
}

/// How a sequence is run.
struct How<'a> {
    isa: Isa,
    pool: &'a dyn ParallelFor,
    /// Each chunk's length; the last one repeats.
    chunks: &'a [usize],
    in_place: bool,
}

impl<T: Real> Problem<T> {
    fn new(
        rng: &mut ChaCha8Rng,
        blocks: BlockTopK,
        [kv_heads, group]: [usize; 2],
        dim: usize,
        max: usize,
    ) -> Self {
        let batch = 2;
        let half = dim / 2;
        let angle = |i: usize| {
            let (position, d) = (i / half, i % half);
            position as f64 * 10000f64.powf(-(d as f64) / half as f64)
        };
        let table = |f: fn(f64) -> f64| (0..max * half).map(|i| f(angle(i)) as f32).collect();
        let count = batch * max * kv_heads * dim;
        Self {
            blocks,
            kv_heads,
            group,
            dim,
            max,
            batch,
            cos: table(f64::cos),
            sin: table(f64::sin),
            query: random::<T>(rng, count * group, 2.0),
            key: random::<T>(rng, count, 2.0),
            value: random::<T>(rng, count, 2.0),
        }
    }

    fn widths(&self) -> [usize; 2] {
        [self.group, 1].map(|each| each * self.kv_heads * self.dim)
    }

    /// A chunk's part of `tokens`, garbage past each slot's end.
    fn cut(&self, tokens: &[T], width: usize, past: &[i64], seq: &[i64], seq_len: usize) -> Vec<T> {
        let mut chunk = vec![T::poison(); self.batch * seq_len * width];
        for slot in 0..self.batch {
            for t in 0..seq[slot] as usize {
                let from = (slot * self.max + past[slot] as usize + t) * width;
                let to = (slot * seq_len + t) * width;
                chunk[to..to + width].copy_from_slice(&tokens[from..from + width]);
            }
        }
        chunk
    }

    /// Outputs `[batch, max, heads * dim]` where slots have `lengths` tokens, and the states.
    fn run(
        &self,
        how: &How<'_>,
        lengths: &[usize],
        dense: bool,
    ) -> (Vec<T>, [Vec<T>; 2], Vec<f32>) {
        let [width, kv_width] = self.widths();
        let layout = CacheLayout::new(&vec![Pattern::DENSE; self.kv_heads], self.max);
        let rows = self.batch * layout.rows() * self.dim;
        let summaries = self.batch * self.kv_heads * self.blocks.summary_rows(self.max) * self.dim;
        let mut cache = [vec![T::poison(); rows], vec![T::poison(); rows]];
        let mut blocks = vec![f32::NAN; summaries];
        let mut found = vec![T::poison(); self.batch * self.max * width];
        let mut past = vec![0i64; self.batch];
        let mut chunks = how
            .chunks
            .iter()
            .chain(std::iter::repeat(how.chunks.last().unwrap()));
        while past
            .iter()
            .zip(lengths)
            .any(|(&past, &length)| (past as usize) < length)
        {
            let seq_len = *chunks.next().unwrap();
            let left = past.iter().zip(lengths);
            let seq: Vec<_> = left
                .map(|(&past, &length)| (length as i64 - past).clamp(0, seq_len as i64))
                .collect();
            let [query, key, value] = [
                (&self.query, width),
                (&self.key, kv_width),
                (&self.value, kv_width),
            ]
            .map(|(tokens, width)| self.cut(tokens, width, &past, &seq, seq_len));
            let mut output = vec![T::poison(); query.len()];
            let mut fresh = cache.clone().map(|rows| vec![T::poison(); rows.len()]);
            let mut fresh_blocks = vec![f32::NAN; summaries];
            let [past_key, past_value] = [&cache[0], &cache[1]].map(|rows| rows.as_ptr());
            let [present_key, present_value] = match how.in_place {
                true => [past_key.cast_mut(), past_value.cast_mut()],
                false => fresh.each_mut().map(|rows| rows.as_mut_ptr()),
            };
            let past_block = blocks.as_mut_ptr();
            let attention = AttentionParams {
                layout: &layout,
                num_heads: self.kv_heads * self.group,
                scale: 1.0 / (self.dim as f32).sqrt(),
                batch: self.batch,
                seq_len,
                head_dim: self.dim,
                query: query.as_ptr(),
                key: key.as_ptr(),
                value: value.as_ptr(),
                past_key,
                past_value,
                past_length: past.as_ptr(),
                seq_length: seq.as_ptr(),
                cos: self.cos.as_ptr(),
                sin: self.sin.as_ptr(),
                output: output.as_mut_ptr(),
                present_key,
                present_value,
                workspace: std::ptr::null_mut(),
            };
            let params = BlockTopKParams {
                attention,
                blocks: self.blocks,
                past_block,
                present_block: if how.in_place {
                    past_block
                } else {
                    fresh_blocks.as_mut_ptr()
                },
            };
            // SAFETY: every buffer has the size that its tensor has.
            unsafe {
                match dense {
                    true => dilated_attention_on(how.isa, &attention, how.pool),
                    false => block_top_k_attention_on(how.isa, &params, how.pool),
                }
                .unwrap();
            }
            if !how.in_place {
                (cache, blocks) = (fresh, fresh_blocks);
            }
            for slot in 0..self.batch {
                for t in 0..seq[slot] as usize {
                    let from = (slot * seq_len + t) * width;
                    let to = (slot * self.max + past[slot] as usize + t) * width;
                    found[to..to + width].copy_from_slice(&output[from..from + width]);
                }
                past[slot] += seq[slot];
            }
        }
        (found, cache, blocks)
    }
}

fn blocks(size: i64, top_k: i64, score: Score, beside: (i64, i64, i64)) -> BlockTopK {
    let beside = Pattern::new(beside.0, beside.1, beside.2).unwrap();
    BlockTopK::new(size, top_k, score, beside).unwrap()
}

fn assert_states<T: Real>(
    found: &([Vec<T>; 2], &[f32]),
    expected: &([Vec<T>; 2], &[f32]),
    place: &str,
) {
    for side in 0..2 {
        assert_bits(&found.0[side], &expected.0[side], place);
    }
    let bits = |rows: &[f32]| rows.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(found.1) == bits(expected.1), "summaries of {place}");
}

fn bits_are_a_querys_own<T: Real>() {
    let mut rng = rng(21);
    for (size, top_k, beside, group, dim) in [
        (8, 3, (-1, 0, 0), 1, 16),
        (5, 2, (7, 4, 2), 3, 24),
        (64, 2, (-1, 0, 0), 2, 64),
        (40, 3, (16, 0, 2), 5, 6),
        (1, 9, (-1, 3, 0), 4, 40),
    ] {
        for score in Score::ALL {
            let blocks = blocks(size, top_k, score, beside);
            let problem = Problem::<T>::new(&mut rng, blocks, [2, group], dim, 150);
            for isa in isas() {
                let serial = How {
                    isa,
                    pool: &Serial,
                    chunks: &[1],
                    in_place: true,
                };
                let (expected, cache, summaries) = problem.run(&serial, &[150, 97], false);
                for (name, pool) in pools() {
                    for (chunks, in_place) in [
                        (&[7][..], false),
                        (&[64], true),
                        (&[150], false),
                        (&[13, 1], true),
                    ] {
                        let how = How {
                            isa,
                            pool: &*pool,
                            chunks,
                            in_place,
                        };
                        let (found, states, rows) = problem.run(&how, &[150, 97], false);
                        let place = format!(
                            "{blocks} x {group} of {dim} on {isa:?}, {name}, chunks {chunks:?}"
                        );
                        assert_bits(&found, &expected, &place);
                        assert_states(&(states, &rows), &(cache.clone(), &summaries), &place);
                    }
                }
            }
        }
    }
}

#[test]
fn a_query_has_the_same_bits_in_any_chunks_on_any_threads() {
    bits_are_a_querys_own::<f32>();
    bits_are_a_querys_own::<bf16>();
    bits_are_a_querys_own::<f16>();
}

#[test]
fn a_slot_has_the_same_bits_whatever_the_other_holds() {
    let mut rng = rng(22);
    let blocks = blocks(8, 3, Score::Bounds, (-1, 0, 0));
    let mut problem = Problem::<bf16>::new(&mut rng, blocks, [2, 2], 32, 60);
    let how = How {
        isa: Isa::best(),
        pool: &Serial,
        chunks: &[16],
        in_place: true,
    };
    let (expected, ..) = problem.run(&how, &[60, 33], false);
    let half = expected.len() / 2;
    for tokens in [&mut problem.query, &mut problem.key, &mut problem.value] {
        let second = tokens.len() / 2;
        tokens[second..].fill(bf16::NAN);
    }
    let (found, ..) = problem.run(&how, &[60, 50], false);
    assert_bits(&found[..half], &expected[..half], "the first slot");
}

#[test]
fn heads_of_a_group_have_the_bits_of_heads_of_their_own() {
    let mut rng = rng(23);
    for group in [2, 3, 4, 8] {
        let blocks = blocks(8, 3, Score::Mean, (-1, 0, 0));
        let grouped = Problem::<bf16>::new(&mut rng, blocks, [2, group], 32, 60);
        let repeated = |tokens: &[bf16]| -> Vec<bf16> {
            let heads = tokens.chunks_exact(32);
            heads
                .flat_map(|head| std::iter::repeat_n(head, group).flatten())
                .copied()
                .collect()
        };
        let own = Problem {
            key: repeated(&grouped.key),
            value: repeated(&grouped.value),
            query: grouped.query.clone(),
            cos: grouped.cos.clone(),
            sin: grouped.sin.clone(),
            kv_heads: 2 * group,
            group: 1,
            ..grouped
        };
        for isa in isas() {
            for chunks in [&[1][..], &[16]] {
                let how = How {
                    isa,
                    pool: &Serial,
                    chunks,
                    in_place: true,
                };
                let (found, ..) = grouped.run(&how, &[60, 33], false);
                let (expected, ..) = own.run(&how, &[60, 33], false);
                assert_bits(
                    &found,
                    &expected,
                    &format!("groups of {group} on {isa:?}, {chunks:?}"),
                );
            }
        }
    }
}

fn close(found: &[f32], expected: &[f32], place: &str) {
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            a.is_nan() && b.is_nan() || (a - b).abs() < 2e-5,
            "{place}: {a} is not {b} at {at}"
        );
    }
}

#[test]
fn all_blocks_are_dense_attention_and_one_is_attention_within_blocks() {
    let mut rng = rng(24);
    for score in Score::ALL {
        for top_k in [10, 11, 1 << 30] {
            let problem = Problem::<f32>::new(
                &mut rng,
                blocks(8, top_k, score, (-1, 0, 0)),
                [2, 2],
                16,
                80,
            );
            for isa in isas() {
                let how = How {
                    isa,
                    pool: &Serial,
                    chunks: &[20],
                    in_place: true,
                };
                let (found, ..) = problem.run(&how, &[80, 41], false);
                let (expected, ..) = problem.run(&how, &[80, 41], true);
                close(&found, &expected, "dense");
            }
        }
        // Blocks as sequences of their own, where rotation is by the position in the block: only differences count.
        let size = 16;
        let whole = Problem::<f32>::new(
            &mut rng,
            blocks(size as i64, 1, score, (-1, 0, 0)),
            [2, 1],
            16,
            64,
        );
        let how = How {
            isa: Isa::best(),
            pool: &Serial,
            chunks: &[64],
            in_place: true,
        };
        let (found, ..) = whole.run(&how, &[64, 64], false);
        let width = 32;
        for block in 0..4 {
            let cut = |tokens: &[f32]| -> Vec<f32> {
                let slots = tokens.chunks_exact(64 * width);
                let cut =
                    slots.flat_map(|slot| &slot[block * size * width..(block + 1) * size * width]);
                cut.copied().collect()
            };
            let part = Problem {
                query: cut(&whole.query),
                key: cut(&whole.key),
                value: cut(&whole.value),
                cos: whole.cos[..size * 8].to_vec(),
                sin: whole.sin[..size * 8].to_vec(),
                max: size,
                ..whole
            };
            let (expected, ..) = part.run(&how, &[size, size], true);
            close(&cut(&found), &expected, &format!("block {block}"));
        }
    }
}

#[test]
fn a_choice_is_of_the_greatest_scores() {
    // One channel pair, no rotation: a block's score is its greatest key or the sum of its keys.
    let mut rng = rng(25);
    for score in Score::ALL {
        let blocks = blocks(2, 2, score, (-1, 0, 0));
        let mut problem = Problem::<f32>::new(&mut rng, blocks, [1, 1], 2, 24);
        problem.cos.fill(1.0);
        problem.sin.fill(0.0);
        problem.query.fill(0.0);
        for (n, query) in problem.query.iter_mut().enumerate() {
            *query = if n % 2 == 0 { 1.0 } else { 0.0 };
        }
        for key in &mut problem.key {
            *key = f32::from(rng.random_range(-3i8..=3));
        }
        // A value tells its key's position: the result is a mean of chosen and own.
        for (n, value) in problem.value.iter_mut().enumerate() {
            *value = ((n / 2) % 24) as f32;
        }
        let how = How {
            isa: Isa::best(),
            pool: &Serial,
            chunks: &[5],
            in_place: true,
        };
        let (found, ..) = problem.run(&how, &[24, 24], false);
        for slot in 0..2 {
            let key = |position: usize| f64::from(problem.key[(slot * 24 + position) * 2]);
            for position in 0..24usize {
                let of = |block: usize| {
                    let keys = [key(2 * block), key(2 * block + 1)];
                    match score {
                        Score::Bounds => keys[0].max(keys[1]),
                        Score::Mean => keys[0] + keys[1],
                    }
                };
                let mut best: Option<usize> = None;
                for block in 0..position / 2 {
                    if best.is_none_or(|best| of(block) > of(best)) {
                        best = Some(block);
                    }
                }
                let own = position / 2 * 2..position + 1;
                let seen: Vec<usize> = best
                    .map_or(0..0, |block| 2 * block..2 * block + 2)
                    .chain(own)
                    .collect();
                let weight = |p: usize| (key(p) / 2f64.sqrt()).exp();
                let total: f64 = seen.iter().map(|&p| weight(p)).sum();
                let mean: f64 = seen.iter().map(|&p| weight(p) / total * p as f64).sum();
                let found = f64::from(found[(slot * 24 + position) * 2]);
                assert!(
                    (found - mean).abs() < 1e-4,
                    "{score} at {position}: {found} is not {mean}"
                );
            }
        }
    }
}
