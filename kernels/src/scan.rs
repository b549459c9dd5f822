//! `RecurrenceScan`.

use crate::element::Element;
use crate::isa::{Isa, kernel};
use crate::parallel::ParallelFor;
use crate::simd::{Simd, gate_blend, prefetch};
use ratplus_graphs::ops::{LengthError, check_lengths};
use std::slice;

/// The tensors of one `RecurrenceScan` call, dense and row-major. `B` is [`ScanParams::batch`],
/// `L` [`ScanParams::seq_len`], `N` [`ScanParams::channels`].
#[derive(Clone, Copy, Debug)]
pub struct ScanParams<T> {
    /// Independent sequences.
    pub batch: usize,
    /// Tokens of this chunk.
    pub seq_len: usize,
    /// Channels.
    pub channels: usize,
    /// `[B, L, N]`
    pub key: *const T,
    /// `[B, L, N]`
    pub value: *const T,
    /// `[B, L, N]`, logits.
    pub gate: *const T,
    /// `[B, N]`: the last gated key; not read where `past_length` is 0.
    pub state_key: *const f32,
    /// `[B, N]`: the last gated value; not read where `past_length` is 0.
    pub state_value: *const f32,
    /// `[B]`
    pub past_length: *const i64,
    /// `[B]`
    pub seq_length: *const i64,
    /// `[B, L, N]`: the result, zero in rows at or past `seq_length`.
    pub gated_key: *mut T,
    /// `[B, L, N]`: the result, zero in rows at or past `seq_length`.
    pub gated_value: *mut T,
    /// `[B, N]`: the state after `seq_length` tokens; may be `state_key`.
    pub new_state_key: *mut f32,
    /// `[B, N]`: the state after `seq_length` tokens; may be `state_value`.
    pub new_state_value: *mut f32,
}

// SAFETY: plain addresses; who dereferences them answers for the threads.
unsafe impl<T> Sync for ScanParams<T> {}

/// Computes `h[t] = g[t] h[t-1] + (1 - g[t]) x[t]`, `g = sigmoid(gate)`, per channel for keys and
/// values.
///
/// An idle slot (`seq_length` 0) keeps its state.
///
/// # Errors
/// A slot's lengths are out of range; nothing was written.
///
/// # Safety
/// Every pointer is aligned and valid for its tensor. Outputs overlap neither one another nor
/// any input, except that a new state may be exactly the state it replaces.
pub unsafe fn recurrence_scan<T: Element>(
    params: &ScanParams<T>,
    pool: &dyn ParallelFor,
) -> Result<(), LengthError> {
    // SAFETY: forwarded; the machine has its own best instruction set.
    unsafe { recurrence_scan_on(Isa::best(), params, pool) }
}

/// [`recurrence_scan`] with a chosen instruction set.
///
/// # Errors
/// As [`recurrence_scan`].
///
/// # Safety
/// As [`recurrence_scan`], and `isa` is one of [`Isa::available`].
pub unsafe fn recurrence_scan_on<T: Element>(
    isa: Isa,
    params: &ScanParams<T>,
    pool: &dyn ParallelFor,
) -> Result<(), LengthError> {
    let batch = params.batch;
    // SAFETY: the caller vouches for `[B]`.
    let (past, seq) = unsafe {
        (
            slice::from_raw_parts(params.past_length, batch),
            slice::from_raw_parts(params.seq_length, batch),
        )
    };
    check_lengths(past, seq, params.seq_len, None)?;
    let width = block_width(params, pool.threads());
    let blocks = params.channels.div_ceil(width);
    pool.run(batch * blocks, &|task| {
        let (slot, block) = (task / blocks, task % blocks);
        let span = Span {
            slot,
            fresh: past[slot] == 0,
            tokens: seq[slot] as usize,
            channel: block * width,
            channels: width.min(params.channels - block * width),
        };
        // SAFETY: spans are disjoint and within the tensors that the caller vouches for.
        unsafe { scan_span(isa, params, &span) }
    });
    Ok(())
}

/// Channels that one task carries through time; their state lies in the first-level cache.
const MAX_WIDTH: usize = 1024;
/// Rows between a prefetch and its use.
const PREFETCH: usize = 8;

