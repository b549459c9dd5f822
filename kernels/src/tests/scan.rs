use super::machine::{Machine, Way};
use super::{Real, assert_bits, model, random, rng};
use crate::cuda::ScanMethod;
use crate::{ScanParams, Serial, recurrence_scan};
use approx::{assert_abs_diff_eq, relative_eq};
use half::{bf16, f16};
use proptest::prelude::*;
use rand::Rng;
use ratplus_tests::times;
use std::ops::Range;

/// The tensors of one call.
#[derive(Clone)]
pub(super) struct Call<T> {
    pub(super) batch: usize,
    pub(super) seq_len: usize,
    pub(super) channels: usize,
    pub(super) key: Vec<T>,
    pub(super) value: Vec<T>,
    pub(super) gate: Vec<T>,
    pub(super) past: Vec<i64>,
    pub(super) seq: Vec<i64>,
    pub(super) gated_key: Vec<T>,
    pub(super) gated_value: Vec<T>,
}

impl<T: Real> Call<T> {
    /// Runs on `state`, in place or into a buffer that held NaN.
    pub(super) fn run(
        &mut self,
        machine: Machine,
        way: &Way,
        state: &mut [Vec<f32>; 2],
        aliased: bool,
    ) {
        let mut fresh = state.clone().map(|s| vec![f32::NAN; s.len()]);
        let new = if aliased {
            [state[0].as_mut_ptr(), state[1].as_mut_ptr()]
        } else {
            [fresh[0].as_mut_ptr(), fresh[1].as_mut_ptr()]
        };
        self.gated_key.fill(T::poison());
        self.gated_value.fill(T::poison());
        let old = if aliased {
            [new[0].cast_const(), new[1].cast_const()]
        } else {
            [state[0].as_ptr(), state[1].as_ptr()]
        };
        let params = ScanParams {
            batch: self.batch,
            seq_len: self.seq_len,
            max_seq_len: None,
            channels: self.channels,
            key: self.key.as_ptr(),
            value: self.value.as_ptr(),
            gate: self.gate.as_ptr(),
            state_key: old[0],
            state_value: old[1],
            past_length: self.past.as_ptr(),
            seq_length: self.seq.as_ptr(),
            gated_key: self.gated_key.as_mut_ptr(),
            gated_value: self.gated_value.as_mut_ptr(),
            new_state_key: new[0],
            new_state_value: new[1],
        };
        // SAFETY: every buffer has its tensor's size.
        unsafe { machine.scan(way, &params) };
        if !aliased {
            *state = fresh;
        }
    }

    /// Where token `t` of `slot` lies.
    pub(super) fn row(&self, slot: usize, t: usize) -> Range<usize> {
        let at = (slot * self.seq_len + t) * self.channels;
        at..at + self.channels
    }
}

fn reals<T: Real>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| v.real()).collect()
}

