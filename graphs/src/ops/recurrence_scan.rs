//! `RecurrenceScan`: the gated linear recurrence over keys and values.
//!
//! `h[t] = g[t] h[t-1] + (1 - g[t]) x[t]`, `g = sigmoid(gate)`, per channel, the same gate for keys
//! and values (arXiv 2602.18196). Its body is a log-depth scan.

use super::body::{BodyShape, Call, F32, LengthCheck, lengths, select, valid_rows};
use super::schema::aliases;
use super::{Attributes, Axis, Definition, Dims, Given, Inferred, Op, Ports, Schema};

super::schema::ports! {
    /// Inputs of [`RecurrenceScan`].
    Inputs {
        /// `[B, L, N]` of `T`.
        key: T [Batch, SeqLen, Channels],
        /// `[B, L, N]` of `T`.
        value: T [Batch, SeqLen, Channels],
        /// `[B, L, N]` of `T`, logits.
        gate: T [Batch, SeqLen, Channels],
        /// `[B, N]` f32: the last gated key; counts as zero where `past_length` is 0.
        state_key: F32 [Batch, Channels],
        /// `[B, N]` f32: the last gated value; counts as zero where `past_length` is 0.
        state_value: F32 [Batch, Channels],
        /// `[B]` i64: tokens before this chunk.
        past_length: I64 [Batch],
        /// `[B]` i64: valid tokens of this chunk.
        seq_length: I64 [Batch],
    }
}

super::schema::ports! {
    /// Outputs of [`RecurrenceScan`].
    Outputs {
        /// `[B, L, N]` of `T`: the result; rows at or past `seq_length` mean nothing.
        gated_key: T [Batch, SeqLen, Channels],
        /// `[B, L, N]` of `T`: the result; rows at or past `seq_length` mean nothing.
        gated_value: T [Batch, SeqLen, Channels],
        /// `[B, N]` f32: the state after `seq_length` tokens; may be `state_key`.
        new_state_key: F32 [Batch, Channels],
        /// `[B, N]` f32: the state after `seq_length` tokens; may be `state_value`.
        new_state_value: F32 [Batch, Channels],
    }
}

super::attributes::attributes! {
    /// As nodes have them.
    RawAttributes {
        /// `M`: the tokens of a sequence at most.
        max_seq_len: Option<i64>,
    }
}

/// The operator; see the [module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecurrenceScan {
    /// `M`: a slot whose sequence would be longer is idle, as it is in attention. No bound without it.
    pub max_seq_len: Option<usize>,
}

impl Definition for RecurrenceScan {
    const OP: Op = Op::RecurrenceScan;
    const SCHEMA: Schema = Schema {
        name: "RecurrenceScan",
        inputs: Inputs::<()>::PORTS,
        outputs: Outputs::<()>::PORTS,
        aliases: &aliases::<Inputs<()>, Outputs<()>, _>([
            ("state_key", "new_state_key"),
            ("state_value", "new_state_value"),
        ]),
        attributes: RawAttributes::SPECS,
    };
    type Inputs<P> = Inputs<P>;
    type Outputs<P> = Outputs<P>;
    type Attributes = RawAttributes;

    fn new(raw: RawAttributes) -> Result<Self, Vec<String>> {
        let found = raw.max_seq_len.map(|found| match usize::try_from(found) {
            Ok(tokens) if tokens > 0 => Ok(tokens),
            _ => Err(vec![format!(
                "attribute max_seq_len: expected 1 or more, found {found}"
            )]),
        });
        Ok(Self {
            max_seq_len: found.transpose()?,
        })
    }

    fn attributes(&self) -> RawAttributes {
        RawAttributes {
            max_seq_len: self.max_seq_len.map(|tokens| tokens as i64),
        }
    }

    fn given(&self) -> Given {
        Given {
            dims: Dims::default().with(Axis::MaxSeqLen, self.max_seq_len),
            ..Given::default()
        }
    }

    fn check(&self, _: &Inferred, _: &mut Vec<String>) {}

    fn body(call: Call<'_, '_, Self>) {
        let Call {
            w,
            shape,
            inputs,
            outputs,
            ..
        } = call;
        let BodyShape { dtype, seq_len, .. } = shape;
        let given = [inputs.past_length, inputs.seq_length];
        let lengths = lengths(w, LengthCheck::Excess, &shape, given);
        let valid = valid_rows(w, seq_len, &lengths.seq);
        let zero = w.float(0.0);
        let one = w.float(1.0);
        let gate = w.convert(inputs.gate, dtype, F32);
        let gate = w.call("Sigmoid", &[&gate]);
        let open = w.call("Sub", &[&one, &gate]);
        // Padding keeps the state: factor 1, nothing added.
        let mut factor = w.call("Where", &[&valid, &gate, &one]);
        let mut sums = [inputs.key, inputs.value].map(|input| {
            let input = w.convert(input, dtype, F32);
            let added = w.call("Mul", &[&open, &input]);
            w.call("Where", &[&valid, &added, &zero])
        });
        let mut shift = 1;
        while shift < seq_len {
            let earlier_factor = w.slice(&factor, 1, 0, seq_len - shift);
            let later_factor = w.slice(&factor, 1, shift, seq_len);
            for sum in &mut sums {
                let earlier = w.slice(sum, 1, 0, seq_len - shift);
                let later = w.slice(sum, 1, shift, seq_len);
                let from_earlier = w.call("Mul", &[&later_factor, &earlier]);
                let later = w.call("Add", &[&later, &from_earlier]);
                let head = w.slice(sum, 1, 0, shift);
                *sum = w.concat(&[&head, &later], 1);
            }
            let later = w.call("Mul", &[&later_factor, &earlier_factor]);
            let head = w.slice(&factor, 1, 0, shift);
            factor = w.concat(&[&head, &later], 1);
            shift *= 2;
        }
        let none = w.int(0);
        let past = w.unsqueeze(&lengths.past, &[1]);
        let fresh = w.call("Equal", &[&past, &none]);
        let seq = w.unsqueeze(&lengths.seq, &[1]);
        let idle = w.call("Equal", &[&seq, &none]);
        let ports = [
            (
                &sums[0],
                inputs.state_key,
                outputs.gated_key,
                outputs.new_state_key,
            ),
            (
                &sums[1],
                inputs.state_value,
                outputs.gated_value,
                outputs.new_state_value,
            ),
        ];
        for (sum, state, gated, new_state) in ports {
            let start = w.call("Where", &[&fresh, &zero, state]);
            let start = w.unsqueeze(&start, &[1]);
            let from_start = w.call("Mul", &[&factor, &start]);
            let scanned = w.call("Add", &[sum, &from_start]);
            let last = w.slice(&scanned, 1, seq_len - 1, seq_len);
            let axis = w.ints(&[1]);
            let last = w.call("Squeeze", &[&last, &axis]);
            select(w, F32, [&idle, state, &last], new_state);
            select(w, dtype, [&valid, &scanned, &lengths.unused], gated);
        }
    }
}
