//! Packages with random weights on every backend of this machine.

mod common;
mod cuda;
mod generate;
mod package;
mod session;
