//! The ways a sequence is put through a package's engines.

use ratplus_runtime::planner::{Chunk, PlanError, chunks_of, plan};
use std::fmt;

/// A way through a sequence.
///
/// ```
/// use ratplus_runtime::planner::Chunk;
/// use ratplus_tools::verify::Route;
/// let steps = Route::Prefill(64).steps(100, &[1, 64], 4096)?;
/// assert_eq!(steps, [64, 36].map(|tokens| Chunk { engine_len: 64, tokens }));
/// # Ok::<(), ratplus_runtime::planner::PlanError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Route {
    /// Everything in chunks of a static length, the last one padded.
    Prefill(usize),
    /// Chunks of a static length, then the last tokens one by one.
    PrefillThenDecode(usize),
    /// Token by token.
    Decode,
    /// Token by token, by the engine of one slot: where there is another for all.
    DecodeApart,
    /// As the planner would prefill it.
    Planned,
}

/// Most tokens that [`Route::PrefillThenDecode`] decodes.
const DECODED_TAIL: usize = 64;

impl Route {
    /// The routes of a chunk length: both kinds of prefill, or decode for 1.
    pub fn of_chunk(chunk: usize) -> Vec<Self> {
        if chunk == 1 {
            vec![Self::Decode, Self::DecodeApart]
        } else {
            vec![Self::Prefill(chunk), Self::PrefillThenDecode(chunk)]
        }
    }

    /// The runs that take `total` tokens through engines of `lengths`.
    ///
    /// # Errors
    /// There are no tokens, or [`Route::Planned`] has no plan.
    pub fn steps(
        &self,
        total: usize,
        lengths: &[usize],
        limit: usize,
    ) -> Result<Vec<Chunk>, PlanError> {
        Ok(match *self {
            Self::Prefill(chunk) => chunks_of(total, chunk)?,
            Self::PrefillThenDecode(chunk) => {
                let tail = DECODED_TAIL.min(total / 2);
                let mut steps = chunks_of(total - tail, chunk)?;
                if tail > 0 {
                    steps.extend(chunks_of(tail, 1)?);
                }
                steps
            }
            Self::Decode | Self::DecodeApart => chunks_of(total, 1)?,
            Self::Planned => plan(total, lengths, limit)?,
        })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefill(chunk) => write!(f, "prefill by {chunk}"),
            Self::PrefillThenDecode(chunk) => write!(f, "prefill by {chunk}, decode"),
            Self::Decode => f.write_str("decode"),
            Self::DecodeApart => f.write_str("decode, slot by slot"),
            Self::Planned => f.write_str("planned prefill"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_takes_every_token_once() {
        let lengths = [1, 7, 64];
        for total in [1, 2, 6, 7, 8, 63, 64, 65, 200] {
            for route in [
                Route::Prefill(7),
                Route::PrefillThenDecode(64),
                Route::Decode,
                Route::DecodeApart,
                Route::Planned,
            ] {
                let steps = route.steps(total, &lengths, 200).unwrap();
                assert_eq!(
                    steps.iter().map(|step| step.tokens).sum::<usize>(),
                    total,
                    "{route} {total}"
                );
                assert!(
                    steps
                        .iter()
                        .all(|step| step.tokens > 0 && step.tokens <= step.engine_len)
                );
                assert!(steps.iter().all(|step| lengths.contains(&step.engine_len)));
            }
        }
    }
}
