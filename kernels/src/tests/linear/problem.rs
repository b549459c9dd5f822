//! A product of `Linear`, what it is computed with, and what it is in f64.

#[cfg(target_arch = "x86_64")]
use crate::linear::matrix::Unit;
use crate::linear::{linear_as, matrix::Form};
#[cfg(unix)]
use crate::tests::Guarded;
use crate::tests::{Real, isas};
use crate::{Isa, LinearParams, ParallelFor, linear_workspace_bytes};
use half::{bf16, f16};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::ops::linear::WeightType;
use ratplus_graphs::ops::{ElementType, Linear};
use ratplus_graphs::precision::Activations;
use ratplus_graphs::spec::Activation;
use std::ptr::null;

/// A matrix as it is stored, and in f64.
pub(super) struct Matrix {
    pub bytes: Vec<u8>,
    pub scales: Vec<f32>,
    pub zero_points: Vec<u8>,
    pub real: Vec<f64>,
    /// Magnitudes where an integer and its zero point are multiplied each with the row.
    pub sizes: Vec<f64>,
}

pub(super) fn matrix(rng: &mut ChaCha8Rng, operator: &Linear, symmetric: bool) -> Matrix {
    let (n, k) = (operator.out_features, operator.in_features);
    let mut made = Matrix {
        bytes: Vec::new(),
        scales: Vec::new(),
        zero_points: Vec::new(),
        real: Vec::new(),
        sizes: Vec::new(),
    };
    match operator.weight {
        WeightType::Float(dtype) => {
            for _ in 0..n * k {
                let x: f32 = rng.random_range(-1.0..1.0);
                let (bytes, real) = match dtype {
                    ElementType::F16 => (
                        f16::of(x.into()).to_bits().to_le_bytes().to_vec(),
                        f16::of(x.into()).real(),
                    ),
                    ElementType::BF16 => (
                        bf16::of(x.into()).to_bits().to_le_bytes().to_vec(),
                        bf16::of(x.into()).real(),
                    ),
                    _ => (x.to_le_bytes().to_vec(), x.into()),
                };
                made.bytes.extend(bytes);
                made.real.push(real);
                made.sizes.push(real.abs());
            }
        }
        WeightType::Blocks { bits, block_size } => {
            let largest = (1 << bits) - 1;
            for _ in 0..n {
                let mut points = Vec::new();
                let mut row = Vec::new();
                for _ in 0..operator.blocks() {
                    let scale: f32 = rng.random_range(0.01..0.1);
                    made.scales.push(scale);
                    let zero = if symmetric {
                        1 << (bits - 1)
                    } else {
                        rng.random_range(0..=largest)
                    };
                    points.push(zero as u8);
                    for _ in 0..block_size {
                        let q: u32 = rng.random_range(0..=largest);
                        row.push(q as u8);
                        let [q, zero] = [q, zero].map(f64::from);
                        let middle = f64::from(1 << (bits - 1));
                        made.real.push(f64::from(scale) * (q - zero));
                        let size = (q - middle).abs() + (zero - middle).abs();
                        made.sizes.push(f64::from(scale) * size);
                    }
                }
                made.real.truncate(made.real.len() - (row.len() - k));
                made.sizes.truncate(made.real.len());
                for (values, to) in [(row, &mut made.bytes), (points, &mut made.zero_points)] {
                    match bits {
                        8 => to.extend(values),
                        _ => to.extend(
                            values
                                .chunks(2)
                                .map(|it| it[0] | it.get(1).unwrap_or(&0) << 4),
                        ),
                    }
                }
            }
            if symmetric {
                made.zero_points.clear();
            }
        }
    }
    made
}

/// What surrounds a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Around {
    Nothing,
    Norm,
    Gate,
}

pub(super) struct Problem<T> {
    pub operator: Linear,
    pub around: Around,
    pub batch: usize,
    pub seq_len: usize,
    pub seq_length: Vec<i64>,
    pub input: Vec<T>,
    pub norm: Vec<T>,
    pub gate: Vec<T>,
    pub residual: Option<Vec<T>>,
    pub matrix: Matrix,
}

fn pointer<T>(list: &[T]) -> *const T {
    if list.is_empty() {
        null()
    } else {
        list.as_ptr()
    }
}

impl<T: Real> Problem<T> {
    /// Random rows of one sequence, with nothing around the product.
    pub fn bare(rng: &mut ChaCha8Rng, operator: Linear, rows: usize, matrix: Matrix) -> Self {
        Self {
            batch: 1,
            seq_len: rows,
            seq_length: vec![rows as i64],
            input: values(rng, rows * operator.in_features),
            norm: Vec::new(),
            gate: Vec::new(),
            residual: None,
            matrix,
            operator,
            around: Around::Nothing,
        }
    }

