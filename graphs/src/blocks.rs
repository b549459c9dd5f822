//! Block top-k attention: which keys a query chooses from, and the rows that stand for whole blocks.
//!
//! Block `b` has the positions `b * S .. (b + 1) * S`. Its summary is [`Score::parts`] rows of `head_dim` f32 values in
//! `[batch, rows, head_dim]`, made of its keys after rotary embedding as the cache holds them; the parts of
//! block `b` of key-value head `h` are the rows from `(h * blocks + b) * parts` on.
//!
//! | score | parts | a complete block's score for the query `q` |
//! |---|---|---|
//! | `bounds` | the least and the greatest of each channel | `sum_c max(q_c * least_c, q_c * greatest_c)` (Quest, arXiv 2406.10774) |
//! | `mean` | the sum of each channel, in the order of positions | `q . sum`, which orders blocks as their means do (MoBA, arXiv 2502.13189) |
//!
//! A query sees the whole of its own block as far as it is past, the `K - 1` earlier blocks with the greatest
//! scores (of equal ones the lower), and what a [`Pattern`] shows besides.

use crate::none_wrong;
use crate::pattern::{Pattern, PatternError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// How a query scores a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Score {
    /// By the bounds of its keys.
    Bounds,
    /// By the mean of its keys.
    Mean,
}

impl Score {
    /// Every score.
    pub const ALL: [Self; 2] = [Self::Bounds, Self::Mean];

    /// As configurations and attributes write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bounds => "bounds",
            Self::Mean => "mean",
        }
    }

    /// The score of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|score| score.name() == name)
    }

    /// Rows of a block's summary.
    pub fn parts(self) -> usize {
        match self {
            Self::Bounds => 2,
            Self::Mean => 1,
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The attention pattern of a layer that chooses blocks.
///
/// ```
/// use ratplus_graphs::blocks::{BlockTopK, Score};
/// use ratplus_graphs::pattern::Pattern;
/// let chosen = BlockTopK::new(8, 4, Score::Bounds, Pattern::NONE)?;
/// assert_eq!((chosen.blocks(100), chosen.summary_rows(100)), (13, 26));
/// // 3 blocks of 8 keys, and the first 5 of its own.
/// assert_eq!(chosen.visible_count(60), 29);
/// # Ok::<(), Vec<ratplus_graphs::pattern::PatternError>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawBlockTopK", into = "RawBlockTopK")]
pub struct BlockTopK {
    /// `S`: keys of a block. At least 1.
    pub block_size: u32,
    /// `K`: blocks that a query sees whole, its own counted. At least 1.
    pub top_k: u32,
    /// How it chooses them.
    pub score: Score,
    /// What it sees of other blocks.
    pub beside: Pattern,
}

/// As configuration files write it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBlockTopK {
    #[serde(default = "none")]
    dilation: i64,
    #[serde(default)]
    local_window: i64,
    #[serde(default)]
    initial: i64,
    block_size: i64,
    top_k: i64,
    score: Score,
}

fn none() -> i64 {
    -1
}

impl BlockTopK {
    /// Checks the integers of a configuration file or ONNX node.
    ///
    /// # Errors
    /// Those outside `1..2^31`, all of them.
    pub fn new(
        block_size: i64,
        top_k: i64,
        score: Score,
        beside: Pattern,
    ) -> Result<Self, Vec<PatternError>> {
        let mut errors = Vec::new();
        let mut counted = |field, value: i64| {
            let small = u32::try_from(value).ok();
            let small = small.filter(|small| (1..=i32::MAX as u32).contains(small));
            if small.is_none() {
                errors.push(PatternError {
                    field,
                    value,
                    expected: "1 or more and less than 2^31",
                });
            }
            small.unwrap_or(1)
        };
        let [block_size, top_k] = [("block_size", block_size), ("top_k", top_k)]
            .map(|(field, value)| counted(field, value));
        none_wrong(errors)?;
        Ok(Self {
            block_size,
            top_k,
            score,
            beside,
        })
    }

    /// Blocks of a sequence of `max_seq_len` tokens, the last one perhaps shorter.
    pub fn blocks(&self, max_seq_len: usize) -> usize {
        max_seq_len.div_ceil(self.block_size as usize)
    }

    /// Rows of the summaries of a key-value head.
    pub fn summary_rows(&self, max_seq_len: usize) -> usize {
        self.blocks(max_seq_len) * self.score.parts()
    }

    /// The block of a position.
    pub fn block_of(&self, position: usize) -> usize {
        position / self.block_size as usize
    }

    /// Blocks before its own that the query at position `query` chooses.
    pub fn chosen(&self, query: usize) -> usize {
        (self.top_k as usize - 1).min(self.block_of(query))
    }

    /// The summary rows of a key-value head that hold something of tokens `positions`, counted from the
    /// head's first row.
    pub fn written_rows(&self, positions: Range<usize>) -> Range<usize> {
        if positions.is_empty() {
            return 0..0;
        }
        let parts = self.score.parts();
        self.block_of(positions.start) * parts..(self.block_of(positions.end - 1) + 1) * parts
    }

    /// How many keys the query at position `query` sees, itself included, where it chooses the blocks that show
    /// the least of what it sees besides: the most that it can be.
    pub fn visible_count(&self, query: usize) -> usize {
        let (size, own) = (self.block_size as usize, self.block_of(query));
        let chosen = self.chosen(query);
        let whole = chosen * size + query + 1 - own * size;
        if self.beside == Pattern::NONE {
            return whole;
        }
        let beside = |block: usize| {
            let keys = block * size..(block + 1) * size;
            keys.filter(|&key| self.beside.visible(query, key)).count()
        };
        let mut besides: Vec<_> = (0..own).map(beside).collect();
        besides.sort_unstable();
        whole + besides[chosen..].iter().sum::<usize>()
    }

    /// Whether every query of a sequence of `max_seq_len` tokens sees all keys before it.
    pub fn is_dense(&self, max_seq_len: usize) -> bool {
        let all = self.beside.normalized(max_seq_len) == Pattern::DENSE;
        all || self.top_k as usize >= self.blocks(max_seq_len)
    }

    /// The same for sequences of at most `max_seq_len` tokens, of which it is not [dense](Self::is_dense).
    pub fn normalized(&self, max_seq_len: usize) -> Self {
        Self {
            beside: self.beside.normalized(max_seq_len),
            ..*self
        }
    }
}

impl fmt::Display for BlockTopK {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            block_size,
            top_k,
            score,
            beside,
        } = self;
        write!(f, "S={block_size} K={top_k} {score}")?;
        match *beside == Pattern::NONE {
            true => Ok(()),
            false => write!(f, " {beside}"),
        }
    }
}

