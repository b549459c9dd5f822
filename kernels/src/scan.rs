//! `RecurrenceScan`.

use crate::element::{Element, with_element};
use crate::isa::{Isa, kernel};
use crate::operator::{CpuKernel, Processor};
use crate::parallel::ParallelFor;
use crate::simd::{Simd, fence, gate_blend, prefetch};
use ratplus_graphs::ops::recurrence_scan::{Inputs, Outputs};
use ratplus_graphs::ops::{
    Axis, ElementType, Inferred, LengthError, RecurrenceScan, check_lengths,
};
use std::mem::MaybeUninit;
use std::slice;

/// The tensors of one `RecurrenceScan` call, dense and row-major. `B` is [`ScanParams::batch`],
/// `L` [`ScanParams::seq_len`], `N` [`ScanParams::channels`].
#[derive(Clone, Copy, Debug)]
pub struct ScanParams<T> {
    /// Independent sequences.
    pub batch: usize,
    /// Tokens of this chunk.
    pub seq_len: usize,
    /// `M`, where there is a bound.
    pub max_seq_len: Option<usize>,
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
    check_lengths(past, seq, params.seq_len, params.max_seq_len)?;
    let width = block_width(params, pool.threads());
    let streamed = is_streamed(params);
    let blocks = params.channels.div_ceil(width);
    pool.run(batch * blocks, &|task| {
        let (slot, block) = (task / blocks, task % blocks);
        let span = Span {
            slot,
            fresh: past[slot] == 0,
            tokens: seq[slot] as usize,
            channel: block * width,
            channels: width.min(params.channels - block * width),
            streamed,
        };
        // SAFETY: spans are disjoint and within the tensors that the caller vouches for.
        unsafe { scan_span(isa, params, &span) }
    });
    Ok(())
}

/// Sizes and type of one node.
#[derive(Clone, Copy, Debug)]
pub struct ScanPlan {
    element: ElementType,
    batch: usize,
    seq_len: usize,
    max_seq_len: Option<usize>,
    channels: usize,
}

impl CpuKernel for RecurrenceScan {
    type Plan = ScanPlan;

    fn plan(&self, node: &Inferred) -> ScanPlan {
        ScanPlan {
            element: node.element,
            batch: node.dims[Axis::Batch],
            seq_len: node.dims[Axis::SeqLen],
            max_seq_len: node.dims.get(Axis::MaxSeqLen),
            channels: node.dims[Axis::Channels],
        }
    }

    fn workspace_bytes(_: &ScanPlan) -> usize {
        0
    }

    unsafe fn run(
        plan: &ScanPlan,
        inputs: &Inputs<*const u8>,
        outputs: &Outputs<*mut u8>,
        _: *mut u8,
        on: Processor<'_>,
    ) -> Result<(), LengthError> {
        with_element!(plan.element, T => {
            let params = ScanParams::<T> {
                batch: plan.batch,
                seq_len: plan.seq_len,
                max_seq_len: plan.max_seq_len,
                channels: plan.channels,
                key: inputs.key.cast(),
                value: inputs.value.cast(),
                gate: inputs.gate.cast(),
                state_key: inputs.state_key.cast(),
                state_value: inputs.state_value.cast(),
                past_length: inputs.past_length.cast(),
                seq_length: inputs.seq_length.cast(),
                gated_key: outputs.gated_key.cast(),
                gated_value: outputs.gated_value.cast(),
                new_state_key: outputs.new_state_key.cast(),
                new_state_value: outputs.new_state_value.cast(),
            };
            // SAFETY: forwarded.
            unsafe { recurrence_scan_on(on.isa, &params, on.threads) }
        })
    }
}

/// Bytes of a line of the caches.
const LINE: usize = 64;

/// Channels that one task carries through time; their state lies in the first-level cache, and rows
/// this long keep the machine's own prefetching going.
const MAX_WIDTH: usize = 2048;

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

/// Whether results go past the caches: they are larger than any, so that reading each line before
/// it is written would be for nothing. Smaller ones are read again soon, by the attention.
fn is_streamed<T: Element>(params: &ScanParams<T>) -> bool {
    const LEAST_BYTES: usize = 128 << 20;
    let row = params.channels * size_of::<T>();
    let bytes = 2 * params.batch * params.seq_len * row;
    let starts = [params.gated_key.addr(), params.gated_value.addr()];
    bytes >= LEAST_BYTES
        && row.is_multiple_of(LINE)
        && starts.iter().all(|start| start.is_multiple_of(LINE))
}

/// The channels of one slot that one task computes.
struct Span {
    slot: usize,
    /// No token was seen before: the state counts as zero.
    fresh: bool,
    tokens: usize,
    channel: usize,
    channels: usize,
    /// [`is_streamed`].
    streamed: bool,
}

