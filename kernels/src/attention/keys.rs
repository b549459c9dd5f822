//! Where the keys that queries see are.

use ratplus_graphs::cache::HeadCache;
use std::ops::Range;

/// Where a run's keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Consecutive rows from this one on, counted from the head's first, of those that no later
    /// token overwrites.
    Lasting(usize),
    /// Consecutive rows from this one on of the ring, as it is before this chunk.
    Ring(usize),
    /// The chunk, each at its position.
    Chunk,
}

/// Keys at the positions `start`, `start + step` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub source: Source,
    pub start: usize,
    pub step: usize,
    pub count: usize,
    /// Visible to every query at or after the key, and not only within its window.
    pub lasting: bool,
}

impl Run {
    fn lasting(rows: Range<usize>, start: usize, step: usize) -> Self {
        Self {
            source: Source::Lasting(rows.start),
            start,
            step,
            count: rows.len(),
            lasting: true,
        }
    }

    fn ring(rows: Range<usize>, start: usize) -> Self {
        Self {
            source: Source::Ring(rows.start),
            start,
            step: 1,
            count: rows.len(),
            lasting: false,
        }
    }

    fn chunk(positions: Range<usize>, lasting: bool) -> Self {
        Self {
            source: Source::Chunk,
            start: positions.start,
            step: 1,
            count: positions.len(),
            lasting,
        }
    }
}

/// Whether the head sees every key: its dilated rows are all there is.
fn is_dense(cache: &HeadCache) -> bool {
    cache.pattern.dilation.is_some_and(|d| d.get() == 1)
}

/// Whether every query of a head sees itself apart from the listed keys: without a window, its
/// own key is the only one that no later query needs, so a tile of queries would compute a full
/// square of scores for its diagonal.
pub(super) fn self_apart(cache: &HeadCache) -> bool {
    cache.pattern.local_window == 0 && !is_dense(cache)
}

/// The keys that the queries at the positions `queries` see, in runs; `apart` leaves out what
/// only the query at the same position needs. The ring holds what it held after `past` tokens,
/// the other rows are written for `stored` tokens.
pub(super) fn visible_runs(
    cache: &HeadCache,
    past: usize,
    stored: usize,
    queries: Range<usize>,
    apart: bool,
) -> [Run; 6] {
    let pattern = cache.pattern;
    let (initial, window) = (pattern.initial as usize, pattern.local_window as usize);
    let end = queries.end - usize::from(apart);
    let band_start = if apart || is_dense(cache) {
        end.min(stored)
    } else {
        queries.start.saturating_sub(window)
    };

    // Dilated rows of the positions before the band; the ring as the first query sees it.
    let dilated = cache.visible_rows(band_start + window, band_start).dilated;
    let dilated_start = cache
        .position_of_row(dilated.start, stored)
        .unwrap_or_default();
    let window_start = band_start.max(initial);
    let [ring, wrapped] = if window_start < past {
        cache.visible_rows(band_start + window, past).window
    } else {
        [0..0, 0..0]
    };

    let early = stored.min(initial).min(end);
    let band = initial.max(past).max(band_start).min(end)..end;
    [
        Run::lasting(0..early, 0, 1),
        Run::lasting(
            dilated,
            dilated_start,
            pattern.dilation.map_or(1, |d| d.get() as usize),
        ),
        Run::ring(ring.clone(), window_start),
        Run::ring(wrapped, window_start + ring.len()),
        Run::chunk(early..initial.min(end).max(early), true),
        Run::chunk(band, false),
    ]
}
