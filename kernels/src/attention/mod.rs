//! `DilatedAttention`, and what it has in common with [`blocks`].

#[cfg(target_arch = "x86_64")]
pub(crate) mod bf16_products;
pub(crate) mod blocks;
mod keys;
mod operator;
mod panel;
mod queries;
mod rows;
mod single;
pub(crate) mod tile;
mod update;

use crate::element::Element;
use crate::isa::Isa;
use crate::parallel::ParallelFor;
use crate::scratch::with_scratch;
use ratplus_graphs::cache::{CacheLayout, HeadCache};
use ratplus_graphs::ops::{LengthError, check_lengths};
use rows::Sources;
use std::ops::Range;
use std::slice;

/// Scores are kept as powers of two.
const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// The tensors and attributes of one `DilatedAttention` call; tensors are dense and row-major.
/// Keys and values are rounded to the cache's type `C` before any query sees them, so that results
/// do not depend on how a sequence is cut into chunks.
/// `B` is [`AttentionParams::batch`], `L` [`AttentionParams::seq_len`], `H`
/// [`AttentionParams::num_heads`], `dh` [`AttentionParams::head_dim`], `Hkv` the layout's heads, `R` its
/// rows and `M` its longest sequence.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams<'a, T, C = T> {
    /// Patterns and cache rows of the key-value heads.
    pub layout: &'a CacheLayout,
    /// Query heads, as many for each key-value head.
    pub num_heads: usize,
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
    /// `[B, L, Hkv * dh]`, before rotary embedding.
    pub key: *const T,
    /// `[B, L, Hkv * dh]`
    pub value: *const T,
    /// `[B, R, dh]`: keys after rotary embedding. Rows not yet written may hold anything.
    pub past_key: *const C,
    /// `[B, R, dh]`. Rows not yet written may hold anything.
    pub past_value: *const C,
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
    pub present_key: *mut C,
    /// `[B, R, dh]`, as `present_key`.
    pub present_value: *mut C,
    /// [`attention_workspace_bytes`] bytes aligned to 4, or null: then memory that the calling
    /// thread keeps is used, which grows with the largest chunk seen.
    pub workspace: *mut u8,
}

// SAFETY: plain addresses; who dereferences them answers for the threads.
unsafe impl<T, C> Sync for AttentionParams<'_, T, C> {}

/// Bytes of [`AttentionParams::workspace`] for a chunk of `seq_len` tokens: of the keys, and the
/// values where `T` is not `C`, that windows see; 0 for one token.
pub fn attention_workspace_bytes<T: Element, C: Element>(
    layout: &CacheLayout,
    batch: usize,
    seq_len: usize,
    head_dim: usize,
) -> usize {
    if seq_len == 1 || !has_windows(layout) {
        return 0;
    }
    let tensors = if T::TYPE == C::TYPE { 1 } else { 2 };
    tensors * batch * layout.heads().len() * seq_len * head_dim * size_of::<C>()
}