    /// What the product can be computed with here.
    pub fn ways(&self) -> Vec<(Isa, Form)> {
        let mut ways: Vec<_> = isas()
            .into_iter()
            .map(|isa| (isa, Form::of::<T>(isa, &self.operator)))
            .collect();
        #[cfg(target_arch = "x86_64")]
        if let (ElementType::BF16, WeightType::Float(ElementType::BF16)) =
            (T::TYPE, self.operator.weight)
        {
            ways.extend(
                isas()
                    .into_iter()
                    .map(|isa| (isa, Form::Tiles(Unit::Manual))),
            );
        }
        ways
    }

    pub fn run(&self, (isa, form): (Isa, Form), pool: &dyn ParallelFor) -> Vec<T> {
        let rows = self.batch * self.seq_len;
        let bytes = linear_workspace_bytes(&self.operator, self.batch, self.seq_len);
        let mut workspace = vec![0xa5u8; bytes + 128];
        let start = workspace.as_ptr().align_offset(64);
        let mut output = vec![T::poison(); rows * self.operator.out_features];
        // What is read past the matrix ends the test.
        #[cfg(unix)]
        let guarded = (self.matrix.bytes.len() < 1 << 24).then(|| Guarded::new(&self.matrix.bytes));
        #[cfg(unix)]
        let weight = guarded.as_ref().map(|it| it.start);
        #[cfg(not(unix))]
        let weight = None;
        let params = LinearParams {
            operator: &self.operator,
            batch: self.batch,
            seq_len: self.seq_len,
            input: self.input.as_ptr(),
            weight: weight.unwrap_or(self.matrix.bytes.as_ptr()),
            seq_length: self.seq_length.as_ptr(),
            scales: pointer(&self.matrix.scales),
            zero_points: pointer(&self.matrix.zero_points),
            norm: pointer(&self.norm),
            gate: pointer(&self.gate),
            residual: self.residual.as_ref().map_or(null(), |it| it.as_ptr()),
            output: output.as_mut_ptr(),
        };
        // SAFETY: every buffer has its tensor's size.
        unsafe { linear_as(isa, form, &params, workspace[start..].as_mut_ptr(), pool) };
        let after = &workspace[start + bytes..];
        assert!(after.iter().all(|byte| *byte == 0xa5), "{form:?}");
        output
    }

    /// The output in f64, and for each sum what its error is measured against: the terms that there are
    /// where `apart`, integers and zero points are multiplied each with the row.
    pub fn model(&self, apart: bool) -> (Vec<f64>, Vec<f64>) {
        let Linear {
            in_features: k,
            out_features: n,
            ..
        } = self.operator;
        let round = |x: f64| T::of(x).real();
        let mut outputs = Vec::new();
        let mut sizes = Vec::new();
        for row in 0..self.batch * self.seq_len {
            let x: Vec<_> = self.input[row * k..][..k]
                .iter()
                .map(|x| x.real())
                .collect();
            let mean = x.iter().map(|x| x * x).sum::<f64>() / k as f64;
            let root = (mean + f64::from(self.operator.epsilon.unwrap_or(0.0))).sqrt();
            let x: Vec<_> = match self.around {
                Around::Nothing => x,
                Around::Norm => x
                    .iter()
                    .zip(&self.norm)
                    .map(|(x, w)| round(x / root * w.real()))
                    .collect(),
                Around::Gate => {
                    let gates = self.gate[row * k..].iter();
                    x.iter()
                        .zip(gates)
                        .map(|(x, g)| round(x / (1.0 + (-g.real()).exp())))
                        .collect()
                }
            };
            let x = match self.operator.activations {
                Activations::Int8 => x
                    .chunks(self.operator.block_size())
                    .flat_map(rounded_to_bytes)
                    .collect(),
                Activations::Float => x,
            };
            for column in 0..n {
                let w = &self.matrix.real[column * k..][..k];
                let sum: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                let terms = match apart {
                    true => &self.matrix.sizes[column * k..][..k],
                    false => w,
                };
                let mut size: f64 = x.iter().zip(terms).map(|(x, w)| (x * w).abs()).sum();
                let mut y = sum;
                if let Some(residual) = &self.residual {
                    let residual = residual[row * n + column].real();
                    y += residual;
                    size += residual.abs();
                }
                y = match self.operator.activation {
                    None => y,
                    Some(Activation::Gelu) => 0.5 * y * libm_erfc(-y / 2f64.sqrt()),
                    Some(Activation::FastGelu) => {
                        let inner =
                            (2.0 / std::f64::consts::PI).sqrt() * (y + 0.044715 * y * y * y);
                        0.5 * y * (1.0 + inner.tanh())
                    }
                    Some(Activation::Silu) => y / (1.0 + (-y).exp()),
                    Some(Activation::Relu) => y.max(0.0),
                    Some(Activation::ReluSquared) => {
                        size = 2.0 * size * size;
                        y.max(0.0) * y.max(0.0)
                    }
                };
                outputs.push(y);
                sizes.push(size);
            }
        }
        (outputs, sizes)
    }
}

