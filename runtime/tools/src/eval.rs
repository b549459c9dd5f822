//! Perplexity: how well a session predicts given tokens.
//!
//! The mean negative log-likelihood is that of every scored token under the softmax of the logits
//! before it, in f64; perplexity is its exponential. Texts longer than a window are scored in windows
//! that overlap by `window - stride` tokens, one at least: they are context and not scored again, and
//! every token but a text's first is scored once.

use ratplus_runtime::backend::{BackendError, NonFiniteLogits, Session};
use ratplus_runtime::planner::{Chunk, PlanError, plan};
use std::ops::Range;
use std::time::{Duration, Instant};

/// How a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvalOptions {
    /// Tokens of a window: the longest context that a prediction sees, and one more.
    pub window: usize,
    /// Tokens from one window's start to the next one's, fewer than `window`: a window's first token
    /// has no prediction in it.
    pub stride: usize,
}

impl EvalOptions {
    /// Whether texts can be cut so for sequences of up to `longest` tokens.
    ///
    /// # Errors
    /// [`EvalError::Refused`].
    pub fn check(&self, longest: usize) -> Result<(), EvalError> {
        let EvalOptions { window, stride } = *self;
        if !(2..=longest).contains(&window) {
            return Err(EvalError::Refused(format!(
                "`window`: expected 2 to {longest}, the package's `max_seq_len`, found {window}"
            )));
        }
        if !(1..window).contains(&stride) {
            return Err(EvalError::Refused(format!(
                "`stride`: expected 1 to {}, less than the window, found {stride}",
                window - 1
            )));
        }
        Ok(())
    }
}

/// What is scored.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// All tokens.
    pub tokens: &'a [u32],
    /// Indices of those to score, ascending; `None` is every one that has a prediction.
    pub scored: Option<&'a [usize]>,
}

impl Text<'_> {
    fn scores(&self, index: usize) -> bool {
        self.scored
            .is_none_or(|scored| scored.binary_search(&index).is_ok())
    }
}

/// What was scored.
///
/// ```
/// use ratplus_tools::Evaluation;
/// let mut scored = Evaluation::default();
/// // Four tokens, equally likely; the first of equals counts as the prediction.
/// assert!(scored.score(&[0.0; 4], 0) && scored.score(&[0.0; 4], 3));
/// assert!((scored.perplexity() - 4.0).abs() < 1e-9);
/// assert_eq!(scored.accuracy(), 0.5);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Evaluation {
    /// Tokens with a prediction.
    pub tokens: usize,
    /// Sum of their negative log-likelihoods, in nats.
    pub nll: f64,
    /// How many were the most likely token, the first of equals.
    pub correct: usize,
    /// Tokens that ran, context included.
    pub ran: usize,
    /// Time of the runs.
    pub time: Duration,
}

impl Evaluation {
    /// Nats a token.
    pub fn mean_nll(&self) -> f64 {
        self.nll / self.tokens as f64
    }

    /// `exp` of [`mean_nll`](Self::mean_nll).
    pub fn perplexity(&self) -> f64 {
        self.mean_nll().exp()
    }

    /// Share of [`correct`](Self::correct) tokens.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.tokens as f64
    }

    /// Adds the prediction `logits` of `token`; false where they are not all finite, and nothing
    /// was added.
    pub fn score(&mut self, logits: &[f32], token: usize) -> bool {
        let Some(nll) = negative_log_likelihood(logits, token) else {
            return false;
        };
        let first_best =
            logits
                .iter()
                .enumerate()
                .fold(0, |best, (index, &logit)| match logit > logits[best] {
                    true => index,
                    false => best,
                });
        self.tokens += 1;
        self.nll += nll;
        self.correct += usize::from(first_best == token);
        true
    }
}

/// `-ln softmax(logits)[token]`, in f64; `None` where a logit is not finite.
pub fn negative_log_likelihood(logits: &[f32], token: usize) -> Option<f64> {
    if !logits.iter().all(|logit| logit.is_finite()) {
        return None;
    }
    let top = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total: f64 = logits.iter().map(|&x| (f64::from(x) - top).exp()).sum();
    Some(total.ln() + top - f64::from(*logits.get(token)?))
}

