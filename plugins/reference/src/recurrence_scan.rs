//! `RecurrenceScan`.

use crate::full::sigmoid;
use crate::{Reference, Rounding, Values};
use ratplus_graphs::ops::recurrence_scan::{Inputs, Outputs};
use ratplus_graphs::ops::{Axis, Inferred, RecurrenceScan};

impl Reference for RecurrenceScan {
    /// The state is f64 inside a chunk and f32 between chunks; only the gated keys and values are
    /// rounded.
    fn run(
        &self,
        node: &Inferred,
        inputs: &Inputs<Values<'_>>,
        outputs: Outputs<&mut [f32]>,
        rounding: Rounding,
    ) {
        let [batch, seq_len, channels] =
            [Axis::Batch, Axis::SeqLen, Axis::Channels].map(|axis| node.dims[axis]);
        let (past_length, seq_length) = (inputs.past_length.i64s(), inputs.seq_length.i64s());
        let gate = inputs.gate.f32s();
        let gates: Vec<_> = gate
            .iter()
            .map(|&logit| (sigmoid(logit.into()), sigmoid(-f64::from(logit))))
            .collect();
        let pairs = [
            (
                inputs.key.f32s(),
                inputs.state_key.f32s(),
                outputs.gated_key,
                outputs.new_state_key,
            ),
            (
                inputs.value.f32s(),
                inputs.state_value.f32s(),
                outputs.gated_value,
                outputs.new_state_value,
            ),
        ];
        for (tokens, state, gated, new_state) in pairs {
            gated.fill(0.0);
            for slot in 0..batch {
                let length = seq_length[slot] as usize;
                for channel in 0..channels {
                    let at = slot * channels + channel;
                    if length == 0 {
                        new_state[at] = state[at];
                        continue;
                    }
                    let mut held = match past_length[slot] {
                        0 => 0.0,
                        _ => f64::from(state[at]),
                    };
                    for row in 0..length {
                        let index = (slot * seq_len + row) * channels + channel;
                        let (kept, taken) = gates[index];
                        held = kept * held + taken * f64::from(tokens[index]);
                        gated[index] = (rounding.activations)(held as f32);
                    }
                    new_state[at] = held as f32;
                }
            }
        }
    }
}
