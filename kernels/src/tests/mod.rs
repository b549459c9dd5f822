//! Every kernel against an f64 model with the whole history and the literal predicate, on every
//! instruction set that this machine has.

mod attention;
mod block_problem;
mod blocks;
mod cache_types;
mod gpu;
mod gpu_attention;
mod gpu_blocks;
mod gpu_decode;
mod gpu_scan;
mod grouped;
mod linear;
mod machine;
mod model;
mod numerics;
mod scan;
mod simd;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiles;
#[cfg(unix)]
mod timing;

use crate::{Element, Isa, ParallelFor, Serial};
use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The instruction sets under test; says which of the compiled ones this machine lacks.
pub(crate) fn isas() -> Vec<Isa> {
    #[cfg(target_arch = "x86_64")]
    ask_for_amx();
    let found = Isa::available();
    #[cfg(target_arch = "x86_64")]
    for isa in [Isa::Amx, Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2] {
        if !found.contains(&isa) {
            println!("skipped {}: this machine does not have it", isa.name());
        }
    }
    found
}

/// As ONNX Runtime does when it is loaded.
#[cfg(target_arch = "x86_64")]
fn ask_for_amx() {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
        const XTILEDATA: libc::c_long = 18;
        // SAFETY: gives this process more state, and says no where there is none.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) };
    }
}

/// An element type with its conversions and its rounding error.
pub(crate) trait Real: Element + PartialEq {
    /// Largest relative error of rounding to the type.
    const UNIT: f64;
    /// The smallest positive value.
    const SUBNORMAL: f64;
    fn of(x: f64) -> Self;
    fn real(self) -> f64;
    fn bits(self) -> u32;
    /// Not a number, whose bits the kernels have to keep where they copy.
    fn poison() -> Self;
}

macro_rules! real {
    ($($type:ty, $digits:literal, $smallest:literal, $of:expr;)*) => {$(
        impl Real for $type {
            const UNIT: f64 = 1.0 / (1u64 << $digits) as f64;
            const SUBNORMAL: f64 = $smallest;
            fn of(x: f64) -> Self { $of(x) }
            fn real(self) -> f64 { self.into() }
            fn bits(self) -> u32 { self.to_bits().into() }
            fn poison() -> Self { <$type>::NAN }
        }
    )*};
}

real! {
    f32, 24, 1.4e-45, |x| x as f32;
    // By way of f32: `from_f64` drops the last bits before it rounds.
    f16, 11, 5.97e-8, |x| f16::from_f32(x as f32);
    bf16, 8, 9.2e-41, |x| bf16::from_f32(x as f32);
}

/// The same bits, or the first place where they differ.
pub(crate) fn assert_bits<T: Real>(left: &[T], right: &[T], place: &str) {
    assert_eq!(left.len(), right.len(), "{place}");
    let differs = |(a, b): (&T, &T)| a.bits() != b.bits();
    if let Some(at) = left.iter().zip(right).position(differs) {
        let (a, b) = (left[at].real(), right[at].real());
        panic!("{place}: element {at} is {a} and {b}");
    }
}

pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Uniform values of magnitude up to `limit`.
pub(crate) fn random<T: Real>(rng: &mut ChaCha8Rng, count: usize, limit: f64) -> Vec<T> {
    (0..count)
        .map(|_| T::of(rng.random_range(-limit..limit)))
        .collect()
}

/// A copy of bytes after which nothing can be read.
#[cfg(unix)]
pub(crate) struct Guarded {
    pages: *mut libc::c_void,
    bytes: usize,
    pub start: *const u8,
}

#[cfg(unix)]
impl Guarded {
    pub fn new(of: &[u8]) -> Self {
        // No machine has larger pages.
        const PAGE: usize = 1 << 16;
        let bytes = of.len().next_multiple_of(PAGE) + PAGE;
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANON,
        );
        // SAFETY: memory of our own, of which the last page is given up.
        unsafe {
            let pages = libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0);
            assert_ne!(pages, libc::MAP_FAILED);
            let end = pages.cast::<u8>().add(bytes - PAGE);
            assert_eq!(libc::mprotect(end.cast(), PAGE, libc::PROT_NONE), 0);
            let start = end.sub(of.len());
            start.copy_from_nonoverlapping(of.as_ptr(), of.len());
            Self {
                pages,
                bytes,
                start,
            }
        }
    }
}

#[cfg(unix)]
impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody has it.
        assert_eq!(unsafe { libc::munmap(self.pages, self.bytes) }, 0);
    }
}

/// Runs the tasks from the last to the first.
pub(crate) struct Reversed;

impl ParallelFor for Reversed {
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).rev().for_each(task);
    }
}

/// Threads that take one task after another.
pub(crate) struct Threads(pub usize);

impl ParallelFor for Threads {
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..self.0 {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= tasks {
                            break;
                        }
                        task(index);
                    }
                });
            }
        });
    }

    fn threads(&self) -> usize {
        self.0
    }
}

/// Pools that must all give what [`Serial`] gives.
pub(crate) fn pools() -> [(&'static str, Box<dyn ParallelFor>); 4] {
    [
        ("serial", Box::new(Serial)),
        ("reversed", Box::new(Reversed)),
        ("2 threads", Box::new(Threads(2))),
        ("4 threads", Box::new(Threads(4))),
    ]
}
