//! Rotating the chunk's keys and writing the cache.

use super::{Call, Head};
use crate::element::Element;
use crate::isa::kernel;
use crate::rope::rotate;
use crate::simd::Simd;
use std::ops::Range;
use std::ptr::copy_nonoverlapping;

/// Writes the rotated keys of the chunk's `tokens` to `rotated`, `[B, H, L, dh]`.
///
/// # Safety
/// As `dilated_attention`; the tokens are valid ones of `slot`.
pub(super) unsafe fn rotate_keys<T: Element>(
    call: &Call<T>,
    slot: usize,
    tokens: Range<usize>,
    rotated: *mut T,
) {
    // SAFETY: forwarded.
    unsafe { rotate_tokens::<T>(call.isa, call, slot, tokens, rotated) }
}

kernel! {
    /// [`rotate_keys`].
    fn rotate_tokens<T>(call: &Call<T>, slot: usize, tokens: Range<usize>, rotated: *mut T)
        = rotate_body
}

#[inline(always)]
unsafe fn rotate_body<S: Simd, T: Element>(
    call: &Call<T>,
    slot: usize,
    tokens: Range<usize>,
    rotated: *mut T,
) {
    let params = call.params;
    let half = params.head_dim / 2;
    let heads = params.layout.heads().len();
    for t in tokens {
        let table = (call.past[slot] as usize + t) * half;
        for index in 0..heads {
            let head = call.head(slot * heads + index);
            // SAFETY: the token is valid, so its position is below `M`.
            unsafe {
                rotate::<S, T, T>(
                    params.key.add(call.token(&head, t)),
                    params.cos.add(table),
                    params.sin.add(table),
                    half,
                    1.0,
                    rotated.add(call.rotated(&head) + t * params.head_dim),
                );
            }
        }
    }
}

/// Copies the head's rows from past to present where they are not the same memory.
///
/// # Safety
/// As `dilated_attention`; no other task touches the head's present rows.
pub(super) unsafe fn copy_past<T: Element>(call: &Call<T>, head: &Head) {
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

/// Writes the token at `position` to the rows that keep it, of those in `rows`.
///
/// # Safety
/// As [`copy_past`]; `key` and `value` have `head_dim` elements.
unsafe fn write_row<T: Element>(
    call: &Call<T>,
    head: &Head,
    row: Option<usize>,
    key: *const T,
    value: *const T,
) {
    if let Some(row) = row {
        let dim = call.params.head_dim;
        let at = call.rows(head) + row * dim;
        // SAFETY: the row is the head's.
        unsafe {
            copy_nonoverlapping(key, call.params.present_key.add(at), dim);
            copy_nonoverlapping(value, call.params.present_value.add(at), dim);
        }
    }
}

/// Writes one token, whose rotated key is at `key`, to every row that keeps it.
///
/// # Safety
/// As [`copy_past`]; the token is valid.
pub(super) unsafe fn write_token<T: Element>(call: &Call<T>, head: &Head, t: usize, key: *const T) {
    // SAFETY: the token is valid.
    unsafe {
        let value = call.params.value.add(call.token(head, t));
        for row in head.cache.rows_of_position(head.past + t) {
            write_row(call, head, Some(row), key, value);
        }
    }
}

/// Writes the chunk to the head's rows, each row once.
///
/// # Safety
/// As [`copy_past`]; `rotated` holds the chunk's keys.
pub(super) unsafe fn write_chunk<T: Element>(call: &Call<T>, head: &Head, rotated: *const T) {
    let cache = &head.cache;
    let window = cache.pattern.local_window as usize;
    // Before this token the ring's rows would be overwritten by the same chunk.
    let ring_start = head.tokens.saturating_sub(window);
    for t in 0..head.tokens {
        let position = head.past + t;
        // SAFETY: the token is valid.
        unsafe {
            let key = rotated.add(call.rotated(head) + t * call.params.head_dim);
            let value = call.params.value.add(call.token(head, t));
            write_row(call, head, cache.initial_row(position), key, value);
            write_row(call, head, cache.dilated_row(position), key, value);
            if t >= ring_start {
                write_row(call, head, cache.window_row(position), key, value);
            }
        }
    }
}
