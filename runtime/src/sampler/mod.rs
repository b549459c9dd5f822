//! Picks the next token.
//!
//! A sequence's own [`Sampler`] takes its logits through these steps, in this order:
//!
//! 1. Only tokens that a constraint allows and that are not forbidden are looked at.
//! 2. `logit_bias` is added.
//! 3. `repetition_penalty`, over the prompt and new tokens; then `frequency_penalty` and
//!    `presence_penalty`, over new tokens alone.
//! 4. At temperature 0 the most likely token is picked, otherwise logits are divided by the temperature.
//! 5. `top_k`, then `top_p` of what that left, then `min_p`.
//! 6. A token is drawn from what is left, by its probability.
//!
//! Biases and penalties come in this order and with this meaning in vLLM (`Sampler` in
//! `vllm/v1/sample/sampler.py`) and, as far as it has them, in Hugging Face's Transformers
//! (`RepetitionPenaltyLogitsProcessor`); those for new tokens alone are OpenAI's. The last steps are in
//! the order of Transformers (`GenerationMixin._get_logits_processor`); vLLM has `min_p` before `top_k` and
//! `top_p`, which then keep fewer tokens.
//!
//! Steps that are not asked for change nothing. What they make of a logit is cut to what an `f32` holds:
//! finite logits have finite probabilities, whatever the parameters.

mod order;
mod parameters;
mod score;
mod token_set;

pub use parameters::{BadParameter, SampleError, Sampling};
pub use score::{Score, score};
pub use token_set::TokenSet;

use crate::backend::NonFinite;
use order::keep_largest;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;

/// Picks tokens for one sequence. The same seed, tokens before and logits give the same tokens; equal
/// logits are ordered by token id.
///
/// ```
/// use ratplus_runtime::{Sampler, Sampling};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let logits = [0.5, 2.0, -1.0, 1.9];
/// assert_eq!(Sampler::new(&Sampling::GREEDY)?.sample(&logits)?, 1);
/// let mut sampling = Sampling::default();
/// sampling.presence_penalty = 0.2;
/// let mut sampler = Sampler::new(&sampling)?;
/// assert_eq!((sampler.sample(&logits)?, sampler.sample(&logits)?), (1, 3));
/// (sampling.temperature, sampling.top_k) = (0.8, Some(2));
/// assert!([1, 3].contains(&Sampler::new(&sampling)?.sample(&logits)?));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    /// (logit or probability, token); kept so that sampling does not allocate.
    candidates: Vec<(f32, u32)>,
    scratch: Vec<(f32, u32)>,
    /// By token; empty where penalties change nothing.
    uses: Vec<Uses>,
}

/// Where a token has been.
#[derive(Clone, Copy, Debug, Default)]
struct Uses {
    prompt: bool,
    new: u32,
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    ///
    /// # Errors
    /// Parameters outside their ranges.
    pub fn new(sampling: &Sampling) -> Result<Self, SampleError> {
        sampling.check(None)?;
        Ok(Self {
            sampling: sampling.clone(),
            rng: ChaCha8Rng::seed_from_u64(sampling.seed),
            candidates: Vec::new(),
            scratch: Vec::new(),
            uses: Vec::new(),
        })
    }

    /// Tokens of the prompt, or more of them, all of the model's vocabulary.
    pub fn observe_prompt(&mut self, prompt: &[u32]) {
        if self.sampling.repetition_penalty != 1.0 {
            for &token in prompt {
                self.uses_of(token).prompt = true;
            }
        }
    }

    /// A new token that was picked elsewhere or earlier. It counts as one of the new tokens; the random
    /// sequence stays where it is.
    pub fn record(&mut self, token: u32) {
        if self.sampling.looks_back() {
            let new = &mut self.uses_of(token).new;
            *new = new.saturating_add(1);
        }
    }

    fn uses_of(&mut self, token: u32) -> &mut Uses {
        let token = token as usize;
        if self.uses.len() <= token {
            self.uses.resize(token + 1, Uses::default());
        }
        &mut self.uses[token]
    }

