//! Packages with random weights on every backend of this machine.

mod bench;
mod common;
mod cuda;
#[cfg(feature = "cuda-emulation")]
mod emulated;
mod generate;
mod package;
mod plans;
mod session;
mod slots;
