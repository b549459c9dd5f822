//! From nothing to a generated text.

use crate::setup;
use crate::step::{Error, Steps, say};
use crate::workspace::Workspace;
use std::process::Command;
use std::time::Instant;

const CASE: &str = "tests/golden/kjv_d16w64i4";
const PROMPT: &str = "In the beginning God";

/// Builds the tool, then exports, inspects, verifies, scores and speaks with a small trained
/// model.
pub fn run(workspace: &Workspace) -> Result<(), Error> {
    let start = Instant::now();
    let steps = Steps::new(workspace);
    // The demo runs on the CPU: the CUDA toolkit would be most of the wait.
    setup::python(workspace)?;

    let remedy = "mend what the compiler says above, then run it again";
    let mut build = Command::new("cargo");
    // With the Python module, which has other crates (serde, tract) built as they are for all else: not twice then.
    build.args([
        "build",
        "--release",
        "-p",
        "ratplus",
        "-p",
        "ratplus-onnxruntime",
        "-p",
        "ratplus-python",
    ]);
    steps.run(
        "build the ratplus command and the ONNX Runtime library",
        &mut build,
        remedy,
    )?;

    let package = workspace.target.join("demo/kjv");
    let ort = setup::ort_library(workspace)?;
    let ratplus = |arguments: &[&str]| {
        let mut command = Command::new(workspace.program());
        command.args(arguments).env("ORT_DYLIB_PATH", &ort);
        command
    };
    let package = package.to_string_lossy();
    let dense = workspace.target.join("demo/kjv_dense");
    let dense = dense.to_string_lossy();
    let file = |name: &str| format!("{CASE}/{name}");
    let remedy =
        "read its message above; `target/release/ratplus doctor` says what this machine lacks";

    let export = |package: &str, more: &[&str]| {
        let mut export = ratplus(&["export", &file("model.pth"), "-o", package]);
        export
            .args(["--config", &file("config.json")])
            .args(["--tokenizer", &file("tokenizer.json")])
            .args(["--max-seq-len", "1024", "--prefill-lengths", "16,64"])
            .args(["--logits", "all"])
            .args(more);
        export
    };
    let mut adapted = export(&package, &[]);
    steps.run("export the checkpoint to ONNX files", &mut adapted, remedy)?;

    steps.run(
        "inspect the package",
        &mut ratplus(&["inspect", &package]),
        remedy,
    )?;

    let golden = file("golden.safetensors");
    let mut verify = ratplus(&["verify", &package, "--golden", &golden]);
    steps.run("verify it against the golden logits", &mut verify, remedy)?;

    let mut all_keys = export(&dense, &["--dilation", "1"]);
    let what = "export it once more, with dense attention";
    steps.run(what, &mut all_keys, remedy)?;
    let mut eval = ratplus(&["eval", &dense, &package, "--text", &file("sample.txt")]);
    steps.run("score a text with both", &mut eval, remedy)?;

    let mut generate = ratplus(&["generate", &package, "--prompt", PROMPT]);
    generate.args([
        "--max-new-tokens",
        "120",
        "--temperature",
        "0.7",
        "--seed",
        "1",
        "--stats",
    ]);
    steps.run("generate", &mut generate, remedy)?;

    let seconds = start.elapsed().as_secs_f64();
    say(&format!(
        "\ndemo: done in {seconds:.0} s; the package is in {package}"
    ));
    Ok(())
}
