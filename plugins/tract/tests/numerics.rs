//! Gates that saturate and rows without keys: the reference's operators, and what tract makes of one
//! node and of its standard operators, against f64.

mod one_node;

use half::bf16;
use one_node::{Way, engine, run};
use ratplus_graphs::ops::body::BodyShape;
use ratplus_graphs::ops::{
    DilatedAttention, ElementType, Op, Ports, RecurrenceScan, TensorType, dilated_attention,
    recurrence_scan,
};
use ratplus_graphs::pattern::Pattern;
use ratplus_reference::full::sigmoid;
use ratplus_reference::{Input, Rounding, exact};
use ratplus_tract::TensorRef;

const MAGNITUDES: [f64; 26] = [
    0.0,
    1e-40,
    1e-3,
    0.5,
    1.0,
    4.0,
    12.0,
    16.5,
    16.7,
    17.0,
    17.9,
    18.0,
    18.1,
    20.0,
    40.0,
    80.0,
    87.3,
    88.0,
    89.0,
    100.0,
    103.0,
    104.0,
    105.0,
    1e3,
    1e4,
    f64::INFINITY,
];
const OPERANDS: [(f32, f32); 7] = [
    (0.0, 1.0),
    (1.0, 0.0),
    (1.0, -1.0),
    (-1.0, 1.0),
    (2.0, 2.0),
    (1e-40, 1.0),
    (1e30, -1e30),
];
const GARBAGE: [f32; 4] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38];
const SEQ_LEN: usize = 7;
const SHOWN: usize = 5;

/// What runs a node.
#[derive(Clone, Copy, Debug)]
enum Runner {
    Reference,
    Tract(Way),
}

const RUNNERS: [Runner; 3] = [
    Runner::Reference,
    Runner::Tract(Way::Node),
    Runner::Tract(Way::Body),
];

/// As the reference rounds to `dtype`.
fn rounding(dtype: ElementType) -> Rounding {
    Rounding::uniform(match dtype {
        ElementType::BF16 => |x| bf16::from_f32(x).to_f32(),
        _ => exact,
    })
}

