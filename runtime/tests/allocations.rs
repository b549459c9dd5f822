//! Generation allocates nothing for a decode step: every allocation of this binary is counted. ONNX
//! Runtime and the library of RAT+ operators have allocators of their own.

// The allocator that counts.
#![allow(unsafe_code)]

#[allow(dead_code)]
#[path = "suite/common.rs"]
mod common;

use common::{Options, backends, fixture, open, tokens};
use ratplus_graphs::package::Fallback;
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::engine::Engine;
use ratplus_runtime::generate::{Request, generate};
use ratplus_runtime::sampler::Sampling;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::ControlFlow;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
#[cfg_attr(
    feature = "cuda-emulation",
    ignore = "the emulator's allocations are this binary's and would be counted"
)]
fn a_decode_step_allocates_nothing() {
    let fixture = fixture(Options::default());
    for kind in backends(Fallback::Function) {
        // tract's own tensors are no matter of generation.
        if kind == BackendKind::Tract {
            continue;
        }
        let mut engine = Engine::new(open(&fixture, kind));
        let mut drawn = Sampling::default();
        (drawn.temperature, drawn.min_p) = (0.9, Some(0.01));
        (drawn.repetition_penalty, drawn.frequency_penalty) = (1.2, 0.5);
        let mut allocations = |max_new_tokens| {
            let request = |seed| Request {
                max_new_tokens,
                sampling: match seed {
                    1 => Sampling::GREEDY,
                    _ => drawn.clone(),
                },
                ..Request::new(tokens(seed, 8))
            };
            let requests = [request(1), request(2)];
            let before = COUNT.get();
            let mut seen = 0;
            generate(&mut engine, &requests, |_| {
                seen += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
            let count = COUNT.get() - before;
            assert_eq!(seen, 2 * max_new_tokens);
            count
        };
        allocations(4);
        let (few, many) = (allocations(4), allocations(36));
        assert!(few > 0);
        assert_eq!(few, many, "{kind}");
    }
}
