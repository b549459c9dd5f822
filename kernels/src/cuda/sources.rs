//! What build.rs made of kernels/cuda: sources, embedded code, and what the code needs.

use super::units::Unit;
use std::ffi::CStr;

/// A file that units include.
pub(super) struct Header {
    /// Its name in `#include`.
    pub name: &'static CStr,
    /// Its text.
    pub text: &'static str,
}

/// The compiler of the embedded code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Toolkit {
    /// Version of nvcc.
    pub version: &'static str,
    /// What it compiled for, as in `sm_90a`.
    pub architectures: &'static [&'static str],
}

/// What one kernel needs on one architecture, as its compiler reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// As in `sm_90a`.
    pub architecture: &'static str,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
    /// Local memory of a thread.
    pub stack_bytes: u32,
    /// Registers written to local memory, in bytes of instructions.
    pub spill_store_bytes: u32,
    /// Registers read back from local memory.
    pub spill_load_bytes: u32,
}

/// Bytes where the driver wants code to start. Not used where nothing is embedded.
#[allow(dead_code)]
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::architecture::unit_of;

    #[test]
    fn every_unit_has_its_source() {
        for unit in UNITS {
            assert!(unit.source.contains("RATPLUS_KERNEL("), "{}", unit.file);
            let known = TOOLKIT.map_or(&[][..], |toolkit| toolkit.architectures);
            let expected = !unit.architectures(known).is_empty();
            assert_eq!(unit.embedded.is_some(), expected, "{}", unit.file);
        }
        let hopper = UNITS.iter().filter(|unit| unit.only == Some("90a"));
        assert_eq!(hopper.count(), 1);
    }

    #[test]
    fn no_embedded_kernel_spills() {
        let Some(toolkit) = TOOLKIT else {
            eprintln!("SKIPPED: nothing is embedded; the NVRTC tests check the same");
            return;
        };
        for (index, unit) in UNITS.iter().enumerate() {
            let kernels: Vec<_> = RESOURCES
                .iter()
                .filter(|line| unit_of(line.kernel) == Some(index))
                .collect();
            let architectures = unit.architectures(toolkit.architectures);
            assert_eq!(
                kernels.is_empty(),
                architectures.is_empty(),
                "{}",
                unit.file
            );
            for line in &kernels {
                let own = [
                    line.stack_bytes,
                    line.spill_store_bytes,
                    line.spill_load_bytes,
                ];
                assert_eq!(own, [0; 3], "{line:?}");
                assert!(line.registers > 0, "{line:?}");
                let of_kernel = kernels.iter().filter(|other| other.kernel == line.kernel);
                assert_eq!(of_kernel.count(), architectures.len(), "{line:?}");
            }
        }
        let known = |line: &Resources| unit_of(line.kernel).is_some();
        assert!(RESOURCES.iter().all(known));
    }
}