fn has_windows(layout: &CacheLayout) -> bool {
    let mut heads = layout.heads().iter();
    heads.any(|head| head.pattern.local_window > 0)
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
pub unsafe fn dilated_attention<T: Element, C: Element>(
    params: &AttentionParams<T, C>,
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
pub unsafe fn dilated_attention_on<T: Element, C: Element>(
    isa: Isa,
    params: &AttentionParams<T, C>,
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
        // SAFETY: forwarded.
        unsafe { decode(&call, pool) };
        return Ok(());
    }
    let bytes =
        attention_workspace_bytes::<T, C>(layout, params.batch, params.seq_len, params.head_dim);
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
struct Call<'a, T, C> {
    isa: Isa,
    params: &'a AttentionParams<'a, T, C>,
    past: &'a [i64],
    seq: &'a [i64],
}

/// A key-value head of one slot, and those of its query heads that are computed together.
struct Head {
    slot: usize,
    /// The key-value head.
    index: usize,
    /// The first query head.
    query: usize,
    /// Query heads.
    queries: usize,
    cache: HeadCache,
    /// Tokens before this chunk.
    past: usize,
    /// Valid tokens of this chunk.
    tokens: usize,
}

impl<T: Element, C: Element> Call<'_, T, C> {
    /// Query heads of a key-value head.
    fn group(&self) -> usize {
        self.params.num_heads / self.params.layout.heads().len().max(1)
    }

    /// The key-value head with number `task` among all slots', with all its query heads.
    fn head(&self, task: usize) -> Head {
        let heads = self.params.layout.heads();
        let (slot, index) = (task / heads.len(), task % heads.len());
        Head {
            slot,
            index,
            query: index * self.group(),
            queries: self.group(),
            cache: heads[index],
            past: self.past[slot] as usize,
            tokens: self.seq[slot] as usize,
        }
    }

    /// The query head with number `task` among all slots', alone.
    fn query_head(&self, task: usize) -> Head {
        Head {
            query: task % self.params.num_heads,
            queries: 1,
            ..self.head(task / self.group())
        }
    }

    /// Elements of a token in `[B, L, Hkv * dh]`.
    fn token_stride(&self) -> usize {
        self.params.layout.heads().len() * self.params.head_dim
    }

    /// Offset of `head`'s channels of the chunk's token `t` in `[B, L, Hkv * dh]`.
    fn token(&self, head: &Head, t: usize) -> usize {
        (head.slot * self.params.seq_len + t) * self.token_stride()
            + head.index * self.params.head_dim
    }

    /// Offset of the channels of `head`'s query head `n` of the chunk's token `t` in `[B, L, H * dh]`.
    fn query_token(&self, head: &Head, n: usize, t: usize) -> usize {
        let token = (head.slot * self.params.seq_len + t) * self.params.num_heads;
        (token + head.query + n) * self.params.head_dim
    }

    /// Offset of `head`'s first row in `[B, R, dh]`.
    fn rows(&self, head: &Head) -> usize {
        (head.slot * self.params.layout.rows() + head.cache.offset) * self.params.head_dim
    }

    /// `head`'s present row of keys and of values.
    ///
    /// # Safety
    /// It has the row.
    unsafe fn present(&self, head: &Head, row: usize) -> [*mut C; 2] {
        let at = self.rows(head) + row * self.params.head_dim;
        // SAFETY: as the caller vouches.
        unsafe {
            [
                self.params.present_key.add(at),
                self.params.present_value.add(at),
            ]
        }
    }
}

