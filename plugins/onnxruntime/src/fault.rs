//! Faults on demand, for tests of the guards and of sanitizers: node attribute `ratplus_fault`.

use crate::api::Tensor;
use ratplus_graphs::ops::{
    AttributeKind, AttributeReader, AttributeSpec, AttributeValue, ElementType,
};
use ratplus_kernels::Isa;
use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Where a node is to panic: `create`, `compute`, `task` (on ORT's threads), `launched` (on a GPU,
/// its work is under way), `destroy` or `infer`. Or `overread`: it reads on behind its first input.
/// Or `race`, `race_in_task`: its runs, or the tasks of each, count up a static that nothing guards.
pub struct Fault(String);

impl Fault {
    /// The node's wish.
    pub fn read(attributes: &mut dyn AttributeReader) -> Self {
        let wish = attributes.read(&AttributeSpec {
            name: "ratplus_fault",
            kind: AttributeKind::String,
            optional: true,
        });
        match wish {
            Ok(Some(AttributeValue::String(place))) => Self(place),
            _ => Self(String::new()),
        }
    }

    /// Panics if this is the place.
    pub fn trip(&self, place: &str) {
        if self.0 == place {
            panic!("injected fault in {place}");
        }
    }

    /// Reads one byte behind a tensor if that is the wish.
    ///
    /// # Safety
    /// None is possible; that a sanitizer ends the process here is what it is for.
    pub unsafe fn overread(&self, tensor: &Tensor) {
        if self.0 == "overread" {
            let count: i64 = tensor.shape.dims().iter().product();
            let element = ElementType::from_onnx(tensor.shape.element).map_or(0, ElementType::size);
            let end = tensor
                .data
                .cast::<u8>()
                .wrapping_add(count as usize * element);
            // SAFETY: not safe; see above.
            black_box(unsafe { end.read_volatile() });
        }
    }
    /// Counts up what other threads count up at the same time if this is the place.
    ///
    /// # Safety
    /// None is possible; that a sanitizer ends the process here is what it is for.
    #[inline(never)] // So that a report names it.
    pub unsafe fn race(&self, place: &str) {
        static mut COUNT: usize = 0;
        if self.0 == place {
            let count = &raw mut COUNT;
            // SAFETY: not safe; see above.
            unsafe { count.write_volatile(count.read_volatile() + 1) };
        }
    }
}

/// What ORT promises: tasks start after the call that has them run and end before it returns, and
/// a node goes after its last run. In atomics that ThreadSanitizer sees: ORT is built without it.
#[derive(Default)]
pub struct Order {
    opened: AtomicBool,
    /// Not one with `opened`: what is inside has no order of its own.
    left: AtomicUsize,
}

impl Order {
    /// Before anything is inside, where that may be on a thread that was there before.
    pub fn open(&self) {
        self.opened.store(true, Ordering::Release);
    }

    /// A task or a run is inside, on any thread, until the result is dropped.
    pub fn enter(&self) -> Inside<'_> {
        black_box(self.opened.load(Ordering::Acquire));
        Inside(self)
    }

    /// After all that was inside.
    pub fn close(&self) {
        black_box(self.left.load(Ordering::Acquire));
    }
}

/// A task or a run.
pub struct Inside<'a>(&'a Order);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, Ordering::Release);
    }
}

/// The instruction set that `RATPLUS_ISA` names, else the best. ThreadSanitizer sees no access
/// wider than 16 bytes: of the kernels, it sees all of `portable` only.
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let Ok(wanted) = std::env::var("RATPLUS_ISA") else {
            return Isa::best();
        };
        let mut found = Isa::available().into_iter();
        found
            .find(|isa| isa.name() == wanted)
            .unwrap_or_else(|| panic!("RATPLUS_ISA: this machine has no {wanted:?}"))
    })
}
