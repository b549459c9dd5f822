//! Addresses of keys and values.

use super::keys::{Run, Source};
use crate::element::Element;

/// Where one head's keys and values are.
pub(super) struct Sources<C> {
    /// Tokens before the chunk.
    pub past: usize,
    pub head_dim: usize,
    /// The head's first rows that no later token overwrites.
    pub lasting: [*const C; 2],
    /// The head's first rows as before this chunk.
    pub ring: [*const C; 2],
    /// The chunk's rotated keys, `head_dim` apart, and its values.
    pub chunk: [*const C; 2],
    /// Elements between the chunk's values.
    pub value_stride: usize,
}

/// Rows of keys and values at equal distances.
pub(super) struct Rows<C> {
    pub key: *const C,
    pub key_stride: usize,
    pub value: *const C,
    pub value_stride: usize,
    pub count: usize,
    /// Where keys are read next, as far apart: they are fetched, and may lie anywhere.
    pub ahead: *const C,
}

impl<C: Element> Rows<C> {
    /// The rows of `run`, which lies within the chunk or the head's rows.
    #[inline(always)]
    pub(super) fn new(sources: &Sources<C>, run: &Run) -> Self {
        let dim = sources.head_dim;
        let ([key, value], at, value_stride) = match run.source {
            Source::Lasting(row) => (sources.lasting, row, dim),
            Source::Ring(row) => (sources.ring, row, dim),
            // An empty run may start before the chunk.
            Source::Chunk => (
                sources.chunk,
                run.start.saturating_sub(sources.past),
                sources.value_stride,
            ),
        };
        let key = key.wrapping_add(at * dim);
        Self {
            key,
            key_stride: dim,
            value: value.wrapping_add(at * value_stride),
            value_stride,
            count: run.count,
            ahead: key.wrapping_add(run.count * dim),
        }
    }

    /// The `count` rows after the first `skip`.
    ///
    /// # Safety
    /// There are as many.
    #[inline(always)]
    pub(super) unsafe fn part(&self, skip: usize, count: usize) -> Self {
        // SAFETY: as the caller vouches.
        unsafe {
            Self {
                key: self.key.add(skip * self.key_stride),
                value: self.value.add(skip * self.value_stride),
                count,
                ahead: self.key.wrapping_add((skip + count) * self.key_stride),
                ..*self
            }
        }
    }
}
