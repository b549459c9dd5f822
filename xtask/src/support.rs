//! What runs where: targets, versions, types and modes, each with what became of the tests that show it.

use crate::counts::{Ending, Totals};
use crate::step::say;
use crate::workspace::Workspace;
use std::collections::BTreeSet;

/// The page of the last run that somebody looked at.
const PAGE: &str = "docs/support.md";

/// One line of the table.
struct Row {
    /// What runs a package, or is run on it.
    target: &'static str,
    /// Which version or kind of it.
    version: &'static str,
    /// Types and modes.
    what: &'static str,
    shown: Shown,
}

/// What shows that a line holds.
enum Shown {
    /// Tests: `*` is any text.
    By(&'static [&'static str]),
    /// Nothing that CI runs, for this reason.
    Not(&'static str),
}

use Shown::{By, Not};

const fn row(target: &'static str, version: &'static str, what: &'static str, shown: Shown) -> Row {
    Row {
        target,
        version,
        what,
        shown,
    }
}

const CPU: &str = "ONNX Runtime, CPU, our library";
const BODIES: &str = "ONNX Runtime, CPU, no library";
const CUDA: &str = "ONNX Runtime, CUDA, our library";
const TRT: &str = "TensorRT, our plugins";
const RTX: &str = "TensorRT for RTX";
const NEWEST: &str = "newest";
const GPU: Shown = Not("needs a GPU (docs/gpu.md)");

