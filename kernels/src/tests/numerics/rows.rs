//! Queries that see nothing but themselves, parts of a row's keys that are empty, and scores at the
//! ends of what a number can be.

use super::{Control, compare, cpus, guarded, report};
use crate::cuda::AttentionMethod;
use crate::tests::attention::{Cache, Chunk, Chunks, Setup, pattern, replay, run};
use crate::tests::gpu::element;
use crate::tests::machine::{Machine, Way};
use crate::tests::model::History;
use crate::tests::{Real, assert_bits, random, rng};
use half::{bf16, f16};
use ratplus_graphs::pattern::Pattern;

/// Attention by tiles is for f16 and bf16 of these widths.
const DIM: usize = 64;

const TILES: [AttentionMethod; 4] = [
    AttentionMethod::Tiles,
    AttentionMethod::SmallTiles,
    AttentionMethod::Hopper,
    AttentionMethod::SmallHopper,
];

/// A call's chunk and its cache, random but for what the caller changes.
fn chunk<T: Real>(setup: &Setup, seed: u64, seq_len: usize, past: i64) -> (Chunk<T>, Cache<T>) {
    let mut rng = rng(seed);
    let count = setup.batch * seq_len * setup.width();
    let mut next = |count| random::<T>(&mut rng, count, 2.0);
    let chunk = Chunk {
        seq_len,
        query: next(count),
        key: next(count),
        value: next(count),
        past: vec![past; setup.batch],
        seq: vec![seq_len as i64; setup.batch],
    };
    let rows = setup.batch * setup.cache();
    (chunk, [next(rows), next(rows)])
}

/// With D -1, W 0 and I 0 a query sees its own key, whose weight is 1: the value, bit for bit.
fn only_itself<T: Real>(machine: Machine, way: &Way) -> usize {
    let alone = pattern(-1, 0, 0);
    let mut points = 0;
    for patterns in [vec![alone; 2], vec![Pattern::DENSE, alone]] {
        let setup = Setup::new(patterns.clone(), 50, 2, DIM);
        for (seq_len, past) in [(1, 0), (1, 5), (9, 0), (33, 16)] {
            let (chunk, mut cache) = chunk::<T>(&setup, seq_len as u64, seq_len, past);
            let output = run(
                &setup,
                machine,
                way,
                &chunk,
                &mut cache,
                seq_len.is_multiple_of(2),
            );
            for (head, pattern) in patterns.iter().enumerate() {
                for token in 0..setup.batch * seq_len {
                    if *pattern != alone {
                        continue;
                    }
                    let at = token * setup.width() + head * DIM;
                    let (got, want) = (&output[at..at + DIM], &chunk.value[at..at + DIM]);
                    assert_bits(
                        got,
                        want,
                        &format!("{machine:?} {seq_len} tokens after {past}"),
                    );
                    points += DIM;
                }
            }
        }
    }
    points
}

/// Sequences of a few tokens whose cache has room for a thousand: the parts that a decoding step
/// divides its rows into are empty but for the first. Unwritten rows hold NaN.
fn empty_parts(machine: Machine) -> usize {
    let patterns = vec![
        Pattern::DENSE,
        pattern(-1, 1100, 3),
        pattern(64, 0, 4),
        pattern(2, 600, 3),
        pattern(-1, 0, 0),
    ];
    const TOKENS: usize = 12;
    let setup = Setup::new(patterns, 1300, 2, DIM);
    replay::<f32>(&setup, machine, 1, TOKENS, Chunks::Fixed(1));
    replay::<bf16>(&setup, machine, 2, TOKENS, Chunks::Fixed(1));
    2 * TOKENS * setup.batch * setup.width()
}

