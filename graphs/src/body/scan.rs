//! `RecurrenceScan` as a log-depth scan.

use super::{BodyShape, F32, finish_rows, lengths, valid_rows};
use crate::onnx::NodeWriter;
use crate::ops::Op;

/// Writes one call.
pub(super) struct Scan<'a> {
    pub w: &'a mut NodeWriter,
    pub shape: BodyShape,
}

impl Scan<'_> {
    pub fn write(&mut self, inputs: &[String], outputs: &[String]) {
        let [
            key,
            value,
            gate,
            state_key,
            state_value,
            past_length,
            seq_length,
        ] = inputs
        else {
            return;
        };
        let BodyShape { dtype, seq_len, .. } = self.shape;
        let lengths = lengths(
            self.w,
            Op::RecurrenceScan,
            &self.shape,
            past_length,
            seq_length,
        );
        let valid = valid_rows(self.w, seq_len, &lengths.seq);
        let zero = self.w.float(0.0);
        let one = self.w.float(1.0);
        let gate = self.w.convert(gate, dtype, F32);
        let gate = self.w.call("Sigmoid", &[&gate]);
        let open = self.w.call("Sub", &[&one, &gate]);
        // Padding keeps the state: factor 1, nothing added.
        let mut factor = self.w.call("Where", &[&valid, &gate, &one]);
        let mut sums = [key, value].map(|input| {
            let input = self.w.convert(input, dtype, F32);
            let added = self.w.call("Mul", &[&open, &input]);
            self.w.call("Where", &[&valid, &added, &zero])
        });
        let mut shift = 1;
        while shift < seq_len {
            let earlier_factor = self.w.slice(&factor, 1, 0, seq_len - shift);
            let later_factor = self.w.slice(&factor, 1, shift, seq_len);
            for sum in &mut sums {
                let earlier = self.w.slice(sum, 1, 0, seq_len - shift);
                let later = self.w.slice(sum, 1, shift, seq_len);
                let carried = self.w.call("Mul", &[&later_factor, &earlier]);
                let later = self.w.call("Add", &[&later, &carried]);
                let head = self.w.slice(sum, 1, 0, shift);
                *sum = self.w.concat(&[&head, &later], 1);
            }
            let later = self.w.call("Mul", &[&later_factor, &earlier_factor]);
            let head = self.w.slice(&factor, 1, 0, shift);
            factor = self.w.concat(&[&head, &later], 1);
            shift *= 2;
        }
        let none = self.w.int(0);
        let past = self.w.unsqueeze(&lengths.past, &[1]);
        let fresh = self.w.call("Equal", &[&past, &none]);
        let seq = self.w.unsqueeze(&lengths.seq, &[1]);
        let idle = self.w.call("Equal", &[&seq, &none]);
        let ports = [
            (&sums[0], state_key, &outputs[0], &outputs[2]),
            (&sums[1], state_value, &outputs[1], &outputs[3]),
        ];
        for (sum, state, gated, new_state) in ports {
            let start = self.w.call("Where", &[&fresh, &zero, state]);
            let start = self.w.unsqueeze(&start, &[1]);
            let carried = self.w.call("Mul", &[&factor, &start]);
            let scanned = self.w.call("Add", &[sum, &carried]);
            let last = self.w.slice(&scanned, 1, seq_len - 1, seq_len);
            let axis = self.w.ints(&[1]);
            let last = self.w.call("Squeeze", &[&last, &axis]);
            self.w.push(
                "",
                "Where",
                &[&idle, state, &last],
                &[new_state],
                Vec::new(),
            );
            finish_rows(self.w, dtype, &valid, &scanned, &lengths.unused, gated);
        }
    }
}
