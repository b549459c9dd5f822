//! `ratplus inspect`: what a package or checkpoint is, and what it costs to run.

use super::capacity;
use crate::args::InspectArgs;
use crate::files::{self, PACKAGE, Targets};
use crate::flags::in_flags;
use crate::output::{Failure, OrInput, Outcome, Table, bytes, joined, si};
use crate::streams::{errln, out, outln};
use ratplus_charts::{Lines, Panel, Series};
use ratplus_graphs::cost::{self, TokenCost};
use ratplus_graphs::memory::SessionMemory;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{
    LogitsMode, MANIFEST_FILE, MAX_SEQ_LEN, Manifest, PackageShape, SpecialTokens, state_tensors,
};
use ratplus_graphs::spec::{LayerPatterns, ModelSpec};
use ratplus_graphs::staging;
use std::path::Path;

/// What is inspected.
struct Subject {
    spec: ModelSpec,
    shape: PackageShape,
    manifest: Option<Manifest>,
    notes: Vec<String>,
}

/// Prints or draws it.
pub fn run(args: InspectArgs) -> Outcome {
    let mut targets = Targets::of([(PACKAGE, &*args.path)]);
    targets.add("--plot", args.plot.as_deref());
    targets.check()?;
    let subject = open(&args)?;
    let costs = contexts(subject.shape.max_seq_len)
        .into_iter()
        .map(|context| cost::token_cost(&subject.spec, context, subject.shape.cache_dtype.size()))
        .collect::<Vec<_>>();
    if args.json {
        let mut json = as_json(&subject, &costs);
        if let Some((manifest, budget)) = subject.manifest.as_ref().zip(args.serve_memory) {
            json["servers"] = serde_json::json!(capacity::servers(manifest, budget));
        }
        outln!("{}", serde_json::to_string_pretty(&json).or_input()?);
    } else {
        print_text(&args.path, &subject, &costs);
        if let Some((manifest, budget)) = subject.manifest.as_ref().zip(args.serve_memory) {
            out!("\n{}", capacity::text(manifest, budget));
        }
    }
    if let Some(path) = &args.plot {
        draw(path, &subject, &costs)?;
        errln!("drew {}", path.display());
    }
    Ok(())
}

fn open(args: &InspectArgs) -> Result<Subject, Failure> {
    if args.path.join(MANIFEST_FILE).is_file() || staging::set_aside(&args.path).is_some() {
        let package = ratplus_runtime::package::Package::open(&args.path).or_input()?;
        let manifest = package.manifest().clone();
        let given = [
            ("--max-seq-len", args.max_seq_len.is_some()),
            ("--cache-dtype", args.cache_dtype.is_some()),
        ];
        let given: Vec<_> = given
            .into_iter()
            .filter_map(|(flag, given)| given.then_some(flag))
            .collect();
        if !given.is_empty() {
            return Err(Failure::input(format!(
                "{}: expected a checkpoint with {}, found a package, which has its own: leave it out, or \
                 export again",
                args.path.display(),
                given.join(" and ")
            )));
        }
        return Ok(Subject {
            spec: manifest.model.clone(),
            shape: manifest.shape(),
            manifest: Some(manifest),
            notes: Vec::new(),
        });
    }
    if args.serve_memory.is_some() {
        return Err(Failure::input(format!(
            "{}: expected a package with --serve-memory, found a checkpoint: export it first",
            args.path.display()
        )));
    }
    let resolved = super::export::resolve(&args.path, &args.model, args.max_seq_len)?;
    let notes = resolved.notes.iter().map(|note| in_flags(note));
    let (spec, notes) = (resolved.spec, notes.collect());
    let max_seq_len = args.max_seq_len.unwrap_or(4096);
    if max_seq_len == 0 || max_seq_len > MAX_SEQ_LEN {
        return Err(Failure::input(format!(
            "--max-seq-len: expected 1 to {MAX_SEQ_LEN}, found {max_seq_len}"
        )));
    }
    Ok(Subject {
        spec: spec.normalized(max_seq_len),
        shape: PackageShape {
            batch: 1,
            max_seq_len,
            dtype: ElementType::F32,
            cache_dtype: args.cache_dtype.unwrap_or(ElementType::F32),
            logits: LogitsMode::Last,
        },
        manifest: None,
        notes,
    })
}

