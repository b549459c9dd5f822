//! The rows of the compact KV cache.
//!
//! One layer's cache is `[batch, rows, head_dim]`; head after head, each head owning
//! [`head_rows`] consecutive rows. With `I`, `W`, `D` the head's initial tokens, window and
//! dilation, and rows counted from the head's first:
//!
//! | rows | hold | position `p` is written to |
//! |---|---|---|
//! | `0 .. I` | the initial tokens | `p`, where `p < I` |
//! | `I .. I + W` | a ring of the last `W` tokens | `I + p % W`, where `p >= I` |
//! | `I + W ..` | every `D`-th token | `I + W + (p + 1) / D - 1`, where `p >= I` and `(p + 1) % D == 0` |
//!
//! A token that is both in the window and dilated has two rows; a query reads the ring's while
//! the token is inside its window, and the dilated one after, so that each visible key is read
//! once and every kind of row is read as one contiguous run (the ring: two). Rows hold keys
//! after rotary embedding. A row that was never written for the current sequence may hold
//! anything; [`HeadCache::position_of_row`] says which rows were.

use crate::pattern::Pattern;
use std::ops::Range;

/// Rows that one head owns: `I + W + floor(max_seq_len / D)`, the last term 0 without dilation.
pub fn head_rows(pattern: Pattern, max_seq_len: usize) -> usize {
    let dilated = pattern
        .dilation
        .map_or(0, |dilation| max_seq_len / dilation.get() as usize);
    pattern.initial as usize + pattern.local_window as usize + dilated
}

/// The rows of one head, counted from the head's first row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadCache {
    /// The head's pattern.
    pub pattern: Pattern,
    /// First row of this head in the layer's cache.
    pub offset: usize,
    /// How many rows the head owns.
    pub rows: usize,
}

/// Rows of one head as runs, counted from the head's first row.
///
/// Runs may be empty, and never overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowRuns {
    /// Initial tokens.
    pub initial: Range<usize>,
    /// Dilated tokens.
    pub dilated: Range<usize>,
    /// The window: positions ascend through the first run, then through the second.
    pub window: [Range<usize>; 2],
}

impl RowRuns {
    /// All runs.
    pub fn runs(&self) -> [Range<usize>; 4] {
        let [first, second] = self.window.clone();
        [self.initial.clone(), self.dilated.clone(), first, second]
    }
}

impl HeadCache {
    /// A head whose rows start at `offset`.
    pub fn new(pattern: Pattern, max_seq_len: usize, offset: usize) -> Self {
        Self {
            pattern,
            offset,
            rows: head_rows(pattern, max_seq_len),
        }
    }

    fn initial(&self) -> usize {
        self.pattern.initial as usize
    }

    fn window(&self) -> usize {
        self.pattern.local_window as usize
    }

    /// The row that keeps the initial token at `position`.
    pub fn initial_row(&self, position: usize) -> Option<usize> {
        (position < self.initial()).then_some(position)
    }

    /// The row of the ring that the token at `position` is written to.
    pub fn window_row(&self, position: usize) -> Option<usize> {
        (position >= self.initial() && self.window() > 0)
            .then(|| self.initial() + position % self.window())
    }

    /// The row that keeps the dilated token at `position`.
    pub fn dilated_row(&self, position: usize) -> Option<usize> {
        let dilation = self.pattern.dilation?.get() as usize;
        (position >= self.initial() && (position + 1).is_multiple_of(dilation))
            .then(|| self.initial() + self.window() + (position + 1) / dilation - 1)
    }

    /// Every row that the token at `position` is written to.
    pub fn rows_of_position(&self, position: usize) -> impl Iterator<Item = usize> {
        [
            self.initial_row(position),
            self.window_row(position),
            self.dilated_row(position),
        ]
        .into_iter()
        .flatten()
    }

    /// The position whose key and value `row` holds after `length` tokens; `None` where the row
    /// holds nothing of this sequence.
    pub fn position_of_row(&self, row: usize, length: usize) -> Option<usize> {
        let (initial, window) = (self.initial(), self.window());
        let position = if row < initial {
            row
        } else if row < initial + window {
            let last = length.checked_sub(1)?;
            let slot = row - initial;
            // The latest position that is congruent to `slot`.
            last.checked_sub((last + window - slot) % window)?
        } else {
            let dilation = self.pattern.dilation?.get() as usize;
            (row - initial - window + 1) * dilation - 1
        };
        (position < length && (row < initial || position >= initial)).then_some(position)
    }