#[rustfmt::skip]
const ROWS: &[Row] = &[
    row(CPU, NEWEST, "f32, every golden folder", By(&["test_packages::test_prefill_and_decode_match_golden[*-kernel]"])),
    row(CPU, NEWEST, "f16, bf16", By(&["test_packages::test_half_types_run[*-kernel]"])),
    row(CPU, NEWEST, "a cache of another type", By(&["test_packages::test_caches_of_another_type_run[*-kernel]"])),
    row(CPU, NEWEST, "chosen blocks, kernels", By(&["test_packages::test_prefill_and_decode_match_golden[topk_*-kernel]"])),
    row(CPU, NEWEST, "grouped heads, dense, dilated and choosing: the bits of repeated ones", By(&["test_grouped_heads::*"])),
    row(CPU, NEWEST, "int4, int8, symmetric and not", By(&["golden: quantised_*", "test_quantized::test_products_are_those_of_the_values[*"])),
    row(CPU, NEWEST, "several sequences", By(&["test_packages::test_sequences_have_their_own_lengths[*-kernel]"])),
    row(CPU, "1.24", "the newest one's bytes; integers", By(&["*_compute_the_same_bytes[1.24]", "test_quantized::test_older_runtimes_*1.24]"])),
    row(CPU, "1.20", "the newest one's bytes; integers", By(&["*_compute_the_same_bytes[1.20]", "test_quantized::test_older_runtimes_*1.20]"])),
    row(CPU, "1.17", "the newest one's bytes; integers", By(&["*_compute_the_same_bytes[1.17]", "test_quantized::test_older_runtimes_*1.17]"])),
    row(CPU, "1.16", "refused, both versions named", By(&["*::test_a_runtime_too_old_is_refused_with_both_versions"])),
    row(BODIES, NEWEST, "function bodies, f32, every golden folder", By(&["test_packages::test_prefill_and_decode_match_golden[*-function-body]"])),
    row(BODIES, NEWEST, "standard operators only, f32, every golden folder", By(&["test_packages::test_prefill_and_decode_match_golden[*-inline]"])),
    row(BODIES, NEWEST, "function bodies, f16, bf16", By(&["test_packages::test_half_types_run[*-body]"])),
    row(CUDA, NEWEST, "f32, f16, bf16, kernels emulated on the CPU", By(&["test_packages::test_operators_for_cuda_match_golden[*", "test_ort_cuda_runtime::*"])),
    row(CUDA, "1.20, 1.24", "the operators, emulated", By(&["*::test_older_runtimes_run_the_operators_for_cuda[*"])),
    row(CUDA, "any", "on a GPU", GPU),
    row(TRT, "10.16, 11.4, RTX 1.7", "the library loads, registers and unloads", By(&["test_tensorrt_plugin::test_registries_take_the_library[*"])),
    row(TRT, "every release's headers", "the sources compile", By(&["test_tensorrt_plugin::test_the_sources_compile_with_every_release"])),
    row(TRT, NEWEST, "the parser makes our plugins of our nodes", By(&["test_tensorrt_plugin::test_a_real_parser_*"])),
    row(TRT, "a double of it", "plans are built and driven; kernels emulated", By(&["test_plan_backends::*[tensorrt]", "test_tensorrt_plugin::test_the_check_for_gpus_runs_on_the_emulator"])),
    row(TRT, "any", "on a GPU", GPU),
    row(RTX, "1.7", "f32, f16, bf16 plans are built, function bodies and standard operators", By(&["test_tensorrt_rtx::test_every_lowering_and_type_builds[*", "test_tensorrt_rtx::test_a_real_builder_*"])),
    row(RTX, "1.7", "grouped heads, chosen blocks: plans are built", By(&["test_tensorrt_rtx::test_grouped_heads_and_chosen_blocks_build[*"])),
    row(RTX, "1.7", "integers stay integers in plans", By(&["test_tensorrt_rtx::test_integers_stay_integers_in_a_plan[*"])),
    row(RTX, "a double of it", "plans are driven", By(&["test_plan_backends::*[tensorrt-rtx]"])),
    row(RTX, "any", "on a GPU", GPU),
    row("tract", "the one in Cargo.lock", "f32, f16, bf16, every golden folder: the reference", By(&["golden: *"])),
    row("all backends of a machine without a GPU", "", "the same tokens", By(&["suite: generate::backends_pick_the_same_tokens"])),
    row("ratplus serve", "HTTP/1.1", "answers do not depend on the load", By(&["serving: determinism::*"])),
    row("ratplus serve", "clients in requirements-clients.txt", "openai (Python, npm), lm-eval, aiperf, vllm-router", By(&["test_serve::*", "test_serve_clients::*"])),
    row("Triton Inference Server, our backend", "2.51 (24.10)", "streams, cancels, queues, reloads, drains; KServe's client; ratplus generate's tokens", By(&["test_triton::*", "test_triton_repository::*"])),
    row("Python module", "the wheel", "generate, score, states, exceptions", By(&["test_module::*"])),
    row("lm-evaluation-harness", "0.4.13", "--model ratplus", By(&["test_lm_eval::*"])),
    row("NVIDIA Dynamo", "the one in requirements-dynamo.txt", "a worker in Python: the same tokens, also where a worker is lost; drain", By(&["test_dynamo::*"])),
    row("x86-64", "five kinds of processor", "the kernels, up to AVX-512 BF16 and AMX in plain loops", By(&["ratplus_kernels: *"])),
    row("aarch64", "", "the kernels compile; the wheel", Not("CI lints the kernels for that target; `cargo xtask release wheel` runs the wheel under qemu (docs/python.md)")),
];

/// Whether `pattern`, in which `*` is any text, is all of `text`.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, rest)) => text.strip_prefix(before).is_some_and(|text| {
            let starts = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            starts.into_iter().any(|at| fits(rest, &text[at..]))
        }),
    }
}

/// What became of a line, in words; none where no such test is left.
fn result(shown: &Shown, tests: &[(String, Ending)]) -> Option<String> {
    let patterns = match shown {
        By(patterns) => patterns,
        Not(reason) => return Some(format!("not run: {reason}")),
    };
    let (mut passed, mut failed, mut reasons) = (0, 0, BTreeSet::new());
    for pattern in *patterns {
        let mut any = false;
        for (_, ending) in tests.iter().filter(|(test, _)| fits(pattern, test)) {
            any = true;
            match ending {
                Ending::Passed => passed += 1,
                Ending::Failed => failed += 1,
                Ending::Skipped(reason) => drop(reasons.insert(reason.as_str())),
            }
        }
        if !any {
            return None;
        }
    }
    let mut words = Vec::new();
    if failed > 0 {
        words.push(format!("**{failed} failed**"));
    }
    if passed > 0 {
        words.push(format!("{passed} passed"));
    }
    words.extend(reasons.iter().map(|reason| format!("not run: {reason}")));
    Some(words.join("; "))
}

