//! The CUDA attention on the emulator: every method over the property cases of the CPU kernels.

use super::attention::{Chunks, Setup, pattern, patterns, replay, types_on};
use super::machine::Machine;
use crate::cuda::AttentionMethod;
use half::{bf16, f16};
use proptest::prelude::*;
use ratplus_graphs::pattern::Pattern;

const TILES: [AttentionMethod; 4] = [
    AttentionMethod::Tiles,
    AttentionMethod::SmallTiles,
    AttentionMethod::Hopper,
    AttentionMethod::SmallHopper,
];

/// Ten dilations, ends of the ranges of windows and initial tokens, and some between.
fn small_patterns() -> impl Iterator<Item = Vec<Pattern>> {
    let dilations = [-1, 1, 2, 3, 4, 5, 6, 7, 8, 9];
    [(0, 0), (0, 3), (1, 0), (1, 9), (2, 1), (5, 4), (9, 2)]
        .into_iter()
        .map(move |(window, initial)| dilations.map(|d| pattern(d, window, initial)).to_vec())
}

#[test]
fn every_small_pattern_in_random_chunks() {
    for (seed, patterns) in small_patterns().enumerate() {
        let setup = Setup::new(patterns, 37, 2, 4);
        replay::<f32>(&setup, Machine::GPU, seed as u64, 60, Chunks::Random);
    }
}

#[test]
fn every_small_pattern_in_tiles_and_in_decoding() {
    for (seed, patterns) in small_patterns().enumerate() {
        let setup = Setup::new(patterns, 37, 1, 64);
        for method in TILES {
            let machine = Machine::attending(method);
            replay::<bf16>(&setup, machine, seed as u64, 60, Chunks::Random);
        }
        replay::<f16>(&setup, Machine::GPU, seed as u64, 37, Chunks::Then(7, 1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn any_chunking_agrees_with_the_model(
        patterns in patterns(), seed: u64, max in 1usize..200, batch in 1usize..3, half in 1usize..20,
    ) {
        let setup = Setup::new(patterns, max, batch, 2 * half);
        types_on(Machine::GPU, &setup, seed, max, Chunks::Random);
    }

    #[test]
    fn any_chunking_in_tiles_agrees_with_the_model(
        patterns in patterns(), seed: u64, max in 1usize..400, batch in 1usize..3, wide: bool,
    ) {
        let setup = Setup::new(patterns, max, batch, if wide { 128 } else { 64 });
        for method in TILES {
            let machine = Machine::attending(method);
            replay::<f16>(&setup, machine, seed, max, Chunks::Random);
            replay::<bf16>(&setup, machine, seed, max, Chunks::Random);
        }
    }
}

#[test]
fn usual_head_dimensions() {
    let patterns = vec![
        Pattern::DENSE,
        pattern(16, 0, 4),
        pattern(4, 70, 2),
        pattern(-1, 33, 5),
    ];
    for (dim, seed) in [(64, 1), (128, 2), (80, 3), (256, 4)] {
        let setup = Setup::new(patterns.clone(), 300, 1, dim);
        types_on(Machine::GPU, &setup, seed, 300, Chunks::Fixed(130));
    }
    let setup = Setup::new(patterns, 300, 1, 128);
    for method in TILES {
        let machine = Machine::attending(method);
        replay::<bf16>(&setup, machine, 5, 300, Chunks::Fixed(150));
    }
}

#[test]
fn decoding_splits_the_rows_of_a_head() {
    // Four multiprocessors: one head of 1200 rows is worth five blocks. The ring is read by some
    // of them while another writes the new token to it.
    for (patterns, seed) in [
        (vec![Pattern::DENSE], 1),
        (vec![pattern(2, 600, 3)], 2),
        (vec![pattern(-1, 900, 0), pattern(64, 0, 4)], 3),
    ] {
        let setup = Setup::new(patterns, 1200, 1, 64);
        replay::<f32>(&setup, Machine::GPU, seed, 1104, Chunks::Then(1100, 1));
        replay::<bf16>(&setup, Machine::GPU, seed, 1104, Chunks::Then(1100, 1));
    }
}

#[test]
fn more_heads_than_one_launch_takes() {
    let patterns: Vec<_> = (0..70)
        .map(|head| pattern(1 + head % 5, head % 3, head % 4))
        .collect();
    let setup = Setup::new(patterns, 20, 2, 2);
    replay::<f32>(&setup, Machine::GPU, 1, 30, Chunks::Random);
    let setup = Setup::new(
        (0..66).map(|head| pattern(2, head % 2, 0)).collect(),
        12,
        1,
        64,
    );
    replay::<bf16>(&setup, Machine::GPU, 2, 12, Chunks::Then(8, 1));
}

#[test]
fn chunks_longer_than_the_window_write_each_ring_row_once() {
    let patterns = vec![pattern(-1, 5, 3), pattern(3, 7, 0), pattern(50, 1, 60)];
    for length in [1, 6, 65, 200] {
        let setup = Setup::new(patterns.clone(), 200, 1, 8);
        replay::<f32>(&setup, Machine::GPU, 7, 200, Chunks::Fixed(length));
    }
    let setup = Setup::new(patterns, 200, 1, 64);
    for method in TILES {
        replay::<f16>(
            &setup,
            Machine::attending(method),
            7,
            200,
            Chunks::Fixed(65),
        );
    }
}
