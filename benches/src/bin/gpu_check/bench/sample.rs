//! Parts of tensors on the device, compared with the reference.

use super::source::tile;
use super::{Bench, ELEMENT};
use crate::buffers::POISON;
use crate::element::{self, decode};
use crate::failure::Failure;
use crate::model::{Answer, Worst};
use ratplus_kernels::cuda::DevicePtr;
use ratplus_reference::full::sigmoid;

/// Errors of f32 arithmetic on values of up to 2.
const ARITHMETIC: f64 = 2e-5;

impl Bench {
    /// Elements of a tensor; the timer's stream is waited for.
    pub(super) fn read(
        &self,
        tensor: DevicePtr,
        first: usize,
        count: usize,
    ) -> Result<Vec<f32>, Failure> {
        let mut bytes = vec![0; count * ELEMENT.size()];
        let from = tensor + (first * ELEMENT.size()) as DevicePtr;
        let stream = self.timer.stream();
        // SAFETY: the caller's tensor has these elements; the copy is waited for.
        unsafe {
            self.device
                .download_async(bytes.as_mut_ptr(), from, bytes.len(), stream)?;
        }
        self.timer.wait()?;
        Ok(decode(ELEMENT, &bytes))
    }

    /// Overwrites a tensor with NaN.
    pub(super) fn poison(&self, tensor: DevicePtr, count: usize) -> Result<(), Failure> {
        let bytes = count * ELEMENT.size();
        let block = vec![POISON; bytes.min(1 << 20)];
        tile(self.device, tensor, bytes, &block, self.timer.stream())
    }

    /// Nothing is off by more than its bound, or an error that says what.
    pub(super) fn accept(&self, name: &str, worst: &Worst) -> Result<(), Failure> {
        if let Some(error) = self.device.error_flag().take() {
            return Err(Failure::Wrong(format!("{name}: {error}")));
        }
        if worst.ratio > 1.0 {
            return Err(Failure::Wrong(format!(
                "{name}: {:.3} of the bound, not timed: {}",
                worst.ratio, worst.place
            )));
        }
        Ok(())
    }
}

/// The recurrence of one channel, at the tokens that are asked for, in order: `value` and `gate`
/// give its inputs.
pub fn recurrence(
    tokens: &[usize],
    value: impl Fn(usize) -> f32,
    gate: impl Fn(usize) -> f32,
) -> Vec<f64> {
    let mut state = 0.0;
    let mut next = 0;
    let mut found = Vec::new();
    for &token in tokens {
        while next <= token {
            let logit = f64::from(gate(next));
            state = sigmoid(logit) * state + sigmoid(-logit) * f64::from(value(next));
            next += 1;
        }
        found.push(state);
    }
    found
}

/// A gated value.
pub fn gated_bound(want: f64) -> f64 {
    element::unit(ELEMENT) * want.abs() + ARITHMETIC
}

/// One row of one head of the attention's output; `tiles` where operands are rounded.
pub fn see_row(worst: &mut Worst, got: &[f32], answer: &Answer, tiles: bool, place: &str) {
    let unit = element::unit(ELEMENT);
    let naive = if tiles { 2.0 * answer.naive_error } else { 0.0 };
    for (channel, (&got, &want)) in got.iter().zip(&answer.exact).enumerate() {
        let bound = unit * want.abs() + ARITHMETIC + unit + naive;
        worst.see(got, want, bound, || format!("{place} channel {channel}"));
    }
}