/// Powers of four from 256 to the longest sequence, and that itself.
fn contexts(max_seq_len: usize) -> Vec<usize> {
    let mut list: Vec<_> = (0..)
        .map(|power| 256usize << (2 * power))
        .take_while(|&context| context < max_seq_len)
        .collect();
    list.push(max_seq_len);
    list
}

fn ratio(dense: f64, ours: f64) -> String {
    if ours == 0.0 {
        "-".into()
    } else {
        format!("{:.1}x", dense / ours)
    }
}

fn print_text(path: &Path, subject: &Subject, costs: &[TokenCost]) {
    let Subject {
        spec,
        shape,
        manifest,
        notes,
    } = subject;
    outln!("{}", path.display());
    for note in notes {
        outln!("note         {note}");
    }
    outln!(
        "model        {} parameters: {} layers, d_model {}, {} heads of {}, d_ffn {}, vocabulary {}{}{}",
        si(cost::parameters(spec) as f64).trim_end(),
        spec.num_layers,
        spec.d_model,
        spec.num_heads(),
        spec.d_head,
        spec.d_ffn,
        spec.vocab_size,
        if spec.tie_embedding {
            ", head tied to the embedding"
        } else {
            ""
        },
        spec.differences()
            .iter()
            .map(|difference| format!(", {difference}"))
            .collect::<String>(),
    );
    for line in pattern_lines(spec) {
        outln!("{line}");
    }
    if let Some(manifest) = manifest {
        outln!(
            "package      {}, batch {}, up to {} tokens; chunks of {}; opset {}, fallback {}",
            manifest.types(),
            manifest.batch,
            manifest.max_seq_len,
            joined(&manifest.lengths()),
            manifest.opset,
            manifest.fallback,
        );
        if manifest.tokenizer.is_some() {
            outln!(
                "text         special tokens added: {}",
                match manifest.special_tokens {
                    SpecialTokens::None => "none",
                    SpecialTokens::Tokenizer => "those of the tokenizer",
                }
            );
        }
        for (name, file) in &manifest.files {
            outln!("file         {name}  {}", bytes(file.bytes as f64));
        }
    }
    let state = cost::state_bytes(spec, shape);
    let summaries = match state.summaries {
        0 => String::new(),
        bytes => format!(" + {bytes} of blocks' summaries"),
    };
    outln!(
        "state        {} bytes of cache{summaries} + {} of recurrence a sequence; dense attention: {} ({})",
        state.cache,
        state.recurrent,
        state.dense_cache,
        ratio(
            state.dense_cache as f64,
            (state.cache + state.summaries + state.recurrent) as f64
        ),
    );
    if let Some(manifest) = manifest {
        outln!(
            "bound        {} bytes in {} buffers for batch {}",
            manifest.state_bytes,
            state_tensors(spec, shape).len(),
            manifest.batch
        );
        outln!("{}", memory_line(&SessionMemory::of(manifest)));
    }
    outln!();
    let mut table = Table::new(
        0,
        [
            "context",
            "KV cache",
            "dense",
            "less",
            "attention FLOPs",
            "dense",
            "less",
            "all FLOPs a token",
            "less",
        ],
    );
    for cost in costs {
        let all = cost.attention_flops + cost.linear_flops;
        let dense = cost.dense_attention_flops + cost.linear_flops;
        table.row([
            cost.context.to_string(),
            bytes(cost.cache_bytes),
            bytes(cost.dense_cache_bytes),
            ratio(cost.dense_cache_bytes, cost.cache_bytes),
            si(cost.attention_flops),
            si(cost.dense_attention_flops),
            ratio(cost.dense_attention_flops, cost.attention_flops),
            si(all),
            ratio(dense, all),
        ]);
    }
    out!("{table}");
}

