//! `BlockTopKAttention`.

mod choice;
mod operator;
mod summary;
mod tile;

use super::{AttentionParams, Call, Workspace, update};
use crate::element::Element;
use crate::isa::Isa;
use crate::parallel::ParallelFor;
use ratplus_graphs::blocks::BlockTopK;
use ratplus_graphs::ops::{LengthError, check_lengths};
use std::ops::Range;
use std::ptr::null_mut;
use std::slice;

/// The tensors and attributes of one `BlockTopKAttention` call; tensors are dense and row-major. `Rb` is
/// [`BlockTopK::summary_rows`] of each key-value head.
#[derive(Clone, Copy, Debug)]
pub struct BlockTopKParams<'a, T, C = T> {
    /// What is as in `DilatedAttention`; every key is kept. It takes no workspace.
    pub attention: AttentionParams<'a, T, C>,
    /// Which keys are seen.
    pub blocks: BlockTopK,
    /// `[B, Rb, dh]`: summaries of blocks. Rows of blocks not yet begun may hold anything.
    pub past_block: *const f32,
    /// `[B, Rb, dh]`: the summaries after this chunk. Where it is `past_block`, only rows of blocks
    /// that the chunk has tokens of are written; else every row is.
    pub present_block: *mut f32,
}

// SAFETY: plain addresses; who dereferences them answers for the threads.
unsafe impl<T, C> Sync for BlockTopKParams<'_, T, C> {}

/// Rotates queries and keys, writes the chunk's keys and values to the cache and what they change of blocks'
/// summaries, and attends to each query's own block, the blocks that it chooses, and what the pattern shows
/// besides. A query's bits depend on what it sees alone: not on the chunk, nor on other queries.
///
/// An idle slot (`seq_length` 0) keeps its cache and summaries.
///
/// # Errors
/// A slot's lengths are out of range; nothing was written.
///
/// # Safety
/// Every pointer is aligned and valid for its tensor, and the layout's patterns are dense. Outputs overlap
/// neither one another nor any input, except that each `present_*` may be exactly its `past_*`.
pub unsafe fn block_top_k_attention<T: Element, C: Element>(
    params: &BlockTopKParams<T, C>,
    pool: &dyn ParallelFor,
) -> Result<(), LengthError> {
    // SAFETY: forwarded; the machine has its own best instruction set.
    unsafe { block_top_k_attention_on(Isa::best(), params, pool) }
}

/// [`block_top_k_attention`] with a chosen instruction set.
///
/// # Errors
/// As [`block_top_k_attention`].
///
/// # Safety
/// As [`block_top_k_attention`], and `isa` is one of [`Isa::available`].
pub unsafe fn block_top_k_attention_on<T: Element, C: Element>(
    isa: Isa,
    params: &BlockTopKParams<T, C>,
    pool: &dyn ParallelFor,
) -> Result<(), LengthError> {
    let attention = &params.attention;
    // SAFETY: the caller vouches for `[B]`.
    let (past, seq) = unsafe {
        (
            slice::from_raw_parts(attention.past_length, attention.batch),
            slice::from_raw_parts(attention.seq_length, attention.batch),
        )
    };
    let max_seq_len = attention.layout.max_seq_len();
    check_lengths(past, seq, attention.seq_len, Some(max_seq_len))?;
    let call = BlockCall {
        attention: Call {
            isa,
            params: attention,
            past,
            seq,
        },
        params,
    };
    let heads = attention.batch * attention.layout.heads().len();
    // SAFETY: forwarded; heads are disjoint, and so are tokens and what is computed of them.
    unsafe {
        if attention.seq_len == 1 {
            let whole = pool.threads() <= heads;
            pool.run(heads, &|head| {
                call.store(head);
                if whole {
                    call.attend(head, 0..1, 0..call.attention.group());
                }
            });
            if !whole {
                call.attend_all(pool);
            }
            return Ok(());
        }
        pool.run(heads, &|head| call.store(head));
        call.attend_all(pool);
    }
    Ok(())
}

/// A checked call.
struct BlockCall<'a, T, C> {
    attention: Call<'a, T, C>,
    params: &'a BlockTopKParams<'a, T, C>,
}

impl<T: Element, C: Element> BlockCall<'_, T, C> {
    /// Offset of the summaries of the key-value head with number `head` among all slots'.
    fn summaries(&self, head: usize) -> usize {
        let rows = self
            .params
            .blocks
            .summary_rows(self.params.attention.layout.max_seq_len());
        head * rows * self.params.attention.head_dim
    }

    /// Writes the chunk's keys and values, and summaries.
    ///
    /// # Safety
    /// As [`block_top_k_attention_on`]; no other task has this head.
    unsafe fn store(&self, index: usize) {
        let head = self.attention.head(index);
        let none = Workspace(null_mut());
        // SAFETY: forwarded; no head has a window, so that nothing goes to the workspace.
        unsafe {
            update::copy_past(&self.attention, &head);
            update::store_head(&self.attention, &head, 0..head.tokens, &none);
            summary::update(self, index, &head);
        }
    }

    /// Computes all outputs.
    ///
    /// # Safety
    /// As [`block_top_k_attention_on`]; every head has been stored.
    unsafe fn attend_all(&self, pool: &dyn ParallelFor) {
        let params = self.attention.params;
        let heads = params.batch * params.layout.heads().len();
        let group = self.attention.group();
        // Few query heads together only where there is nothing else to share among threads.
        let busy = params.seq_len > 1 || heads >= pool.threads();
        let together = if busy { group.min(tile::QUERIES) } else { 1 };
        let parts = group.div_ceil(together);
        let tokens = (tile::QUERIES / together).max(1);
        let tiles = params.seq_len.div_ceil(tokens);
        // Head after head, whose keys then stay near; of each the last tiles first, which see the most of them.
        pool.run(heads * parts * tiles, &|task| {
            let (head, part) = (task / (tiles * parts), task % parts);
            let first = (tiles - 1 - task / parts % tiles) * tokens;
            let end = (first + tokens).min(params.seq_len);
            let queries = part * together..((part + 1) * together).min(group);
            // SAFETY: forwarded; outputs are disjoint.
            unsafe { self.attend(head, first..end, queries) }
        });
    }

    /// Computes the outputs of `queries` of the key-value head's query heads for the chunk's `tokens`.
    ///
    /// # Safety
    /// As [`attend_all`](Self::attend_all); no other task has these outputs.
    unsafe fn attend(&self, index: usize, tokens: Range<usize>, queries: Range<usize>) {
        let group = self.attention.head(index);
        let head = super::Head {
            query: group.query + queries.start,
            queries: queries.len(),
            ..group
        };
        let valid = tokens.start..tokens.end.min(head.tokens).max(tokens.start);
        for t in valid.end..tokens.end {
            let dim = self.attention.params.head_dim;
            // SAFETY: a padded row of the output. All zero bytes are +0 in every element type.
            unsafe {
                let out = self
                    .attention
                    .params
                    .output
                    .add(self.attention.query_token(&head, 0, t));
                std::ptr::write_bytes(out, 0, head.queries * dim);
            }
        }
        if !valid.is_empty() {
            // SAFETY: forwarded.
            unsafe { tile::attend(self, index, &head, valid) }
        }
    }
}
