//! docs/cuda-resources.md: registers and memory of the CUDA kernels, as their compiler reports.

use crate::Outcome;
use crate::machine_code;
use crate::step::{Error, Steps, command_line, say};
use crate::workspace::Workspace;
use std::process::{Command, Stdio};

const EXAMPLE: &str = "cuda_resources";
const DOCUMENT: &str = "docs/cuda-resources.md";
/// What begins the line that names the compiler.
const COMPILER: &str = "Compiler: ";

/// What stands before the table of `cargo xtask cuda-code`.
const MACHINE_CODE: &str = "
## Machine code

Counted by `cargo xtask cuda-code`. The main loop is the one with the softmax; its cycles are those of the longest way
through it for a warp alone: what the compiler has each instruction stall, 22 cycles for MUFU, I2F and F2I, 30 for LDS,
LDSM and SHFL. A copy is sixteen bytes of a thread; each place that copies has a figure, loops after straight code.
`cargo xtask ci` fails where a loop that copies divides, or where an EX2 of the main loop stands behind the wait for all
products of the warpgroup.

";

/// Writes the tables, or compares them. False where they differ, a kernel spills or its machine code
/// is wrong.
pub fn run(workspace: &Workspace, check: bool) -> Outcome {
    let steps = Steps::new(workspace);
    // With the features of all crates, as everything is built: nothing is compiled for this alone.
    let mut build = Command::new("cargo");
    build.args(["build", "--workspace", "--release", "--example", EXAMPLE]);
    let remedy = "mend what the compiler says above, then run it again";
    steps.run("build what tells of the CUDA kernels", &mut build, remedy)?;
    let mut figures = Command::new(workspace.release.join("examples").join(EXAMPLE));
    let title = "registers and memory of the CUDA kernels";
    let (clean, mut new) = steps.timed(title, || {
        say(&format!(
            "    $ {}",
            command_line(&figures, &workspace.root)
        ));
        let output = figures.stderr(Stdio::inherit()).output();
        let output =
            output.map_err(|error| Error::new(format!("{title}: {error}"), "run it again"))?;
        match output.status.code() {
            Some(code @ (0 | 1)) => Ok((
                code == 0,
                String::from_utf8_lossy(&output.stdout).into_owned(),
            )),
            _ => Err(Error::new(
                "the figures of the CUDA kernels were not made (see above)",
                "run `cargo xtask setup`, then this again",
            )),
        }
    })?;
    let (table, wrong) = machine_code::examine(workspace, machine_code::SOURCES.as_ref())?;
    machine_code::report(&wrong);
    new += &format!("{MACHINE_CODE}{table}");
    let old = std::fs::read_to_string(DOCUMENT).unwrap_or_default();
    let same = match compare(&old, &new) {
        Comparison::Same => true,
        Comparison::OtherCompiler { old, new } if check => {
            say(&format!(
                "    SKIPPED: {DOCUMENT} has the figures of {old}, and this build is by {new}"
            ));
            true
        }
        _ if check => {
            say(&format!(
                "    {DOCUMENT} differs from this build; run `cargo xtask cuda-resources`, look \
                 at the difference and commit it"
            ));
            false
        }
        _ => {
            std::fs::write(DOCUMENT, &new).map_err(|error| {
                Error::new(
                    format!("{DOCUMENT}: {error}"),
                    "free disk space or permissions",
                )
            })?;
            say(&format!("    wrote {DOCUMENT}"));
            true
        }
    };
    Ok(same && clean && wrong.is_empty())
}

/// How two tables differ.
#[derive(Debug, PartialEq, Eq)]
enum Comparison<'a> {
    Same,
    Different,
    /// Figures of different compilers say nothing about each other.
    OtherCompiler {
        old: &'a str,
        new: &'a str,
    },
}

fn compare<'a>(old: &'a str, new: &'a str) -> Comparison<'a> {
    let compiler = |text: &'a str| text.lines().find_map(|line| line.strip_prefix(COMPILER));
    match (compiler(old), compiler(new)) {
        _ if old == new => Comparison::Same,
        (Some(old), Some(new)) if old != new => Comparison::OtherCompiler { old, new },
        _ => Comparison::Different,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_one_compiler_are_compared() {
        let table = "# A\n\nCompiler: nvcc 1\n\n| a | 1 |\n";
        assert_eq!(compare(table, table), Comparison::Same);
        assert_eq!(compare("", table), Comparison::Different);
        assert_eq!(
            compare(&table.replace("| 1", "| 2"), table),
            Comparison::Different
        );
        let other = table.replace("nvcc 1", "nvcc 2");
        let expected = Comparison::OtherCompiler {
            old: "nvcc 2",
            new: "nvcc 1",
        };
        assert_eq!(compare(&other, table), expected);
    }
}
