//! Prints docs/cuda-resources.md: what every embedded CUDA kernel needs. `cargo xtask
//! cuda-resources` runs it. Exit 1: a kernel spills. Exit 2: nothing is embedded.

use ratplus_kernels::cuda::{Resources, launch_blocks, resources, toolkit};
use std::collections::BTreeMap;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(toolkit) = toolkit() else {
        eprintln!(
            "no CUDA code is embedded in this build; install nvcc with `cargo xtask setup` and \
             leave RATPLUS_NVCC unset"
        );
        return ExitCode::from(2);
    };
    print!(
        "{}",
        document(toolkit.version, toolkit.architectures, resources())
    );
    let bad: Vec<_> = resources()
        .iter()
        .filter(|line| leaves_registers(line))
        .collect();
    for line in &bad {
        eprintln!("expected no stack and no spills, found {line:?}");
    }
    match bad.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(1),
    }
}

fn leaves_registers(line: &Resources) -> bool {
    [
        line.stack_bytes,
        line.spill_store_bytes,
        line.spill_load_bytes,
    ] != [0; 3]
}

fn document(version: &str, architectures: &[&str], lines: &[Resources]) -> String {
    let mut kernels: BTreeMap<&str, BTreeMap<&str, &Resources>> = BTreeMap::new();
    for line in lines {
        kernels
            .entry(line.kernel)
            .or_default()
            .insert(line.architecture, line);
    }
    let mut text = format!(
        "# What the CUDA kernels need\n\
         \n\
         Compiler: nvcc {version}\n\
         \n\
         Shared memory of a block as it is launched (for the largest head_dim that a kernel \
         takes), and registers of a\n\
         thread on each architecture. Static shared memory, stack and spilled registers stand \
         beside them where there\n\
         are any, and `cargo xtask ci` fails where a kernel spills. Written by `cargo xtask \
         cuda-resources`.\n\
         \n\
         | kernel | shared |"
    );
    let blocks = launch_blocks();
    for name in architectures {
        text += &format!(" sm_{name} |");
    }
    text += "\n| --- | --: |";
    text += &" --: |".repeat(architectures.len());
    text += "\n";
    for (kernel, by_architecture) in kernels {
        let block = blocks.iter().find(|block| block.kernel == kernel);
        let shared = block.map_or(0, |block| block.shared_bytes);
        text += &format!("| `{kernel}` | {shared} |");
        for name in architectures {
            let cell = by_architecture.get(name).map(|line| cell(line));
            text += &format!(" {} |", cell.unwrap_or_else(|| "-".into()));
        }
        text += "\n";
    }
    text
}

fn cell(line: &Resources) -> String {
    let mut cell = line.registers.to_string();
    for (bytes, what) in [
        (line.shared_bytes, "shared"),
        (line.stack_bytes, "stack"),
        (line.spill_store_bytes, "spilled"),
        (line.spill_load_bytes, "reloaded"),
    ] {
        if bytes > 0 {
            cell += &format!(", {bytes} B {what}");
        }
    }
    cell
}
