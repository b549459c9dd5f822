//! Per-thread memory that grows and is never given back while the thread lives.

use std::cell::RefCell;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    /// Memory that nobody uses; what nested calls give back comes before what their callers do.
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with 64-byte aligned memory for `floats` f32, holding anything.
///
/// The memory is taken from the thread for the time of the call, so that a nested call (a pool
/// may run other work on a waiting thread) gets memory of its own.
pub(crate) fn with_scratch(floats: usize, work: impl FnOnce(*mut f32)) {
    let mut lines = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    let needed = floats.div_ceil(16);
    if lines.len() < needed {
        lines.resize(needed, Line([0.0; 16]));
    }
    work(lines.as_mut_ptr().cast());
    FREE.with_borrow_mut(|free| free.push(lines));
}

/// Hands out consecutive parts of a scratch, each 64-byte aligned.
pub(crate) struct Carver {
    next: *mut f32,
}

impl Carver {
    pub(crate) fn new(base: *mut f32) -> Self {
        Self { next: base }
    }

    /// f32 that [`Carver::take`] of `floats` uses up.
    pub(crate) const fn size(floats: usize) -> usize {
        floats.next_multiple_of(16)
    }

    /// The next `floats` f32.
    ///
    /// # Safety
    /// The scratch has them left.
    #[inline(always)]
    pub(crate) unsafe fn take(&mut self, floats: usize) -> *mut f32 {
        let part = self.next;
        // SAFETY: the caller vouches for the room.
        self.next = unsafe { part.add(Self::size(floats)) };
        part
    }
}
