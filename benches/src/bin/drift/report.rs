//! docs/drift.md.

use crate::state::Drift;
use std::fmt::Write;

/// The trained model's text.
pub struct Text {
    /// Tokens of the text.
    pub tokens: usize,
    pub channels: usize,
    pub median: f64,
    /// Limits, and the share of gates above.
    pub above: [(f64, f64); 3],
    pub largest: f64,
    pub drift: Drift,
}

/// The page.
pub fn markdown(
    steps: &[usize],
    gates: &[f64],
    constant: &[Drift],
    noise: &[Drift],
    text: &Text,
) -> String {
    let mut page = String::from(
        "# Drift of the recurrence's state\n\n\
         Decoding carries the state of `RecurrenceScan` from token to token. Ours is f32 in every backend \
         and every dtype; the released code rounds it to the weights' bf16 after each token of its decoding \
         step (its prefill does not). Both against the same recurrence in f64, one token at a time, from \
         the same gates and inputs. Written by `cargo run --release -p ratplus-benches --bin drift`; \
         CI compares these files with what it computes (`benches/tests/drift.rs`). The portable kernel \
         runs, so that every machine gives these figures; the others are held to the same model by their \
         tests.\n\n![Error of the state against f64](drift.svg)\n\n\
         ## Constant input 1\n\n\
         The state goes to 1. In bf16 it stops where a step is less than half the spacing of numbers.\n\n",
    );
    header(&mut page, "gate, state", steps);
    for (gate, drift) in gates.iter().zip(constant) {
        for (index, name) in ["f64", "f32", "bf16"].into_iter().enumerate() {
            row(&mut page, &format!("{gate} {name}"), drift, |point| {
                format!("{:.6}", point.first[index])
            });
        }
    }
    page.push_str(
        "\n## Uniform noise in -1 to 1\n\n\
         Error of 64 channels, root mean square, relative to that of the state.\n\n",
    );
    header(&mut page, "gate, state", steps);
    for (gate, drift) in gates.iter().zip(noise) {
        errors(&mut page, &gate.to_string(), drift);
    }
    let above = text
        .above
        .map(|(limit, share)| format!("{:.2} % above {limit}", 100.0 * share));
    let _ = write!(
        page,
        "\n## A trained model\n\n\
         Keys and gates of the first layer of `tests/golden/kjv_d16w64i4`, {} channels, on its text \
         ({} tokens, again from the start where it ends). The first layer's depend on each token alone, so \
         that no position beyond the model's training is asked for. Its gates: median {:.3}, {}, largest \
         {:.6}. The same error.\n\n",
        text.channels,
        text.tokens,
        text.median,
        above.join(", "),
        text.largest,
    );
    header(&mut page, "state", steps);
    errors(&mut page, "", &text.drift);
    page
}

fn header(page: &mut String, first: &str, steps: &[usize]) {
    let steps: Vec<_> = steps.iter().map(|step| format!("step {step}")).collect();
    let _ = writeln!(page, "| {first} | {} |", steps.join(" | "));
    let _ = writeln!(page, "|---|{}", "---:|".repeat(steps.len()));
}

fn row(
    page: &mut String,
    name: &str,
    drift: &Drift,
    cell: impl FnMut(&crate::state::Point) -> String,
) {
    let cells: Vec<_> = drift.at.iter().map(cell).collect();
    let _ = writeln!(page, "| {} | {} |", name.trim(), cells.join(" | "));
}

fn errors(page: &mut String, name: &str, drift: &Drift) {
    for (index, kind) in ["f32", "bf16"].into_iter().enumerate() {
        row(page, &format!("{name} {kind}"), drift, |point| {
            format!("{:.1e}", point.error[index])
        });
    }
}
