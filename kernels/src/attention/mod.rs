//! `DilatedAttention`.

mod keys;
mod rows;
mod single;
mod tile;
mod update;

use crate::element::Element;
use crate::isa::Isa;
use crate::parallel::ParallelFor;
use crate::scratch::with_scratch;
use ratplus_graphs::cache::{CacheLayout, HeadCache};
use ratplus_graphs::ops::{LengthError, check_lengths};
use std::ops::Range;
use std::slice;

/// Scores are kept as powers of two.
const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// The tensors and attributes of one `DilatedAttention` call; tensors are dense and row-major.
/// `B` is [`AttentionParams::batch`], `L` [`AttentionParams::seq_len`], `dh`
/// [`AttentionParams::head_dim`], `H` the layout's heads, `R` its rows and `M` its longest
/// sequence.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams<'a, T> {
    /// Patterns and cache rows of the heads.
    pub layout: &'a CacheLayout,
    /// Factor on the scores.
    pub scale: f32,
    /// Independent sequences.
    pub batch: usize,
    /// Tokens of this chunk.
    pub seq_len: usize,
    /// Channels of one head, an even number.
    pub head_dim: usize,
    /// `[B, L, H * dh]`, before rotary embedding.
    pub query: *const T,
    /// `[B, L, H * dh]`, before rotary embedding.
    pub key: *const T,
    /// `[B, L, H * dh]`
    pub value: *const T,
    /// `[B, R, dh]`: keys after rotary embedding. Rows not yet written may hold anything.
    pub past_key: *const T,
    /// `[B, R, dh]`. Rows not yet written may hold anything.
    pub past_value: *const T,
    /// `[B]`
    pub past_length: *const i64,
    /// `[B]`
    pub seq_length: *const i64,
    /// `[M, dh / 2]`
    pub cos: *const f32,
    /// `[M, dh / 2]`
    pub sin: *const f32,
    /// `[B, L, H * dh]`: the result, zero in rows at or past `seq_length`.
    pub output: *mut T,
    /// `[B, R, dh]`: the cache after this chunk. Where it is `past_key`, only rows that the
    /// chunk fills are written; else every row is.
    pub present_key: *mut T,
    /// `[B, R, dh]`, as `present_key`.
    pub present_value: *mut T,
    /// [`attention_workspace_bytes`] bytes aligned to 4, or null: then memory that the calling
    /// thread keeps is used, which grows with the largest chunk seen.
    pub workspace: *mut u8,
}

// SAFETY: plain addresses; who dereferences them answers for the threads.
unsafe impl<T> Sync for AttentionParams<'_, T> {}

/// Bytes of [`AttentionParams::workspace`] for a chunk of `seq_len` tokens; 0 for one token.
pub fn attention_workspace_bytes<T: Element>(
    batch: usize,
    seq_len: usize,
    num_heads: usize,
    head_dim: usize,
) -> usize {
    if seq_len == 1 {
        return 0;
    }
    // The chunk's rotated keys.
    batch * num_heads * seq_len * head_dim * size_of::<T>()
}

/// Rotates queries and keys, attends to the keys that each head's pattern makes visible, and
/// writes the chunk's keys and values to the cache.
///
/// An idle slot (`seq_length` 0) keeps its cache. Where `past_length` is 0 no row of the past is
/// read but to copy it.
///
/// # Errors
/// A slot's lengths are out of range; nothing was written.
///
/// # Safety
/// Every pointer is aligned and valid for its tensor. Outputs and workspace overlap neither one
/// another nor any input, except that `present_key` may be exactly `past_key`, and
/// `present_value` exactly `past_value`.
pub unsafe fn dilated_attention<T: Element>(
    params: &AttentionParams<T>,
    pool: &dyn ParallelFor,
) -> Result<(), LengthError> {
    // SAFETY: forwarded; the machine has its own best instruction set.
    unsafe { dilated_attention_on(Isa::best(), params, pool) }
}

/// [`dilated_attention`] with a chosen instruction set.
///
/// # Errors
/// As [`dilated_attention`].
///
/// # Safety
/// As [`dilated_attention`], and `isa` is one of [`Isa::available`].
pub unsafe fn dilated_attention_on<T: Element>(
    isa: Isa,
    params: &AttentionParams<T>,
    pool: &dyn ParallelFor,
) -> Result<(), LengthError> {
    // SAFETY: the caller vouches for `[B]`.
    let (past, seq) = unsafe {
        (
            slice::from_raw_parts(params.past_length, params.batch),
            slice::from_raw_parts(params.seq_length, params.batch),
        )
    };
    let layout = params.layout;
    check_lengths(past, seq, params.seq_len, Some(layout.max_seq_len()))?;
    let call = Call {
        isa,
        params,
        past,
        seq,
    };
    if params.seq_len == 1 {
        // A task reads and writes the rows of its own head only: attention, then the update.
        pool.run(params.batch * layout.heads().len(), &|task| {
            let head = call.head(task);
            // SAFETY: heads are disjoint; the pointers are as the caller vouches.
            unsafe { single::decode(&call, &head) }
        });
        return Ok(());
    }
    let bytes = attention_workspace_bytes::<T>(
        params.batch,
        params.seq_len,
        layout.heads().len(),
        params.head_dim,
    );
    if params.workspace.is_null() {
        with_scratch(bytes.div_ceil(size_of::<f32>()), |floats| {
            // SAFETY: forwarded; the scratch has as many bytes.
            unsafe { prefill(&call, floats.cast(), pool) }
        });
    } else {
        // SAFETY: forwarded.
        unsafe { prefill(&call, params.workspace.cast(), pool) };
    }
    Ok(())
}

