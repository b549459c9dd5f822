//! `RecurrenceScan` on random chunks.

use super::{Context, no_error, same};
use crate::buffers::Buffers;
use crate::element::{self, decode, encode, random};
use crate::failure::Failure;
use crate::model::Worst;
use ratplus_graphs::ops::{ElementType, RecurrenceScan, recurrence_scan};
use ratplus_kernels::cuda::{CudaPlan, Device, ScanMethod, ScanPlan, ScanShape, Stream};
use ratplus_reference::{Input, Rounding, exact};

const METHODS: [ScanMethod; 3] = [
    ScanMethod::Serial,
    ScanMethod::ThreeLaunches,
    ScanMethod::SinglePass,
];
/// Errors of f32 arithmetic on inputs of up to 2.
const ARITHMETIC: f64 = 2e-5;

struct Case {
    shape: ScanShape,
    method: ScanMethod,
    /// `past_length` and `seq_length` of every slot.
    lengths: Vec<(i64, i64)>,
    /// Largest gate logit.
    gate: f32,
}

/// All methods and element types.
pub fn run(context: &mut Context) -> Result<(), Failure> {
    for method in METHODS {
        for element in element::ALL {
            let cases = cases(context, method, element);
            let name = format!("scan {method:?} {}", element::name(element));
            context.line(&name, &cases, check)?;
        }
    }
    Ok(())
}

fn cases(context: &Context, method: ScanMethod, element: ElementType) -> Vec<Case> {
    // A serial scan also takes rows that are not whole lanes of 16 bytes.
    let channels: &[usize] = match method {
        ScanMethod::Serial => &[136, 37, 2048],
        _ => &[136, 64, 2048],
    };
    let mut cases = Vec::new();
    for &seq_len in context.some(&[130, 7, 1, 64, 1000, 1024, 2600], 2) {
        for &channels in context.some(channels, 2) {
            if channels * seq_len > 1 << 20 && element == ElementType::F16 {
                continue;
            }
            for (batch, past, gate) in [(1, 0, 4.0), (3, 11, 40.0)] {
                cases.push(Case {
                    shape: ScanShape {
                        element,
                        batch,
                        seq_len,
                        channels,
                    },
                    method,
                    lengths: lengths(batch, past, seq_len as i64),
                    gate,
                });
            }
        }
    }
    cases
}

/// Slots at positions of their own: a full one, a shorter one that starts, an idle one.
fn lengths(batch: usize, past: i64, seq_len: i64) -> Vec<(i64, i64)> {
    let all = [(past, seq_len), (0, (seq_len + 1) / 2), (past / 2, 0)];
    all[..batch].to_vec()
}

/// What comes back from the device.
#[derive(PartialEq)]
struct Results {
    gated: [Vec<u8>; 2],
    state: [Vec<u8>; 2],
}

struct Inputs {
    tokens: [Vec<f32>; 3],
    state: [Vec<f32>; 2],
}

fn check(context: &Context, case: &Case) -> Result<Worst, Failure> {
    let ScanShape {
        element,
        batch,
        seq_len,
        channels,
    } = case.shape;
    let name = format!("{:?} {:?} {:?}", case.method, case.shape, case.lengths);
    let mut rng = context.rng(&name);
    let count = batch * seq_len * channels;
    let limits = [2.0, 2.0, case.gate];
    let mut inputs = Inputs {
        tokens: limits.map(|limit| random(element, &mut rng, count, limit)),
        state: [(); 2].map(|()| random(ElementType::F32, &mut rng, batch * channels, 2.0)),
    };
    for (slot, &(past, tokens)) in case.lengths.iter().enumerate() {
        // What must not matter is not a number.
        let padding =
            (slot * seq_len + tokens as usize) * channels..(slot + 1) * seq_len * channels;
        for tensor in &mut inputs.tokens {
            tensor[padding.clone()].fill(f32::NAN);
        }
        if past == 0 {
            for state in &mut inputs.state {
                state[slot * channels..][..channels].fill(f32::NAN);
            }
        }
    }
    let plan = ScanPlan::with_method(context.device, case.shape, case.method)?;
    let results = launch(context.device, &plan, case, &inputs, false)?;
    no_error(context.device, &name)?;
    for repeat in 0..if context.quick { 1 } else { 3 } {
        let again = launch(context.device, &plan, case, &inputs, repeat % 2 == 0)?;
        for which in 0..2 {
            let place = format!("{name}, repeated");
            same(&results.gated[which], &again.gated[which], &place)?;
            same(&results.state[which], &again.state[which], &place)?;
        }
    }
    compare(context, case, &inputs, &results, &name)
}