/// Chunks of one token. The same parts are computed and merged however many threads share them.
///
/// # Safety
/// As [`dilated_attention_on`].
unsafe fn decode<T: Element, C: Element>(call: &Call<T, C>, pool: &dyn ParallelFor) {
    let heads = call.params.batch * call.params.layout.heads().len();
    let parts = |task| {
        let head = call.head(task);
        single::parts(&head, head.past) * usize::from(head.tokens > 0)
    };
    let most = (0..heads).map(parts).max().unwrap_or(0);
    if most <= 1 || pool.threads() <= heads {
        pool.run(heads, &|task| {
            // SAFETY: heads are disjoint; the pointers are as the caller vouches.
            unsafe { single::decode(call, &call.head(task)) }
        });
        return;
    }
    // Room for the longest sequence, so that no later step allocates.
    let longest = call.params.layout.max_seq_len() - 1;
    let room = (0..heads).map(|task| single::parts(&call.head(task), longest));
    let room = room.max().unwrap_or(0) * call.group();
    let head_floats = room * queries::partial_floats(call.params.head_dim);
    with_scratch(heads * head_floats, |partials| {
        let partials = Shared(partials);
        pool.run(heads * most, &|task| {
            let (head, part) = (task / most, task % most);
            if part < parts(head) {
                // SAFETY: the head has the part, which no other task has; partials are disjoint.
                unsafe {
                    let partials = partials.get().add(head * head_floats);
                    single::decode_part(call, &call.head(head), part, partials);
                }
            }
        });
        pool.run(heads, &|task| {
            // SAFETY: heads are disjoint, and their parts have been computed.
            unsafe {
                let partials = partials.get().add(task * head_floats);
                single::finish_decode(call, &call.head(task), partials);
            }
        });
    });
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

/// The chunk's keys and values as the cache keeps them, of heads with a window: two `[B, Hkv, L, dh]`,
/// the second only where the chunk's own values have another type.
struct Workspace<C>(*mut C);

// SAFETY: a plain address; who dereferences it answers for the threads.
unsafe impl<C> Sync for Workspace<C> {}

impl<C: Element> Workspace<C> {
    /// The rotated key, and the value or null, of `head`'s token `t`.
    fn token<T: Element>(&self, call: &Call<T, C>, head: &Head, t: usize) -> [*mut C; 2] {
        let params = call.params;
        let heads = params.layout.heads().len();
        let all = params.batch * heads * params.seq_len;
        let row = (head.slot * heads + head.index) * params.seq_len + t;
        let key = self.0.wrapping_add(row * params.head_dim);
        let value = if T::TYPE == C::TYPE {
            std::ptr::null_mut()
        } else {
            key.wrapping_add(all * params.head_dim)
        };
        [key, value]
    }

    /// Where `head`'s keys and values are while the chunk is attended to.
    fn sources<T: Element>(&self, call: &Call<T, C>, head: &Head) -> Sources<C> {
        let params = call.params;
        let at = call.rows(head);
        let [key, value] = self.token(call, head, 0);
        let own = value.is_null();
        Sources {
            past: head.past,
            head_dim: params.head_dim,
            lasting: [
                params.present_key.cast_const().wrapping_add(at),
                params.present_value.cast_const().wrapping_add(at),
            ],
            ring: [
                params.past_key.wrapping_add(at),
                params.past_value.wrapping_add(at),
            ],
            chunk: if own {
                let value = params.value.wrapping_add(call.token(head, 0));
                [key.cast_const(), value.cast()]
            } else {
                [key.cast_const(), value.cast_const()]
            },
            value_stride: if own {
                call.token_stride()
            } else {
                params.head_dim
            },
        }
    }
}

/// Chunks of more than one token: store what lasts, attend, and only then overwrite the ring, whose
/// old rows the chunk's first queries still read.
///
/// # Safety
/// As [`dilated_attention_on`]; `workspace` has [`attention_workspace_bytes`].
unsafe fn prefill<T: Element, C: Element>(
    call: &Call<T, C>,
    workspace: *mut C,
    pool: &dyn ParallelFor,
) {
    let workspace = &Workspace(workspace);
    let params = call.params;
    let heads = params.batch * params.layout.heads().len();
    let in_place = std::ptr::eq(params.past_key, params.present_key)
        && std::ptr::eq(params.past_value, params.present_value);
    if !in_place {
        pool.run(heads, &|task| {
            // SAFETY: heads are disjoint.
            unsafe { update::copy_past(call, &call.head(task)) }
        });
    }

    const STORED_TOKENS: usize = 32;
    let parts = params.seq_len.div_ceil(STORED_TOKENS);
    pool.run(params.batch * parts, &|task| {
        let (slot, part) = (task / parts, task % parts);
        let first = part * STORED_TOKENS;
        let last = (first + STORED_TOKENS).min(call.seq[slot] as usize);
        // SAFETY: tokens are disjoint, and valid ones have a position below `M`.
        unsafe { update::store_lasting(call, slot, first..last.max(first), workspace) }
    });

    // The last tiles see the most keys: they go first.
    let tiles = params.seq_len.div_ceil(tile::QUERIES);
    let query_heads = params.batch * params.num_heads;
    pool.run(query_heads * tiles, &|task| {
        let head = call.query_head(task % query_heads);
        let first = (tiles - 1 - task / query_heads) * tile::QUERIES;
        let end = (first + tile::QUERIES).min(params.seq_len);
        // SAFETY: outputs are disjoint; what lasts has been stored.
        unsafe { attend(call, &head, first..end, workspace) }
    });

    if has_windows(params.layout) {
        pool.run(heads, &|task| {
            // SAFETY: heads are disjoint, and no task reads the past any more.
            unsafe { update::store_ring(call, &call.head(task), workspace) }
        });
    }
}

/// Computes the outputs of the chunk's `tokens` of one query head.
///
/// # Safety
/// As [`dilated_attention_on`]; no other task has these outputs, and the chunk has been stored.
unsafe fn attend<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    tokens: Range<usize>,
    workspace: &Workspace<C>,
) {
    let valid = tokens.start..tokens.end.min(head.tokens).max(tokens.start);
    for t in valid.end..tokens.end {
        let out = call.params.output;
        // SAFETY: a padded row of the output. All zero bytes are +0 in every element type.
        unsafe {
            std::ptr::write_bytes(
                out.add(call.query_token(head, 0, t)),
                0,
                call.params.head_dim,
            )
        }
    }
    let sources = workspace.sources(call, head);
    // SAFETY: forwarded.
    unsafe {
        if valid.len() >= tile::WORTH {
            #[cfg(target_arch = "x86_64")]
            if bf16_products::is_chosen(call) {
                return bf16_products::attend(call, head, valid, &sources);
            }
            tile::attend(call, head, valid, &sources);
        } else {
            for t in valid {
                single::query(call, head, t, &sources);
            }
        }
    }
}
