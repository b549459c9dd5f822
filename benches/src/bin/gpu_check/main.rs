//! Checks and measures the CUDA kernels on a GPU: `gpu_check info`, `correct` and `bench`.
//!
//! Needs the driver and nothing else of CUDA. `benches/gpu/check.py` runs it with everything that
//! goes with it; docs/gpu.md says how and what came out.

#![allow(unsafe_code)]

mod bench;
mod buffers;
mod correct;
mod element;
mod failure;
mod info;
mod model;
mod parallel;

use clap::{Parser, Subcommand};
use failure::Failure;
use std::process::ExitCode;

/// Checks and measures the CUDA kernels on this machine's GPU.
///
/// Exit 0: done, and everything is right. Exit 1: a result is wrong, or a kernel failed. Exit 2:
/// no device, or bad arguments.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Number of the device.
    #[arg(long, global = true, default_value_t = 0)]
    device: i32,
}

#[derive(Subcommand)]
enum Command {
    /// The device, the driver, and where its code comes from.
    Info,
    /// Compares every kernel and method with the reference.
    Correct(correct::Options),
    /// Times the operators.
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    if matches!(arguments.command, Command::Info) {
        info::embedded();
    }
    let device =
        ratplus_kernels::cuda::Device::open(arguments.device).map_err(Failure::environment)?;
    match &arguments.command {
        Command::Info => info::run(device),
        Command::Correct(options) => correct::run(device, options),
        Command::Bench(options) => bench::run(device, options),
    }
}