/// Why a text cannot be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// Options or texts that do not fit the package: what was expected and found.
    #[error("{0}")]
    Refused(String),
    /// Windows cannot be cut into chunks.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Logits that are no numbers.
    #[error("text {text}, token {index}: {source}")]
    NotFinite {
        /// Index of the text.
        text: usize,
        /// Index of the token they predict.
        index: usize,
        /// The slot that ran the window, its step, and what was found.
        source: NonFiniteLogits,
    },
    /// A step failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Tokens of a text that run as one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    text: usize,
    /// Tokens that run.
    tokens: Range<usize>,
    /// The first token that is scored.
    first: usize,
}

/// Every token but a text's first is scored once, with as much context as its window has.
fn windows(texts: &[Text<'_>], options: EvalOptions) -> Vec<Window> {
    let mut windows = Vec::new();
    for (text, Text { tokens, .. }) in texts.iter().enumerate() {
        let (mut start, mut scored) = (0, 0);
        loop {
            let end = tokens.len().min(start + options.window);
            let first = scored.max(start + 1);
            if first < end {
                windows.push(Window {
                    text,
                    tokens: start..end,
                    first,
                });
            }
            scored = end;
            if end == tokens.len() {
                break;
            }
            start += options.stride;
        }
    }
    windows
}

/// Scores every text, as many windows at once as the session has slots. `progress` is told the
/// tokens that have run and those there are.
///
/// # Errors
/// Options and tokens are checked before anything runs; the first step that fails, or logits that are
/// no numbers, end everything.
pub fn evaluate(
    session: &mut Session,
    texts: &[Text<'_>],
    options: EvalOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Evaluation, EvalError> {
    check(session, texts, options)?;
    let windows = windows(texts, options);
    let lengths = match session.returns_all_logits() {
        true => session.lengths().to_vec(),
        // Each token's logits: they are the last of a chunk of one.
        false => vec![1],
    };
    let total = windows.iter().map(|window| window.tokens.len()).sum();
    let mut evaluation = Evaluation::default();
    let start = Instant::now();
    for group in windows.chunks(session.batch()) {
        evaluate_group(
            session,
            texts,
            group,
            &lengths,
            &mut evaluation,
            &mut |ran| {
                progress(ran, total);
            },
        )?;
    }
    evaluation.time = start.elapsed();
    Ok(evaluation)
}

fn check(session: &Session, texts: &[Text<'_>], options: EvalOptions) -> Result<(), EvalError> {
    options.check(session.max_seq_len())?;
    if !session.returns_all_logits() && session.lengths().first() != Some(&1) {
        let message = "scoring needs every token's logits: open the engine of length 1, or export \
                       with `logits: all`";
        return Err(EvalError::Refused(message.into()));
    }
    let vocab_size = session.vocab_size();
    for (text, Text { tokens, .. }) in texts.iter().enumerate() {
        if tokens.len() < 2 {
            return Err(EvalError::Refused(format!(
                "text {text}: expected at least 2 tokens, found {}; the first one has no prediction",
                tokens.len()
            )));
        }
        let unknown = |&token: &u32| token as usize >= vocab_size;
        if let Some(index) = tokens.iter().position(unknown) {
            return Err(EvalError::Refused(format!(
                "text {text}, token {index}: expected 0 to {}, found {}",
                vocab_size - 1,
                tokens[index]
            )));
        }
    }
    Ok(())
}

/// Runs one window a slot, each by a plan of its own.
fn evaluate_group(
    session: &mut Session,
    texts: &[Text<'_>],
    group: &[Window],
    lengths: &[usize],
    evaluation: &mut Evaluation,
    progress: &mut dyn FnMut(usize),
) -> Result<(), EvalError> {
    let batch = session.batch();
    let limit = session.max_seq_len();
    // Chunks still to run, last first.
    let mut chunks: Vec<Vec<Chunk>> = group
        .iter()
        .map(|window| {
            let mut chunks = plan(window.tokens.len(), lengths, limit)?;
            chunks.reverse();
            Ok(chunks)
        })
        .collect::<Result<_, PlanError>>()?;
    let mut done = vec![0; group.len()];
    let (mut ids, mut seq_length) = (Vec::new(), vec![0; batch]);
    (0..batch).for_each(|slot| session.reset(slot));
    // The next engine of the first slot that has one; every slot with the same one runs with it.
    while let Some(engine_len) = chunks
        .iter()
        .find_map(|chunks| chunks.last().map(|chunk| chunk.engine_len))
    {
        ids.clear();
        ids.resize(batch * engine_len, 0);
        seq_length.fill(0);
        for (slot, window) in group.iter().enumerate() {
            let Some(chunk) = chunks[slot].pop_if(|chunk| chunk.engine_len == engine_len) else {
                continue;
            };
            let first = window.tokens.start + done[slot];
            let source = &texts[window.text].tokens[first..first + chunk.tokens];
            let row = &mut ids[slot * engine_len..];
            for (id, &token) in row.iter_mut().zip(source) {
                *id = token.into();
            }
            seq_length[slot] = chunk.tokens as i64;
        }
        let output = session.run(engine_len, &ids, &seq_length)?;
        for (slot, window) in group.iter().enumerate() {
            let ran = seq_length[slot] as usize;
            for index in 0..ran {
                // The logits after a token predict the next one.
                let target = window.tokens.start + done[slot] + index + 1;
                let text = &texts[window.text];
                let inside = (window.first..window.tokens.end).contains(&target);
                if !inside || !text.scores(target) {
                    continue;
                }
                let Some(result) = output.checked_logits_at(slot, index) else {
                    unreachable!("chunks are of lengths whose logits are all returned");
                };
                let logits = result.map_err(|source| EvalError::NotFinite {
                    text: window.text,
                    index: target,
                    source,
                })?;
                evaluation.score(logits, text.tokens[target] as usize);
            }
            done[slot] += ran;
            evaluation.ran += ran;
        }
        progress(evaluation.ran);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likelihoods_are_those_of_a_softmax() {
        let nll = |logits: &[f32], token| negative_log_likelihood(logits, token);
        assert!((nll(&[0.0; 8], 3).unwrap() - 8f64.ln()).abs() < 1e-12);
        // Shifts change nothing, and large logits do not overflow.
        let [low, high] = [0.0f32, 3e38].map(|shift| nll(&[1.0 + shift, shift], 1).unwrap());
        assert!((low - (1.0 + 1f64.exp()).ln()).abs() < 1e-7 && high.is_finite());
        assert_eq!(nll(&[0.0, f32::NAN], 0), None);
        assert_eq!(nll(&[0.0, f32::INFINITY], 0), None);
        assert_eq!(nll(&[0.0, 1.0], 2), None);
    }

    #[test]
    fn the_first_of_equals_is_the_most_likely() {
        let mut evaluation = Evaluation::default();
        assert!(evaluation.score(&[1.0, 2.0, 2.0], 1));
        assert!(evaluation.score(&[1.0, 2.0, 2.0], 2));
        assert!(!evaluation.score(&[f32::NAN; 3], 2));
        assert_eq!((evaluation.tokens, evaluation.correct), (2, 1));
        assert_eq!(evaluation.accuracy(), 0.5);
    }

    #[test]
    fn every_token_is_scored_once_with_its_windows_context() {
        let tokens: Vec<u32> = (0..100).collect();
        for length in [2, 3, 16, 17, 31, 100] {
            for (window, stride) in [(2, 1), (16, 1), (16, 5), (16, 14), (16, 15), (200, 199)] {
                let text = Text {
                    tokens: &tokens[..length],
                    scored: None,
                };
                let mut scored = vec![0; length];
                for Window { tokens, first, .. } in windows(&[text], EvalOptions { window, stride })
                {
                    assert!(tokens.len() <= window);
                    let context = if tokens.start == 0 {
                        1
                    } else {
                        window - stride
                    };
                    assert_eq!(first - tokens.start, context);
                    scored[first..tokens.end].iter_mut().for_each(|n| *n += 1);
                }
                let once: Vec<_> = (0..length).map(|at| usize::from(at > 0)).collect();
                assert_eq!(scored, once, "{window} {stride}");
            }
        }
    }
}
