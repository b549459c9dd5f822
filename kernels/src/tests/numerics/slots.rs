//! Slots do not see each other: a slot's bytes over a thousand fillings of the others.

use super::{cpus, report};
use crate::Serial;
use crate::tests::attention::{Cache, Chunk, Setup, pattern, run};
use crate::tests::machine::{Machine, Way};
use crate::tests::scan::Call;
use crate::tests::{Real, Threads, assert_bits, random, rng};
use half::{bf16, f16};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::pattern::Pattern;
use std::ops::Range;

const BATCH: usize = 3;

/// What fills the other slots.
#[derive(Clone, Copy, Debug)]
enum Filling {
    Random,
    Poison(f64),
}

impl Filling {
    /// Most are random; now and then one other slot, each in turn, holds what is no number.
    fn of(slot: usize, own: usize, trial: usize) -> Self {
        const POISON: [f64; 3] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        let turn = (own + 1 + trial % (BATCH - 1)) % BATCH;
        match trial % 4 {
            3 if slot == turn => Self::Poison(POISON[trial / 4 % POISON.len()]),
            _ => Self::Random,
        }
    }

    fn fill<T: Real>(self, rng: &mut ChaCha8Rng, to: &mut [T]) {
        match self {
            Self::Random => {
                let limit = [0.1, 2.0, 60.0][rng.random_range(0..3)];
                to.copy_from_slice(&random::<T>(rng, to.len(), limit));
            }
            Self::Poison(value) => to.fill(T::of(value)),
        }
    }
}

fn of_slot(slot: usize, each: usize) -> Range<usize> {
    slot * each..(slot + 1) * each
}

/// A past and a number of tokens, for all slots but `own`.
fn lengths(rng: &mut ChaCha8Rng, own: usize, seq_len: usize, past: &mut [i64], seq: &mut [i64]) {
    for slot in (0..BATCH).filter(|&slot| slot != own) {
        past[slot] = rng.random_range(0..20);
        seq[slot] = rng.random_range(0..=seq_len as i64);
    }
}

fn ways(trial: usize) -> Way {
    match trial % 50 {
        0 => Way::Pool(Box::new(Threads(2))),
        _ => Way::Pool(Box::new(Serial)),
    }
}

/// `trials` fillings around each slot in turn, for a scan of `seq_len` tokens.
fn scans<T: Real>(machine: Machine, seq_len: usize, trials: usize, way: &dyn Fn(usize) -> Way) {
    const CHANNELS: usize = 40;
    let mut rng = rng(1);
    let each = seq_len * CHANNELS;
    let mut next = || random::<T>(&mut rng, BATCH * each, 4.0);
    let mut call = Call {
        batch: BATCH,
        seq_len,
        channels: CHANNELS,
        key: next(),
        value: next(),
        gate: next(),
        past: vec![7; BATCH],
        seq: vec![seq_len as i64; BATCH],
        gated_key: vec![],
        gated_value: vec![],
    };
    call.gated_key = vec![T::poison(); BATCH * each];
    call.gated_value = call.gated_key.clone();
    let before = [(); 2].map(|()| random::<f32>(&mut rng, BATCH * CHANNELS, 2.0));
    let mut after = before.clone();
    call.run(machine, &way(0), &mut after, false);
    for trial in 0..trials {
        let own = trial % BATCH;
        let (mut other, mut state) = (call.clone(), before.clone());
        for slot in (0..BATCH).filter(|&slot| slot != own) {
            let filling = Filling::of(slot, own, trial);
            for buffer in [&mut other.key, &mut other.value, &mut other.gate] {
                filling.fill(&mut rng, &mut buffer[of_slot(slot, each)]);
            }
            for state in &mut state {
                filling.fill(&mut rng, &mut state[of_slot(slot, CHANNELS)]);
            }
        }
        lengths(&mut rng, own, seq_len, &mut other.past, &mut other.seq);
        other.run(machine, &way(trial), &mut state, trial.is_multiple_of(2));
        let place = format!("{machine:?} slot {own}, filling {trial}");
        let rows = of_slot(own, each);
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
        for (after, state) in after.iter().zip(&state) {
            let own = of_slot(own, CHANNELS);
            assert_bits(&after[own.clone()], &state[own], &place);
        }
    }
}

