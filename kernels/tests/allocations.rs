//! A decode step allocates nothing once the thread has run one.

#![allow(unsafe_code)]

use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::pattern::Pattern;
use ratplus_kernels::{
    AttentionParams, ParallelFor, ScanParams, Serial, dilated_attention, recurrence_scan,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting the calls of each thread.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is the system allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: forwarded.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: forwarded.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One thread that says it is many, so that heads are shared in parts.
struct Many;

impl ParallelFor for Many {
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        Serial.run(tasks, task);
    }

    fn threads(&self) -> usize {
        64
    }
}

#[test]
fn a_decode_step_allocates_nothing() {
    steps(&Serial);
    steps(&Many);
}

fn steps(pool: &dyn ParallelFor) {
    // Long enough for steps in several parts.
    let (batch, dim, max) = (2, 128, 1200);
    let patterns = [Pattern::DENSE, Pattern::new(4, 3, 2).unwrap()];
    let layout = CacheLayout::new(&patterns, max);
    let channels = patterns.len() * dim;
    let x = vec![0.5f32; batch * channels];
    let [mut gated_key, mut gated_value, mut output] = [(); 3].map(|()| x.clone());
    let [mut state_key, mut state_value] = [(); 2].map(|()| x.clone());
    let [mut cache_key, mut cache_value] =
        [(); 2].map(|()| vec![0f32; batch * layout.rows() * dim]);
    let table = vec![1f32; max * dim / 2];
    let seq_length = [1i64; 2];
    let mut step = |position: i64| {
        let past_length = [position; 2];
        let scan = ScanParams {
            batch,
            seq_len: 1,
            max_seq_len: None,
            channels,
            key: x.as_ptr(),
            value: x.as_ptr(),
            gate: x.as_ptr(),
            state_key: state_key.as_ptr(),
            state_value: state_value.as_ptr(),
            past_length: past_length.as_ptr(),
            seq_length: seq_length.as_ptr(),
            gated_key: gated_key.as_mut_ptr(),
            gated_value: gated_value.as_mut_ptr(),
            new_state_key: state_key.as_mut_ptr(),
            new_state_value: state_value.as_mut_ptr(),
        };
        let attention = AttentionParams {
            layout: &layout,
            num_heads: layout.heads().len(),
            scale: 0.1,
            batch,
            seq_len: 1,
            head_dim: dim,
            query: x.as_ptr(),
            key: gated_key.as_ptr(),
            value: gated_value.as_ptr(),
            past_key: cache_key.as_ptr(),
            past_value: cache_value.as_ptr(),
            past_length: past_length.as_ptr(),
            seq_length: seq_length.as_ptr(),
            cos: table.as_ptr(),
            sin: table.as_ptr(),
            output: output.as_mut_ptr(),
            present_key: cache_key.as_mut_ptr(),
            present_value: cache_value.as_mut_ptr(),
            workspace: std::ptr::null_mut(),
        };
        // SAFETY: every buffer has its tensor's size.
        unsafe {
            recurrence_scan(&scan, pool).unwrap();
            dilated_attention(&attention, pool).unwrap();
        }
    };
    let before = CALLS.get();
    drop(std::hint::black_box(vec![0u8; 1]));
    assert!(CALLS.get() > before, "the allocator does not count");
    step(0);
    // The first step that is shared in parts.
    step(max as i64 - 1);
    let first = CALLS.get();
    for position in 1..max as i64 {
        step(position);
    }
    assert_eq!(CALLS.get(), first);
}