/// Sequences of `batch` slots fed in random chunks; every chunk compared with the model, every
/// pool and aliasing with the serial run.
pub(super) fn replay<T: Real>(
    machine: Machine,
    seed: u64,
    batch: usize,
    channels: usize,
    steps: usize,
    lengths: Range<usize>,
    limit: f64,
) {
    let mut rng = rng(seed);
    let mut state = [(); 2].map(|()| vec![f32::NAN; batch * channels]);
    let mut history = vec![[vec![], vec![], vec![]]; batch];
    for _ in 0..steps {
        let seq_len = if lengths.start == 1 && rng.random_bool(0.4) {
            1
        } else {
            rng.random_range(lengths.clone())
        };
        let count = batch * seq_len * channels;
        let mut call = Call {
            batch,
            seq_len,
            channels,
            key: random::<T>(&mut rng, count, 2.0),
            value: random::<T>(&mut rng, count, 2.0),
            gate: random::<T>(&mut rng, count, limit),
            past: vec![],
            seq: vec![],
            gated_key: vec![T::poison(); count],
            gated_value: vec![T::poison(); count],
        };
        for slot in 0..batch {
            if rng.random_bool(0.1) {
                // Starts over; whatever the state holds must not matter.
                history[slot] = [vec![], vec![], vec![]];
                state
                    .iter_mut()
                    .for_each(|s| s[slot * channels..][..channels].fill(f32::NAN));
            }
            call.past.push(history[slot][0].len() as i64);
            let tokens = match rng.random_range(0..4) {
                0 => 0,
                1 => seq_len,
                _ => rng.random_range(0..=seq_len),
            };
            call.seq.push(tokens as i64);
            for t in 0..seq_len {
                let row = call.row(slot, t);
                if t < tokens {
                    if rng.random_bool(0.2) {
                        call.gate[row.start] = T::of(f64::INFINITY);
                        call.gate[row.end - 1] = T::of(f64::NEG_INFINITY);
                    }
                    history[slot][0].push(reals(&call.key[row.clone()]));
                    history[slot][1].push(reals(&call.value[row.clone()]));
                    history[slot][2].push(reals(&call.gate[row]));
                } else {
                    for buffer in [&mut call.key, &mut call.value, &mut call.gate] {
                        buffer[row.clone()].fill(T::poison());
                    }
                }
            }
        }
        let before = state.clone();
        let ways = machine.ways();
        call.run(machine, &ways[0].1, &mut state, false);
        for (index, (name, way)) in ways.iter().enumerate() {
            for &aliased in machine.aliasings(index) {
                let (mut other, mut other_state) = (call.clone(), before.clone());
                other.run(machine, way, &mut other_state, aliased);
                let place = format!("{machine:?} {name} aliased {aliased}");
                assert_bits(&call.gated_key, &other.gated_key, &place);
                assert_bits(&call.gated_value, &other.gated_value, &place);
                for i in 0..2 {
                    assert_bits(&state[i], &other_state[i], &place);
                }
            }
        }
        for slot in 0..batch {
            let tokens = call.seq[slot] as usize;
            let own = slot * channels..(slot + 1) * channels;
            for which in 0..2 {
                let result = [&call.gated_key, &call.gated_value][which];
                let expected = model::scan(&history[slot][which], &history[slot][2]);
                let past = call.past[slot] as usize;
                for t in 0..seq_len {
                    for (c, got) in result[call.row(slot, t)].iter().enumerate() {
                        if t >= tokens {
                            assert_eq!(got.bits(), 0, "{machine:?} slot {slot} padded row {t}");
                            continue;
                        }
                        let want = expected[past + t][c];
                        let error = (got.real() - want).abs();
                        // Inputs are up to 2.
                        assert!(
                            error <= T::UNIT * want.abs() + 2e-5,
                            "{machine:?} slot {slot} row {t} channel {c}: {} is not {want}",
                            got.real()
                        );
                    }
                }
                if tokens == 0 {
                    assert_bits(
                        &state[which][own.clone()],
                        &before[which][own.clone()],
                        "idle",
                    );
                } else {
                    let last = expected.last().unwrap();
                    for (got, want) in state[which][own.clone()].iter().zip(last) {
                        assert_abs_diff_eq!(f64::from(*got), *want, epsilon = 2e-5);
                    }
                }
            }
        }
        isolation(machine, &call, &before, &state);
    }
}

