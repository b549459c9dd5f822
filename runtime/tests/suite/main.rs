//! Packages with random weights on every backend of this machine.

mod bench;
mod common;
mod cuda;
mod damage;
mod determinism;
#[cfg(feature = "cuda-emulation")]
mod emulated;
mod engine;
mod generate;
#[cfg(feature = "grammar")]
mod grammar;
mod hostile;
mod package;
mod plans;
mod quantized;
mod scheduler;
mod session;
mod slots;