fn rounded(dtype: ElementType, x: f32) -> f32 {
    match dtype {
        ElementType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// Within the tolerance where the model is finite; elsewhere no number is made of it.
fn compare(got: f32, want: f64, tolerance: f64, place: impl FnOnce() -> String) {
    let got = f64::from(got);
    let right = match want.is_finite() {
        true => (got - want).abs() <= tolerance,
        false => !got.is_finite(),
    };
    assert!(right, "{}: {got:e} is not {want:e}", place());
}

fn gates(runner: Runner, dtype: ElementType) -> usize {
    let logits: Vec<f64> = MAGNITUDES
        .iter()
        .flat_map(|&z| [z, -z])
        .chain([f64::NAN])
        .collect();
    let columns: Vec<(f32, f32, f32)> = OPERANDS
        .iter()
        .flat_map(|&(h, x)| logits.iter().map(move |&z| (z as f32, h, x)))
        .map(|(z, h, x)| (rounded(dtype, z), h, rounded(dtype, x)))
        .collect();
    let channels = columns.len();
    let row = |t: usize, c: usize| -> (f32, f32) {
        let z = columns[if t.is_multiple_of(2) {
            c
        } else {
            (c + 13 * t) % channels
        }]
        .0;
        // A gate that is no number ends its channel: it comes once, last.
        let z = if z.is_nan() && t + 1 < SHOWN { 0.5 } else { z };
        (
            z,
            if t % 4 < 2 {
                columns[c].2
            } else {
                -columns[c].2
            },
        )
    };
    let fill = |of: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
        let slot: Vec<f32> = (0..SEQ_LEN * channels)
            .map(|i| of(i / channels, i % channels))
            .collect();
        [slot.clone(), slot].concat()
    };
    let (gate, key) = (fill(&|t, c| row(t, c).0), fill(&|t, c| row(t, c).1));
    let state: Vec<f32> = columns
        .iter()
        .map(|column| column.1)
        .chain((0..channels).map(|c| GARBAGE[c % GARBAGE.len()]))
        .collect();
    let (past, seq) = ([3i64, 0], [SHOWN as i64; 2]);
    let tensor = |dtype, shape: &[usize]| TensorType {
        dtype,
        shape: shape.to_vec(),
    };
    let results = match runner {
        Runner::Reference => {
            let tokens = |values| Input::f32s([2, SEQ_LEN, channels], values);
            let inputs = recurrence_scan::Inputs {
                key: tokens(&key),
                value: tokens(&key),
                gate: tokens(&gate),
                state_key: Input::f32s([2, channels], &state),
                state_value: Input::f32s([2, channels], &state),
                past_length: Input::i64s([2], &past),
                seq_length: Input::i64s([2], &seq),
            };
            let outputs =
                ratplus_reference::run(&RecurrenceScan::default(), inputs, rounding(dtype));
            outputs.expect("a scan").into_list()
        }
        Runner::Tract(way) => {
            let chunk = tensor(dtype, &[2, SEQ_LEN, channels]);
            let state_tensor = tensor(ElementType::F32, &[2, channels]);
            let lengths = tensor(ElementType::I64, &[2]);
            let shape = BodyShape {
                dtype,
                cache_dtype: dtype,
                batch: 2,
                seq_len: SEQ_LEN,
                num_heads: 1,
                num_kv_heads: 1,
                head_dim: channels,
                max_seq_len: 16,
                quantization: None,
            };
            let inputs = [
                &chunk,
                &chunk,
                &chunk,
                &state_tensor,
                &state_tensor,
                &lengths,
                &lengths,
            ];
            let operator = RecurrenceScan::default().into();
            let mut engine = engine(&operator, &shape, &inputs.map(Clone::clone), way);
            let values = [&key, &key, &gate, &state, &state].map(|values| TensorRef::F32(values));
            let lengths = [&past, &seq].map(|values| TensorRef::I64(values));
            run(
                &mut engine,
                Op::RecurrenceScan,
                &[&values[..], &lengths[..]].concat(),
            )
        }
    };
    let unit = if dtype == ElementType::BF16 {
        2f64.powi(-8)
    } else {
        0.0
    };
    const STEP: f64 = 3e-7;
    let mut points = 0;
    for slot in 0..2 {
        for c in 0..channels {
            let mut h = if slot == 0 {
                f64::from(columns[c].1)
            } else {
                0.0
            };
            let mut largest = h.abs();
            for t in 0..SEQ_LEN {
                let at = (slot * SEQ_LEN + t) * channels + c;
                let place = || format!("{runner:?} {dtype} slot {slot} token {t} {:?}", columns[c]);
                if t >= SHOWN {
                    assert_eq!([results[0][at], results[1][at]], [0.0; 2], "{}", place());
                    continue;
                }
                let (z, x) = (f64::from(gate[at]), f64::from(key[at]));
                h = sigmoid(z) * h + sigmoid(-z) * x;
                largest = largest.max(x.abs());
                // Three roundings and a sigmoid a token, of the largest so far.
                let tolerance = STEP * (t + 2) as f64 * largest + f64::from(f32::MIN_POSITIVE);
                for result in &results[..2] {
                    compare(result[at], h, tolerance + unit * h.abs(), place);
                    points += 1;
                }
                if t + 1 == SHOWN {
                    for result in &results[2..] {
                        compare(result[slot * channels + c], h, tolerance, place);
                        points += 1;
                    }
                }
            }
        }
    }
    points
}

/// A head that sees itself alone gives its value, one that sees all the mean of equals, whatever lies in
/// rows that were not written; with scores of any finite size.
fn rows(runner: Runner, dtype: ElementType) -> usize {
    const DIM: usize = 8;
    const MAX: usize = 12;
    let patterns = [(-1, 0, 0), (1, 0, 0)].map(|(d, w, i)| Pattern::new(d, w, i).unwrap());
    let attention = DilatedAttention::ungrouped(patterns.to_vec(), 1.0);
    let held = attention.cache_layout(MAX).rows();
    assert_eq!(held, MAX);
    let mut points = 0;
    for score in [0.0f32, 88.0, -104.0, 1e4, -6e4, 1e30, -1e30] {
        for past in [0usize, 3] {
            let width = 2 * DIM;
            let score = rounded(dtype, score);
            let value: Vec<f32> = (0..2 * SEQ_LEN * width)
                .map(|i| rounded(dtype, (i * 37 % 61) as f32 / 16.0 - 2.0))
                .collect();
            let first = |x: f32| -> Vec<f32> {
                let one = |i: usize| if i.is_multiple_of(DIM) { x } else { 0.0 };
                (0..2 * SEQ_LEN * width).map(one).collect()
            };
            let (query, key) = (first(1.0), first(score));
            let cache = |x: f32, rest: f32| -> Vec<f32> {
                let one = |i: usize| match (i / DIM % held < past, i.is_multiple_of(DIM)) {
                    (false, _) => f32::NAN,
                    (true, true) => x,
                    (true, false) => rest,
                };
                (0..2 * held * DIM).map(one).collect()
            };
            let (past_key, past_value) = (cache(score, 0.0), cache(1.0, 1.0));
            let (cos, sin) = (vec![1f32; MAX * DIM / 2], vec![0f32; MAX * DIM / 2]);
            let (past_length, seq_length) = ([past as i64; 2], [SHOWN as i64, 0]);
            let output = match runner {
                Runner::Reference => {
                    let tokens = |values| Input::f32s([2, SEQ_LEN, width], values);
                    let rows = |values| Input::f32s([2, held, DIM], values);
                    let table = |values| Input::f32s([MAX, DIM / 2], values);
                    let inputs = dilated_attention::Inputs {
                        query: tokens(&query),
                        key: tokens(&key),
                        value: tokens(&value),
                        past_key: rows(&past_key),
                        past_value: rows(&past_value),
                        past_length: Input::i64s([2], &past_length),
                        seq_length: Input::i64s([2], &seq_length),
                        cos: table(&cos),
                        sin: table(&sin),
                    };
                    ratplus_reference::run(&attention, inputs, rounding(dtype))
                        .expect("an attention")
                        .output
                }
                Runner::Tract(way) => {
                    let tensor = |dtype, shape: &[usize]| TensorType {
                        dtype,
                        shape: shape.to_vec(),
                    };
                    let chunk = tensor(dtype, &[2, SEQ_LEN, width]);
                    let rows = tensor(dtype, &[2, held, DIM]);
                    let lengths = tensor(ElementType::I64, &[2]);
                    let table = tensor(ElementType::F32, &[MAX, DIM / 2]);
                    let shape = BodyShape {
                        dtype,
                        cache_dtype: dtype,
                        batch: 2,
                        seq_len: SEQ_LEN,
                        num_heads: 2,
                        num_kv_heads: 2,
                        head_dim: DIM,
                        max_seq_len: MAX,
                        quantization: None,
                    };
                    let inputs = [
                        &chunk, &chunk, &chunk, &rows, &rows, &lengths, &lengths, &table, &table,
                    ];
                    let operator = attention.clone().into();
                    let mut engine = engine(&operator, &shape, &inputs.map(Clone::clone), way);
                    let values =
                        [&query, &key, &value, &past_key, &past_value].map(|x| TensorRef::F32(x));
                    let lengths = [&past_length, &seq_length].map(|x| TensorRef::I64(x));
                    let tables = [&cos, &sin].map(|x| TensorRef::F32(x));
                    let inputs = [&values[..], &lengths[..], &tables[..]].concat();
                    run(&mut engine, Op::DilatedAttention, &inputs).swap_remove(0)
                }
            };
            for t in 0..2 * SEQ_LEN {
                let (slot, row) = (t / SEQ_LEN, t % SEQ_LEN);
                for d in 0..width {
                    let place = || {
                        format!("{runner:?} {dtype} {score:e} after {past} token {t} channel {d}")
                    };
                    let own = |row: usize| f64::from(value[(slot * SEQ_LEN + row) * width + d]);
                    let got = output[t * width + d];
                    let want = match (slot, row < SHOWN) {
                        (0, true) if d < DIM => own(row),
                        (0, true) => {
                            let sum: f64 = past as f64 + (0..=row).map(own).sum::<f64>();
                            sum / (past + row + 1) as f64
                        }
                        _ => 0.0,
                    };
                    let unit = if dtype == ElementType::BF16 {
                        2f64.powi(-8)
                    } else {
                        0.0
                    };
                    compare(got, want, 1e-5 + unit * want.abs(), place);
                    points += 1;
                }
            }
        }
    }
    points
}

#[test]
fn gates_saturate_and_rows_have_no_keys() {
    for runner in RUNNERS {
        let mut points = 0;
        for dtype in [ElementType::F32, ElementType::BF16] {
            points += gates(runner, dtype) + rows(runner, dtype);
        }
        println!("{runner:?}: {points} points");
        assert!(points >= 2000, "{points}");
    }
}