/// Runs again with NaN in every slot but one: that one's bits stay.
fn isolation<T: Real>(
    machine: Machine,
    call: &Call<T>,
    before: &[Vec<f32>; 2],
    after: &[Vec<f32>; 2],
) {
    for slot in 0..call.batch {
        let (mut other, mut state) = (call.clone(), before.clone());
        let rows = call.row(slot, 0).start..call.row(slot, call.seq_len).start;
        let own = slot * call.channels..(slot + 1) * call.channels;
        for buffer in [&mut other.key, &mut other.value, &mut other.gate] {
            for (i, x) in buffer.iter_mut().enumerate() {
                if !rows.contains(&i) {
                    *x = T::poison();
                }
            }
        }
        for s in &mut state {
            for (i, x) in s.iter_mut().enumerate() {
                if !own.contains(&i) {
                    *x = f32::NAN;
                }
            }
        }
        other.run(machine, &machine.ways()[0].1, &mut state, true);
        let place = format!("{machine:?} slot {slot}");
        assert_bits(
            &call.gated_key[rows.clone()],
            &other.gated_key[rows.clone()],
            &place,
        );
        assert_bits(
            &call.gated_value[rows.clone()],
            &other.gated_value[rows],
            &place,
        );
        for i in 0..2 {
            assert_bits(&after[i][own.clone()], &state[i][own.clone()], &place);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(times(40) as u32))]

    #[test]
    fn any_chunking_agrees_with_the_model(
        seed: u64, batch in 1usize..4, channels in 1usize..150, limit in 0.1..60f64,
    ) {
        for machine in Machine::cpus() {
            replay::<f32>(machine, seed, batch, channels, 4, 1..40, limit);
            replay::<f16>(machine, seed, batch, channels, 4, 1..40, limit);
            replay::<bf16>(machine, seed, batch, channels, 4, 1..40, limit);
        }
    }
}

#[test]
fn many_channels_are_split_into_tasks() {
    for machine in Machine::cpus() {
        replay::<f32>(machine, 1, 2, 1030, 3, 1..40, 4.0);
        replay::<bf16>(machine, 2, 1, 5000, 2, 1..40, 4.0);
    }
}

#[test]
fn nearly_closed_gates_still_let_tokens_in() {
    // 1 - sigmoid(17) is below the spacing of f32 at 1: a rounded gate would keep the state at 0
    // for ever.
    let (tokens, channels) = (4096, 4);
    let ones = vec![1f32; tokens * channels];
    let methods = [
        ScanMethod::Serial,
        ScanMethod::ThreeLaunches,
        ScanMethod::SinglePass,
    ];
    let gpu = methods.map(Machine::scanning);
    for machine in Machine::cpus().into_iter().chain(gpu) {
        let mut call = Call {
            batch: 1,
            seq_len: tokens,
            channels,
            key: ones.clone(),
            value: ones.clone(),
            gate: vec![17.0; tokens * channels],
            past: vec![0],
            seq: vec![tokens as i64],
            gated_key: ones.clone(),
            gated_value: ones.clone(),
        };
        call.run(
            machine,
            &machine.ways()[0].1,
            &mut [vec![0.0; channels], vec![0.0; channels]],
            true,
        );
        let expected = model::scan(&vec![vec![1.0]; tokens], &vec![vec![17.0]; tokens]);
        let (got, want) = (
            f64::from(call.gated_key[tokens * channels - 1]),
            expected[tokens - 1][0],
        );
        assert!(
            relative_eq!(got, want, max_relative = 1e-4),
            "{machine:?}: {got} is not {want}"
        );
    }
}

#[test]
fn impossible_lengths_are_refused_before_anything_is_written() {
    let (x, state) = ([1f32; 8], [0f32; 4]);
    let (mut out, mut new) = ([[7f32; 8]; 2], [[7f32; 4]; 2]);
    for lengths in [[0i64, 3], [0, -1]] {
        let [key, value] = &mut out;
        let [new_key, new_value] = &mut new;
        let params = ScanParams {
            batch: 2,
            seq_len: 2,
            max_seq_len: None,
            channels: 2,
            key: x.as_ptr(),
            value: x.as_ptr(),
            gate: x.as_ptr(),
            state_key: state.as_ptr(),
            state_value: state.as_ptr(),
            past_length: [0i64, 0].as_ptr(),
            seq_length: lengths.as_ptr(),
            gated_key: key.as_mut_ptr(),
            gated_value: value.as_mut_ptr(),
            new_state_key: new_key.as_mut_ptr(),
            new_state_value: new_value.as_mut_ptr(),
        };
        // SAFETY: every buffer has its tensor's size.
        let error = unsafe { recurrence_scan(&params, &Serial) }.unwrap_err();
        assert_eq!(error.slot, 1);
        assert_eq!((out, new), ([[7.0; 8]; 2], [[7.0; 4]; 2]));
    }
}