/// What makes up a session's memory.
fn memory_line(memory: &SessionMemory) -> String {
    let size = |value: u64| bytes(value as f64);
    format!(
        "memory       {} resident with ort-cpu and all engines: {} of weights and {} of libraries, mapped; {} of \
         state, {} of logits, {} of activations, {} of graphs, {} else",
        size(memory.resident()),
        size(memory.weights),
        size(memory.libraries),
        size(memory.state),
        size(memory.outputs),
        size(memory.activations),
        size(memory.graphs),
        size(memory.process),
    )
}

/// The patterns in a few words, in the terms of the flags.
pub(super) fn pattern_summary(spec: &ModelSpec) -> String {
    match &*spec.patterns {
        [
            first @ (LayerPatterns::Uniform(_) | LayerPatterns::BlockTopK(_)),
            others @ ..,
        ] if others.iter().all(|layer| layer == first) => pattern_words(first),
        _ => "patterns by layer or head".into(),
    }
}

fn pattern_words(layer: &LayerPatterns) -> String {
    match layer {
        LayerPatterns::Uniform(pattern) => pattern.to_string(),
        LayerPatterns::PerHead(patterns) => {
            let heads = (0..).zip(patterns);
            let heads = heads.map(|(head, pattern)| format!("head {head} {pattern}"));
            heads.collect::<Vec<_>>().join("; ")
        }
        LayerPatterns::BlockTopK(blocks) => blocks.to_string(),
    }
}

/// One line per run of layers that agree.
fn pattern_lines(spec: &ModelSpec) -> Vec<String> {
    let mut layer = 0;
    let runs = spec.patterns.chunk_by(|a, b| a == b).map(|run| {
        let first = layer;
        layer += run.len();
        let layers = match run.len() {
            1 => format!("layer {first}"),
            _ => format!("layers {first}-{}", layer - 1),
        };
        let text = pattern_words(&run[0]);
        format!("pattern      {layers}: {text}")
    });
    runs.collect()
}

fn as_json(subject: &Subject, costs: &[TokenCost]) -> serde_json::Value {
    let memory = subject.manifest.as_ref().map(SessionMemory::of);
    serde_json::json!({
        "model": subject.spec,
        "parameters": cost::parameters(&subject.spec),
        "notes": subject.notes,
        "manifest": subject.manifest,
        "state_bytes_per_sequence": cost::state_bytes(&subject.spec, &subject.shape),
        "bound_state_bytes": state_tensors(&subject.spec, &subject.shape)
            .iter().map(|(_, _, tensor)| tensor.bytes()).sum::<usize>(),
        "session_memory": memory,
        "session_file_backed_bytes": memory.map(|memory| memory.file_backed()),
        "session_anonymous_bytes": memory.map(|memory| memory.anonymous()),
        "token_costs": costs,
    })
}

fn draw(path: &Path, subject: &Subject, costs: &[TokenCost]) -> Outcome {
    let points = |f: fn(&TokenCost) -> f64| {
        // Smooth lines need more points than the table has rows.
        let first = costs.first().map_or(1, |cost| cost.context.min(64));
        let last = subject.shape.max_seq_len;
        (0..=48)
            .map(|step| {
                let t = f64::from(step) / 48.0;
                let context =
                    (first as f64 * (last as f64 / first as f64).powf(t)).round() as usize;
                let cost =
                    cost::token_cost(&subject.spec, context, subject.shape.cache_dtype.size());
                (context as f64, f(&cost))
            })
            .collect::<Vec<_>>()
    };
    let panel = |title: &str, series| Panel {
        title: title.into(),
        series,
    };
    let lines = Lines {
        panels: vec![
            panel(
                "KV cache of one sequence, bytes",
                vec![
                    Series::new("dense attention", points(|c| c.dense_cache_bytes)),
                    Series::new("this model", points(|c| c.cache_bytes)),
                ],
            ),
            panel(
                "attention FLOPs a token",
                vec![
                    Series::new("dense attention", points(|c| c.dense_attention_flops)),
                    Series::new("this model", points(|c| c.attention_flops)),
                    Series::new("linear layers", points(|c| c.linear_flops)),
                ],
            ),
        ],
        x_label: "tokens in the sequence".into(),
        y_label: String::new(),
    };
    files::write("--plot", path, lines.svg().or_input()?.as_bytes())
}
