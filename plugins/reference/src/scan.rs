use crate::error::check_slices;
use crate::full::sigmoid;
use crate::{ReferenceError, Round};
use ratplus_graphs::ops::{Op, check_lengths};

/// Sizes of one [`recurrence_scan`] call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanShape {
    /// `B`.
    pub batch: usize,
    /// `L`.
    pub seq_len: usize,
    /// `N`.
    pub channels: usize,
}

/// Inputs of `RecurrenceScan`, in the ports' order and layout, `T` carried in f32.
#[derive(Clone, Copy, Debug)]
pub struct ScanInputs<'a> {
    /// `[B, L, N]`.
    pub key: &'a [f32],
    /// `[B, L, N]`.
    pub value: &'a [f32],
    /// `[B, L, N]`, logits.
    pub gate: &'a [f32],
    /// `[B, N]`.
    pub state_key: &'a [f32],
    /// `[B, N]`.
    pub state_value: &'a [f32],
    /// `[B]`.
    pub past_length: &'a [i64],
    /// `[B]`.
    pub seq_length: &'a [i64],
}

/// Outputs of `RecurrenceScan`; every element is written.
#[derive(Debug)]
pub struct ScanOutputs<'a> {
    /// `[B, L, N]`, rounded; padding is 0.
    pub gated_key: &'a mut [f32],
    /// `[B, L, N]`, rounded; padding is 0.
    pub gated_value: &'a mut [f32],
    /// `[B, N]`, f32.
    pub new_state_key: &'a mut [f32],
    /// `[B, N]`, f32.
    pub new_state_value: &'a mut [f32],
}

/// `RecurrenceScan`. The state is f64 inside a chunk and f32 between chunks; only the gated
/// keys and values are rounded.
///
/// # Errors
/// A slice's length contradicts `shape`, or a slot's lengths are out of range.
pub fn recurrence_scan(
    shape: ScanShape,
    inputs: &ScanInputs<'_>,
    outputs: &mut ScanOutputs<'_>,
    round: Round,
) -> Result<(), ReferenceError> {
    let op = Op::RecurrenceScan;
    let ScanShape {
        batch,
        seq_len,
        channels,
    } = shape;
    let (state, chunk) = (batch * channels, batch * seq_len * channels);
    check_slices(
        op,
        &[
            ("key", chunk, inputs.key.len()),
            ("value", chunk, inputs.value.len()),
            ("gate", chunk, inputs.gate.len()),
            ("state_key", state, inputs.state_key.len()),
            ("state_value", state, inputs.state_value.len()),
            ("past_length", batch, inputs.past_length.len()),
            ("seq_length", batch, inputs.seq_length.len()),
            ("gated_key", chunk, outputs.gated_key.len()),
            ("gated_value", chunk, outputs.gated_value.len()),
            ("new_state_key", state, outputs.new_state_key.len()),
            ("new_state_value", state, outputs.new_state_value.len()),
        ],
    )?;
    check_lengths(inputs.past_length, inputs.seq_length, seq_len, None)
        .map_err(|error| ReferenceError::Lengths { op, error })?;
    let gates: Vec<_> = inputs
        .gate
        .iter()
        .map(|&logit| (sigmoid(logit.into()), sigmoid(-f64::from(logit))))
        .collect();
    let pairs = [
        (
            inputs.key,
            inputs.state_key,
            &mut *outputs.gated_key,
            &mut *outputs.new_state_key,
        ),
        (
            inputs.value,
            inputs.state_value,
            &mut *outputs.gated_value,
            &mut *outputs.new_state_value,
        ),
    ];
    for (tokens, state, gated, new_state) in pairs {
        gated.fill(0.0);
        for slot in 0..batch {
            let length = inputs.seq_length[slot] as usize;
            for channel in 0..channels {
                let at = slot * channels + channel;
                if length == 0 {
                    new_state[at] = state[at];
                    continue;
                }
                let mut held = match inputs.past_length[slot] {
                    0 => 0.0,
                    _ => f64::from(state[at]),
                };
                for row in 0..length {
                    let index = (slot * seq_len + row) * channels + channel;
                    let (kept, taken) = gates[index];
                    held = kept * held + taken * f64::from(tokens[index]);
                    gated[index] = round(held as f32);
                }
                new_state[at] = held as f32;
            }
        }
    }
    Ok(())
}
