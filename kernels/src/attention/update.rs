//! Rotating the chunk's keys and writing the cache.

use super::{Call, Head, Workspace};
use crate::element::Element;
use crate::isa::kernel;
use crate::rope::rotate;
use crate::simd::Simd;
use std::ops::Range;
use std::ptr::{copy_nonoverlapping, null_mut};

/// Copies the head's rows from past to present where they are not the same memory.
///
/// # Safety
/// As `dilated_attention`; no other task touches the head's present rows.
pub(super) unsafe fn copy_past<T: Element, C: Element>(call: &Call<T, C>, head: &Head) {
    let params = call.params;
    let (at, count) = (call.rows(head), head.cache.rows * params.head_dim);
    for (past, present) in [
        (params.past_key, params.present_key),
        (params.past_value, params.present_value),
    ] {
        if !std::ptr::eq(past, present) {
            // SAFETY: the head's rows, in buffers that do not overlap.
            unsafe { copy_nonoverlapping(past.add(at), present.add(at), count) }
        }
    }
}

/// Writes the chunk's `tokens` to the rows that no later token overwrites, and those of heads with
/// a window to the workspace.
///
/// # Safety
/// As `dilated_attention`; the tokens are valid ones of `slot`, and no other task has them.
pub(super) unsafe fn store_lasting<T: Element, C: Element>(
    call: &Call<T, C>,
    slot: usize,
    tokens: Range<usize>,
    workspace: &Workspace<C>,
) {
    // SAFETY: forwarded.
    unsafe { store_tokens::<T, C>(call.isa, call, slot, tokens, workspace) }
}

kernel! {
    /// [`store_lasting`].
    fn store_tokens<T, C>(
        call: &Call<T, C>, slot: usize, tokens: Range<usize>, workspace: &Workspace<C>,
    ) = store_body
}

#[inline(always)]
unsafe fn store_body<S: Simd, T: Element, C: Element>(
    call: &Call<T, C>,
    slot: usize,
    tokens: Range<usize>,
    workspace: &Workspace<C>,
) {
    let heads = call.params.layout.heads().len();
    for index in 0..heads {
        let head = call.head(slot * heads + index);
        // SAFETY: forwarded.
        unsafe { store_head_body::<S, T, C>(call, &head, tokens.clone(), workspace) }
    }
}

/// [`store_lasting`] of one head.
///
/// # Safety
/// As there.
pub(super) unsafe fn store_head<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    tokens: Range<usize>,
    workspace: &Workspace<C>,
) {
    // SAFETY: forwarded.
    unsafe { store_head_tokens::<T, C>(call.isa, call, head, tokens, workspace) }
}

kernel! {
    /// [`store_head`].
    fn store_head_tokens<T, C>(
        call: &Call<T, C>, head: &Head, tokens: Range<usize>, workspace: &Workspace<C>,
    ) = store_head_body
}

#[inline(always)]
unsafe fn store_head_body<S: Simd, T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    tokens: Range<usize>,
    workspace: &Workspace<C>,
) {
    let pattern = &head.cache.pattern;
    // SAFETY: tokens are valid, and no other task has them.
    unsafe {
        if pattern.local_window > 0 {
            for t in tokens {
                store_banded::<S, T, C>(call, head, t, workspace);
            }
            return;
        }
        let first = head.past + tokens.start;
        let end = head.past + tokens.end;
        let initial = pattern.initial as usize;
        for position in first..initial.min(end).max(first) {
            store_kept::<S, T, C>(call, head, position);
        }
        if let Some(dilation) = pattern.dilation {
            let dilation = dilation.get() as usize;
            let start = first.max(initial);
            let start = (start + 1).next_multiple_of(dilation) - 1;
            for position in (start..end).step_by(dilation) {
                store_kept::<S, T, C>(call, head, position);
            }
        }
    }
}

/// The row for the token at `position` that no later token overwrites.
fn lasting_row(head: &Head, position: usize) -> Option<usize> {
    let initial = head.cache.initial_row(position);
    initial.or_else(|| head.cache.dilated_row(position))
}

/// Stores a token of a head without a window.
#[inline(always)]
unsafe fn store_kept<S: Simd, T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    position: usize,
) {
    if let Some(row) = lasting_row(head, position) {
        // SAFETY: the token is valid, the row is the head's.
        unsafe {
            let [key, value] = call.present(head, row);
            token_rows::<S, T, C>(call, head, position - head.past, key, value);
        }
    }
}