/// How many channels a task takes. Results do not depend on it: channels are independent.
fn block_width<T>(params: &ScanParams<T>, threads: usize) -> usize {
    // Every row is in other pages, so wide tasks wait less for the memory's page tables; and a
    // task has to be worth starting.
    const MIN_WIDTH: usize = 128;
    const MIN_ELEMENTS: usize = 4096;
    let spread = (params.batch * params.channels).div_ceil(threads.max(1));
    let worth = MIN_ELEMENTS.div_ceil(params.seq_len.max(1));
    let width = spread.max(worth).clamp(MIN_WIDTH, MAX_WIDTH);
    width.next_multiple_of(64)
}

/// The channels of one slot that one task computes.
struct Span {
    slot: usize,
    /// No token was seen before: the state counts as zero.
    fresh: bool,
    tokens: usize,
    channel: usize,
    channels: usize,
}

kernel! {
    /// Carries the channels of `span` through time.
    fn scan_span<T>(params: &ScanParams<T>, span: &Span) = span_body
}

/// State of a task's channels.
#[repr(C, align(64))]
struct State([f32; MAX_WIDTH]);

/// # Safety
/// `span` lies within the tensors and has at most [`MAX_WIDTH`] channels; the machine has `S`.
#[inline(always)]
unsafe fn span_body<S: Simd, T: Element>(params: &ScanParams<T>, span: &Span) {
    let &ScanParams {
        seq_len,
        channels: row,
        ..
    } = params;
    let count = span.channels;
    let full = count / S::LANES * S::LANES;
    let rest = count - full;
    let (mut key_state, mut value_state) = (State([0.0; MAX_WIDTH]), State([0.0; MAX_WIDTH]));
    let (keys, values) = (key_state.0.as_mut_ptr(), value_state.0.as_mut_ptr());
    let state_at = span.slot * row + span.channel;
    // SAFETY: `state_at + count` stays within `[B, N]` and `at + count` within `[B, L, N]`.
    unsafe {
        // An idle slot's state passes through, whatever its past.
        if !span.fresh || span.tokens == 0 {
            std::ptr::copy_nonoverlapping(params.state_key.add(state_at), keys, count);
            std::ptr::copy_nonoverlapping(params.state_value.add(state_at), values, count);
        }
        for t in 0..span.tokens {
            let at = (span.slot * seq_len + t) * row + span.channel;
            let (key, value, gate) = (
                params.key.add(at),
                params.value.add(at),
                params.gate.add(at),
            );
            let (gated_key, gated_value) = (params.gated_key.add(at), params.gated_value.add(at));
            if t + PREFETCH < span.tokens {
                for line in (0..count).step_by(64 / size_of::<T>()) {
                    let ahead = PREFETCH * row + line;
                    prefetch(key.add(ahead));
                    prefetch(value.add(ahead));
                    prefetch(gate.add(ahead));
                }
            }
            let mut c = 0;
            while c < full {
                let h = [S::load(keys.add(c)), S::load(values.add(c))];
                let x = [T::load::<S>(key.add(c)), T::load::<S>(value.add(c))];
                let [k, v] = gate_blend::<S>(T::load::<S>(gate.add(c)), h, x);
                S::store(keys.add(c), k);
                S::store(values.add(c), v);
                T::store::<S>(gated_key.add(c), k);
                T::store::<S>(gated_value.add(c), v);
                c += S::LANES;
            }
            if rest > 0 {
                // The state arrays have room for a whole vector: widths are multiples of 64.
                let h = [S::load(keys.add(c)), S::load(values.add(c))];
                let x = [
                    T::load_partial::<S>(key.add(c), rest),
                    T::load_partial::<S>(value.add(c), rest),
                ];
                let g = T::load_partial::<S>(gate.add(c), rest);
                let [k, v] = gate_blend::<S>(g, h, x);
                S::store(keys.add(c), k);
                S::store(values.add(c), v);
                T::store_partial::<S>(gated_key.add(c), k, rest);
                T::store_partial::<S>(gated_value.add(c), v, rest);
            }
        }
        for t in span.tokens..seq_len {
            let at = (span.slot * seq_len + t) * row + span.channel;
            // All zero bytes are +0 in every element type.
            std::ptr::write_bytes(params.gated_key.add(at), 0, count);
            std::ptr::write_bytes(params.gated_value.add(at), 0, count);
        }
        std::ptr::copy_nonoverlapping(keys, params.new_state_key.add(state_at), count);
        std::ptr::copy_nonoverlapping(values, params.new_state_value.add(state_at), count);
    }
}