impl TryFrom<RawBlockTopK> for BlockTopK {
    type Error = String;

    fn try_from(raw: RawBlockTopK) -> Result<Self, String> {
        let beside = Pattern::new(raw.dilation, raw.local_window, raw.initial);
        let beside = beside.map_err(|error| error.to_string())?;
        let found = Self::new(raw.block_size, raw.top_k, raw.score, beside);
        found.map_err(|errors| {
            let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
            errors.join("; ")
        })
    }
}

impl From<BlockTopK> for RawBlockTopK {
    fn from(blocks: BlockTopK) -> Self {
        let beside = blocks.beside;
        Self {
            dilation: beside.dilation_or_minus_one(),
            local_window: beside.local_window.into(),
            initial: beside.initial.into(),
            block_size: blocks.block_size.into(),
            top_k: blocks.top_k.into(),
            score: blocks.score,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_count_is_reached_and_not_passed() {
        for (size, top_k, beside) in [
            (4, 2, (-1, 0, 0)),
            (3, 3, (4, 0, 1)),
            (5, 2, (-1, 7, 2)),
            (8, 1, (3, 2, 0)),
        ] {
            let beside = Pattern::new(beside.0, beside.1, beside.2).unwrap();
            let blocks = BlockTopK::new(size, top_k, Score::Mean, beside).unwrap();
            for query in 0..24 {
                let own = blocks.block_of(query);
                let count = |chosen: u32| {
                    let seen = |&key: &usize| {
                        let block = blocks.block_of(key);
                        block == own || chosen >> block & 1 == 1 || beside.visible(query, key)
                    };
                    (0..=query).filter(seen).count()
                };
                let choices = (0..1u32 << own)
                    .filter(|chosen| chosen.count_ones() as usize == blocks.chosen(query));
                let most = choices.map(count).max();
                assert_eq!(Some(blocks.visible_count(query)), most, "{blocks} {query}");
            }
        }
    }

    #[test]
    fn written_rows_are_those_of_touched_blocks() {
        let blocks = BlockTopK::new(8, 2, Score::Bounds, Pattern::NONE).unwrap();
        assert_eq!(blocks.written_rows(0..0), 0..0);
        assert_eq!(blocks.written_rows(0..8), 0..2);
        assert_eq!(blocks.written_rows(7..9), 0..4);
        assert_eq!(blocks.written_rows(16..17), 4..6);
    }

    #[test]
    fn enough_blocks_are_all_there_are() {
        let blocks = |top_k| BlockTopK::new(8, top_k, Score::Mean, Pattern::NONE).unwrap();
        assert!(blocks(4).is_dense(32) && !blocks(4).is_dense(33));
        assert!(blocks(1).is_dense(8));
    }

    #[test]
    fn impossible_values_are_refused_together() {
        let errors = BlockTopK::new(0, -3, Score::Mean, Pattern::NONE).unwrap_err();
        assert_eq!(errors.len(), 2, "{errors:?}");
        let text = r#"{"block_size": 8, "top_k": 2, "score": "bounds"}"#;
        let read: BlockTopK = serde_json::from_str(text).unwrap();
        assert_eq!(read.beside, Pattern::NONE);
        let written = serde_json::to_value(read).unwrap();
        assert_eq!(written["dilation"], -1);
        let unknown = r#"{"block_size": 8, "top_k": 2, "score": "max"}"#;
        assert!(serde_json::from_str::<BlockTopK>(unknown).is_err());
    }
}
