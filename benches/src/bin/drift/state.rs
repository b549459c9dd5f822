//! The recurrence one token at a time: in f64, by the kernels, and rounded to bf16.

use half::bf16;
use ratplus_kernels::{Isa, ScanParams, Serial, recurrence_scan_on};

/// Tokens of a sequence, `[T, N]`.
pub struct Tokens {
    pub channels: usize,
    /// Logits.
    pub gate: Vec<f32>,
    pub value: Vec<f32>,
}

/// One channel of ones.
pub fn constant(gate: f64, tokens: usize) -> Tokens {
    Tokens {
        channels: 1,
        gate: vec![logit(gate); tokens],
        value: vec![1.0; tokens],
    }
}

/// 64 channels of values in -1..1.
pub fn noise(gate: f64, tokens: usize) -> Tokens {
    const CHANNELS: usize = 64;
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    Tokens {
        channels: CHANNELS,
        gate: vec![logit(gate); tokens * CHANNELS],
        value: (0..tokens * CHANNELS).map(|_| next()).collect(),
    }
}

fn logit(gate: f64) -> f32 {
    (gate / (1.0 - gate)).ln() as f32
}

/// States at some steps.
pub struct Drift {
    pub at: Vec<Point>,
}

/// States after a number of tokens.
pub struct Point {
    /// The first channel in f64, f32 and bf16.
    pub first: [f64; 3],
    /// Root mean square over channels of the error of f32 and of bf16, relative to the state's.
    pub error: [f64; 2],
}

impl Drift {
    /// Carries `tokens` and looks after each of `steps`, ascending.
    pub fn of(tokens: &Tokens, steps: &[usize]) -> Self {
        let channels = tokens.channels;
        let mut exact = vec![0f64; channels];
        let mut single = [vec![0f32; channels], vec![0f32; channels]];
        let mut rounded = vec![bf16::ZERO; channels];
        let mut at = Vec::new();
        let rows = tokens
            .gate
            .chunks(channels)
            .zip(tokens.value.chunks(channels));
        for (step, (gate, value)) in (1..).zip(rows) {
            for c in 0..channels {
                let (z, x) = (f64::from(gate[c]), f64::from(value[c]));
                exact[c] = exact[c] / (1.0 + (-z).exp()) + x / (1.0 + z.exp());
                rounded[c] = official_step(gate[c], rounded[c], value[c]);
            }
            kernel_step(step as i64 - 1, gate, value, &mut single);
            if steps.contains(&step) {
                let error = |state: &dyn Fn(usize) -> f64| {
                    let sum = |f: &dyn Fn(usize) -> f64| (0..channels).map(f).sum::<f64>();
                    let wrong = sum(&|c| (state(c) - exact[c]).powi(2));
                    (wrong / sum(&|c| exact[c].powi(2))).sqrt()
                };
                at.push(Point {
                    first: [exact[0], single[1][0].into(), rounded[0].into()],
                    error: [
                        error(&|c| single[1][c].into()),
                        error(&|c| rounded[c].into()),
                    ],
                });
            }
        }
        Self { at }
    }
}

/// The released step: gate and products in f32, the state rounded to the weights' bf16.
fn official_step(gate: f32, state: bf16, value: f32) -> bf16 {
    let gate = (1.0 / (1.0 + (-f64::from(gate)).exp())) as f32;
    bf16::from_f32(gate * state.to_f32() + (1.0 - gate) * value)
}

/// Our step of one token, in place.
#[allow(unsafe_code)]
fn kernel_step(past: i64, gate: &[f32], value: &[f32], state: &mut [Vec<f32>; 2]) {
    let mut gated = [vec![0f32; gate.len()], vec![0f32; gate.len()]];
    let [gated_key, gated_value] = gated.each_mut().map(|row| row.as_mut_ptr());
    let [state_key, state_value] = state.each_mut().map(|row| row.as_mut_ptr());
    let params = ScanParams {
        batch: 1,
        seq_len: 1,
        max_seq_len: None,
        channels: gate.len(),
        key: value.as_ptr(),
        value: value.as_ptr(),
        gate: gate.as_ptr(),
        state_key,
        state_value,
        past_length: &past,
        seq_length: &1,
        gated_key,
        gated_value,
        new_state_key: state_key,
        new_state_value: state_value,
    };
    // SAFETY: rows of `channels` elements, states updated in place; every machine is portable.
    let done = unsafe { recurrence_scan_on(Isa::Portable, &params, &Serial) };
    done.unwrap_or_else(|error| unreachable!("one token: {error}"));
}
