/// A logit that is no number.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("token {token}'s is {value}, expected a finite number")]
pub struct NonFinite {
    /// The first such token of the vocabulary.
    pub token: usize,
    /// NaN or an infinity.
    pub value: f32,
}

/// Logits of one slot with a value that is no number. The other slots of the step are as they would
/// be without this one; [`Session::reset`](super::Session::reset) makes the slot as good as new.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "non-finite logits at step {step}, slot {slot}: {source}; the weights or the state are damaged"
)]
pub struct NonFiniteLogits {
    /// How many tokens the sequence had.
    pub step: usize,
    /// Its slot.
    pub slot: usize,
    /// Which logit.
    pub source: NonFinite,
}

/// The logits again, if all of them are numbers.
pub(crate) fn finite(logits: &[f32]) -> Result<&[f32], NonFinite> {
    match logits.iter().position(|logit| !logit.is_finite()) {
        None => Ok(logits),
        Some(token) => Err(NonFinite {
            token,
            value: logits[token],
        }),
    }
}