    /// The rows that the query at position `query` reads when `past_length <= query` tokens are
    /// cached. Keys at `past_length ..= query` are not in the cache: they come with the chunk. Of dilated
    /// tokens those that have left the query's window.
    pub fn visible_rows(&self, query: usize, past_length: usize) -> RowRuns {
        let (initial, window) = (self.initial(), self.window());
        let window_start = query.saturating_sub(window);
        let dilated = match self.pattern.dilation {
            Some(dilation) => {
                let dilation = dilation.get() as usize;
                let first = initial + window;
                // Slots below `bound / D` hold positions below `bound`.
                let end = window_start.min(past_length) / dilation;
                first + (initial / dilation).min(end)..first + end
            }
            None => 0..0,
        };
        RowRuns {
            initial: 0..initial.min(past_length),
            dilated,
            window: self.ring_rows(window_start.max(initial)..past_length),
        }
    }

    /// The rows that hold what tokens at `positions` have left once all of them have run, and none after:
    /// with those of the tokens before, all that a later query can see.
    pub fn written_rows(&self, positions: Range<usize>) -> RowRuns {
        let (initial, window) = (self.initial(), self.window());
        let (start, end) = (positions.start, positions.end);
        let dilated = match self.pattern.dilation {
            Some(dilation) => {
                let dilation = dilation.get() as usize;
                let first = initial + window;
                let end = end / dilation;
                first + (start.max(initial) / dilation).min(end)..first + end
            }
            None => 0..0,
        };
        RowRuns {
            initial: start.min(initial)..end.min(initial),
            dilated,
            window: self.ring_rows(start.max(end.saturating_sub(window)).max(initial)..end),
        }
    }

    /// The rows of the ring that hold `positions`, at most a window of them.
    fn ring_rows(&self, positions: Range<usize>) -> [Range<usize>; 2] {
        let (initial, window) = (self.initial(), self.window());
        if positions.is_empty() {
            return [0..0, 0..0];
        }
        let start = positions.start % window;
        let count = positions.len();
        let first = count.min(window - start);
        [
            initial + start..initial + start + first,
            initial..initial + count - first,
        ]
    }
}

/// The cache of one layer: its heads one after the other.
///
/// ```
/// use ratplus_graphs::{CacheLayout, Pattern};
/// // Two heads: dense, and every 4th key with a window of 2 and an initial token.
/// let layout = CacheLayout::new(&[Pattern::DENSE, Pattern::new(4, 2, 1)?], 16);
/// assert_eq!(layout.rows(), 16 + (1 + 2 + 16 / 4));
/// // Where the second head keeps position 7, and what one of its rows holds after 10 tokens.
/// let head = &layout.heads()[1];
/// let rows: Vec<_> = head.rows_of_position(7).map(|row| head.offset + row).collect();
/// assert_eq!(rows, [16 + 2, 16 + 4]);
/// assert_eq!(head.position_of_row(4, 10), Some(7));
/// # Ok::<(), ratplus_graphs::pattern::PatternError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheLayout {
    heads: Vec<HeadCache>,
    rows: usize,
    max_seq_len: usize,
}

impl CacheLayout {
    /// The layout for one pattern per head.
    pub fn new(patterns: &[Pattern], max_seq_len: usize) -> Self {
        let mut rows = 0;
        let heads = patterns
            .iter()
            .map(|&pattern| {
                let head = HeadCache::new(pattern, max_seq_len, rows);
                rows += head.rows;
                head
            })
            .collect();
        Self {
            heads,
            rows,
            max_seq_len,
        }
    }

    /// The heads in order.
    pub fn heads(&self) -> &[HeadCache] {
        &self.heads
    }

