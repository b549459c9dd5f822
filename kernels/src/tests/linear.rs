//! `Linear` against f64.

mod problem;

use super::timing::best;
use super::{Real, Threads, assert_bits};
use crate::linear::matrix::Form;
use crate::{Isa, ParallelFor, Serial};
use half::{bf16, f16};
use problem::{Around, Problem, matrix, problem, values, weights};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::ops::linear::WeightType;
use ratplus_graphs::ops::{ElementType, Linear};
use ratplus_graphs::precision::Activations;
use ratplus_graphs::spec::Activation;
use std::hint::black_box;

/// Whether integers and their zero points are multiplied each with the row.
fn multiplies_apart(form: Form) -> bool {
    match form {
        #[cfg(target_arch = "x86_64")]
        Form::Lanes(_) => true,
        _ => false,
    }
}

fn agrees<T: Real>(seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for weight in weights() {
        for _ in 0..12 {
            let problem = problem::<T>(&mut rng, weight);
            for way in problem.ways() {
                let (model, sizes) = problem.model(multiplies_apart(way.1));
                let output = problem.run(way, &Serial);
                let n = problem.operator.out_features;
                for (at, (y, (&model, &size))) in
                    output.iter().zip(model.iter().zip(&sizes)).enumerate()
                {
                    let (slot, token) = (at / n / problem.seq_len, at / n % problem.seq_len);
                    let length = problem.seq_length[slot];
                    if !(0..=problem.seq_len as i64).contains(&length) {
                        assert!(y.real().is_nan());
                        continue;
                    }
                    if token as i64 >= length {
                        assert_eq!(y.real(), 0.0);
                        continue;
                    }
                    // Roundings of operands (norm, gate) may go the other way in `T`.
                    let operands = if problem.around == Around::Nothing {
                        0.0
                    } else {
                        T::UNIT
                    };
                    let bound =
                        2.5 * T::UNIT * model.abs() + size * (4e-6 + 0.1 * operands) + T::SUBNORMAL;
                    let bound = bound
                        + problem
                            .operator
                            .activation
                            .map_or(0.0, |_| 2.5 * T::UNIT * size);
                    assert!(
                        (y.real() - model).abs() <= bound,
                        "{way:?} {:?} {:?}: {} for {model}, off by {:e} of {bound:e}",
                        problem.operator,
                        problem.around,
                        y.real(),
                        (y.real() - model).abs()
                    );
                }
            }
        }
    }
}

#[test]
fn products_are_those_of_f64() {
    agrees::<f32>(1);
    agrees::<f16>(2);
    agrees::<bf16>(3);
}

/// Tasks backwards, as if other threads were faster.
struct Backwards(usize);

impl ParallelFor for Backwards {
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).rev().for_each(task);
    }

    fn threads(&self) -> usize {
        self.0
    }
}

fn bits_are_kept<T: Real>(seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let kinds = weights().into_iter().flat_map(|weight| {
        let integers = matches!(weight, WeightType::Blocks { .. });
        let activations = &Activations::ALL[..if integers { 2 } else { 1 }];
        activations
            .iter()
            .map(move |&activations| (weight, activations))
    });
    for (weight, activations) in kinds {
        for in_features in [96, 1504, 2500] {
            let operator = Linear {
                in_features,
                out_features: 150,
                weight,
                activations,
                activation: Some(Activation::Gelu),
                epsilon: Some(1e-6),
            };
            let (batch, seq_len) = (3, 7);
            let mut whole = Problem::<T> {
                batch,
                seq_len,
                seq_length: vec![7, 3, 6],
                input: values(&mut rng, batch * seq_len * in_features),
                norm: values(&mut rng, in_features),
                gate: Vec::new(),
                residual: None,
                matrix: matrix(&mut rng, &operator, false),
                operator,
                around: Around::Norm,
            };
            for way in whole.ways() {
                let together = whole.run(way, &Serial);
                for threads in [1, 2, 64] {
                    assert!(
                        whole
                            .run(way, &Backwards(threads))
                            .iter()
                            .zip(&together)
                            .all(|(a, b)| a.bits() == b.bits())
                    );
                }
                let input = whole.input.clone();
                let shape = (whole.batch, whole.seq_len, whole.seq_length.clone());
                for (slot, tokens) in [7, 3, 6].into_iter().enumerate() {
                    for token in 0..tokens {
                        let row = slot * seq_len + token;
                        whole.input = input[row * in_features..][..in_features].to_vec();
                        (whole.batch, whole.seq_len, whole.seq_length) = (1, 1, vec![1]);
                        let alone = whole.run(way, &Serial);
                        let beside = &together[row * 150..][..150];
                        assert!(
                            alone.iter().zip(beside).all(|(a, b)| a.bits() == b.bits()),
                            "{way:?} {weight:?} {in_features}"
                        );
                    }
                }
                whole.input = input;
                (whole.batch, whole.seq_len, whole.seq_length) = shape;
            }
        }
    }
}

/// What an operator before found of a slot's lengths is passed on.
#[test]
fn padding_is_nan_where_its_input_is() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for weight in weights() {
        let mut problem = problem::<bf16>(&mut rng, weight);
        let (k, n) = (problem.operator.in_features, problem.operator.out_features);
        (problem.batch, problem.seq_len, problem.seq_length) = (1, 3, vec![1]);
        problem.input = values(&mut rng, 3 * k);
        problem.input[2 * k..].fill(bf16::NAN);
        (problem.gate, problem.residual) = (Vec::new(), None);
        for way in problem.ways() {
            let output = problem.run(way, &Serial);
            let row = |row: usize| output[row * n..][..n].iter().map(|y| y.real());
            assert!(row(0).all(f64::is_finite) && row(1).all(|y| y == 0.0));
            assert!(row(2).all(f64::is_nan));
        }
    }
}