/// The page; and the lines whose tests are gone.
fn page(tests: &[(String, Ending)]) -> (String, Vec<String>) {
    let mut page = String::from(
        "# What runs where\n\n\
         Written by `cargo xtask test` into `target/support.md`, from what became of the tests named on the right in that run \
         (`*` is any text); this copy is of the run that [measured.md](measured.md) names. What no test of CI shows is \"not run\".\n\n\
         | target | version | what | result | tests |\n|---|---|---|---|---|\n",
    );
    let mut gone = Vec::new();
    for row in ROWS {
        let Row {
            target,
            version,
            what,
            shown,
        } = row;
        let found = result(shown, tests).unwrap_or_else(|| {
            gone.push(format!("{target}, {version}: {what}"));
            "**no such test**".into()
        });
        let names: Vec<String> = match shown {
            By(patterns) => patterns.iter().map(|name| format!("`{name}`")).collect(),
            Not(_) => Vec::new(),
        };
        let names = names.join(", ");
        page += &format!("| {target} | {version} | {what} | {found} | {names} |\n");
    }
    (page, gone)
}

/// Writes the page of a whole run; a line whose tests are gone is a failure.
pub fn write(workspace: &Workspace, totals: &mut Totals) {
    let (page, gone) = page(&totals.tests);
    for line in gone {
        totals.fail(format!(
            "{PAGE}: no test is left of `{line}`; correct xtask/src/support.rs"
        ));
    }
    let place = workspace.target.join("support.md");
    match std::fs::write(&place, page) {
        Ok(()) => say(&format!("what ran where: {}", place.display())),
        Err(error) => totals.fail(format!("{}: {error}", place.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_are_any_text() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("*a*c", "bac", true),
            ("*a*c", "bacd", false),
            ("x[*-kernel]", "x[a-function-kernel]", true),
            ("x[*-kernel]", "x[a-function-body]", false),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn results_are_what_became_of_the_tests() {
        let skipped = || Ending::Skipped("needs a GPU".into());
        let tests = [
            ("a: one".to_owned(), Ending::Passed),
            ("a: two".to_owned(), Ending::Failed),
            ("b: one".to_owned(), skipped()),
            ("b: two".to_owned(), skipped()),
        ];
        let of = |patterns| result(&By(patterns), &tests);
        assert_eq!(of(&["a: one"]).unwrap(), "1 passed");
        assert_eq!(of(&["a: *"]).unwrap(), "**1 failed**; 1 passed");
        assert_eq!(
            of(&["a: one", "b: *"]).unwrap(),
            "1 passed; not run: needs a GPU"
        );
        assert_eq!(of(&["b: one", "b: two"]).unwrap(), "not run: needs a GPU");
        assert_eq!(of(&["a: one", "c: *"]), None);
        assert_eq!(result(&Not("why"), &tests).unwrap(), "not run: why");
    }

    /// Every line of the table is on the committed page, and no other.
    #[test]
    fn the_page_has_these_lines() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/support.md");
        let committed = std::fs::read_to_string(path).unwrap();
        let lines = |page: &str| -> Vec<String> {
            let rows = page.lines().filter(|line| line.starts_with("| "));
            let cells = rows.map(|row| {
                // All but the result.
                let mut cells: Vec<_> = row.split(" | ").collect();
                cells.remove(3);
                cells.join(" | ")
            });
            cells.collect()
        };
        assert_eq!(
            lines(&committed),
            lines(&page(&[]).0),
            "copy target/support.md"
        );
    }
}
