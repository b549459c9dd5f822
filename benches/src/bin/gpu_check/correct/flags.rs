//! Lengths that do not fit: the slot stays as it is, the others go on, the host is told.

use super::{Context, same};
use crate::buffers::Buffers;
use crate::element::{encode, random};
use crate::failure::Failure;
use crate::model::Worst;
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::ops::{ElementType, dilated_attention, recurrence_scan};
use ratplus_graphs::pattern::Pattern;
use ratplus_kernels::cuda::{
    AttentionMethod, AttentionPlan, AttentionShape, CudaError, CudaPlan, DeviceError, ScanMethod,
    ScanPlan, ScanShape, Stream,
};

const DIM: usize = 64;
const MAX_SEQ_LEN: usize = 40;
const CHANNELS: usize = 64;
const ELEMENT: ElementType = ElementType::BF16;

/// Every method of both operators.
pub fn run(context: &mut Context) -> Result<(), Failure> {
    let patterns = [(2, 3, 1), (1, 0, 0)].map(|(d, w, i)| Pattern::new(d, w, i));
    let patterns: Vec<_> = patterns
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(Failure::wrong)?;
    let layout = CacheLayout::new(&patterns, MAX_SEQ_LEN);
    for (seq_len, method) in [
        (1, AttentionMethod::Decode),
        (9, AttentionMethod::Tiles),
        (9, AttentionMethod::SmallTiles),
        (9, AttentionMethod::Hopper),
        (9, AttentionMethod::SmallHopper),
        (9, AttentionMethod::Any),
    ] {
        let name = format!("bad lengths, attention {method:?}");
        let shape = AttentionShape {
            element: ELEMENT,
            batch: 2,
            seq_len,
            group: 1,
            head_dim: DIM,
            scale: 0.1,
        };
        let most = (MAX_SEQ_LEN as i64, 1);
        let mut bad = bad_lengths(seq_len);
        bad.push(most);
        match AttentionPlan::with_method(context.device, shape, &layout, method) {
            Err(why @ CudaError::WrongArchitecture { .. }) => context.skip(&name, &why),
            Err(other) => return Err(other.into()),
            Ok(plan) => context.line(&name, &bad, |context, &lengths| {
                attention(context, &plan, &layout, seq_len, lengths)
            })?,
        }
    }
    for (seq_len, method) in [
        (1, ScanMethod::Serial),
        (300, ScanMethod::ThreeLaunches),
        (300, ScanMethod::SinglePass),
    ] {
        let shape = ScanShape {
            element: ELEMENT,
            batch: 2,
            seq_len,
            channels: CHANNELS,
        };
        let plan = ScanPlan::with_method(context.device, shape, method)?;
        let name = format!("bad lengths, scan {method:?}");
        context.line(&name, &bad_lengths(seq_len), |context, &lengths| {
            scan(context, &plan, seq_len, lengths)
        })?;
    }
    Ok(())
}

/// `past_length` and `seq_length` that no chunk of `seq_len` tokens can have.
fn bad_lengths(seq_len: usize) -> Vec<(i64, i64)> {
    vec![(-1, 1), (0, seq_len as i64 + 1), (0, -1), (i64::MAX, 1)]
}

fn told(context: &Context, node: u32, slot: u32, place: &str) -> Result<(), Failure> {
    let found = context.device.error_flag().take();
    if found == Some(DeviceError { node, slot }) {
        return Ok(());
    }
    Err(Failure::Wrong(format!(
        "{place}: expected an error of node {node}, slot {slot}, found {found:?}"
    )))
}

fn expect(holds: bool, place: &str, what: &str) -> Result<(), Failure> {
    match holds {
        true => Ok(()),
        false => Err(Failure::Wrong(format!("{place}: {what}"))),
    }
}