    /// `R`: the sum of the heads' rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The longest sequence the layout can hold.
    pub fn max_seq_len(&self) -> usize {
        self.max_seq_len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    const POSITIONS: usize = 64;

    fn grid() -> impl Iterator<Item = Pattern> {
        (-1..=9)
            .filter(|&dilation| dilation != 0)
            .flat_map(|dilation| {
                (0..10).flat_map(move |window| {
                    (0..10).map(move |initial| Pattern::new(dilation, window, initial).unwrap())
                })
            })
    }

    /// Writes positions one by one as [`HeadCache::rows_of_position`] says and keeps, per row,
    /// the position it really holds.
    struct Replay {
        head: HeadCache,
        held: HashMap<usize, usize>,
    }

    impl Replay {
        fn new(pattern: Pattern) -> Self {
            Self {
                head: HeadCache::new(pattern, POSITIONS, 0),
                held: HashMap::new(),
            }
        }

        fn write(&mut self, position: usize) {
            for row in self.head.rows_of_position(position) {
                assert!(
                    row < self.head.rows,
                    "{}: row {row} of {}",
                    self.head.pattern,
                    self.head.rows
                );
                self.held.insert(row, position);
            }
        }
    }

    #[test]
    fn every_visible_key_is_read_from_exactly_one_row_and_no_other_row_is_read() {
        let mut queries = 0u64;
        for pattern in grid() {
            let mut replay = Replay::new(pattern);
            for past in 0..POSITIONS {
                // Every query of a chunk that starts at `past`, not only the first.
                for query in past..POSITIONS {
                    let rows: Vec<_> = replay
                        .head
                        .visible_rows(query, past)
                        .runs()
                        .into_iter()
                        .flatten()
                        .collect();
                    let keys: Vec<_> = rows
                        .iter()
                        .map(|row| *replay.held.get(row).unwrap_or_else(|| {
                            panic!("{pattern} past {past} query {query}: row {row} was never written")
                        }))
                        .collect();
                    let distinct: HashSet<_> = keys.iter().copied().collect();
                    assert_eq!(
                        distinct.len(),
                        keys.len(),
                        "{pattern} past {past} query {query}: {keys:?}"
                    );
                    let expected: HashSet<_> = (0..past)
                        .filter(|&key| pattern.visible(query, key))
                        .collect();
                    assert_eq!(distinct, expected, "{pattern} past {past} query {query}");
                    queries += 1;
                }
                replay.write(past);
            }
        }
        assert_eq!(queries, 1000 * (POSITIONS * (POSITIONS + 1) / 2) as u64);
    }

    #[test]
    fn a_row_holds_what_position_of_row_says() {
        for pattern in grid() {
            let mut replay = Replay::new(pattern);
            for length in 0..=POSITIONS {
                for row in 0..replay.head.rows {
                    assert_eq!(
                        replay.head.position_of_row(row, length),
                        replay.held.get(&row).copied(),
                        "{pattern} row {row} after {length}"
                    );
                }
                replay.write(length.min(POSITIONS - 1));
            }
        }
    }

    #[test]
    fn written_rows_are_those_that_hold_the_positions() {
        for pattern in grid() {
            let head = HeadCache::new(pattern, POSITIONS, 0);
            for end in 0..=POSITIONS {
                for start in (0..=end).step_by(3) {
                    let runs = head.written_rows(start..end);
                    let mut found: Vec<_> = runs.runs().into_iter().flatten().collect();
                    found.sort_unstable();
                    let held = |row: &usize| head.position_of_row(*row, end);
                    let rows = (0..head.rows).filter(|row| held(row).is_some_and(|p| p >= start));
                    assert_eq!(found, rows.collect::<Vec<_>>(), "{pattern} {start}..{end}");
                }
            }
        }
    }

    #[test]
    fn a_head_owns_no_more_rows_than_promised() {
        for pattern in grid() {
            let mut replay = Replay::new(pattern);
            for position in 0..POSITIONS {
                replay.write(position);
                let dilated = pattern
                    .dilation
                    .map_or(0, |d| (position + 1) / d.get() as usize);
                let bound = (pattern.initial + pattern.local_window) as usize + dilated;
                assert!(
                    replay.held.len() <= bound,
                    "{pattern} after {}",
                    position + 1
                );
                assert_eq!(head_rows(pattern, position + 1), bound);
            }
        }
    }

    #[test]
    fn heads_follow_one_another() {
        let patterns = [
            Pattern::DENSE,
            Pattern::new(-1, 3, 2).unwrap(),
            Pattern::new(4, 1, 0).unwrap(),
        ];
        let layout = CacheLayout::new(&patterns, 10);
        let spans: Vec<_> = layout
            .heads()
            .iter()
            .map(|head| (head.offset, head.rows))
            .collect();
        assert_eq!(spans, [(0, 10), (10, 5), (15, 3)]);
        assert_eq!(layout.rows(), 18);
    }
}