/// In steps of a 127th of the largest magnitude, in f32.
fn rounded_to_bytes(block: &[f64]) -> Vec<f64> {
    let step = block
        .iter()
        .fold(0.0, |most: f32, x| most.max(x.abs() as f32))
        / 127.0;
    let rounded = |&x: &f64| match step {
        0.0 => 0.0,
        step => f64::from(step) * f64::from((x as f32 / step).round_ties_even()),
    };
    block.iter().map(rounded).collect()
}

/// `1 - erf(x)` by its series, or by its continued fraction where that converges sooner.
fn libm_erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - libm_erfc(-x);
    }
    if x < 2.5 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-18 {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        return 1.0 - 2.0 / std::f64::consts::PI.sqrt() * sum;
    }
    let mut fraction = 0.0;
    for n in (1..200).rev() {
        fraction = f64::from(n) / 2.0 / (x + fraction);
    }
    (-x * x).exp() / std::f64::consts::PI.sqrt() / (x + fraction)
}

pub(super) fn values<T: Real>(rng: &mut ChaCha8Rng, count: usize) -> Vec<T> {
    (0..count)
        .map(|_| T::of(rng.random_range(-1.0..1.0)))
        .collect()
}

pub(super) fn problem<T: Real>(rng: &mut ChaCha8Rng, weight: WeightType) -> Problem<T> {
    const SIZES: [usize; 9] = [1, 3, 16, 32, 33, 64, 100, 320, 1500];
    let sizes = [rng.random_range(0..SIZES.len()), rng.random_range(0..6)];
    let [in_features, out_features] = [SIZES[sizes[0]], [1, 3, 4, 17, 64, 150][sizes[1]]];
    let integers = matches!(weight, WeightType::Blocks { .. });
    let activations = Activations::ALL[usize::from(integers && rng.random_bool(0.5))];
    let around = match activations {
        Activations::Float => [Around::Nothing, Around::Norm, Around::Gate][rng.random_range(0..3)],
        // Elsewhere a rounding to `T` that goes the other way may take one to bytes with it.
        Activations::Int8 => Around::Nothing,
    };
    let functions = [
        None,
        Some(Activation::Gelu),
        Some(Activation::FastGelu),
        Some(Activation::Silu),
        Some(Activation::Relu),
        Some(Activation::ReluSquared),
    ];
    let activation = functions[rng.random_range(0..6)];
    let operator = Linear {
        in_features,
        out_features,
        weight,
        activations,
        activation,
        epsilon: (around == Around::Norm).then_some(1e-6),
    };
    let (batch, seq_len) = [(1, 1), (3, 1), (2, 5), (1, 40)][rng.random_range(0..4)];
    let rows = batch * seq_len;
    let sized = |wanted: bool, size| if wanted { size } else { 0 };
    let residual = activation.is_none() && rng.random_bool(0.5);
    let symmetric = rng.random_bool(0.5);
    Problem {
        batch,
        seq_len,
        seq_length: (0..batch)
            .map(|_| rng.random_range(-2..seq_len as i64 + 3))
            .collect(),
        input: values(rng, rows * in_features),
        norm: values(rng, sized(around == Around::Norm, in_features)),
        gate: values(rng, sized(around == Around::Gate, rows * in_features)),
        residual: residual.then(|| values(rng, rows * out_features)),
        matrix: matrix(rng, &operator, symmetric),
        operator,
        around,
    }
}

pub(super) fn weights() -> Vec<WeightType> {
    let floats = ElementType::ACTIVATIONS.map(WeightType::Float);
    let blocks = [(4, 16), (4, 32), (4, 128), (8, 16), (8, 64), (8, 256)];
    let blocks = blocks.map(|(bits, block_size)| WeightType::Blocks { bits, block_size });
    floats.into_iter().chain(blocks).collect()
}
