//! Gates from wide open to shut: the f64 recurrence with its own sigmoid, and an absolute tolerance
//! on the gate.

use super::{Control, compare, cpus, guarded, report};
use crate::cuda::ScanMethod;
use crate::tests::Real;
use crate::tests::machine::{Machine, Way};
use crate::tests::scan::Call;
use half::{bf16, f16};

/// Magnitudes of logits: both sides of where f32's sigmoid becomes 1 (16.6), where ONNX Runtime's
/// does (18), where its complement leaves the normal numbers (87.3) and the subnormal ones (103.97).
const MAGNITUDES: [f64; 44] = [
    0.0,
    1e-45,
    1e-40,
    1e-8,
    1e-3,
    0.1,
    0.5,
    1.0,
    2.0,
    4.0,
    8.0,
    12.0,
    15.9,
    16.5,
    16.63,
    16.64,
    16.7,
    17.0,
    17.33,
    17.99,
    18.0,
    18.1,
    20.0,
    30.0,
    40.0,
    60.0,
    80.0,
    87.0,
    87.3,
    87.4,
    88.0,
    88.7,
    88.8,
    89.0,
    90.0,
    100.0,
    103.0,
    103.9,
    104.0,
    105.0,
    128.0,
    1e3,
    1e4,
    f64::INFINITY,
];

/// A gate of this magnitude is 0 or 1 in f32: its complement is below the smallest subnormal.
const SHUT: f64 = 104.0;

/// State and token; what a type cannot hold is left out.
const OPERANDS: [(f64, f64); 12] = [
    (0.0, 1.0),
    (1.0, 0.0),
    (1.0, -1.0),
    (-1.0, 1.0),
    (2.0, 2.0),
    (0.0, 0.0),
    (-3.0, 0.1),
    (1e-40, 1.0),
    (1e-40, -1e-39),
    (6e4, -6e4),
    (1e30, -1e30),
    // Their difference is still a number.
    (-1.6e38, 1.6e38),
];

/// What a state may hold that no token has made.
const GARBAGE: [f32; 5] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -1e-40];

/// One channel: the logit it meets again and again, state and token.
type Column = (f64, f64, f64);

/// A multiple of 8 of them, as the tiles of the CUDA kernels have; one more for the CPU's ends of rows.
fn columns<T: Real>(machine: Machine) -> Vec<Column> {
    let fits = |x: f64| T::of(x).real().is_finite();
    let signed = MAGNITUDES.iter().flat_map(|&z| [z, -z]);
    let logits: Vec<f64> = signed.chain([f64::NAN]).collect();
    let operands = OPERANDS.iter().filter(|(h, x)| fits(*h) && fits(*x));
    let mut columns: Vec<Column> = operands
        .flat_map(|&(h, x)| logits.iter().map(move |&z| (z, h, x)))
        .collect();
    let whole = columns.len().next_multiple_of(8);
    let more = whole - columns.len() + usize::from(matches!(machine, Machine::Cpu(_)));
    columns.extend_from_within(..more);
    columns
}

/// The error of one gate in f32, of the products and of their sum, for operands of magnitude 1.
const STEP: f64 = 3e-7;

/// The recurrence of a channel from `h` on: state and its tolerance after each token.
///
/// `tiled` kernels take several tokens as one, whose gates' product has the tolerance of a gate: what
/// is left of a state is right to a part of what it was.
fn model(mut h: f64, tokens: &[(f64, f64)], tiled: bool) -> Vec<(f64, f64)> {
    let (mut error, mut largest) = (0.0, 0.0f64);
    let mut states = Vec::with_capacity(tokens.len());
    for &(z, x) in tokens {
        let (keep, take) = (1.0 / (1.0 + (-z).exp()), 1.0 / (1.0 + z.exp()));
        let magnitude = h.abs().max(x.abs());
        h = keep * h + take * x;
        // Where subnormals are flushed, so is what would be one.
        error = keep * error + STEP * magnitude + f64::from(f32::MIN_POSITIVE);
        largest = largest.max(magnitude);
        let tiles = if tiled { STEP * largest } else { 0.0 };
        states.push((h, error + tiles));
    }
    states
}

