//! Block top-k attention: bits that depend on what a query sees alone, and what it is when it sees everything.

use super::block_problem::{CASES, Left, Problem, assert_same, blocks};
use super::{Real, assert_bits, isas, pools, rng};
use crate::{AttentionParams, BlockTopKParams, Isa, ParallelFor, Serial};
use crate::{block_top_k_attention_on, dilated_attention_on};
use half::{bf16, f16};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::blocks::{BlockTopK, Score};
use ratplus_graphs::ops::BlockTopKAttention;
use ratplus_tests::times;

/// How a sequence is run.
struct How<'a> {
    isa: Isa,
    pool: &'a dyn ParallelFor,
    /// Each chunk's length; the last one repeats.
    chunks: &'a [usize],
    in_place: bool,
}

impl<T: Real> Problem<T> {
    /// What is left where slots have `lengths` tokens and memory is poison before; `dense`: of dense attention.
    fn computed(&self, how: &How<'_>, lengths: &[usize], dense: bool) -> Left<T> {
        let [width, kv_width] = self.widths();
        let layout = self.operator.cache_layout(self.max);
        let summaries = self.batch * self.summary_rows() * self.dim;
        let mut cache = [(); 2].map(|()| vec![T::poison(); self.cache_len()]);
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
            let past_rows = cache.each_mut().map(|rows| rows.as_mut_ptr());
            let [past_key, past_value] = past_rows.map(<*mut T>::cast_const);
            let [present_key, present_value] = match how.in_place {
                true => past_rows,
                false => fresh.each_mut().map(|rows| rows.as_mut_ptr()),
            };
            let past_block = blocks.as_mut_ptr();
            let attention = AttentionParams {
                layout: &layout,
                num_heads: self.operator.num_heads,
                scale: self.operator.scale,
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
                blocks: self.operator.blocks,
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
        Left {
            output: found,
            cache,
            summary: blocks,
        }
    }
}

/// Problems of a batch of two slots, as models have them.
fn like_models<T: Real>(
    rng: &mut ChaCha8Rng,
    blocks: BlockTopK,
    heads: [usize; 2],
    dim: usize,
    max: usize,
) -> Problem<T> {
    Problem::new(rng, blocks, heads, dim, max, 2).like_models(rng)
}

fn in_chunks(isa: Isa, chunks: &[usize]) -> How<'_> {
    How {
        isa,
        pool: &Serial,
        chunks,
        in_place: true,
    }
}

fn cases<T: Real>(seed: u64) {
    let mut rng = rng(seed);
    for (size, top_k, beside, kv_heads, group, dim, max) in CASES {
        for score in Score::ALL {
            let blocks = blocks(size, top_k, score, beside);
            let heads = [kv_heads, group];
            let problem = Problem::<T>::new(&mut rng, blocks, heads, dim, max, 3);
            for isa in isas() {
                for chunks in [&[1][..], &[7], &[64]] {
                    let lengths = [max, 0, max / 2];
                    let found = problem.computed(&in_chunks(isa, chunks), &lengths, false);
                    let place = format!("{blocks}, {heads:?} x {dim} on {isa:?} by {chunks:?}");
                    problem.check(&found, &lengths, &place);
                }
            }
        }
    }
}

