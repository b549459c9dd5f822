//! The floating-point control of a thread: a library compiled with `-ffast-math` sets it for every
//! thread that comes after.

/// What a thread does with subnormals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Keeps them.
    Exact,
    /// Reads and writes zeros instead (DAZ and FTZ).
    Flushing,
}

#[cfg(target_arch = "x86_64")]
mod register {
    use std::arch::asm;

    /// Bits that record what happened, and are not control.
    pub(super) const STATUS: u32 = 0x3f;
    /// FTZ and DAZ.
    pub(super) const FLUSH: u32 = 0x8040;

    pub(super) fn read() -> u32 {
        let mut value = 0u32;
        // SAFETY: writes the four bytes of `value`; part of every x86-64.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack)) };
        value
    }

    /// # Safety
    /// `value` came from [`read`], or differs from such a one in [`FLUSH`]; the caller puts the
    /// former value back before code runs that relies on it.
    pub(super) unsafe fn write(value: u32) {
        // SAFETY: reads the four bytes of `value`; the caller's contract.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack)) };
    }
}

impl Control {
    /// Every control that this processor has.
    pub const ALL: &[Self] = if cfg!(target_arch = "x86_64") {
        &[Self::Exact, Self::Flushing]
    } else {
        &[Self::Exact]
    };

    /// Runs `work` on this thread under the control.
    ///
    /// # Panics
    /// `work` left another control behind.
    #[cfg(target_arch = "x86_64")]
    pub fn run(self, work: impl FnOnce()) {
        use register::{FLUSH, STATUS, read, write};
        struct Restore(u32);
        impl Drop for Restore {
            fn drop(&mut self) {
                // SAFETY: what the thread had.
                unsafe { write(self.0) };
            }
        }
        let before = read();
        let restore = Restore(before);
        let own = match self {
            Self::Exact => before & !FLUSH,
            Self::Flushing => before | FLUSH,
        };
        // SAFETY: put back by `restore`, a panic included.
        unsafe { write(own) };
        work();
        let after = read();
        drop(restore);
        assert_eq!(after & !STATUS, own & !STATUS, "MXCSR was changed");
    }

    /// Runs `work`.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn run(self, work: impl FnOnce()) {
        work();
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_control_flushes_and_a_change_is_seen() {
    // Not to be computed before or after.
    #[inline(never)]
    fn halve(x: &mut f32) {
        *x *= 0.5;
    }
    let product = |control: Control| {
        let mut product = f32::MIN_POSITIVE;
        control.run(|| std::hint::black_box::<fn(&mut f32)>(halve)(&mut product));
        product
    };
    assert_eq!(product(Control::Exact), f32::MIN_POSITIVE / 2.0);
    assert_eq!(product(Control::Flushing), 0.0);
    let before = register::read() & !register::STATUS;
    let changed = std::panic::catch_unwind(|| {
        Control::Exact.run(|| {
            // SAFETY: `run` puts back what was there.
            unsafe { register::write(register::read() | register::FLUSH) }
        });
    });
    assert!(changed.is_err());
    assert_eq!(register::read() & !register::STATUS, before);
}