/// A row with something that is no number has none as its result, and those beside it are what they are
/// without it.
#[test]
fn what_is_no_number_stays_in_its_row() {
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    for weight in weights() {
        let integers = matches!(weight, WeightType::Blocks { .. });
        for &activations in &Activations::ALL[..if integers { 2 } else { 1 }] {
            let operator = Linear {
                in_features: 320,
                out_features: 33,
                weight,
                activations,
                activation: None,
                epsilon: None,
            };
            let (k, n, rows) = (operator.in_features, operator.out_features, 12);
            let matrix = matrix(&mut rng, &operator, true);
            let mut problem = Problem::<bf16>::bare(&mut rng, operator, rows, matrix);
            for way in problem.ways() {
                let clean = problem.run(way, &Serial);
                problem.input[5 * k + 300] = bf16::NAN;
                problem.input[7 * k + 1] = bf16::INFINITY;
                let output = problem.run(way, &Serial);
                problem.input[5 * k + 300] = bf16::ONE;
                problem.input[7 * k + 1] = bf16::ONE;
                let place = format!("{way:?} {activations}");
                for row in (0..rows).filter(|row| ![5, 7].contains(row)) {
                    let [output, clean] = [&output, &clean].map(|all| &all[row * n..][..n]);
                    assert_bits(output, clean, &place);
                }
                for row in [5, 7] {
                    let numbers = output[row * n..][..n].iter().filter(|y| y.is_finite());
                    assert_eq!(numbers.count(), 0, "{place} {row}");
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_beside_others() {
    bits_are_kept::<f32>(4);
    bits_are_kept::<f16>(5);
    bits_are_kept::<bf16>(6);
}

/// More rows than are summed at a time, and ends that fill no tile.
#[test]
fn a_row_has_the_same_bits_among_hundreds() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let operator = Linear {
        in_features: 1068,
        out_features: 50,
        weight: WeightType::Float(ElementType::BF16),
        activations: Activations::Float,
        activation: None,
        epsilon: None,
    };
    let (k, n, rows) = (operator.in_features, operator.out_features, 500);
    let matrix = matrix(&mut rng, &operator, false);
    let mut problem = Problem::<bf16>::bare(&mut rng, operator, rows, matrix);
    let input = problem.input.clone();
    for way in problem.ways() {
        (problem.seq_len, problem.seq_length) = (rows, vec![rows as i64]);
        problem.input.clone_from(&input);
        let together = problem.run(way, &Threads(2));
        for (first, count) in [(0, 1), (14, 3), (31, 9), (470, 17), (498, 2)] {
            (problem.seq_len, problem.seq_length) = (count, vec![count as i64]);
            problem.input = input[first * k..][..count * k].to_vec();
            let apart = problem.run(way, &Serial);
            let place = format!("{way:?}, rows from {first} on");
            assert_bits(&apart, &together[first * n..][..count * n], &place);
        }
    }
}

/// Products with a matrix larger than the caches, of one row, of eight and of a chunk.
pub(super) fn timing(isa: Isa) {
    timed::<f32>(isa, WeightType::Float(ElementType::F32));
    timed::<f16>(isa, WeightType::Float(ElementType::F16));
    timed::<bf16>(isa, WeightType::Float(ElementType::BF16));
    for bits in [4, 8] {
        let block_size = 32;
        let weight = WeightType::Blocks { bits, block_size };
        timed::<f32>(isa, weight);
        timed::<f16>(isa, weight);
        timed::<bf16>(isa, weight);
        timed_with::<bf16>(isa, weight, Activations::Int8);
    }
}

fn timed<T: Real>(isa: Isa, weight: WeightType) {
    timed_with::<T>(isa, weight, Activations::Float);
}

fn timed_with<T: Real>(isa: Isa, weight: WeightType, activations: Activations) {
    const REPEATED: usize = 256;
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut operator = Linear {
        in_features: 2048,
        out_features: 64,
        weight,
        activations,
        activation: None,
        epsilon: None,
    };
    let mut matrix = matrix(&mut rng, &operator, true);
    operator.out_features *= REPEATED;
    matrix.bytes = matrix.bytes.repeat(REPEATED);
    matrix.scales = matrix.scales.repeat(REPEATED);
    let size = matrix.bytes.len() + 4 * matrix.scales.len();
    let mut problem = Problem::<T>::bare(&mut rng, operator, 512, matrix);
    let way = (isa, Form::of::<T>(isa, &problem.operator));
    for rows in [1, 8, 512] {
        problem.seq_len = rows;
        problem.seq_length = vec![rows as i64];
        let [one, two] = [&Serial as &dyn ParallelFor, &Threads(2)].map(|pool| {
            best(pool, || {
                black_box(problem.run(way, pool));
            })
        });
        let flops =
            2.0 * (rows * problem.operator.in_features * problem.operator.out_features) as f64;
        println!(
            "{} {} linear of {rows} x {weight:?}, {activations}: {:.2} ms, {:.1} GB/s, {:.0} GFLOP/s; 2 threads {:.1} GB/s, \
             {:.0} GFLOP/s",
            isa.name(),
            T::TYPE,
            1e3 * one,
            1e-9 * size as f64 / one,
            1e-9 * flops / one,
            1e-9 * size as f64 / two,
            1e-9 * flops / two
        );
    }
}