/// Two slots, one with a past and one that starts over from garbage, through a chunk of `tokens` and
/// `padding`; how many numbers were compared.
fn sweep<T: Real>(machine: Machine, way: &Way, tokens: usize, padding: usize) -> usize {
    let columns = columns::<T>(machine);
    let (channels, seq_len) = (columns.len(), tokens + padding);
    // Every second token meets its column's logit, those between the ones of other columns.
    let logit = |t: usize, c: usize| match t % 2 {
        0 => columns[c].0,
        _ => columns[(c + 13 * t) % channels].0,
    };
    let token = |t: usize, c: usize, sign: f64| {
        let x = columns[c].2 * if t % 4 < 2 { sign } else { -sign };
        T::of(x)
    };
    // A gate that is no number ends its channel: it comes once, last.
    let logit = |t: usize, c: usize| match logit(t, c) {
        z if z.is_nan() && t + 1 < tokens => 0.5,
        z => z,
    };
    let fill = |value: &dyn Fn(usize, usize) -> T| -> Vec<T> {
        let slot = (0..seq_len).flat_map(|t| {
            (0..channels).map(move |c| if t < tokens { value(t, c) } else { T::poison() })
        });
        let slot: Vec<T> = slot.collect();
        [slot.clone(), slot].concat()
    };
    let mut call = Call {
        batch: 2,
        seq_len,
        channels,
        key: fill(&|t, c| token(t, c, 1.0)),
        value: fill(&|t, c| token(t, c, -1.0)),
        gate: fill(&|t, c| T::of(logit(t, c))),
        past: vec![5, 0],
        seq: vec![tokens as i64; 2],
        gated_key: vec![T::poison(); 2 * seq_len * channels],
        gated_value: vec![T::poison(); 2 * seq_len * channels],
    };
    let state: Vec<f32> = columns.iter().map(|column| column.1 as f32).collect();
    let garbage = (0..channels).map(|c| GARBAGE[c % GARBAGE.len()]);
    let before: Vec<f32> = state.iter().copied().chain(garbage).collect();
    let mut after = [before.clone(), before];
    call.run(machine, way, &mut after, tokens.is_multiple_of(2));
    let serial = Machine::scanning(ScanMethod::Serial);
    let tiled = !matches!(machine, Machine::Cpu(_)) && machine != serial;
    let mut points = 0;
    for slot in 0..2 {
        for c in 0..channels {
            for (which, state_after) in after.iter().enumerate() {
                let [input, result] = match which {
                    0 => [&call.key, &call.gated_key],
                    _ => [&call.value, &call.gated_value],
                };
                let at = |t: usize| call.row(slot, t).start + c;
                let met: Vec<(f64, f64)> = (0..tokens)
                    .map(|t| (call.gate[at(t)].real(), input[at(t)].real()))
                    .collect();
                let start = if slot == 0 { f64::from(state[c]) } else { 0.0 };
                let expected = model(start, &met, tiled);
                for (t, &(want, error)) in expected.iter().enumerate() {
                    let tolerance = error + T::UNIT * want.abs() + T::SUBNORMAL;
                    compare(result[at(t)], want, tolerance, || {
                        format!(
                            "{machine:?} slot {slot} token {t} channel {c} {:?} {met:?}",
                            columns[c]
                        )
                    });
                    points += 1;
                }
                let last = state_after[slot * channels + c];
                let &(want, error) = expected.last().unwrap();
                compare(last, want, error, || {
                    format!(
                        "{machine:?} state of slot {slot} channel {c} {:?} {met:?}",
                        columns[c]
                    )
                });
                points += 1;
                // A shut gate is a copy: no bit of the other operand is left. Subnormals may be flushed.
                let (z, x) = met[tokens - 1];
                if tokens == 1 && z.abs() >= SHUT {
                    let kept = if z > 0.0 { start } else { x };
                    let kept = if (kept as f32).is_normal() {
                        kept
                    } else {
                        f64::from(last)
                    };
                    assert_eq!(f64::from(last), kept, "{machine:?} {:?}", columns[c]);
                }
            }
        }
    }
    points
}

fn types(machine: Machine, way: &Way, tokens: usize, padding: usize) -> usize {
    sweep::<f32>(machine, way, tokens, padding)
        + sweep::<f16>(machine, way, tokens, padding)
        + sweep::<bf16>(machine, way, tokens, padding)
}

#[test]
fn gates_saturate_both_ways() {
    for machine in cpus() {
        for &control in Control::ALL {
            let mut points = 0;
            for way in &guarded(control) {
                // Alone; by fours, the rest one by one; and with padding.
                for (tokens, padding) in [(1, 0), (4, 0), (7, 2)] {
                    points += types(machine, way, tokens, padding);
                }
            }
            report("gates", (machine, control), points, 2000);
        }
    }
}

#[test]
fn gates_of_the_cuda_kernels_saturate_both_ways() {
    for method in [
        ScanMethod::Serial,
        ScanMethod::ThreeLaunches,
        ScanMethod::SinglePass,
    ] {
        let machine = Machine::scanning(method);
        let mut points = 0;
        let way = &machine.ways()[0].1;
        for (tokens, padding) in [(1, 0), (7, 2)] {
            points += types(machine, way, tokens, padding);
        }
        // Two tiles.
        points += sweep::<bf16>(machine, way, 131, 0);
        report("gates", method, points, 2000);
    }
}