/// Scores of the keys before a query, and its own.
const SCORES: &[&[f64]] = &[
    &[0.0],
    &[0.0, 0.0, 0.0, 0.0],
    &[1e-45, -1e-45, 1e-40, 0.0],
    &[88.0, -88.0, 0.0],
    &[-104.0, -103.0, 0.0],
    &[0.0, 126.0, 127.0, 128.0, 129.0],
    &[-1e4, -1e4, -1e4],
    &[6e4, 6e4, -6e4, 6e4],
    &[1e30, -1e30, 1e30],
    &[-1e30, -1e30, -1e30],
    &[1e38, -1e38, 1e38, 0.0],
    &[-1e38, -1e38],
    // No weight at all, bar the others'.
    &[-1e38, 0.0, -1e38, 5.0],
    &[f64::NEG_INFINITY, 0.0],
    &[
        f64::NEG_INFINITY,
        f64::NEG_INFINITY,
        3.0,
        f64::NEG_INFINITY,
        1.0,
    ],
    // None of these has a softmax.
    &[f64::INFINITY, 0.0],
    &[0.0, f64::INFINITY, f64::NEG_INFINITY, 1.0],
    &[f64::NAN, 0.0],
    &[1.0, f64::NAN, f64::INFINITY, 2.0],
];

/// A query of 1 in its first channel against keys that hold their score there: the keys in the
/// cache and the query's own, and where they are finite all of them in one chunk.
fn scores<T: Real>(machine: Machine, way: &Way, tokens: usize) -> usize {
    let mut points = 0;
    for (case, scores) in SCORES.iter().enumerate() {
        let kept: Vec<f64> = scores.iter().map(|&score| T::of(score).real()).collect();
        // A type with less range would make infinities of them.
        if kept
            .iter()
            .zip(*scores)
            .any(|(a, b)| a.is_finite() != b.is_finite())
        {
            continue;
        }
        let mut setup = Setup::new(vec![Pattern::DENSE], 64, 1, DIM);
        setup.scale = 1.0;
        setup.cos.fill(1.0);
        setup.sin.fill(0.0);
        let before = scores.len() - 1;
        let finite = scores.iter().all(|score| score.is_finite());
        // Decoding takes one token at a time.
        let decodes = machine == Machine::attending(AttentionMethod::Decode);
        for in_chunk in [false, true] {
            if in_chunk && (!finite || decodes && before > 0) {
                continue;
            }
            // Behind the query more of the same, so that chunks are long enough for tiles.
            let (first, seq_len) = if in_chunk {
                (0, before + tokens)
            } else {
                (before, tokens)
            };
            let (mut chunk, mut cache) = chunk::<T>(&setup, case as u64, seq_len, first as i64);
            for x in chunk
                .query
                .iter_mut()
                .chain(&mut chunk.key)
                .chain(&mut cache[0])
            {
                *x = T::of(0.0);
            }
            let mut history = History::new(Pattern::DENSE, 1.0);
            let one_hot = |x: f64| {
                let mut row = vec![0.0; DIM];
                row[0] = x;
                row
            };
            for position in 0..first + seq_len {
                let key = kept[position.min(before)];
                let value = if position < first {
                    let row = setup.layout.heads()[0]
                        .rows_of_position(position)
                        .next()
                        .unwrap();
                    cache[0][row * DIM] = T::of(key);
                    &cache[1][row * DIM..(row + 1) * DIM]
                } else {
                    let at = (position - first) * DIM;
                    chunk.key[at] = T::of(key);
                    chunk.query[at] = T::of(1.0);
                    &chunk.value[at..at + DIM]
                };
                history
                    .values
                    .push(value.iter().map(|v| v.real()).collect());
                history.keys.push(one_hot(key));
                history.queries.push(one_hot(1.0));
            }
            let output = run(&setup, machine, way, &chunk, &mut cache, in_chunk);
            let rounds = machine.rounds_operands(&setup.layout, element::<T>(), DIM, seq_len);
            for t in 0..seq_len {
                let want = history.attend(first + t);
                let rounded = history.attend_rounded::<T>(first + t);
                for (d, want) in want.iter().enumerate() {
                    // Weights that are rounded, of values up to 2: naive rounding has the luck of
                    // weights that are exactly 1.
                    let operands = match rounds {
                        true => 2.0 * (rounded[d] - want).abs() + 2.0 * T::UNIT,
                        false => 0.0,
                    };
                    // Scores near 1e4 have no digit left behind the point in f32.
                    let loose = if scores.iter().any(|s| s.abs() > 1e3) {
                        1e-3
                    } else {
                        2e-5
                    };
                    let tolerance = loose + T::UNIT * want.abs() + operands.max(0.0);
                    compare(output[t * DIM + d], *want, tolerance, || {
                        format!("{machine:?} in chunk {in_chunk} {scores:?} row {t} channel {d}")
                    });
                    points += 1;
                }
            }
        }
    }
    points
}