/// A checked call.
struct Call<'a, T> {
    isa: Isa,
    params: &'a AttentionParams<'a, T>,
    past: &'a [i64],
    seq: &'a [i64],
}

/// One head of one slot.
struct Head {
    slot: usize,
    index: usize,
    cache: HeadCache,
    /// Tokens before this chunk.
    past: usize,
    /// Valid tokens of this chunk.
    tokens: usize,
}

impl<T: Element> Call<'_, T> {
    /// The head with number `task` among all slots' heads.
    fn head(&self, task: usize) -> Head {
        let heads = self.params.layout.heads();
        let (slot, index) = (task / heads.len(), task % heads.len());
        Head {
            slot,
            index,
            cache: heads[index],
            past: self.past[slot] as usize,
            tokens: self.seq[slot] as usize,
        }
    }

    /// Elements of a token in `[B, L, H * dh]`.
    fn token_stride(&self) -> usize {
        self.params.layout.heads().len() * self.params.head_dim
    }

    /// Offset of `head`'s channels of the chunk's token `t` in `[B, L, H * dh]`.
    fn token(&self, head: &Head, t: usize) -> usize {
        (head.slot * self.params.seq_len + t) * self.token_stride()
            + head.index * self.params.head_dim
    }

    /// Offset of `head`'s first row in `[B, R, dh]`.
    fn rows(&self, head: &Head) -> usize {
        (head.slot * self.params.layout.rows() + head.cache.offset) * self.params.head_dim
    }

    /// Offset of `head`'s first key among the rotated keys `[B, H, L, dh]`.
    fn rotated(&self, head: &Head) -> usize {
        (head.slot * self.params.layout.heads().len() + head.index)
            * self.params.seq_len
            * self.params.head_dim
    }
}

/// Chunks of more than one token: rotate all keys, attend, and only then write the cache, whose
/// old rows the chunk's first queries still read.
///
/// # Safety
/// As [`dilated_attention_on`]; `rotated` has room for the chunk's keys.
unsafe fn prefill<T: Element>(call: &Call<T>, rotated: *mut T, pool: &dyn ParallelFor) {
    let rotated = Shared(rotated);
    let params = call.params;
    let heads = params.batch * params.layout.heads().len();

    const ROTATED_TOKENS: usize = 32;
    let parts = params.seq_len.div_ceil(ROTATED_TOKENS);
    pool.run(params.batch * parts, &|task| {
        let (slot, part) = (task / parts, task % parts);
        let first = part * ROTATED_TOKENS;
        let last = (first + ROTATED_TOKENS).min(call.seq[slot] as usize);
        // SAFETY: tokens are disjoint, and valid ones have a position below `M`.
        unsafe { update::rotate_keys(call, slot, first..last, rotated.get()) }
    });

    // The last tiles see the most keys: they go first.
    let tiles = params.seq_len.div_ceil(tile::QUERIES);
    pool.run(heads * tiles, &|task| {
        let head = call.head(task % heads);
        let first = (tiles - 1 - task / heads) * tile::QUERIES;
        let end = (first + tile::QUERIES).min(params.seq_len);
        // SAFETY: outputs are disjoint; the keys have been rotated.
        unsafe { attend(call, &head, first..end, rotated.get()) }
    });

    pool.run(heads, &|task| {
        let head = call.head(task);
        // SAFETY: heads are disjoint, and no task reads the past any more.
        unsafe {
            update::copy_past(call, &head);
            update::write_chunk(call, &head, rotated.get());
        }
    });
}

/// Computes the outputs of the chunk's `tokens`.
///
/// # Safety
/// As [`dilated_attention_on`]; no other task has these outputs, and `rotated` holds the chunk's
/// keys.
unsafe fn attend<T: Element>(call: &Call<T>, head: &Head, tokens: Range<usize>, rotated: *const T) {
    let valid = tokens.start..tokens.end.min(head.tokens).max(tokens.start);
    for t in valid.end..tokens.end {
        let out = call.params.output;
        // SAFETY: a padded row of the output. All zero bytes are +0 in every element type.
        unsafe { std::ptr::write_bytes(out.add(call.token(head, t)), 0, call.params.head_dim) }
    }
    // SAFETY: forwarded.
    unsafe {
        if valid.len() >= tile::WORTH {
            tile::attend(call, head, valid, rotated);
        } else {
            for t in valid {
                single::query(call, head, t, rotated);
            }
        }
    }
}

/// An address that tasks share.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);

// SAFETY: a plain address; who dereferences it answers for the threads.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}