    /// The next token after `logits`, one per token of the vocabulary; it counts as a new one.
    ///
    /// # Errors
    /// A logit is NaN or infinite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, NonFinite> {
        let picked = self.sample_among(logits, None, &BTreeSet::new())?;
        Ok(picked.unwrap_or(0))
    }

    /// [`sample`](Self::sample) among tokens in `allowed`, if that is given, and not in `forbidden`; `None`
    /// where there are none.
    ///
    /// # Errors
    /// A logit is NaN or infinite, of any token.
    pub fn sample_among(
        &mut self,
        logits: &[f32],
        allowed: Option<&TokenSet>,
        forbidden: &BTreeSet<u32>,
    ) -> Result<Option<u32>, NonFinite> {
        let as_they_are = allowed.is_none()
            && forbidden.is_empty()
            && self.sampling.logit_bias.is_empty()
            && !self.sampling.looks_back();
        let best = match as_they_are {
            true => greedy(logits)?,
            false => self.change(logits, allowed, forbidden)?,
        };
        let Some((token, peak)) = best else {
            return Ok(None);
        };
        if self.sampling.is_greedy() {
            self.record(token);
            return Ok(Some(token));
        }
        if as_they_are {
            self.candidates.clear();
            let tokens = logits.iter().copied().zip(0u32..);
            self.candidates.extend(tokens);
        }
        let token = self.draw(peak).unwrap_or(token);
        self.record(token);
        Ok(Some(token))
    }

    /// Fills `candidates` with tokens that may come and their logits after biases and penalties; the most
    /// likely of them.
    fn change(
        &mut self,
        logits: &[f32],
        allowed: Option<&TokenSet>,
        forbidden: &BTreeSet<u32>,
    ) -> Result<Option<(u32, f32)>, NonFinite> {
        // Everything grows here, so that nothing does later.
        if self.sampling.looks_back() && self.uses.len() < logits.len() {
            self.uses.resize(logits.len(), Uses::default());
        }
        self.candidates.clear();
        self.candidates.reserve(logits.len());
        let mut biases = self.sampling.logit_bias.iter().peekable();
        let mut forbidden = forbidden.iter().peekable();
        let mut best = (0, f32::NEG_INFINITY);
        for (token, &logit) in (0u32..).zip(logits) {
            if !logit.is_finite() {
                let (token, value) = (token as usize, logit);
                return Err(NonFinite { token, value });
            }
            let bias = biases.next_if(|(biased, _)| **biased == token);
            let forbidden = forbidden.next_if(|other| **other == token).is_some();
            if forbidden || allowed.is_some_and(|allowed| !allowed.contains(token)) {
                continue;
            }
            let uses = self.uses.get(token as usize).copied().unwrap_or_default();
            let logit = match bias {
                None if !uses.prompt && uses.new == 0 => logit,
                _ => {
                    let bias = bias.map_or(0.0, |(_, &bias)| bias);
                    self.sampling.changed(logit, bias, uses)
                }
            };
            self.candidates.push((logit, token));
            if logit > best.1 {
                best = (token, logit);
            }
        }
        Ok((!self.candidates.is_empty()).then_some(best))
    }

    /// Draws one of `candidates`, whose largest logit is `peak`.
    fn draw(&mut self, peak: f32) -> Option<u32> {
        let Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            ..
        } = self.sampling;
        let temperature = f64::from(temperature);
        let most = top_k.unwrap_or(usize::MAX);
        keep_largest(&mut self.candidates, &mut self.scratch, most);
        let mut total = 0.0f64;
        for candidate in &mut self.candidates {
            let weight = ((f64::from(candidate.0) - f64::from(peak)) / temperature).exp();
            candidate.0 = weight as f32;
            total += f64::from(candidate.0);
        }
        if let Some(p) = top_p {
            let (mut sum, goal) = (0.0, total * f64::from(p));
            let reach = self.candidates.iter().position(|&(weight, _)| {
                sum += f64::from(weight);
                sum >= goal
            });
            if let Some(last) = reach {
                self.candidates.truncate(last + 1);
                total = sum;
            }
        }
        if let Some(p) = min_p {
            // The most likely token's weight is 1.
            let likely = self.candidates.partition_point(|&(weight, _)| weight >= p);
            self.candidates.truncate(likely);
            total = self
                .candidates
                .iter()
                .map(|&(weight, _)| f64::from(weight))
                .sum();
        }
        let mut left = self.rng.random::<f64>() * total;
        let picked = self.candidates.iter().find(|&&(weight, _)| {
            left -= f64::from(weight);
            left < 0.0
        });
        // Rounding can leave nothing: the draw was the very end of the interval.
        let last = self
            .candidates
            .iter()
            .rev()
            .find(|(weight, _)| *weight > 0.0);
        picked.or(last).map(|&(_, token)| token)
    }
}

/// The most likely token and its logit; the lowest id of equals.
fn greedy(logits: &[f32]) -> Result<Option<(u32, f32)>, NonFinite> {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &value) in logits.iter().enumerate() {
        if !value.is_finite() {
            return Err(NonFinite { token, value });
        }
        if value > best.1 {
            best = (token as u32, value);
        }
    }
    Ok((!logits.is_empty()).then_some(best))
}

#[cfg(test)]
mod tests;
