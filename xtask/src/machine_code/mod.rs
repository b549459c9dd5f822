//! `cargo xtask cuda-code`: instructions and cycles of the kernels' machine code for sm_90a, and
//! what must not be in it.

mod flow;
mod sass;

use crate::Outcome;
use crate::step::{Error, Steps, say};
use crate::toolkit;
use crate::workspace::Workspace;
use flow::Flow;
use sass::{Instruction, Kernel};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The kernels' sources.
pub const SOURCES: &str = "kernels/cuda";
/// What kernels/build.rs compiles for a GPU that has everything.
const ARCHITECTURE: &str = "sm_90a";
/// What the table shows; the checks look at every kernel.
const SHOWN: [&str; 10] = [
    "dilated_attention_decode_bf16_128",
    "dilated_attention_hopper_bf16_128",
    "dilated_attention_hopper_bf16_64",
    "dilated_attention_hopper_short_bf16_128",
    "dilated_attention_prefill_bf16_128",
    "dilated_attention_prefill_bf16_64",
    "dilated_attention_prefill_short_bf16_128",
    "recurrence_scan_replay_bf16",
    "recurrence_scan_single_pass_bf16",
    "recurrence_scan_summary_bf16",
];

/// Prints the table for the sources in a folder; false where a check fails.
pub fn run(workspace: &Workspace, folder: &Path) -> Outcome {
    let (table, wrong) = examine(workspace, folder)?;
    say(&format!("\n{table}"));
    report(&wrong);
    Ok(wrong.is_empty())
}

/// Says what a check found.
pub fn report(wrong: &[String]) {
    for line in wrong {
        say(&format!("    WRONG: {line}"));
    }
}

/// The table, and what is wrong.
pub fn examine(workspace: &Workspace, folder: &Path) -> Result<(String, Vec<String>), Error> {
    toolkit::run(workspace)?;
    let steps = Steps::new(workspace);
    let kernels = steps.timed("machine code of the CUDA kernels", || {
        disassemble(workspace, folder)
    })?;
    let mut table = format!(
        "| kernel on {ARCHITECTURE} | instructions | LDS | MEMBAR | main loop | its cycles | products \
         | LDSM | EX2 | copies: cycles each |\n\
         | --- | --: | --: | --: | --: | --: | --: | --: | --: | --- |\n"
    );
    let mut wrong = Vec::new();
    for kernel in &kernels {
        let flow = Flow::new(&kernel.instructions);
        wrong.extend(check(kernel, &flow));
        let name = kernel.name.trim_start_matches("ratplus_");
        if SHOWN.contains(&name) {
            table += &row(kernel, &flow);
        }
    }
    Ok((table, wrong))
}

fn is_product(instruction: &Instruction) -> bool {
    matches!(instruction.operation(), "HGMMA" | "HMMA")
}

fn is_copy(instruction: &Instruction) -> bool {
    instruction.operation() == "LDGSTS"
}

fn is_power(instruction: &Instruction) -> bool {
    instruction.name() == "MUFU.EX2"
}

/// What must not be in a kernel.
fn check(kernel: &Kernel, flow: &Flow<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut say = |what: &str| wrong.push(format!("{}: {what}", kernel.name));
    let multiplies = kernel.instructions.iter().any(is_product);
    let main = flow.innermost(is_power);
    for one in &flow.loops {
        let code: Vec<_> = flow.of(&one.blocks).collect();
        if code.iter().any(|i| is_copy(i)) && code.iter().any(|i| i.divides()) {
            say("expected no division in a loop that copies, found one (I2F, F2I or MUFU.RCP)");
            break;
        }
    }
    if multiplies && main.is_empty() {
        say("expected a loop with its products and its softmax, found none");
    }
    for one in main {
        let code: Vec<_> = flow.of(&one.blocks).collect();
        let all = |i: &&Instruction| {
            i.name().starts_with("WARPGROUP.DEPBAR") && i.text.ends_with("gsb0, 0x0")
        };
        let wait = code.iter().position(all);
        let last = code.iter().rposition(|i| is_power(i));
        if wait.zip(last).is_some_and(|(wait, last)| wait < last) {
            say("expected the softmax before the wait for all products, found an EX2 after it");
        }
    }
    wrong
}

fn row(kernel: &Kernel, flow: &Flow<'_>) -> String {
    let count = |code: &[&Instruction], wanted: &dyn Fn(&Instruction) -> bool| {
        code.iter().filter(|i| wanted(i)).count()
    };
    let named = |name: &'static str| move |i: &Instruction| i.operation() == name;
    let all: Vec<_> = kernel.instructions.iter().collect();
    let shared_loads = |i: &Instruction| i.operation() == "LDS" && !i.text.starts_with("@!PT");
    let mut cells = vec![
        format!("`{}`", kernel.name),
        all.len().to_string(),
        count(&all, &shared_loads).to_string(),
        count(&all, &named("MEMBAR")).to_string(),
    ];
    let main = flow.innermost(is_power).into_iter();
    match main.max_by_key(|one| flow.of(&one.blocks).count()) {
        None => cells.extend(["-"; 5].map(str::to_owned)),
        Some(one) => {
            let code: Vec<_> = flow.of(&one.blocks).collect();
            cells.extend([
                code.len().to_string(),
                flow.cycles(one).to_string(),
                count(&code, &is_product).to_string(),
                count(&code, &named("LDSM")).to_string(),
                count(&code, &is_power).to_string(),
            ]);
        }
    }
    cells.push(copies(flow));
    format!("| {} |\n", cells.join(" | "))
}

