//! Picks the next token.

use crate::backend::NonFinite;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How tokens are picked.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// 0 picks the most likely token; larger values flatten the distribution.
    pub temperature: f32,
    /// Keeps the most likely tokens only.
    pub top_k: Option<usize>,
    /// Keeps the fewest most likely tokens whose probabilities reach this sum.
    pub top_p: Option<f32>,
    /// Start of the random sequence.
    pub seed: u64,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: None,
        top_p: None,
        seed: 0,
    };

    /// Whether every parameter is in its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), SampleError> {
        let refuse = |parameter, expected, found: String| {
            Err(SampleError {
                parameter,
                expected,
                found,
            })
        };
        let Sampling {
            temperature,
            top_k,
            top_p,
            seed: _,
        } = *self;
        if !temperature.is_finite() || temperature < 0.0 {
            return refuse(
                "temperature",
                "a finite number of 0 or more",
                temperature.to_string(),
            );
        }
        if top_k == Some(0) {
            return refuse("top_k", "1 or more", "0".into());
        }
        if let Some(p) = top_p
            && !(p > 0.0 && p <= 1.0)
        {
            return refuse("top_p", "more than 0 and at most 1", p.to_string());
        }
        Ok(())
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self::GREEDY
    }
}

/// A parameter outside its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("`{parameter}`: expected {expected}, found {found}")]
pub struct SampleError {
    /// Its name.
    pub parameter: &'static str,
    /// Its range.
    pub expected: &'static str,
    /// What was given.
    pub found: String,
}

/// Picks tokens for one sequence. The same seed and logits give the same tokens; equal logits
/// are ordered by token id.
///
/// ```
/// use ratplus_runtime::{Sampler, Sampling};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let logits = [0.5, 2.0, -1.0, 1.9];
/// assert_eq!(Sampler::new(Sampling::GREEDY)?.sample(&logits)?, 1);
/// let mut sampling = Sampling::default();
/// (sampling.temperature, sampling.top_k) = (0.8, Some(2));
/// assert!([1, 3].contains(&Sampler::new(sampling)?.sample(&logits)?));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    /// (probability, token), most likely first; kept so that sampling does not allocate.
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    ///
    /// # Errors
    /// A parameter outside its range.
    pub fn new(sampling: Sampling) -> Result<Self, SampleError> {
        sampling.check()?;
        Ok(Self {
            sampling,
            rng: ChaCha8Rng::seed_from_u64(sampling.seed),
            candidates: Vec::new(),
        })
    }

    /// The next token after `logits`, one per token of the vocabulary.
    ///
    /// # Errors
    /// A logit is NaN or infinite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, NonFinite> {
        let (best, peak) = greedy(logits)?;
        if self.sampling.temperature == 0.0 || self.sampling.top_k == Some(1) {
            return Ok(best);
        }
        let temperature = f64::from(self.sampling.temperature);
        self.candidates.clear();
        self.candidates.extend(
            logits
                .iter()
                .zip(0u32..)
                .map(|(&logit, token)| (logit, token)),
        );
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if let Some(k) = self.sampling.top_k
            && k < self.candidates.len()
        {
            self.candidates.select_nth_unstable_by(k - 1, order);
            self.candidates.truncate(k);
        }
        self.candidates.sort_unstable_by(order);
        let mut total = 0.0f64;
        for candidate in &mut self.candidates {
            let weight = ((f64::from(candidate.0) - f64::from(peak)) / temperature).exp();
            candidate.0 = weight as f32;
            total += f64::from(candidate.0);
        }
        if let Some(p) = self.sampling.top_p {
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
        Ok(picked.or(last).map_or(best, |&(_, token)| token))
    }
}

/// The most likely token and its logit; the lowest id of equals.
fn greedy(logits: &[f32]) -> Result<(u32, f32), NonFinite> {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &value) in logits.iter().enumerate() {
        if !value.is_finite() {
            return Err(NonFinite { token, value });
        }
        if value > best.1 {
            best = (token as u32, value);
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampling(temperature: f32, top_k: Option<usize>, top_p: Option<f32>, seed: u64) -> Sampling {
        Sampling {
            temperature,
            top_k,
            top_p,
            seed,
        }
    }

    #[test]
    fn equal_logits_are_ordered_by_id() {
        let mut greedy = Sampler::new(Sampling::GREEDY).unwrap();
        assert_eq!(greedy.sample(&[1.0, 3.0, 3.0, 2.0]).unwrap(), 1);
        let mut two = Sampler::new(sampling(1.0, Some(2), None, 0)).unwrap();
        for _ in 0..100 {
            assert!(two.sample(&[1.0; 6]).unwrap() < 2);
        }
    }

    #[test]
    fn frequencies_follow_the_distribution() {
        // Probabilities 0.6, 0.3, 0.1 at temperature 1.
        let logits = [0.6f32, 0.1, 0.3].map(f32::ln);
        let mut sampler = Sampler::new(sampling(1.0, None, None, 7)).unwrap();
        let mut counts = [0u32; 3];
        for _ in 0..20_000 {
            counts[sampler.sample(&logits).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([12_000.0, 2_000.0, 6_000.0]) {
            // Five standard deviations.
            assert!(
                (f64::from(count) - expected).abs() < 5.0 * f64::sqrt(expected),
                "{counts:?}"
            );
        }
        // 0.6 < 0.85 <= 0.6 + 0.3: the last token is never taken.
        let mut nucleus = Sampler::new(sampling(1.0, None, Some(0.85), 7)).unwrap();
        assert!((0..1000).all(|_| nucleus.sample(&logits).unwrap() != 1));
        let mut one = Sampler::new(sampling(5.0, None, Some(0.1), 7)).unwrap();
        assert!((0..1000).all(|_| one.sample(&logits).unwrap() == 0));
    }

    proptest! {
        #[test]
        fn a_seed_decides(
            logits in prop::collection::vec(-20f32..20.0, 1..200),
            temperature in 0f32..3.0, k in prop::option::of(1usize..250),
            p in prop::option::of(0.01f32..=1.0), seed: u64,
        ) {
            let options = sampling(temperature, k, p, seed);
            let (mut left, mut right) = (Sampler::new(options).unwrap(), Sampler::new(options).unwrap());
            for _ in 0..5 {
                let token = left.sample(&logits).unwrap();
                prop_assert_eq!(token, right.sample(&logits).unwrap());
                let better = logits.iter().filter(|&&other| other > logits[token as usize]).count();
                prop_assert!(better < k.unwrap_or(usize::MAX));
            }
        }
    }

    #[test]
    fn bad_parameters_and_logits_are_named() {
        for (options, name) in [
            (sampling(-1.0, None, None, 0), "temperature"),
            (sampling(f32::NAN, None, None, 0), "temperature"),
            (sampling(f32::INFINITY, None, None, 0), "temperature"),
            (sampling(1.0, Some(0), None, 0), "top_k"),
            (sampling(1.0, None, Some(0.0), 0), "top_p"),
            (sampling(1.0, None, Some(1.1), 0), "top_p"),
            (sampling(1.0, None, Some(f32::NAN), 0), "top_p"),
        ] {
            let error = Sampler::new(options).unwrap_err();
            assert_eq!(error.parameter, name);
            assert!(error.to_string().contains(name), "{error}");
        }
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for options in [Sampling::GREEDY, sampling(1.0, None, None, 0)] {
                let error = Sampler::new(options)
                    .unwrap()
                    .sample(&[0.0, value])
                    .unwrap_err();
                assert_eq!((error.token, error.value.to_bits()), (1, value.to_bits()));
            }
        }
    }
}
