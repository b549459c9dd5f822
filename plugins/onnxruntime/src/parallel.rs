//! ORT's thread pool, as the kernels see it.

use crate::api::Api;
use ort_sys::OrtKernelContext;
use ratplus_kernels::ParallelFor;
use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::available_parallelism;

/// The intra-op threads of the session that is running a node.
pub struct OrtThreads {
    api: Api,
    context: *const OrtKernelContext,
}

// SAFETY: ORT's kernel context may be asked for its thread pool from any thread; nothing else of
// it is used here.
unsafe impl Sync for OrtThreads {}

impl OrtThreads {
    /// The threads of `context`.
    ///
    /// # Safety
    /// `context` is the running node's and outlives the result.
    pub unsafe fn new(api: Api, context: *const OrtKernelContext) -> Self {
        Self { api, context }
    }
}

/// What the threads of one call share.
struct Call<'a> {
    body: &'a (dyn Fn(usize) + Sync),
    panicked: AtomicBool,
    /// Locked only by a thread that panicked.
    payload: Mutex<Option<Box<dyn Any + Send>>>,
    #[cfg(feature = "fault-injection")]
    order: crate::fault::Order,
}

impl ParallelFor for OrtThreads {
    /// ORT does not tell; without an option of the session's it has a thread a core.
    fn threads(&self) -> usize {
        static THREADS: OnceLock<usize> = OnceLock::new();
        *THREADS.get_or_init(|| available_parallelism().map_or(1, |count| count.get()))
    }

    fn run(&self, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 {
            (0..tasks).for_each(body);
            return;
        }
        let call = Call {
            body,
            panicked: AtomicBool::new(false),
            payload: Mutex::new(None),
            #[cfg(feature = "fault-injection")]
            order: crate::fault::Order::default(),
        };
        #[cfg(feature = "fault-injection")]
        call.order.open();
        // 0 batches: every task on its own, which suits tasks of unequal length.
        // SAFETY: `task` takes a `Call`, and the function returns after the last task has.
        let done = unsafe {
            self.api.parallel_for(
                self.context,
                task,
                tasks,
                0,
                (&raw const call).cast_mut().cast(),
            )
        };
        #[cfg(feature = "fault-injection")]
        call.order.close();
        let payload = call.payload.into_inner();
        if let Some(payload) = payload.unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(payload);
        }
        if let Err(failure) = done {
            // Unwinds to the guard of the callback without the panic hook.
            resume_unwind(Box::new(failure));
        }
    }
}

/// Runs one task of the [`Call`] at `call`. After a panic the remaining tasks are skipped.
unsafe extern "C" fn task(call: *mut c_void, index: usize) {
    // SAFETY: `run` passes its `Call`, which lives until all tasks are done.
    let call = unsafe { &*call.cast_const().cast::<Call<'_>>() };
    #[cfg(feature = "fault-injection")]
    let _inside = call.order.enter();
    if call.panicked.load(Ordering::Relaxed) {
        return;
    }
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| (call.body)(index))) {
        call.panicked.store(true, Ordering::Relaxed);
        let mut first = call.payload.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = Some(payload);
        } else {
            // Its drop could panic, and here nothing may unwind.
            std::mem::forget(payload);
        }
    }
}
