//! How fast the kernels are beside this machine's memory and arithmetic. Run with
//! `cargo test --release -p ratplus-kernels -- --ignored --nocapture timing`.

// `kernel!` bodies have an element type, needed or not.
#![allow(clippy::extra_unused_type_parameters)]

use super::{Real, Threads, isas, random, rng};
use crate::attention::{AttentionParams, dilated_attention_on};
use crate::isa::kernel;
use crate::simd::{Gemm, Into, Simd};
use crate::{Element, Isa, ParallelFor, ScanParams, Serial, recurrence_scan_on};
use half::bf16;
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::pattern::Pattern;
use std::hint::black_box;
use std::time::Instant;

/// Seconds that this thread has run, which other processes do not add to.
fn thread_seconds() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is writable.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0);
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// Seconds of one run by `clock`, in the best of several samples of a millisecond or more: the
/// thread's clock is coarse.
fn best_by(clock: impl Fn() -> f64, mut work: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    let first = Instant::now();
    while first.elapsed().as_secs_f64() < 0.4 || best == f64::INFINITY {
        let (start, mut runs, sample) = (clock(), 0u32, Instant::now());
        while runs == 0 || sample.elapsed().as_secs_f64() < 1e-3 {
            work();
            runs += 1;
        }
        let taken = clock() - start;
        if taken > 0.0 {
            best = best.min(taken / f64::from(runs));
        }
    }
    best
}

/// The best of several runs in seconds: of this thread where it does all the work, and on the
/// wall where `pool` has threads.
pub(super) fn best(pool: &dyn ParallelFor, work: impl FnMut()) -> f64 {
    if pool.threads() > 1 {
        let start = Instant::now();
        best_by(|| start.elapsed().as_secs_f64(), work)
    } else {
        best_by(thread_seconds, work)
    }
}

fn zeroed<T: Real>(count: usize) -> Vec<T> {
    vec![T::of(0.0); count]
}

#[test]
#[ignore = "prints timings"]
fn timing() {
    let bytes = 256 << 20;
    let (from, mut to) = (vec![1u8; bytes], vec![0u8; bytes]);
    let copy = best(&Serial, || {
        black_box(&mut to).copy_from_slice(black_box(&from))
    });
    println!(
        "memcpy: {:.1} GB/s read and written",
        2e-9 * bytes as f64 / copy
    );
    drop((from, to));
    for isa in isas() {
        peak(isa);
        scan::<f32>(isa);
        scan::<bf16>(isa);
        attention::<f32>(isa);
        attention::<bf16>(isa);
        super::linear::timing(isa);
    }
}

#[test]
#[ignore = "prints timings"]
fn timing_linear() {
    isas()
        .into_iter()
        .filter(|isa| *isa != Isa::Portable)
        .for_each(super::linear::timing);
}

kernel! {
    fn multiply<T>(gemm: &Gemm) = multiply_body
}

#[inline(always)]
unsafe fn multiply_body<S: Simd, T: Element>(gemm: &Gemm) {
    // SAFETY: forwarded.
    unsafe { S::gemm(gemm) }
}

/// The products that prefill is made of, alone: scores, then sums.
fn peak(isa: Isa) {
    let (a, b, mut c) = ([1f32; 64 * 128], [1f32; 64 * 128], [0f32; 64 * 128]);
    let (lanes, panel) = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => {
            (crate::simd::Avx512::LANES, crate::simd::Avx512::PANEL)
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (crate::simd::Avx2::LANES, crate::simd::Avx2::PANEL),
        Isa::Portable => (crate::simd::Portable::LANES, crate::simd::Portable::PANEL),
    };
    let scores = Gemm {
        rows: 64,
        vectors: panel / lanes,
        depth: 128,
        a: a.as_ptr(),
        a_stride: 128,
        transposed: false,
        b: b.as_ptr(),
        b_stride: panel,
        c: c.as_mut_ptr(),
        c_stride: panel,
        into: Into::Zeros,
    };
    let sums = Gemm {
        rows: panel,
        vectors: 128 / lanes,
        depth: 64,
        a_stride: panel,
        transposed: true,
        b_stride: 128,
        c_stride: 128,
        into: Into::Scaled(b.as_ptr()),
        ..scores
    };
    for (name, gemm) in [("scores", scores), ("sums", sums)] {
        // SAFETY: this machine has `isa`; the buffers have these sizes.
        let seconds = best(&Serial, || unsafe { multiply::<f32>(isa, &gemm) });
        let flops = 2.0 * (gemm.rows * gemm.vectors * lanes * gemm.depth) as f64;
        println!(
            "{}: product of {name} {:.0} GFLOP/s",
            isa.name(),
            flops * 1e-9 / seconds
        );
    }
}

