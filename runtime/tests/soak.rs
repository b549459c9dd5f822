//! Long use of one session: memory that grows is found by counting every allocation of this binary
//! and by the size of the process, in which the allocations of ONNX Runtime are too. Pages of files
//! are left out: they come with the first use of code.

// The allocator that counts.
#![allow(unsafe_code)]

#[allow(dead_code)]
#[path = "suite/common.rs"]
mod common;

use common::{Options, backends, write_spec};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::package::Fallback;
use ratplus_graphs::pattern::Pattern;
use ratplus_graphs::spec::{LayerPatterns, ModelSpec};
use ratplus_runtime::backend::{BackendKind, Session};
use ratplus_runtime::package::Package;
use ratplus_tests::times;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

static COUNT: AtomicI64 = AtomicI64::new(0);
static BYTES: AtomicI64 = AtomicI64::new(0);

struct Counting;

// SAFETY: everything is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        COUNT.fetch_sub(1, Ordering::Relaxed);
        BYTES.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time: they share the counters and the process.
static ALONE: Mutex<()> = Mutex::new(());

const STEPS: usize = 100_000;
const REQUESTS: usize = 10_000;
const MAX_SEQ_LEN: usize = 512;
const SLOTS: usize = 3;
const VOCAB: usize = 13;

/// Allocations that are live, and the memory of the process that is not a file's.
#[derive(Clone, Copy, Debug)]
struct Memory {
    count: i64,
    bytes: i64,
    anonymous_kib: i64,
}

impl Memory {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let anonymous_kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        drop(status);
        Self {
            count: COUNT.load(Ordering::Relaxed),
            bytes: BYTES.load(Ordering::Relaxed),
            anonymous_kib: anonymous_kib.unwrap(),
        }
    }

    /// What grew since `before`: at most 1 MiB of the process, and none of our allocations.
    fn assert_flat_since(self, before: Self, what: &str) {
        let grown = self.anonymous_kib - before.anonymous_kib;
        // Not `println`, which is kept from showing where the test passes.
        let _ = writeln!(
            std::io::stderr(),
            "{what}: {grown} KiB grown, live allocations {} -> {}, bytes {} -> {}",
            before.count,
            self.count,
            before.bytes,
            self.bytes
        );
        assert!(grown <= 1024, "{what}: {grown} KiB");
        assert!(
            (self.count, self.bytes) == (before.count, before.bytes),
            "{what}: {before:?} became {self:?}"
        );
    }
}

/// The smallest model that has both operators and every kind of cache row.
fn smallest() -> ModelSpec {
    ModelSpec {
        vocab_size: VOCAB,
        d_model: 8,
        num_layers: 1,
        d_head: 8,
        d_ffn: 8,
        patterns: vec![LayerPatterns::Uniform(Pattern::new(16, 3, 1).unwrap())],
        ..ModelSpec::default()
    }
}

/// Runs `work` on every backend of this machine.
fn on_every_backend(mut work: impl FnMut(&mut Session, BackendKind)) {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        batch: SLOTS,
        lengths: &[1, 4],
        ..Options::default()
    };
    write_spec(dir.path(), options, 1, smallest(), MAX_SEQ_LEN);
    let package = Package::open(dir.path()).unwrap();
    for kind in backends(Fallback::Function) {
        // A function body of standard operators is ONNX Runtime's own affair.
        if kind == BackendKind::OrtFallback {
            continue;
        }
        let mut session = Session::builder(&package).threads(1).open(kind).unwrap();
        work(&mut session, kind);
    }
}

fn decode(session: &mut Session, ids: &mut [i64; SLOTS], steps: usize) {
    for _ in 0..steps {
        if session.past_length(0) == MAX_SEQ_LEN {
            (0..SLOTS).for_each(|slot| session.reset(slot));
        }
        let step = session.run(1, ids, &[1; SLOTS]).unwrap();
        for (slot, id) in ids.iter_mut().enumerate() {
            let logits = step.last_logits(slot).unwrap().iter().enumerate();
            *id = logits.max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as i64;
        }
    }
}

#[test]
#[cfg_attr(
    feature = "cuda-emulation",
    ignore = "the emulator's memory is this process's and would be counted"
)]
fn decode_steps_cost_no_memory() {
    on_every_backend(|session, kind| {
        let mut ids = [1; SLOTS];
        decode(session, &mut ids, STEPS / 10);
        let steps = times(STEPS);
        let before = Memory::now();
        decode(session, &mut ids, steps);
        Memory::now().assert_flat_since(before, &format!("{kind}, {steps} decode steps"));
    });
}

/// A request in a slot: what is left of its prompt, then tokens to generate.
#[derive(Clone, Copy, Default)]
struct Request {
    prompt: usize,
    generate: usize,
}

#[derive(Default)]
struct Ends {
    finished: usize,
    cancelled: usize,
}

/// Serves `count` requests: each takes the next free slot, prefill in chunks beside the other
/// slots' decode steps, and one in three is cancelled somewhere.
fn serve(session: &mut Session, rng: &mut ChaCha8Rng, count: usize) -> Ends {
    let mut slots = [Request::default(); SLOTS];
    let (mut started, mut ends) = (0, Ends::default());
    while ends.finished + ends.cancelled < count {
        for (slot, request) in slots.iter_mut().enumerate() {
            if request.prompt + request.generate == 0 && started < count {
                started += 1;
                session.reset(slot);
                request.prompt = rng.random_range(1..10);
                request.generate = rng.random_range(1..10);
            }
        }
        let chunk = if slots.iter().any(|slot| slot.prompt > 0) {
            4
        } else {
            1
        };
        let lengths = slots.map(|slot| match slot.prompt {
            0 => slot.generate.min(1) as i64,
            prompt => prompt.min(chunk) as i64,
        });
        let mut ids = [0; 4 * SLOTS];
        ids.fill_with(|| rng.random_range(0..VOCAB as i64));
        let step = session.run(chunk, &ids[..chunk * SLOTS], &lengths).unwrap();
        for (slot, request) in slots.iter_mut().enumerate() {
            if lengths[slot] == 0 {
                continue;
            }
            let logits = step.last_logits(slot).unwrap();
            assert!(logits.iter().all(|logit| logit.is_finite()));
            match request.prompt {
                0 => request.generate -= 1,
                _ => request.prompt -= lengths[slot] as usize,
            }
            if request.prompt + request.generate == 0 {
                ends.finished += 1;
            } else if rng.random_ratio(1, 20) {
                *request = Request::default();
                ends.cancelled += 1;
            }
        }
    }
    ends
}

/// Brings the session into one state, whatever it did before.
fn settle(session: &mut Session) {
    (0..SLOTS).for_each(|slot| session.reset(slot));
    session.run(4, &[1; 4 * SLOTS], &[4; SLOTS]).unwrap();
    session.run(1, &[1; SLOTS], &[1; SLOTS]).unwrap();
}

#[test]
#[cfg_attr(
    feature = "cuda-emulation",
    ignore = "the emulator's memory is this process's and would be counted"
)]
fn requests_cost_no_memory() {
    on_every_backend(|session, kind| {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        serve(session, &mut rng, REQUESTS / 10);
        settle(session);
        let before = Memory::now();
        let Ends {
            finished,
            cancelled,
        } = serve(session, &mut rng, times(REQUESTS));
        settle(session);
        let after = Memory::now();
        let what = format!("{kind}, {finished} requests finished, {cancelled} cancelled");
        after.assert_flat_since(before, &what);
        assert!(
            finished > REQUESTS / 5 && cancelled > REQUESTS / 5,
            "{what}"
        );
    });
}