/// [`scans`] for the attention.
fn attentions<T: Real>(
    machine: Machine,
    seq_len: usize,
    trials: usize,
    way: &dyn Fn(usize) -> Way,
) {
    let patterns = vec![Pattern::DENSE, pattern(4, 3, 1), pattern(-1, 5, 2)];
    let setup = Setup::new(patterns, 40, BATCH, 64);
    let mut rng = rng(2);
    let each = seq_len * setup.width();
    let mut next = |count: usize| random::<T>(&mut rng, BATCH * count, 2.0);
    let chunk = Chunk {
        seq_len,
        query: next(each),
        key: next(each),
        value: next(each),
        past: vec![11; BATCH],
        seq: vec![seq_len as i64; BATCH],
    };
    let before: Cache<T> = [next(setup.cache()), next(setup.cache())];
    let mut after = before.clone();
    let output = run(&setup, machine, &way(0), &chunk, &mut after, false);
    for trial in 0..trials {
        let own = trial % BATCH;
        let (mut other, mut cache) = (chunk.clone(), before.clone());
        for slot in (0..BATCH).filter(|&slot| slot != own) {
            let filling = Filling::of(slot, own, trial);
            for buffer in [&mut other.query, &mut other.key, &mut other.value] {
                filling.fill(&mut rng, &mut buffer[of_slot(slot, each)]);
            }
            for cache in &mut cache {
                filling.fill(&mut rng, &mut cache[of_slot(slot, setup.cache())]);
            }
        }
        lengths(&mut rng, own, seq_len, &mut other.past, &mut other.seq);
        let again = run(
            &setup,
            machine,
            &way(trial),
            &other,
            &mut cache,
            trial.is_multiple_of(2),
        );
        let place = format!("{machine:?} slot {own}, filling {trial}");
        let rows = of_slot(own, each);
        assert_bits(&output[rows.clone()], &again[rows], &place);
        for (after, cache) in after.iter().zip(&cache) {
            let own = of_slot(own, setup.cache());
            assert_bits(&after[own.clone()], &cache[own], &place);
        }
    }
}

#[test]
fn a_thousand_fillings_of_the_other_slots_change_no_byte() {
    // One token, and enough for tiles; 3 types: 1,002 of each operator.
    const EACH: usize = 167;
    for machine in cpus() {
        for seq_len in [1, 12] {
            scans::<f32>(machine, seq_len, EACH, &ways);
            scans::<f16>(machine, seq_len, EACH, &ways);
            scans::<bf16>(machine, seq_len, EACH, &ways);
            attentions::<f32>(machine, seq_len, EACH, &ways);
            attentions::<f16>(machine, seq_len, EACH, &ways);
            attentions::<bf16>(machine, seq_len, EACH, &ways);
        }
        report("fillings", machine, 12 * EACH, 2000);
    }
}

#[test]
fn fillings_of_the_other_slots_change_no_byte_of_the_cuda_kernels() {
    // The emulator takes a thousand times as long.
    const EACH: usize = 12;
    let machine = Machine::GPU;
    let way = |trial: usize| {
        let mut ways = machine.ways();
        let which = trial % ways.len();
        ways.swap_remove(which).1
    };
    for seq_len in [1, 12] {
        scans::<f32>(machine, seq_len, EACH, &way);
        scans::<bf16>(machine, seq_len, EACH, &way);
        attentions::<f32>(machine, seq_len, EACH, &way);
        attentions::<bf16>(machine, seq_len, EACH, &way);
    }
    report("fillings", machine, 8 * EACH, 96);
}
