//! Cuts a prompt of any length into chunks for engines of static lengths.

/// What one run costs besides its rows, in rows: every run reads all weights once, which on a CPU
/// takes about as long as computing this many rows with them.
pub const ROWS_PER_RUN: usize = 16;

/// One run: `tokens` tokens through the engine for `engine_len`, padded on the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Static length of the engine.
    pub engine_len: usize,
    /// Tokens of the prompt, 1 to `engine_len`.
    pub tokens: usize,
}

/// A prompt that no plan fits: what was expected and found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlanError(String);

/// The cost of running `chunks`: computed rows, padding included, and [`ROWS_PER_RUN`] a run.
pub fn cost(chunks: &[Chunk]) -> usize {
    chunks
        .iter()
        .map(|chunk| chunk.engine_len + ROWS_PER_RUN)
        .sum()
}

/// Whether a prompt of `prompt_len` tokens has a [`plan`].
///
/// # Errors
/// An empty prompt, one longer than `limit`, no lengths.
pub fn check(prompt_len: usize, lengths: &[usize], limit: usize) -> Result<(), PlanError> {
    let refused = if prompt_len == 0 {
        "the prompt has no tokens; expected at least 1".into()
    } else if prompt_len > limit {
        format!(
            "the prompt has {prompt_len} tokens, the sequence has room for {limit}; shorten the prompt or \
             export with a larger `max_seq_len`"
        )
    } else if lengths.iter().all(|&length| length == 0) {
        format!("no engine has length 0; expected one of {lengths:?}")
    } else {
        return Ok(());
    };
    Err(PlanError(refused))
}

/// The chunks of a prompt of `prompt_len` tokens: as many whole ones of the longest engine as there are,
/// then those of least [`cost`] for the rest, of those the fewest, longest first; only the last is padded.
/// `limit` is how many tokens the sequence has room for.
///
/// Whole chunks are where they are whatever follows: what they leave can serve every prompt that begins
/// with the same tokens.
///
/// # Errors
/// An empty prompt, one longer than `limit`, no lengths.
///
/// ```
/// use ratplus_runtime::planner::{Chunk, plan};
/// let chunks = plan(600, &[1, 64, 512], 4096)?;
/// let expected = [(512, 512), (64, 64), (64, 24)];
/// assert_eq!(chunks, expected.map(|(engine_len, tokens)| Chunk { engine_len, tokens }));
/// # Ok::<(), ratplus_runtime::planner::PlanError>(())
/// ```
pub fn plan(prompt_len: usize, lengths: &[usize], limit: usize) -> Result<Vec<Chunk>, PlanError> {
    check(prompt_len, lengths, limit)?;
    let usable = lengths.iter().copied().filter(|&length| length > 0);
    let usable: Vec<_> = usable.collect();
    let longest = usable.iter().copied().max().unwrap_or(1);
    let mut left = prompt_len % longest;
    // best[n]: least (cost, runs) of n tokens, and the length that comes with it.
    let mut best = vec![(0, 0, 0); left + 1];
    for tokens in 1..=left {
        best[tokens] = usable
            .iter()
            .map(|&length| {
                let (cost, runs, _) = best[tokens.saturating_sub(length)];
                (cost + length + ROWS_PER_RUN, runs + 1, length)
            })
            .min()
            .unwrap_or_default();
    }
    let mut engines = vec![longest; prompt_len / longest];
    while left > 0 {
        let (_, _, length) = best[left];
        engines.push(length);
        left = left.saturating_sub(length);
    }
    // The order does not matter to the cost; the longest engine is run while there is most to do.
    engines.sort_unstable_by(|a, b| b.cmp(a));
    Ok(fill(prompt_len, engines.into_iter()))
}

/// Chunks of one length: how `verify` compares chunkings.
///
/// # Errors
/// An empty prompt, or `length` 0.
pub fn chunks_of(prompt_len: usize, length: usize) -> Result<Vec<Chunk>, PlanError> {
    check(prompt_len, &[length], usize::MAX)?;
    Ok(fill(prompt_len, std::iter::repeat(length)))
}

fn fill(prompt_len: usize, engines: impl Iterator<Item = usize>) -> Vec<Chunk> {
    let mut left = prompt_len;
    engines
        .map_while(|engine_len| {
            let tokens = engine_len.min(left);
            left -= tokens;
            (tokens > 0).then_some(Chunk { engine_len, tokens })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Least (cost, runs) by trying every multiset of engines.
    fn brute_force(left: usize, lengths: &[usize]) -> (usize, usize) {
        if left == 0 {
            return (0, 0);
        }
        let tries = lengths.iter().map(|&length| {
            let (cost, runs) = brute_force(left.saturating_sub(length), lengths);
            (cost + length + ROWS_PER_RUN, runs + 1)
        });
        tries.min().unwrap()
    }

    proptest! {
        #[test]
        fn the_rest_after_whole_chunks_is_the_cheapest(
            prompt_len in 1usize..120,
            lengths in prop::collection::btree_set(7usize..60, 1..4),
        ) {
            let lengths: Vec<_> = lengths.into_iter().collect();
            let longest = *lengths.last().unwrap();
            let chunks = plan(prompt_len, &lengths, 120).unwrap();
            let (whole, rest) = chunks.split_at(prompt_len / longest);
            prop_assert!(whole.iter().all(|chunk| chunk.tokens == longest));
            let cheapest = match prompt_len % longest {
                0 => (0, 0),
                left => brute_force(left, &lengths),
            };
            prop_assert_eq!((cost(rest), rest.len()), cheapest);
        }

        #[test]
        fn chunks_cover_the_prompt(
            prompt_len in 1usize..5000,
            lengths in prop::collection::btree_set(2usize..600, 0..4),
        ) {
            let lengths: Vec<_> = [1].into_iter().chain(lengths).collect();
            let chunks = plan(prompt_len, &lengths, 5000).unwrap();
            prop_assert_eq!(chunks.iter().map(|chunk| chunk.tokens).sum::<usize>(), prompt_len);
            let (last, full) = chunks.split_last().unwrap();
            prop_assert!(full.iter().all(|chunk| chunk.tokens == chunk.engine_len));
            prop_assert!((1..=last.engine_len).contains(&last.tokens));
            prop_assert!(chunks.iter().all(|chunk| lengths.contains(&chunk.engine_len)));
            prop_assert!(chunks.is_sorted_by(|a, b| a.engine_len >= b.engine_len));
        }
    }

    #[test]
    fn almost_full_chunks_are_padded_rather_than_decoded() {
        let lengths = [1, 64, 512];
        let engines = |n| {
            plan(n, &lengths, 4096)
                .unwrap()
                .iter()
                .map(|c| c.engine_len)
                .collect::<Vec<_>>()
        };
        assert_eq!(engines(1), [1]);
        assert_eq!(engines(63), [64]);
        assert_eq!(engines(65), [64, 1]);
        assert_eq!(engines(512), [512]);
        assert_eq!(engines(4096), [512; 8]);
    }

    #[test]
    fn impossible_prompts_are_refused() {
        for (found, part) in [
            (plan(0, &[1], 10), "the prompt has no tokens"),
            (
                plan(11, &[1], 10),
                "has 11 tokens, the sequence has room for 10",
            ),
            (plan(1, &[], 10), "expected one of []"),
        ] {
            let error = found.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(chunks_of(3, 0).is_err());
        assert_eq!(chunks_of(3, 2).unwrap().len(), 2);
    }
}