fn scan<T: Real>(isa: Isa) {
    let (tokens, channels) = (4096, 2048);
    let mut rng = rng(1);
    let [key, value, gate] = [(); 3].map(|()| random::<T>(&mut rng, tokens * channels, 2.0));
    let [mut gated_key, mut gated_value] = [(); 2].map(|()| zeroed::<T>(tokens * channels));
    let [mut state_key, mut state_value] = [(); 2].map(|()| vec![0f32; channels]);
    for (seq_len, pool) in [
        (tokens, &Serial as &dyn ParallelFor),
        (tokens, &Threads(2)),
        (1, &Serial),
    ] {
        let params = ScanParams {
            batch: 1,
            seq_len,
            max_seq_len: None,
            channels,
            key: key.as_ptr(),
            value: value.as_ptr(),
            gate: gate.as_ptr(),
            state_key: state_key.as_ptr(),
            state_value: state_value.as_ptr(),
            past_length: &1,
            seq_length: &(seq_len as i64),
            gated_key: gated_key.as_mut_ptr(),
            gated_value: gated_value.as_mut_ptr(),
            new_state_key: state_key.as_mut_ptr(),
            new_state_value: state_value.as_mut_ptr(),
        };
        // SAFETY: every buffer has its tensor's size, and this machine has `isa`.
        let seconds = best(pool, || unsafe {
            recurrence_scan_on(isa, &params, pool).unwrap()
        });
        let moved = 5 * seq_len * channels * size_of::<T>();
        println!(
            "{} {} scan of {seq_len} x {channels}, {}: {:.3} ms, {:.1} GB/s",
            isa.name(),
            T::TYPE,
            if pool.threads() == 1 {
                "1 thread"
            } else {
                "2 threads"
            },
            1e3 * seconds,
            1e-9 * moved as f64 / seconds
        );
    }
}

fn attention<T: Real>(isa: Isa) {
    let (max, heads) = (4096, 4);
    for dim in [64, 128] {
        for (dilation, window, initial) in [(1, 0, 0), (16, 0, 4), (64, 0, 4), (16, 256, 4)] {
            let pattern = Pattern::new(dilation, window, initial).unwrap();
            let layout = CacheLayout::new(&vec![pattern; heads], max);
            let mut rng = rng(2);
            let width = heads * dim;
            let [query, key, value] = [(); 3].map(|()| random::<T>(&mut rng, max * width, 1.0));
            let mut output = zeroed::<T>(max * width);
            let rows = layout.rows() * dim;
            let [mut cache_key, mut cache_value] = [(); 2].map(|()| zeroed::<T>(rows));
            let [cos, sin] = [vec![1f32; max * dim / 2], vec![0f32; max * dim / 2]];
            let mut call = |seq_len: usize, past: usize, pool: &dyn ParallelFor| {
                let params = AttentionParams {
                    layout: &layout,
                    num_heads: layout.heads().len(),
                    scale: 0.1,
                    batch: 1,
                    seq_len,
                    head_dim: dim,
                    query: query.as_ptr(),
                    key: key.as_ptr(),
                    value: value.as_ptr(),
                    past_key: cache_key.as_ptr(),
                    past_value: cache_value.as_ptr(),
                    past_length: &(past as i64),
                    seq_length: &(seq_len as i64),
                    cos: cos.as_ptr(),
                    sin: sin.as_ptr(),
                    output: output.as_mut_ptr(),
                    present_key: cache_key.as_mut_ptr(),
                    present_value: cache_value.as_mut_ptr(),
                    workspace: std::ptr::null_mut(),
                };
                // SAFETY: every buffer has its tensor's size, and this machine has `isa`.
                best(pool, || unsafe {
                    dilated_attention_on(isa, &params, pool).unwrap()
                })
            };
            let seen: usize = (0..max).map(|query| pattern.visible_count(query)).sum();
            let flops = 4.0 * (seen * width) as f64;
            let one = call(max, 0, &Serial);
            let two = call(max, 0, &Threads(2));
            let decode = call(1, max - 1, &Serial);
            let read = 2 * pattern.visible_count(max - 1) * width * size_of::<T>();
            println!(
                "{} {} attention {pattern} dh {dim}: prefill {:.2} ms, {:.0} GFLOP/s; 2 threads \
                 {:.0} GFLOP/s; decode {:.1} us, {:.1} GB/s",
                isa.name(),
                T::TYPE,
                1e3 * one,
                1e-9 * flops / one,
                1e-9 * flops / two,
                1e6 * decode,
                1e-9 * read as f64 / decode
            );
        }
    }
}
