//! Where the keys that a tile of queries sees are.

use ratplus_graphs::cache::HeadCache;
use std::ops::Range;

/// Where a run's keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Consecutive cache rows from this one on, counted from the head's first.
    Cache(usize),
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
    const EMPTY: Self = Self {
        source: Source::Chunk,
        start: 0,
        step: 1,
        count: 0,
        lasting: true,
    };

    fn cached(rows: Range<usize>, start: usize, step: usize, lasting: bool) -> Self {
        Self {
            source: Source::Cache(rows.start),
            start,
            step,
            count: rows.len(),
            lasting,
        }
    }

    fn chunk(positions: Range<usize>, lasting: bool) -> Self {
        Self {
            start: positions.start,
            count: positions.len(),
            lasting,
            ..Self::EMPTY
        }
    }

    /// The positions that are dilated, in a head of this `dilation`.
    fn dilated_chunk(positions: Range<usize>, dilation: usize) -> Self {
        let start = (positions.start + 1).next_multiple_of(dilation) - 1;
        Self {
            start,
            step: dilation,
            count: positions.end.saturating_sub(start).div_ceil(dilation),
            ..Self::EMPTY
        }
    }
}

/// Whether every query of a head sees itself apart from the listed keys: without a window, its
/// own key is the only one that no later query needs, so a tile of queries would compute a full
/// square of scores for its diagonal.
pub(super) fn self_apart(cache: &HeadCache) -> bool {
    cache.pattern.local_window == 0 && cache.pattern.dilation.is_none_or(|d| d.get() > 1)
}

/// The keys that the queries at the positions `queries` see, in runs; `apart` leaves out what
/// only the query at the same position needs. `past` tokens are cached.
pub(super) fn visible_runs(
    cache: &HeadCache,
    past: usize,
    queries: Range<usize>,
    apart: bool,
) -> [Run; 7] {
    let pattern = cache.pattern;
    let (initial, window) = (pattern.initial as usize, pattern.local_window as usize);
    let first = queries.start;
    let end = if apart { queries.end - 1 } else { queries.end };
    let dilation = pattern.dilation.map_or(1, |d| d.get() as usize);

    // Rows that the first query sees; later ones see no other row.
    let rows = cache.visible_rows(first, past);
    let dilated_start = cache
        .position_of_row(rows.dilated.start, past)
        .unwrap_or_default();
    let window_start = first.saturating_sub(window).max(initial);
    let [ring, wrapped] = rows.window;

    // Keys of the chunk: dilated ones while no query has them in its window, then every one.
    let chunk_start = initial.max(past);
    let band_start = if apart {
        end
    } else {
        first.saturating_sub(window)
    };
    let dilated_chunk = match pattern.dilation {
        Some(_) if chunk_start < band_start => {
            Run::dilated_chunk(chunk_start..band_start, dilation)
        }
        _ => Run::EMPTY,
    };
    let band = chunk_start.max(band_start).min(end)..end;
    [
        Run::cached(rows.initial, 0, 1, true),
        Run::cached(rows.dilated, dilated_start, dilation, true),
        Run::cached(ring.clone(), window_start, 1, false),
        Run::cached(wrapped, window_start + ring.len(), 1, false),
        Run::chunk(past..initial.min(end).max(past), true),
        dilated_chunk,
        Run::chunk(band, false),
    ]
}
