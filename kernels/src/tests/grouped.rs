//! Query heads that share keys: each has the bits that it has with keys of its own.

use super::attention::{Cache, Chunk, Setup, pattern, run};
use super::machine::Machine;
use super::{Real, assert_bits, random, rng};
use crate::cuda::AttentionMethod;
use half::{bf16, f16};
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::pattern::Pattern;

/// `[tokens, kv_heads, dim]` with every head as often as it is read.
fn repeated<T: Real>(tokens: &[T], group: usize, dim: usize) -> Vec<T> {
    let heads = tokens.chunks_exact(dim);
    let all = heads.flat_map(|head| std::iter::repeat_n(head, group).flatten());
    all.copied().collect()
}

/// Two slots run chunks of `lengths`, one of them one token less and then idle.
fn compare<T: Real>(
    machines: &[Machine],
    patterns: &[Pattern],
    group: usize,
    dim: usize,
    lengths: &[usize],
    rng: &mut ChaCha8Rng,
) {
    const BATCH: usize = 2;
    let max = lengths.iter().sum();
    let mut grouped = Setup::new(patterns.to_vec(), max, BATCH, dim);
    grouped.num_heads = group * patterns.len();
    let own = patterns.iter().flat_map(|&p| vec![p; group]).collect();
    let own = Setup::new(own, max, BATCH, dim);
    let fresh =
        |setup: &Setup| -> Cache<T> { [(); 2].map(|()| vec![T::poison(); BATCH * setup.cache()]) };
    for &machine in machines {
        for (name, way) in machine.ways() {
            let (mut cache, mut own_cache) = (fresh(&grouped), fresh(&own));
            let mut past = [0, 0];
            for (index, &seq_len) in lengths.iter().enumerate() {
                let other = if index == 0 { seq_len - 1 } else { 0 };
                let count = BATCH * seq_len * patterns.len() * dim;
                let chunk = Chunk {
                    seq_len,
                    query: random::<T>(rng, group * count, 2.0),
                    key: random::<T>(rng, count, 2.0),
                    value: random::<T>(rng, count, 2.0),
                    past: past.to_vec(),
                    seq: vec![seq_len as i64, other as i64],
                };
                let of_own = Chunk {
                    key: repeated(&chunk.key, group, dim),
                    value: repeated(&chunk.value, group, dim),
                    ..chunk.clone()
                };
                let aliased = index % 2 == 1;
                let found = run(&grouped, machine, &way, &chunk, &mut cache, aliased);
                let expected = run(&own, machine, &way, &of_own, &mut own_cache, aliased);
                let place =
                    format!("{machine:?} {name} {group} x {patterns:?} of {dim}, chunk {index}");
                assert_bits(&found, &expected, &place);
                past = [past[0] + seq_len as i64, past[1] + other as i64];
            }
            // Rows that were written are those of the first head of a group.
            for (slot, &length) in past.iter().enumerate() {
                for (kv, head) in grouped.layout.heads().iter().enumerate() {
                    let first = own.layout.heads()[kv * group];
                    for row in (0..head.rows)
                        .filter(|&row| head.position_of_row(row, length as usize).is_some())
                    {
                        for side in 0..2 {
                            let at = slot * grouped.cache() + (head.offset + row) * dim;
                            let from = slot * own.cache() + (first.offset + row) * dim;
                            let place = format!("{machine:?} {name} row {row} of {kv}");
                            assert_bits(
                                &cache[side][at..at + dim],
                                &own_cache[side][from..from + dim],
                                &place,
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn grouped_heads_have_the_bits_of_heads_with_the_same_keys() {
    let (mut rng, cpus) = (rng(18), Machine::cpus());
    let hybrid = [pattern(1, 0, 0), pattern(4, 9, 3), pattern(-1, 5, 1)];
    for group in [2, 3, 4, 5, 8] {
        for dim in [6, 64] {
            // Decode steps, queries one by one, and tiles.
            let lengths = [1, 1, 5, 140, 1, 1];
            compare::<f32>(&cpus, &hybrid, group, dim, &lengths, &mut rng);
            compare::<f16>(&cpus, &hybrid[..2], group, dim, &lengths, &mut rng);
            compare::<bf16>(&cpus, &hybrid[1..], group, dim, &lengths, &mut rng);
        }
    }
    // More keys than one part of a decode step has; and what AVX-512's bf16 products take.
    compare::<bf16>(&cpus, &hybrid[..1], 4, 128, &[1200, 1, 1], &mut rng);
    compare::<f32>(&cpus, &hybrid[..1], 7, 16, &[1200, 1], &mut rng);
}

/// As long as no block shares its rows, which depends on the number of heads.
#[test]
fn grouped_heads_have_the_bits_of_heads_with_the_same_keys_on_the_emulator() {
    let mut rng = rng(19);
    let hybrid = [pattern(1, 0, 0), pattern(4, 9, 3)];
    let lengths = [1, 5, 70, 1, 1];
    for group in [2, 3] {
        compare::<f32>(&[Machine::GPU], &hybrid, group, 6, &lengths, &mut rng);
        compare::<f16>(&[Machine::GPU], &hybrid, group, 64, &lengths, &mut rng);
    }
    for method in [
        AttentionMethod::Tiles,
        AttentionMethod::SmallTiles,
        AttentionMethod::Hopper,
        AttentionMethod::SmallHopper,
    ] {
        let machine = Machine::attending(method);
        compare::<bf16>(&[machine], &hybrid, 4, 64, &[5, 150], &mut rng);
    }
}

/// A sequence whose rows many blocks share, against the CPU.
#[test]
fn shared_rows_of_grouped_heads_are_merged() {
    const DIM: usize = 64;
    let mut setup = Setup::new(vec![pattern(1, 0, 0), pattern(-1, 700, 2)], 1500, 1, DIM);
    setup.num_heads = 6;
    let mut rng = rng(20);
    let mut chunk = |seq_len: usize, past: i64| Chunk {
        seq_len,
        query: random::<f32>(&mut rng, seq_len * setup.width(), 2.0),
        key: random::<f32>(&mut rng, seq_len * 2 * DIM, 2.0),
        value: random::<f32>(&mut rng, seq_len * 2 * DIM, 2.0),
        past: vec![past],
        seq: vec![seq_len as i64],
    };
    let chunks = [chunk(1200, 0), chunk(1, 1200), chunk(1, 1201)];
    let cpu = Machine::cpus()[0];
    let mut cache: Cache<f32> = [(); 2].map(|()| vec![f32::NAN; setup.cache()]);
    let (_, plain) = &cpu.ways()[0];
    run(&setup, cpu, plain, &chunks[0], &mut cache, true);
    for (name, way) in Machine::GPU.ways() {
        let (mut theirs, mut ours) = (cache.clone(), cache.clone());
        for chunk in &chunks[1..] {
            let expected = run(&setup, cpu, plain, chunk, &mut ours, true);
            let found = run(&setup, Machine::GPU, &way, chunk, &mut theirs, true);
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let error = (found - expected).abs();
                assert!(
                    error < 2e-5,
                    "{name} channel {at}: {found} is not {expected}"
                );
            }
        }
    }
}
