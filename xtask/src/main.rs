//! `cargo xtask <command>`: setup, demo, test and ci, from a fresh clone on.

mod bundle;
mod ci;
mod clients;
mod counts;
mod demo;
mod emulated;
mod fuzz;
mod llama;
mod machine_code;
mod ort_headers;
mod peers;
mod release;
mod resources;
mod sanitize;
mod setup;
mod step;
mod suite;
mod supply;
mod support;
mod tensorrt;
mod toolkit;
mod triton;
mod wheel;
mod workspace;

use std::process::ExitCode;
use workspace::Workspace;

const HELP: &str = "\
cargo xtask <command>

  setup   into the target directory: a Python environment with ONNX Runtime
          (tests/python/requirements.txt), NVIDIA's compilers for the CUDA kernels, and
          TensorRT's headers
  demo    the Python environment, build, then export, inspect, verify and generate with a small
          trained model
  test    setup, build, then every Rust and Python test; ends with `N passed, N failed, N skipped`
  cuda-resources [--check]
          writes docs/cuda-resources.md, registers and memory of every CUDA kernel and what
          cuda-code counts, or compares it
  cuda-code [FOLDER]
          counts instructions and cycles in the machine code of kernels/cuda, or of other sources,
          and checks that copying loops divide nothing and that the softmax runs beside products
  gpu-bundle
          into target/gpu-bundle: what checks and measures the kernels on a machine with a GPU
          (docs/gpu.md)
  peers [--suite must|full] [--seconds N]
          measures the CPU kernels next to ONNX Runtime's and PyTorch's ways, with wheels of its
          own (several GB) in target/peers; writes docs/cpu.md
  peers --suite heads [--seconds N]
          measures grouped heads and heads that choose blocks, in the same way; writes a part of
          docs/cpu.md of its own
  peers --suite model [--size 1.5b|tiny] [--seconds N] [--continue]
          measures a whole model next to llama.cpp, built here from source, PyTorch and OpenVINO,
          with 11 GB of models in target/peers; writes the end of docs/cpu.md (of a tiny one, in
          target/peers/docs)
  peers --suite serve [--size 1.5b|tiny] [--seconds N] [--continue]
          measures `ratplus serve` next to llama.cpp's server, built here from source, by what 8
          clients see; writes the end of docs/serving.md
  sanitize [--thread]
          the custom-op library built with AddressSanitizer, or with ThreadSanitizer, in Python
          and ONNX Runtime; a build of its own in target/sanitize (docs/reliability.md)
  fuzz [TARGET..] [--seconds N] [--workers N] [--asan]
          runs the fuzz targets of tests/fuzz under libFuzzer, 12 s each (docs/fuzzing.md)
  wheel [--manylinux [x86_64|aarch64]]
          target/wheel/repaired/ratplus-*.whl: the Python module, the program and the plugin
          libraries (docs/python.md), for systems like this one; or, built with zig, for those with
          glibc 2.28 or later and such a processor, in target/wheel-x86_64, target/wheel-aarch64
  release [tests|large|sanitize|fuzz|wheel]..
          what a release passes besides ci, about 3 hours: long tests at many times the work, the
          7.6B shape (32 GB of disk), the sanitizers, fuzz for 20 min a target, the wheels for
          other machines (docs/reliability.md)
  ci      setup, formatting, lints, documentation, packages, cuda-resources --check, cargo-deny
          and fuzz, then test

Needs Rust, Python 3.11 or newer with pip, gcc and g++. No GPU.
Exit 0: done. Exit 1: a check or a test failed. Exit 2: bad input or environment.";

/// What a command ends with: good or bad, or an error that kept it from finding out.
type Outcome = Result<bool, step::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["peers", words @ ..] = &arguments[..] {
        return end(peers::Options::parse(words).and_then(|options| {
            let workspace = Workspace::enter()?;
            peers::run(&workspace, &options)
        }));
    }
    if let ["cuda-code", folder] = arguments[..] {
        // Before the workspace's root becomes the current folder.
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.into());
        return end(Workspace::enter().and_then(|w| machine_code::run(&w, &folder)));
    }
    if let ["fuzz", words @ ..] = &arguments[..] {
        return end(fuzz::Options::parse(words).and_then(|options| {
            let workspace = Workspace::enter()?;
            fuzz::run(&workspace, &options)
        }));
    }
    if let ["wheel", words @ ..] = &arguments[..]
        && let Some(wanted) = wheel::For::parse(words)
    {
        return end(Workspace::enter().and_then(|w| wheel::run(&w, wanted).map(|_| true)));
    }
    if let ["release", words @ ..] = &arguments[..] {
        return end(release::Part::parse(words).and_then(|parts| {
            let workspace = Workspace::enter()?;
            release::run(&workspace, &parts)
        }));
    }
    let command: fn(&Workspace) -> Outcome = match arguments[..] {
        ["setup"] => |workspace| setup::run(workspace).map(|()| true),
        ["demo"] => |workspace| demo::run(workspace).map(|()| true),
        ["test"] => suite::run,
        ["cuda-resources"] => |workspace| resources::run(workspace, false),
        ["cuda-resources", "--check"] => |workspace| resources::run(workspace, true),
        ["cuda-code"] => |workspace| machine_code::run(workspace, machine_code::SOURCES.as_ref()),
        ["gpu-bundle"] => |workspace| bundle::run(workspace).map(|()| true),
        ["sanitize"] => |workspace| sanitize::run(workspace, sanitize::Sanitizer::Address),
        ["sanitize", "--thread"] => {
            |workspace| sanitize::run(workspace, sanitize::Sanitizer::Thread)
        }
        ["ci"] => ci::run,
        ["help" | "-h" | "--help"] => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            let found = arguments.join(" ");
            eprintln!("xtask: expected one command, found `{found}`\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    end(Workspace::enter().and_then(|workspace| command(&workspace)))
}

/// The exit code of an outcome, its error said.
fn end(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("\nerror: {error}");
            ExitCode::from(2)
        }
    }
}