kernel! {
    /// Carries the channels of `span` through time.
    fn scan_span<T>(params: &ScanParams<T>, span: &Span) = span_body
}

/// State of a task's channels.
#[repr(C, align(64))]
struct State(MaybeUninit<[f32; MAX_WIDTH]>);

/// # Safety
/// `span` lies within the tensors and has at most [`MAX_WIDTH`] channels; the machine has `S`.
#[inline(always)]
unsafe fn span_body<S: Simd, T: Element>(params: &ScanParams<T>, span: &Span) {
    // SAFETY: forwarded.
    unsafe {
        if span.streamed {
            carry::<S, T, true>(params, span);
            fence();
        } else {
            carry::<S, T, false>(params, span);
        }
    }
}

/// # Safety
/// As [`span_body`]; where results are `STREAMED`, as [`is_streamed`] says.
#[inline(always)]
unsafe fn carry<S: Simd, T: Element, const STREAMED: bool>(params: &ScanParams<T>, span: &Span) {
    let &ScanParams {
        seq_len,
        channels: row,
        ..
    } = params;
    let count = span.channels;
    let (mut key_state, mut value_state) =
        (State(MaybeUninit::uninit()), State(MaybeUninit::uninit()));
    let keys: *mut f32 = key_state.0.as_mut_ptr().cast();
    let values: *mut f32 = value_state.0.as_mut_ptr().cast();
    let state_at = span.slot * row + span.channel;
    // SAFETY: `state_at + count` stays within `[B, N]` and `at + count` within `[B, L, N]`.
    unsafe {
        // Whole vectors are computed with: those have a value. Widths are multiples of 64, so they fit.
        let padded = count.next_multiple_of(S::LANES);
        std::ptr::write_bytes(keys, 0, padded);
        std::ptr::write_bytes(values, 0, padded);
        // An idle slot's state passes through, whatever its past.
        if !span.fresh || span.tokens == 0 {
            std::ptr::copy_nonoverlapping(params.state_key.add(state_at), keys, count);
            std::ptr::copy_nonoverlapping(params.state_value.add(state_at), values, count);
        }
        let states = [keys, values];
        let grouped = span.tokens / GROUP * GROUP;
        for t in (0..grouped).step_by(GROUP) {
            step::<S, T, STREAMED, GROUP>(params, span, t, states);
        }
        for t in grouped..span.tokens {
            step::<S, T, STREAMED, 1>(params, span, t, states);
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

/// Tokens that are carried together, their state in registers.
const GROUP: usize = 4;

/// Carries `states` of keys and values over the `N` tokens from `t` on.
///
/// # Safety
/// As [`carry`]; there are `N` tokens, and `states` have room for whole vectors of the span.
#[inline(always)]
unsafe fn step<S: Simd, T: Element, const STREAMED: bool, const N: usize>(
    params: &ScanParams<T>,
    span: &Span,
    t: usize,
    states: [*mut f32; 2],
) {
    let row = params.channels;
    let first = (span.slot * params.seq_len + t) * row + span.channel;
    // A row is in other pages than the one before it, where the machine's own fetching stops.
    let ahead = if t + 2 * N <= span.tokens { N * row } else { 0 };
    let mut c = 0;
    // SAFETY: forwarded; `first + n row + c` stays within the span's channels of a token.
    unsafe {
        // Whole lines of results at once: what goes past the caches leaves in whole lines.
        // A power of two: both are.
        let vectors = (LINE / size_of::<T>() / S::LANES).clamp(1, 4);
        while c + vectors * S::LANES <= span.channels {
            match vectors {
                1 => columns::<S, T, STREAMED, N, 1>(params, first, ahead, states, c),
                2 => columns::<S, T, STREAMED, N, 2>(params, first, ahead, states, c),
                _ => columns::<S, T, STREAMED, N, 4>(params, first, ahead, states, c),
            }
            c += vectors * S::LANES;
        }
        while c + S::LANES <= span.channels {
            columns::<S, T, false, N, 1>(params, first, 0, states, c);
            c += S::LANES;
        }
        let rest = span.channels - c;
        if rest > 0 {
            let mut h = [S::load(states[0].add(c)), S::load(states[1].add(c))];
            for n in 0..N {
                let at = first + n * row + c;
                let x = [
                    T::load_partial::<S>(params.key.add(at), rest),
                    T::load_partial::<S>(params.value.add(at), rest),
                ];
                h = gate_blend::<S>(T::load_partial::<S>(params.gate.add(at), rest), h, x);
                T::store_partial::<S>(params.gated_key.add(at), h[0], rest);
                T::store_partial::<S>(params.gated_value.add(at), h[1], rest);
            }
            S::store(states[0].add(c), h[0]);
            S::store(states[1].add(c), h[1]);
        }
    }
}

/// Carries `VECTORS` vectors of channels from `c` on over `N` tokens, the first of which is at `first`;
/// tokens `ahead` elements further on are fetched.
///
/// # Safety
/// As [`step`], and there are as many channels.
#[inline(always)]
unsafe fn columns<
    S: Simd,
    T: Element,
    const STREAMED: bool,
    const N: usize,
    const VECTORS: usize,
>(
    params: &ScanParams<T>,
    first: usize,
    ahead: usize,
    states: [*mut f32; 2],
    c: usize,
) {
    // SAFETY: forwarded.
    unsafe {
        let mut h = [[S::splat(0.0); 2]; VECTORS];
        for (v, h) in h.iter_mut().enumerate() {
            let at = c + v * S::LANES;
            *h = [S::load(states[0].add(at)), S::load(states[1].add(at))];
        }
        for n in 0..N {
            let token = first + n * params.channels + c;
            if ahead > 0 {
                prefetch(params.key.wrapping_add(token + ahead), 1);
                prefetch(params.value.wrapping_add(token + ahead), 1);
                prefetch(params.gate.wrapping_add(token + ahead), 1);
            }
            for (v, h) in h.iter_mut().enumerate() {
                let at = token + v * S::LANES;
                let x = [
                    T::load::<S>(params.key.add(at)),
                    T::load::<S>(params.value.add(at)),
                ];
                *h = gate_blend::<S>(T::load::<S>(params.gate.add(at)), *h, x);
                if STREAMED {
                    T::stream::<S>(params.gated_key.add(at), h[0]);
                    T::stream::<S>(params.gated_value.add(at), h[1]);
                } else {
                    T::store::<S>(params.gated_key.add(at), h[0]);
                    T::store::<S>(params.gated_value.add(at), h[1]);
                }
            }
        }
        for (v, h) in h.iter().enumerate() {
            let at = c + v * S::LANES;
            S::store(states[0].add(at), h[0]);
            S::store(states[1].add(at), h[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Serial;

    /// Values in -2..2 that repeat late.
    fn values<T>(count: usize, mut state: u32, of: fn(f32) -> T) -> Vec<T> {
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            of((state >> 8) as f32 / (1 << 22) as f32 - 2.0)
        };
        (0..count).map(next).collect()
    }

    /// Room for `count` values from a multiple of 64 bytes on, and where that is.
    fn aligned<T: Copy>(count: usize, value: T) -> (Vec<T>, usize) {
        let buffer = vec![value; count + 64];
        let start = buffer.as_ptr().align_offset(64);
        (buffer, start)
    }

    fn past_the_caches<T: Element + PartialEq>(tokens: usize, of: fn(f32) -> T) {
        const CHANNELS: usize = 2048 + 64;
        let [key, value, gate] = [1, 2, 3].map(|seed| values(tokens * CHANNELS, seed, of));
        let mut state = [vec![0.0; CHANNELS], vec![0.0; CHANNELS]];
        let mut outputs = [(); 2].map(|()| aligned(tokens * CHANNELS, of(7.0)));
        let mut chunked = [(); 2].map(|()| aligned(tokens * CHANNELS, of(8.0)));
        let mut run = |first: usize, tokens: usize, to: &mut [(Vec<T>, usize); 2]| {
            let at = first * CHANNELS;
            let [gated_key, gated_value] = to
                .each_mut()
                .map(|(buffer, start)| buffer[*start + at..].as_mut_ptr());
            let params = ScanParams {
                batch: 1,
                seq_len: tokens,
                max_seq_len: None,
                channels: CHANNELS,
                key: key[at..].as_ptr(),
                value: value[at..].as_ptr(),
                gate: gate[at..].as_ptr(),
                state_key: state[0].as_ptr(),
                state_value: state[1].as_ptr(),
                past_length: &(first as i64),
                seq_length: &(tokens as i64),
                gated_key,
                gated_value,
                new_state_key: state[0].as_mut_ptr(),
                new_state_value: state[1].as_mut_ptr(),
            };
            // SAFETY: every buffer has its tensor's size, and outputs are nobody else's.
            unsafe { recurrence_scan(&params, &Serial) }.unwrap();
            is_streamed(&params)
        };
        assert!(run(0, tokens, &mut outputs));
        for first in (0..tokens).step_by(1024) {
            assert!(!run(first, 1024, &mut chunked));
        }
        for (whole, parts) in outputs.iter().zip(&chunked) {
            let values = |(buffer, start): &(Vec<T>, usize)| {
                buffer[*start..start + tokens * CHANNELS].to_vec()
            };
            // Nothing here is NaN or a zero of either sign: equal numbers are the same bits.
            assert!(values(whole) == values(parts));
        }
    }

    #[test]
    fn results_past_the_caches_are_the_same_bits() {
        past_the_caches::<f32>(8192, |x| x);
        past_the_caches::<half::bf16>(16384, half::bf16::from_f32);
        past_the_caches::<half::f16>(16384, half::f16::from_f32);
    }
}