/// Queries, keys and values that are subnormal, or give such products.
fn tiny<T: Real>(machine: Machine, way: &Way) -> usize {
    let mut points = 0;
    for factor in [1e-20, 1e-38, 1e-39, 1e-44] {
        let patterns = vec![Pattern::DENSE, pattern(4, 3, 1), pattern(-1, 0, 0)];
        let setup = Setup::new(patterns.clone(), 40, 1, DIM);
        let (mut chunk, mut cache) = chunk::<T>(&setup, 3, 20, 0);
        for x in chunk.key.iter_mut().chain(&mut chunk.value) {
            *x = T::of(x.real() * factor);
        }
        let mut heads: Vec<_> = patterns
            .iter()
            .map(|&pattern| History::new(pattern, setup.scale))
            .collect();
        let output = run(&setup, machine, way, &chunk, &mut cache, false);
        for t in 0..chunk.seq_len {
            for (index, head) in heads.iter_mut().enumerate() {
                let at = t * setup.width() + index * DIM;
                let of =
                    |x: &[T]| -> Vec<f64> { x[at..at + DIM].iter().map(|x| x.real()).collect() };
                let tables = [&setup.cos[..], &setup.sin[..]];
                head.push::<T>(
                    &of(&chunk.query),
                    &of(&chunk.key),
                    &of(&chunk.value),
                    tables,
                );
                for (d, want) in head.attend(t).into_iter().enumerate() {
                    // What is flushed was less than the smallest normal number; each value may be.
                    let smallest = f64::from(f32::MIN_POSITIVE).max(T::SUBNORMAL);
                    let tolerance = 2.0 * smallest + 2.0 * (T::UNIT + 1e-6) * factor * 2.0;
                    compare(output[at + d], want, tolerance, || {
                        format!("{machine:?} {factor:e} row {t} head {index} channel {d}")
                    });
                    points += 1;
                }
            }
        }
    }
    points
}

#[test]
fn rows_without_keys_and_scores_without_numbers() {
    for machine in cpus() {
        let mut points = empty_parts(machine);
        for &control in Control::ALL {
            for way in &guarded(control) {
                points += only_itself::<f32>(machine, way);
                points += only_itself::<f16>(machine, way);
                points += only_itself::<bf16>(machine, way);
                for tokens in [1, 17] {
                    points += scores::<f32>(machine, way, tokens);
                    points += scores::<f16>(machine, way, tokens);
                    points += scores::<bf16>(machine, way, tokens);
                }
                points += tiny::<f32>(machine, way);
                points += tiny::<f16>(machine, way);
                points += tiny::<bf16>(machine, way);
            }
        }
        report("rows", machine, points, 2000);
    }
}

#[test]
fn rows_of_the_cuda_kernels_without_keys_and_scores_without_numbers() {
    for method in [AttentionMethod::Decode, AttentionMethod::Any] {
        let machine = Machine::attending(method);
        let way = &machine.ways()[0].1;
        let mut points = empty_parts(machine);
        points += scores::<f32>(machine, way, 1) + scores::<bf16>(machine, way, 1);
        report("rows", method, points, 2000);
    }
    for method in TILES {
        let machine = Machine::attending(method);
        let way = &machine.ways()[0].1;
        let mut points = only_itself::<bf16>(machine, way) + only_itself::<f16>(machine, way);
        points += scores::<bf16>(machine, way, 9) + scores::<f16>(machine, way, 9);
        points += tiny::<bf16>(machine, way);
        report("rows", method, points, 2000);
    }
}
