//! How fast a session prefills and decodes.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ratplus_runtime::backend::inspection::{self, Inspection};
use ratplus_runtime::backend::{BackendError, BackendKind, OperatorTime, Session, SessionBuilder};
use ratplus_runtime::planner::{PlanError, plan};
use serde::Serialize;
use std::time::Instant;

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BenchOptions {
    /// Lengths of prompts; `None` is one of 512, or as long as there is room for.
    pub prompts: Option<Vec<usize>>,
    /// Tokens that are decoded one by one; 0 measures no decoding. `None` is 128, or as many as there
    /// is room for.
    pub new_tokens: Option<usize>,
    /// Tokens that sequences have before those; `None` is none, and as many as there is room for.
    pub contexts: Option<Vec<usize>>,
    /// How often, at least once, after one run that is not counted.
    pub repeats: usize,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            prompts: None,
            new_tokens: None,
            contexts: None,
            repeats: 3,
        }
    }
}

/// What cannot be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A prompt or context that the package has no room for.
    #[error("{name}: {source}")]
    Plan {
        /// Which measurement.
        name: String,
        /// Why.
        source: PlanError,
    },
    /// A step failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Of a number of measurements, ascending.
///
/// ```
/// let spread = ratplus_tools::bench::Spread::of(vec![9.0, 1.0, 3.0, 2.0]);
/// assert_eq!((spread.min, spread.p50, spread.max), (1.0, 2.0, 9.0));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// Half are below.
    pub p50: f64,
    /// Nine of ten are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of `values`, of which there is one at least.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * values.len() as f64).ceil() as usize;
            values[rank.clamp(1, values.len()) - 1]
        };
        Self {
            min: at(0.0),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Measured {
    /// `pp512`: a prompt of 512 tokens; `tg128 @ d4096`: 128 tokens one by one after 4096.
    pub name: String,
    /// Whether tokens were decoded one by one.
    pub decode: bool,
    /// Tokens before those that were timed.
    pub context: usize,
    /// Tokens a sequence and repeat.
    pub tokens: usize,
    /// Tokens a second, all sequences together, of each repeat.
    pub tokens_per_second: Spread,
    /// Milliseconds of a step: for a prompt, until its last logits are there (the time to the
    /// first token); else between tokens.
    pub step_ms: Spread,
}

impl BenchOptions {
    /// Every measurement on sequences of up to `longest` tokens: name, context, tokens, whether
    /// decoded.
    fn cases(&self, longest: usize) -> Vec<(String, usize, usize, bool)> {
        let prompts = self.prompts.clone();
        let prompts = prompts.unwrap_or_else(|| vec![longest.min(512)]);
        let mut cases: Vec<_> = prompts
            .into_iter()
            .map(|tokens| (format!("pp{tokens}"), 0, tokens, false))
            .collect();
        let tokens = self.new_tokens.unwrap_or(longest.min(128));
        if tokens > 0 {
            let contexts = self.contexts.clone().unwrap_or_else(|| {
                let mut contexts = vec![0, longest.saturating_sub(tokens)];
                contexts.dedup();
                contexts
            });
            cases.extend(
                contexts
                    .into_iter()
                    .map(|context| (format!("tg{tokens} @ d{context}"), context, tokens, true)),
            );
        }
        cases
    }
}

/// Runs every measurement; `progress` hears its name before.
///
/// Every slot of the session has a sequence. Contexts are not computed: caches keep whatever they
/// hold, which takes the same time.
///
/// # Errors
/// Everything that does not fit, before anything runs; a step that fails.
pub fn bench(
    session: &mut Session,
    options: &BenchOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Measured>, BenchError> {
    let cases = options.cases(session.max_seq_len());
    for (name, context, tokens, decode) in &cases {
        let lengths = if *decode { &[1][..] } else { session.lengths() };
        plan(context + tokens, lengths, session.max_seq_len()).map_err(|source| {
            let name = name.clone();
            BenchError::Plan { name, source }
        })?;
    }
    inspection::make_resident(session);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut measured = Vec::new();
    for (name, context, tokens, decode) in cases {
        progress(&name);
        let (mut rates, mut steps) = (Vec::new(), Vec::new());
        for repeat in 0..=options.repeats.max(1) {
            let taken = if decode {
                decode_once(session, context, tokens, &mut rng)?
            } else {
                vec![prefill_once(session, tokens, &mut rng)?]
            };
            // The first run warms caches and the processor's clock.
            if repeat > 0 {
                let seconds: f64 = taken.iter().sum();
                rates.push((session.batch() * tokens) as f64 / seconds.max(1e-9));
                steps.extend(taken.into_iter().map(|seconds| 1e3 * seconds));
            }
        }
        measured.push(Measured {
            name,
            decode,
            context,
            tokens,
            tokens_per_second: Spread::of(rates),
            step_ms: Spread::of(steps),
        });
    }
    Ok(measured)
}

/// What the operators of one engine took in one measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EngineTimes {
    /// The measurement, as [`Measured::name`].
    pub name: String,
    /// The engine's file.
    pub file: String,
    /// The most first.
    pub operators: Vec<OperatorTime>,
}

/// Times every operator in the last prompt and in a few steps of decoding after the last context,
/// in sessions of their own: being timed slows them. Nothing for backends without profiles
/// ([`BackendKind::has_profiles`]).
///
/// # Errors
/// As [`bench()`], and as [`SessionBuilder::open`].
pub fn operator_times(
    sessions: &SessionBuilder<'_>,
    kind: BackendKind,
    options: &BenchOptions,
) -> Result<Vec<EngineTimes>, BenchError> {
    const STEPS: usize = 16;
    let mut times = Vec::new();
    if !kind.has_profiles() {
        return Ok(times);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let cases = options.cases(sessions.package().manifest().max_seq_len);
    for decoded in [false, true] {
        let case = cases.iter().rfind(|case| case.3 == decoded);
        let Some((name, context, tokens, decode)) = case else {
            continue;
        };
        let mut profiled = sessions.clone().inspect(Inspection {
            profile: true,
            ..Inspection::default()
        });
        if *decode {
            // The engine of one token may also be part of a prompt's plan.
            profiled = profiled.engines([1]);
        }
        let mut session = profiled.open(kind)?;
        inspection::make_resident(&mut session);
        if *decode {
            decode_once(&mut session, *context, STEPS.min(*tokens), &mut rng)?;
        } else {
            prefill_once(&mut session, *tokens, &mut rng)?;
        }
        for (file, operators) in inspection::end_profile(session)? {
            if !operators.is_empty() {
                let name = name.clone();
                times.push(EngineTimes {
                    name,
                    file,
                    operators,
                });
            }
        }
    }
    Ok(times)
}

fn random_tokens(session: &Session, count: usize, rng: &mut ChaCha8Rng) -> Vec<i64> {
    let vocabulary = session.vocab_size() as i64;
    (0..count)
        .map(|_| rng.random_range(0..vocabulary))
        .collect()
}

/// Seconds of a prompt, through the chunks that `generate` would run.
fn prefill_once(
    session: &mut Session,
    tokens: usize,
    rng: &mut ChaCha8Rng,
) -> Result<f64, BenchError> {
    let batch = session.batch();
    let chunks = plan(tokens, session.lengths(), session.max_seq_len());
    let chunks = chunks.map_err(|source| BenchError::Plan {
        name: format!("pp{tokens}"),
        source,
    })?;
    let inputs: Vec<_> = chunks
        .iter()
        .map(|chunk| {
            let ids = random_tokens(session, batch * chunk.engine_len, rng);
            (chunk.engine_len, ids, vec![chunk.tokens as i64; batch])
        })
        .collect();
    (0..batch).for_each(|slot| session.reset(slot));
    let start = Instant::now();
    for (engine_len, ids, counts) in &inputs {
        session.run(*engine_len, ids, counts)?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Seconds of each of `tokens` steps after `context` tokens.
fn decode_once(
    session: &mut Session,
    context: usize,
    tokens: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<f64>, BenchError> {
    let batch = session.batch();
    let ids = random_tokens(session, batch * tokens, rng);
    let counts = vec![1; batch];
    (0..batch).for_each(|slot| inspection::assume_past(session, slot, context));
    let mut taken = Vec::with_capacity(tokens);
    for ids in ids.chunks_exact(batch) {
        let start = Instant::now();
        session.run(1, ids, &counts)?;
        taken.push(start.elapsed().as_secs_f64());
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_values() {
        let spread = Spread::of((1..=200).rev().map(f64::from).collect());
        assert_eq!((spread.min, spread.p50, spread.max), (1.0, 100.0, 200.0));
        assert_eq!((spread.p90, spread.p99), (180.0, 198.0));
        let one = Spread::of(vec![7.0]);
        assert_eq!((one.min, one.p50, one.p99, one.max), (7.0, 7.0, 7.0, 7.0));
    }

    #[test]
    fn cases_have_the_names_of_the_field() {
        let options = BenchOptions {
            contexts: Some(vec![0, 4096]),
            ..BenchOptions::default()
        };
        let names: Vec<_> = options
            .cases(32768)
            .into_iter()
            .map(|case| case.0)
            .collect();
        assert_eq!(names, ["pp512", "tg128 @ d0", "tg128 @ d4096"]);
    }
}
