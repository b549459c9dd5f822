//! Addresses of keys and values.

use super::keys::{Run, Source};
use super::{Call, Head};
use crate::element::Element;

/// Rows of keys and values at equal distances.
pub(super) struct Rows<T> {
    pub key: *const T,
    pub key_stride: usize,
    pub value: *const T,
    pub value_stride: usize,
    pub count: usize,
}

impl<T: Element> Rows<T> {
    /// The rows of `run`; `keys` are the head's rotated keys of the chunk.
    ///
    /// # Safety
    /// As `dilated_attention`; `run` lies within the chunk or the head's rows.
    #[inline(always)]
    pub(super) unsafe fn new(call: &Call<T>, head: &Head, run: &Run, keys: *const T) -> Self {
        let dim = call.params.head_dim;
        // SAFETY: as the caller vouches.
        unsafe {
            match run.source {
                Source::Cache(row) => {
                    let at = call.rows(head) + row * dim;
                    Self {
                        key: call.params.past_key.add(at),
                        key_stride: dim,
                        value: call.params.past_value.add(at),
                        value_stride: dim,
                        count: run.count,
                    }
                }
                Source::Chunk => {
                    let t = run.start - head.past;
                    Self {
                        key: keys.add(t * dim),
                        key_stride: run.step * dim,
                        value: call.params.value.add(call.token(head, t)),
                        value_stride: run.step * call.token_stride(),
                        count: run.count,
                    }
                }
            }
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
                ..*self
            }
        }
    }
}