/// The second slot has the bad lengths.
fn attention(
    context: &Context,
    plan: &AttentionPlan,
    layout: &CacheLayout,
    seq_len: usize,
    (past, seq): (i64, i64),
) -> Result<Worst, Failure> {
    let place = format!("{:?} past {past} of {seq}", plan.method());
    let mut rng = context.rng(&place);
    let (chunk, rows) = (2 * seq_len * 2 * DIM, layout.rows() * DIM);
    let mut values = |count| encode(ELEMENT, &random(ELEMENT, &mut rng, count, 1.0));
    let (tokens, cache) = (values(chunk), values(2 * rows));
    let table = encode(ElementType::F32, &vec![0.5; MAX_SEQ_LEN * DIM / 2]);
    let mut buffers = Buffers::new(context.device);
    let input = buffers.upload(&tokens)?;
    let [key, value] = [buffers.upload(&cache)?, buffers.upload(&cache)?];
    let table = buffers.upload(&table)?;
    let inputs = dilated_attention::Inputs {
        query: input,
        key: input,
        value: input,
        past_key: key,
        past_value: value,
        past_length: buffers.upload_i64(&[4, past])?,
        seq_length: buffers.upload_i64(&[1, seq])?,
        cos: table,
        sin: table,
    };
    let outputs = dilated_attention::Outputs {
        output: buffers.poisoned(tokens.len())?,
        present_key: key,
        present_value: value,
    };
    let workspace = buffers.poisoned(plan.workspace_bytes())?;
    // SAFETY: every tensor and the workspace have the plan's sizes and outlive the reads below,
    // which wait for the work; `Device::open` made the context current on this thread.
    unsafe { plan.launch(&inputs, &outputs, workspace, 77, Stream::DEFAULT)? };
    let output = buffers.read(outputs.output, tokens.len())?;
    let after = buffers.read(key, cache.len())?;
    told(context, 77, 1, &place)?;
    let half = output.len() / 2;
    expect(
        output[half..].iter().all(|&byte| byte == 0),
        &place,
        "output is not 0",
    )?;
    let first = &output[..2 * DIM * ELEMENT.size()];
    let computed = first.iter().any(|&byte| byte != 0);
    expect(computed, &place, "the other slot was not computed")?;
    let half = cache.len() / 2;
    same(
        &cache[half..],
        &after[half..],
        &format!("{place}: cache of the slot"),
    )?;
    expect(
        cache[..half] != after[..half],
        &place,
        "the other slot's cache is as before",
    )?;
    Ok(Worst::default())
}

/// The first slot has the bad lengths.
fn scan(
    context: &Context,
    plan: &ScanPlan,
    seq_len: usize,
    (past, seq): (i64, i64),
) -> Result<Worst, Failure> {
    let place = format!("{:?} past {past} of {seq}", plan.method());
    let mut rng = context.rng(&place);
    let tokens = encode(
        ELEMENT,
        &random(ELEMENT, &mut rng, 2 * seq_len * CHANNELS, 1.0),
    );
    let f32s = random(ElementType::F32, &mut rng, 2 * CHANNELS, 1.0);
    let state = encode(ElementType::F32, &f32s);
    let mut buffers = Buffers::new(context.device);
    let input = buffers.upload(&tokens)?;
    let [key, value] = [buffers.upload(&state)?, buffers.upload(&state)?];
    let inputs = recurrence_scan::Inputs {
        key: input,
        value: input,
        gate: input,
        state_key: key,
        state_value: value,
        past_length: buffers.upload_i64(&[past, 4])?,
        seq_length: buffers.upload_i64(&[seq, 1])?,
    };
    let outputs = recurrence_scan::Outputs {
        gated_key: buffers.poisoned(tokens.len())?,
        gated_value: buffers.poisoned(tokens.len())?,
        new_state_key: key,
        new_state_value: value,
    };
    let workspace = buffers.poisoned(plan.workspace_bytes())?;
    // SAFETY: every buffer has its tensor's size for the plan, and the workspace the plan's; all outlive
    // the run.
    unsafe { plan.launch(&inputs, &outputs, workspace, 5, Stream::DEFAULT)? };
    let gated = buffers.read(outputs.gated_key, tokens.len())?;
    let after = buffers.read(key, state.len())?;
    told(context, 5, 0, &place)?;
    let half = gated.len() / 2;
    expect(
        gated[..half].iter().all(|&byte| byte == 0),
        &place,
        "output is not 0",
    )?;
    let half = state.len() / 2;
    same(
        &state[..half],
        &after[..half],
        &format!("{place}: state of the slot"),
    )?;
    expect(
        state[half..] != after[half..],
        &place,
        "the other slot's state is as before",
    )?;
    Ok(Worst::default())
}