fn launch(
    device: &'static Device,
    plan: &ScanPlan,
    case: &Case,
    inputs: &Inputs,
    in_place: bool,
) -> Result<Results, Failure> {
    let ScanShape { element, .. } = case.shape;
    let mut buffers = Buffers::new(device);
    let [key, value, gate] = &inputs.tokens;
    let [state_key, state_value] = inputs.state.each_ref().map(|s| encode(ElementType::F32, s));
    let bytes = key.len() * element.size();
    let state = state_key.len();
    let (past, seq): (Vec<i64>, Vec<i64>) = case.lengths.iter().copied().unzip();
    let old = [buffers.upload(&state_key)?, buffers.upload(&state_value)?];
    let new = match in_place {
        true => old,
        false => [buffers.poisoned(state)?, buffers.poisoned(state)?],
    };
    let inputs = recurrence_scan::Inputs {
        key: buffers.upload(&encode(element, key))?,
        value: buffers.upload(&encode(element, value))?,
        gate: buffers.upload(&encode(element, gate))?,
        state_key: old[0],
        state_value: old[1],
        past_length: buffers.upload_i64(&past)?,
        seq_length: buffers.upload_i64(&seq)?,
    };
    let outputs = recurrence_scan::Outputs {
        gated_key: buffers.poisoned(bytes)?,
        gated_value: buffers.poisoned(bytes)?,
        new_state_key: new[0],
        new_state_value: new[1],
    };
    let workspace = buffers.poisoned(plan.workspace_bytes())?;
    // SAFETY: every tensor and the workspace have the plan's sizes and outlive the reads below,
    // which wait for the work; `Device::open` made the context current on this thread.
    unsafe { plan.launch(&inputs, &outputs, workspace, 7, Stream::DEFAULT)? };
    Ok(Results {
        gated: [
            buffers.read(outputs.gated_key, bytes)?,
            buffers.read(outputs.gated_value, bytes)?,
        ],
        state: [buffers.read(new[0], state)?, buffers.read(new[1], state)?],
    })
}

fn compare(
    context: &Context,
    case: &Case,
    inputs: &Inputs,
    results: &Results,
    name: &str,
) -> Result<Worst, Failure> {
    let ScanShape {
        element,
        batch,
        seq_len,
        channels,
    } = case.shape;
    let (past, seq): (Vec<i64>, Vec<i64>) = case.lengths.iter().copied().unzip();
    let tokens = |values| Input::f32s([batch, seq_len, channels], values);
    let state = |values| Input::f32s([batch, channels], values);
    let operands = recurrence_scan::Inputs {
        key: tokens(&inputs.tokens[0]),
        value: tokens(&inputs.tokens[1]),
        gate: tokens(&inputs.tokens[2]),
        state_key: state(&inputs.state[0]),
        state_value: state(&inputs.state[1]),
        past_length: Input::i64s([batch], &past),
        seq_length: Input::i64s([batch], &seq),
    };
    let wants = ratplus_reference::run(
        &RecurrenceScan::default(),
        operands,
        Rounding::uniform(exact),
    )
    .map_err(Failure::wrong)?;
    let gated = [wants.gated_key, wants.gated_value];
    let states = [wants.new_state_key, wants.new_state_value];
    let mut worst = Worst::default();
    for which in 0..2 {
        let mut got = decode(element, &results.gated[which]);
        context.plant(&mut got);
        for (index, (&got, &want)) in got.iter().zip(&gated[which]).enumerate() {
            let (slot, token) = (index / (seq_len * channels), index / channels % seq_len);
            // Padding is zero and nothing else.
            let bound = match (token as i64) < seq[slot] {
                true => element::unit(element) * f64::from(want).abs() + ARITHMETIC,
                false => f64::MIN_POSITIVE,
            };
            worst.see(got, want.into(), bound, || {
                format!(
                    "{name}: slot {slot} token {token} channel {}",
                    index % channels
                )
            });
        }
        let got = decode(ElementType::F32, &results.state[which]);
        for (slot, &tokens) in seq.iter().enumerate() {
            let own = slot * channels..(slot + 1) * channels;
            if tokens == 0 {
                let bytes = own.start * 4..own.end * 4;
                let before = encode(ElementType::F32, &inputs.state[which][own]);
                same(
                    &results.state[which][bytes],
                    &before,
                    &format!("{name}: idle state"),
                )?;
                continue;
            }
            for channel in own {
                let want = f64::from(states[which][channel]);
                worst.see(got[channel], want, ARITHMETIC, || {
                    format!(
                        "{name}: state of slot {slot} channel {}",
                        channel % channels
                    )
                });
            }
        }
    }
    Ok(worst)
}