#[test]
fn choices_and_results_are_the_models() {
    cases::<f32>(41);
    cases::<bf16>(42);
    cases::<f16>(43);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(times(12) as u32))]

    #[test]
    fn any_sizes_are_the_models_and_dense_where_all_is_chosen(
        size in 1i64..40, top_k in 1i64..12, score in prop::sample::select(Score::ALL.to_vec()),
        beside in (prop_oneof![Just(-1i64), 1i64..20], 0i64..20, 0i64..10),
        kv_heads in 1usize..4, group in 1usize..8, half in 1usize..20,
        max in 1usize..200, chunk in 1usize..70, seed: u64,
    ) {
        let (mut rng, heads, dim) = (rng(seed), [kv_heads, group], 2 * half);
        let some = blocks(size, top_k, score, beside);
        let all = blocks(size, max as i64 / size + 1, score, (-1, 0, 0));
        let problem = Problem::<f32>::new(&mut rng, some, heads, dim, max, 2);
        let halves = Problem::<bf16>::new(&mut rng, some, heads, dim, max, 2);
        let whole = like_models::<f32>(&mut rng, all, heads, dim, max);
        let lengths = [max, max / 3];
        for isa in isas() {
            for chunks in [&[1][..], &[chunk]] {
                let how = in_chunks(isa, chunks);
                let place = format!("{some}, {heads:?} x {dim} of {max} on {isa:?} by {chunks:?}");
                problem.check(&problem.computed(&how, &lengths, false), &lengths, &place);
                halves.check(&halves.computed(&how, &lengths, false), &lengths, &place);
                let [found, dense] = [false, true].map(|dense| whole.computed(&how, &[max; 2], dense));
                close(&found.output, &dense.output, &place);
            }
        }
    }
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
            let problem = like_models::<T>(&mut rng, blocks, [2, group], dim, 150);
            for isa in isas() {
                let expected = problem.computed(&in_chunks(isa, &[1]), &[150, 97], false);
                for (name, pool) in pools() {
                    for (chunks, in_place) in [
                        (&[7][..], false),
                        (&[64], true),
                        (&[150], false),
                        (&[13, 1], true),
                    ] {
                        let how = How {
                            pool: &*pool,
                            in_place,
                            ..in_chunks(isa, chunks)
                        };
                        let found = problem.computed(&how, &[150, 97], false);
                        let place = format!(
                            "{blocks} x {group} of {dim} on {isa:?}, {name}, chunks {chunks:?}"
                        );
                        assert_same(&found, &expected, &place);
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
    let mut problem = like_models::<bf16>(&mut rng, blocks, [2, 2], 32, 60);
    let how = in_chunks(Isa::best(), &[16]);
    let expected = problem.computed(&how, &[60, 33], false).output;
    let half = expected.len() / 2;
    for tokens in [&mut problem.query, &mut problem.key, &mut problem.value] {
        let second = tokens.len() / 2;
        tokens[second..].fill(bf16::NAN);
    }
    let found = problem.computed(&how, &[60, 50], false).output;
    assert_bits(&found[..half], &expected[..half], "the first slot");
}

#[test]
fn heads_of_a_group_have_the_bits_of_heads_of_their_own() {
    let mut rng = rng(23);
    for group in [2, 3, 4, 8] {
        let blocks = blocks(8, 3, Score::Mean, (-1, 0, 0));
        let grouped = like_models::<bf16>(&mut rng, blocks, [2, group], 32, 60);
        let repeated = |tokens: &[bf16]| -> Vec<bf16> {
            let heads = tokens.chunks_exact(32);
            let all = heads.flat_map(|head| std::iter::repeat_n(head, group).flatten());
            all.copied().collect()
        };
        let own = Problem {
            operator: BlockTopKAttention {
                num_kv_heads: grouped.operator.num_heads,
                ..grouped.operator.clone()
            },
            key: repeated(&grouped.key),
            value: repeated(&grouped.value),
            query: grouped.query.clone(),
            cos: grouped.cos.clone(),
            sin: grouped.sin.clone(),
            ..grouped
        };
        for isa in isas() {
            for chunks in [&[1][..], &[16]] {
                let how = in_chunks(isa, chunks);
                let [found, expected] =
                    [&grouped, &own].map(|problem| problem.computed(&how, &[60, 33], false));
                let place = format!("groups of {group} on {isa:?}, {chunks:?}");
                assert_bits(&found.output, &expected.output, &place);
            }
        }
    }
}

/// Of numbers alone.
fn close(found: &[f32], expected: &[f32], place: &str) {
    assert_eq!(found.len(), expected.len(), "{place}");
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() < 2e-5, "{place}: {a} is not {b} at {at}");
    }
}

#[test]
fn all_blocks_are_dense_attention_and_one_is_attention_within_blocks() {
    let mut rng = rng(24);
    for score in Score::ALL {
        for top_k in [10, 11, 1 << 30] {
            let blocks = blocks(8, top_k, score, (-1, 0, 0));
            let problem = like_models::<f32>(&mut rng, blocks, [2, 2], 16, 80);
            for isa in isas() {
                let [found, expected] = [false, true]
                    .map(|dense| problem.computed(&in_chunks(isa, &[20]), &[80, 80], dense));
                close(&found.output, &expected.output, "dense");
            }
        }
        // Blocks as sequences of their own, where rotation is by the position in the block: only differences count.
        let size = 16;
        let one = blocks(size as i64, 1, score, (-1, 0, 0));
        let whole = like_models::<f32>(&mut rng, one, [2, 1], 16, 64);
        let how = in_chunks(Isa::best(), &[64]);
        let found = whole.computed(&how, &[64, 64], false).output;
        let width = 32;
        for block in 0..4 {
            let cut = |tokens: &[f32]| -> Vec<f32> {
                let own = block * size * width..(block + 1) * size * width;
                let slots = tokens.chunks_exact(64 * width);
                slots.flat_map(|slot| &slot[own.clone()]).copied().collect()
            };
            let part = Problem {
                operator: whole.operator.clone(),
                query: cut(&whole.query),
                key: cut(&whole.key),
                value: cut(&whole.value),
                cos: whole.cos[..size * 8].to_vec(),
                sin: whole.sin[..size * 8].to_vec(),
                max: size,
                ..whole
            };
            let expected = part.computed(&how, &[size, size], true).output;
            close(&cut(&found), &expected, &format!("block {block}"));
        }
    }
}