/// Cycles of a copy in each place that copies: blocks with many of them, and loops.
fn copies(flow: &Flow<'_>) -> String {
    let mut places = Vec::new();
    let mut straight = Vec::new();
    for number in flow.numbers() {
        let block = flow.block(number);
        let count = block.iter().filter(|i| is_copy(i)).count();
        if count >= 4 {
            straight.push(number);
            places.push(flow::cycles(block) as usize / count);
        }
    }
    for one in flow.innermost(is_copy) {
        let code = flow.of(&one.blocks);
        let count = code.filter(|i| is_copy(i)).count();
        if count > 0 && !one.blocks.iter().any(|number| straight.contains(number)) {
            places.push(flow.cycles(one) as usize / count);
        }
    }
    let places: Vec<_> = places.iter().map(usize::to_string).collect();
    if places.is_empty() {
        "-".into()
    } else {
        places.join(", ")
    }
}

/// The kernels of every unit in a folder.
fn disassemble(workspace: &Workspace, folder: &Path) -> Result<Vec<Kernel>, Error> {
    let unreadable = |error: std::io::Error| {
        Error::new(
            format!("{}: {error}", folder.display()),
            "name a folder with .cu files",
        )
    };
    let mut units: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            units.push(path);
        }
    }
    units.sort();
    let scratch = workspace.target.join("cuda-code");
    std::fs::create_dir_all(&scratch).map_err(|error| {
        Error::new(
            format!("{}: {error}", scratch.display()),
            "free disk space or permissions",
        )
    })?;
    let mut kernels = Vec::new();
    for unit in units {
        let image = scratch
            .join(unit.file_name().unwrap_or_default())
            .with_extension("cubin");
        let mut compile = Command::new(toolkit::program(workspace, "nvcc"));
        compile.args(["-cubin", "-O3", "-std=c++17", "-lineinfo"]);
        compile
            .arg(format!("-arch={ARCHITECTURE}"))
            .arg("-o")
            .arg(&image)
            .arg(&unit);
        output(&mut compile)?;
        let mut listing = Command::new(toolkit::program(workspace, "nvdisasm"));
        listing.args(["-c", "-hex"]).arg(&image);
        kernels.extend(sass::parse(&output(&mut listing)?));
    }
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(kernels)
}

/// What a program of the toolkit prints.
fn output(command: &mut Command) -> Result<String, Error> {
    let remedy = "mend what it says; `cargo xtask setup` installs the toolkit";
    let output = command
        .output()
        .map_err(|error| Error::new(format!("{command:?}: {error}"), remedy))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(Error::new(
                format!("{command:?}: {}\n{words}", output.status),
                remedy,
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(lines: &[&str]) -> Kernel {
        let mut instructions: Vec<Instruction> = Vec::new();
        let mut labels = Vec::new();
        for line in lines {
            match line.strip_suffix(':') {
                Some(label) => labels.push(label.to_owned()),
                None => instructions.push(Instruction {
                    text: (*line).to_owned(),
                    labels: std::mem::take(&mut labels),
                    stall: 2,
                    ..Instruction::default()
                }),
            }
        }
        Kernel {
            name: "k".into(),
            instructions,
        }
    }

    fn wrong(lines: &[&str]) -> Vec<String> {
        let kernel = kernel(lines);
        check(&kernel, &Flow::new(&kernel.instructions))
    }

    #[test]
    fn divisions_in_loops_that_copy_are_wrong() {
        let right = [
            "I2F R1, R2",
            ".L_1:",
            "LDGSTS [R1]",
            "@P0 BRA `(.L_1)",
            "EXIT",
        ];
        assert!(wrong(&right).is_empty());
        let inside = [
            ".L_1:",
            "I2F R1, R2",
            "LDGSTS [R1]",
            "@P0 BRA `(.L_1)",
            "EXIT",
        ];
        assert!(wrong(&inside)[0].contains("division"));
        // In the loop around it.
        let around = [
            ".L_0:",
            "MUFU.RCP R1, R2",
            ".L_1:",
            "LDGSTS [R1]",
            "@P0 BRA `(.L_1)",
            "@P1 BRA `(.L_0)",
            "EXIT",
        ];
        assert!(wrong(&around)[0].contains("division"));
        let after = [
            ".L_1:",
            "LDGSTS [R1]",
            "@P0 BRA `(.L_1)",
            "MUFU.RCP R1, R2",
            "EXIT",
        ];
        assert!(wrong(&after).is_empty());
    }

    #[test]
    fn powers_after_the_wait_for_all_products_are_wrong() {
        let wait = "WARPGROUP.DEPBAR.LE gsb0, 0x0";
        let right = [
            ".L_1:",
            "HGMMA R1",
            "MUFU.EX2 R1, R2",
            wait,
            "@P0 BRA `(.L_1)",
            "EXIT",
        ];
        assert!(wrong(&right).is_empty());
        let early = [
            ".L_1:",
            "HGMMA R1",
            wait,
            "MUFU.EX2 R1, R2",
            "@P0 BRA `(.L_1)",
            "EXIT",
        ];
        assert!(wrong(&early)[0].contains("EX2 after it"));
        assert!(wrong(&["HGMMA R1", "EXIT"])[0].contains("found none"));
    }

    #[test]
    fn the_longest_way_counts() {
        let kernel = kernel(&[
            ".L_1:",
            "@P1 BRA `(.L_2)",
            "MOV R1, R2",
            "MOV R1, R2",
            ".L_2:",
            "LDGSTS [R1]",
            "@P0 BRA `(.L_1)",
            "EXIT",
        ]);
        let flow = Flow::new(&kernel.instructions);
        assert_eq!(flow.loops.len(), 1);
        assert_eq!(flow.cycles(&flow.loops[0]), 10);
    }
}
