//! How likely tokens were.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// How likely a token was, by the model's logits alone: no temperature, penalty or constraint changes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens and theirs, most likely first; equal ones by token id.
    pub best: Vec<(u32, f32)>,
}

/// Scores `token` by `logits`, one per token of the vocabulary and all finite, beside the `best` likeliest.
/// Sums are in f64, in the order of the tokens: the bits depend on the logits alone. A token outside the
/// vocabulary has probability 0.
///
/// ```
/// let logits = [0.7f32, 0.1, 0.2].map(f32::ln);
/// let score = ratplus_runtime::sampler::score(&logits, 2, 2);
/// assert!((score.logprob - 0.2f32.ln()).abs() < 1e-6);
/// assert_eq!(score.best.iter().map(|best| best.0).collect::<Vec<_>>(), [0, 2]);
/// ```
pub fn score(logits: &[f32], token: u32, best: usize) -> Score {
    let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let peak = f64::from(peak);
    let weights = logits.iter().map(|&logit| (f64::from(logit) - peak).exp());
    let total = weights.sum::<f64>().ln();
    let logprob = |logit: f32| (f64::from(logit) - peak - total) as f32;
    Score {
        logprob: logits
            .get(token as usize)
            .map_or(f32::NEG_INFINITY, |&logit| logprob(logit)),
        best: likeliest(logits, best)
            .into_iter()
            .map(|token| (token, logprob(logits[token as usize])))
            .collect(),
    }
}

/// The tokens of the `count` largest logits, in order.
fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    // The least likely of those kept is on top.
    let mut kept = BinaryHeap::with_capacity(count.min(logits.len()) + 1);
    for (token, &logit) in (0u32..).zip(logits) {
        let candidate = Reverse((ascending(logit), Reverse(token)));
        if kept.len() < count {
            kept.push(candidate);
        } else if let Some(mut least) = kept.peek_mut()
            && candidate < *least
        {
            *least = candidate;
        }
    }
    let sorted = kept.into_sorted_vec().into_iter();
    sorted.map(|Reverse((_, Reverse(token)))| token).collect()
}

/// A number that is ordered as `value` is; both zeros are equal.
fn ascending(value: f32) -> i32 {
    let bits = (value + 0.0).to_bits() as i32;
    // Of two negative numbers, the one with the larger magnitude is smaller.
    if bits < 0 { bits ^ i32::MAX } else { bits }
}
