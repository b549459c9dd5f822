//! How tokens are picked.

use super::Uses;
use std::collections::BTreeMap;

/// How tokens are picked; [`sampler`](super) has the order of the steps.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// 0 picks the most likely token; larger values flatten the distribution.
    pub temperature: f32,
    /// Keeps the most likely tokens only; 1 or more.
    pub top_k: Option<usize>,
    /// Keeps the fewest most likely tokens whose probabilities reach this sum; more than 0, at most 1.
    pub top_p: Option<f32>,
    /// Keeps tokens at least this many times as likely as the most likely one; 0 to 1.
    pub min_p: Option<f32>,
    /// Makes tokens of the prompt and new ones less likely to come again: their logits are divided by it
    /// where they are more than 0, and multiplied where they are not. More than 0; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken from the logit of every token that is among the new ones; -2 to 2.
    pub presence_penalty: f32,
    /// Taken from the logit of a token once for each time that it is among the new ones; -2 to 2.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens; -100 to 100.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Start of the random sequence.
    pub seed: u64,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: None,
        top_p: None,
        min_p: None,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: BTreeMap::new(),
        seed: 0,
    };

    /// Whether every parameter is in its range, and every token of `logit_bias` below `vocab_size` where
    /// that is known.
    ///
    /// # Errors
    /// All that are not.
    pub fn check(&self, vocab_size: Option<usize>) -> Result<(), SampleError> {
        let Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            seed: _,
        } = self;
        let mut problems = Vec::new();
        let mut expect = |fits: bool, parameter, expected: &str, found: &dyn ToString| {
            if !fits {
                problems.push(BadParameter {
                    parameter,
                    expected: expected.into(),
                    found: found.to_string(),
                });
            }
        };
        expect(
            temperature.is_finite() && *temperature >= 0.0,
            "temperature",
            "a finite number of 0 or more",
            temperature,
        );
        expect(*top_k != Some(0), "top_k", "1 or more", &0);
        if let Some(p) = top_p {
            let fits = *p > 0.0 && *p <= 1.0;
            expect(fits, "top_p", "more than 0 and at most 1", p);
        }
        if let Some(p) = min_p {
            expect((0.0..=1.0).contains(p), "min_p", "0 to 1", p);
        }
        expect(
            repetition_penalty.is_finite() && *repetition_penalty > 0.0,
            "repetition_penalty",
            "a finite number of more than 0",
            repetition_penalty,
        );
        for (parameter, penalty) in [
            ("presence_penalty", presence_penalty),
            ("frequency_penalty", frequency_penalty),
        ] {
            let fits = (-2.0..=2.0).contains(penalty);
            expect(fits, parameter, "-2 to 2", penalty);
        }
        let biases = || logit_bias.iter();
        if let Some((token, bias)) = biases().find(|(_, bias)| !(-100.0..=100.0).contains(*bias)) {
            let found = format!("{bias} for token {token}");
            expect(false, "logit_bias", "-100 to 100", &found);
        }
        if let Some(size) = vocab_size
            && let Some((token, _)) = biases().find(|(token, _)| **token as usize >= size)
        {
            let expected = format!("tokens 0 to {}", size.saturating_sub(1));
            expect(false, "logit_bias", &expected, token);
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(SampleError(problems)),
        }
    }

    /// A logit after its bias and the penalties of a token that has been in these places.
    pub(super) fn changed(&self, logit: f32, bias: f32, uses: Uses) -> f32 {
        let mut logit = f64::from(logit) + f64::from(bias);
        if uses.prompt || uses.new > 0 {
            let penalty = f64::from(self.repetition_penalty);
            logit = if logit > 0.0 {
                logit / penalty
            } else {
                logit * penalty
            };
        }
        if uses.new > 0 {
            logit -= f64::from(self.frequency_penalty) * f64::from(uses.new);
            logit -= f64::from(self.presence_penalty);
        }
        logit.clamp(f32::MIN.into(), f32::MAX.into()) as f32
    }

    /// Whether what came before has a part in what comes next.
    pub(super) fn looks_back(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }

    /// Whether there is nothing to draw.
    pub(super) fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == Some(1)
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self::GREEDY
    }
}

/// A parameter outside its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{parameter}`: expected {expected}, found {found}")]
pub struct BadParameter {
    /// Its name.
    pub parameter: &'static str,
    /// Its range.
    pub expected: String,
    /// What was given.
    pub found: String,
}

/// Every parameter that is outside its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct SampleError(pub Vec<BadParameter>);