/// Stores a token of a head with a window.
#[inline(always)]
unsafe fn store_banded<S: Simd, T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    t: usize,
    workspace: &Workspace<C>,
) {
    // SAFETY: the token is valid, the row is the head's.
    unsafe {
        let [key, value] = workspace.token(call, head, t);
        token_rows::<S, T, C>(call, head, t, key, value);
        if let Some(row) = lasting_row(head, head.past + t) {
            let [row_key, row_value] = call.present(head, row);
            copy_nonoverlapping(key, row_key, call.params.head_dim);
            token_rows::<S, T, C>(call, head, t, null_mut(), row_value);
        }
    }
}

/// Writes the chunk's token `t` as the cache keeps it: its rotated key to `key` and its value to
/// `value`, where these are not null.
///
/// # Safety
/// As `dilated_attention`; the token is valid, the targets have `head_dim` elements, and the
/// machine has `S`.
#[inline(always)]
pub(super) unsafe fn token_rows<S: Simd, T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    t: usize,
    key: *mut C,
    value: *mut C,
) {
    let params = call.params;
    let (dim, half) = (params.head_dim, params.head_dim / 2);
    let (token, table) = (call.token(head, t), (head.past + t) * half);
    // SAFETY: the token is valid, so its position is below `M`.
    unsafe {
        if !key.is_null() {
            rotate::<S, T, C>(
                params.key.add(token),
                params.cos.add(table),
                params.sin.add(table),
                half,
                1.0,
                key,
            );
        }
        if !value.is_null() {
            convert::<S, T, C>(params.value.add(token), dim, value);
        }
    }
}

/// Converts `count` elements.
///
/// # Safety
/// Both have as many, apart; the machine has `S`.
#[inline(always)]
pub(super) unsafe fn convert<S: Simd, T: Element, C: Element>(
    from: *const T,
    count: usize,
    to: *mut C,
) {
    // SAFETY: as the caller vouches; a copy where the types are one.
    unsafe {
        if T::TYPE == C::TYPE {
            copy_nonoverlapping(from.cast(), to, count);
            return;
        }
        let mut d = 0;
        while d + S::LANES <= count {
            C::store::<S>(to.add(d), T::load::<S>(from.add(d)));
            d += S::LANES;
        }
        if d < count {
            let rest = T::load_partial::<S>(from.add(d), count - d);
            C::store_partial::<S>(to.add(d), rest, count - d);
        }
    }
}

/// Writes the only token of a chunk to every row that keeps it.
///
/// # Safety
/// As [`copy_past`]; the token is valid.
pub(super) unsafe fn write_token<T: Element, C: Element>(call: &Call<T, C>, head: &Head) {
    let mut written: Option<[*mut C; 2]> = None;
    for row in head.cache.rows_of_position(head.past) {
        // SAFETY: the rows are the head's.
        unsafe {
            let [key, value] = call.present(head, row);
            match written {
                Some([from_key, from_value]) => write_row(call, head, row, from_key, from_value),
                None => token(call, head, 0, key, value),
            }
            written = Some([key, value]);
        }
    }
}

/// [`token_rows`] on the call's instruction set.
///
/// # Safety
/// As [`token_rows`].
pub(super) unsafe fn token<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    t: usize,
    key: *mut C,
    value: *mut C,
) {
    // SAFETY: forwarded.
    unsafe { one_token::<T, C>(call.isa, call, head, t, key, value) }
}

kernel! {
    /// [`token_rows`].
    fn one_token<T, C>(call: &Call<T, C>, head: &Head, t: usize, key: *mut C, value: *mut C)
        = token_rows
}

/// # Safety
/// As [`copy_past`]; `key` and `value` have `head_dim` elements, and the row is the head's.
unsafe fn write_row<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    row: usize,
    key: *const C,
    value: *const C,
) {
    let dim = call.params.head_dim;
    // SAFETY: as the caller vouches.
    unsafe {
        let [row_key, row_value] = call.present(head, row);
        copy_nonoverlapping(key, row_key, dim);
        copy_nonoverlapping(value, row_value, dim);
    }
}

/// Writes the chunk's last tokens to the head's ring, each row once.
///
/// # Safety
/// As [`copy_past`]; the workspace holds the chunk, and nobody reads the past's ring any more.
pub(super) unsafe fn store_ring<T: Element, C: Element>(
    call: &Call<T, C>,
    head: &Head,
    workspace: &Workspace<C>,
) {
    let window = head.cache.pattern.local_window as usize;
    for t in head.tokens.saturating_sub(window)..head.tokens {
        if let Some(row) = head.cache.window_row(head.past + t) {
            // SAFETY: the token is valid, the row is the head's.
            unsafe {
                let [key, value] = workspace.token(call, head, t);
                let value = if value.is_null() {
                    call.params.value.add(call.token(head, t)).cast()
                } else {
                    value.cast_const()
                };
                write_row(call, head, row, key, value);
            }
        }
    }
}
