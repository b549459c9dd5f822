//! `ratplus export`: a checkpoint becomes a package.

use crate::args::{ExportArgs, ModelArgs};
use crate::files::{self, PACKAGE, Targets};
use crate::flags::in_flags;
use crate::output::{Failure, OrInput, Outcome, Table, bytes, joined, si};
use crate::streams::{errln, out, outln};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ratplus_exporter::checkpoint::{Checkpoint, ReadOptions};
use ratplus_exporter::package::{
    self, CheckpointWeights, PackageOptions, Progress, WeightSource, Written,
};
use ratplus_exporter::plan::ExportPlan;
use ratplus_exporter::quantize::QuantizedWeight;
use ratplus_exporter::resolve::{self, ResolveOptions, Resolved};
use ratplus_exporter::synthetic::SyntheticWeights;
use ratplus_graphs::cost;
use ratplus_graphs::package::{MANIFEST_FILE, Manifest, PackageShape, SpecialTokens};
use ratplus_graphs::precision::{DEFAULT_BLOCK_SIZE, Precision, Quantization};
use ratplus_graphs::spec::ModelSpec;
use ratplus_runtime::text::Tokenizer;
use ratplus_server::template;
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the package and says what it is.
pub fn run(args: ExportArgs) -> Outcome {
    let checkpoint = args
        .checkpoint
        .as_deref()
        .map(|path| ("the checkpoint", path));
    let output = [(PACKAGE, &*args.output)].into_iter();
    let mut targets = Targets::of(output.chain(checkpoint));
    targets.add("--report", args.report.as_deref());
    targets.check()?;
    if let Some(name) = &args.synthetic {
        let given = resolve::synthetic(name, &resolve_options(&args.model, None)).or_input()?;
        let mut weights = SyntheticWeights::new(given.clone(), 0);
        return write(&args, &given, &mut weights);
    }
    // Required without --synthetic.
    let path = args.checkpoint.clone().unwrap_or_default();
    let checkpoint = Checkpoint::open(&path).or_input()?;
    let resolved = resolve_with(&checkpoint, &args.model, Some(args.max_seq_len))?;
    for note in &resolved.notes {
        errln!("note: {}", in_flags(note));
    }
    let mut read = ReadOptions::default();
    read.allow_nonfinite = args.allow_nonfinite;
    let mut weights = CheckpointWeights::new(&checkpoint, &resolved.sources, read);
    write(&args, &resolved.spec, &mut weights)
}

fn write(args: &ExportArgs, given: &ModelSpec, weights: &mut dyn WeightSource) -> Outcome {
    let spec = given.normalized(args.max_seq_len);
    for (layer, (given, kept)) in given.patterns.iter().zip(&spec.patterns).enumerate() {
        if given != kept {
            errln!(
                "note: layer {layer}: the pattern is written in its shortest form for sequences of up to {} \
                 tokens; it sees the same keys",
                args.max_seq_len
            );
        }
    }
    let mut options = PackageOptions {
        shape: PackageShape {
            batch: args.batch,
            max_seq_len: args.max_seq_len,
            dtype: args.dtype,
            cache_dtype: args.cache_dtype.unwrap_or(args.dtype),
            logits: args.logits,
        },
        precision: precision(args),
        fallback: args.fallback,
        opset: args.opset,
        tokenizer: args.tokenizer.clone(),
        special_tokens: args.special_tokens,
        chat_template: args
            .chat_template
            .as_deref()
            .map(chat_template)
            .transpose()?,
        ..PackageOptions::new(given.clone(), args.max_seq_len)
    };
    if let Some(lengths) = &args.prefill_lengths {
        options.prefill_lengths.clone_from(lengths);
    }
    if args.keep_f32.is_some() && options.precision.normalized(options.shape.dtype).is_plain() {
        errln!(
            "note: --keep-f32 changes nothing here: without --quantize, --dtype f32 stores every weight so"
        );
    }
    options.validate().or_input()?;
    if let Some(path) = &args.tokenizer {
        note_tokenizer(path, args.special_tokens, given.vocab_size);
    }
    if args.dry_run {
        let plan = ExportPlan::new(&args.output, &options).or_input()?;
        print_dry_run(&args.output, &plan);
        return plan.check_room(&args.output).or_input();
    }
    let bar = progress_bar();
    let written = package::write(&args.output, &options, weights, &mut |progress| {
        let Progress { what, bytes, total } = progress;
        bar.set_length(total);
        bar.set_position(bytes);
        bar.set_message(what.to_owned());
    });
    bar.finish_and_clear();
    let written = written.or_input()?;
    summarize(&args.output, &written.manifest);
    out!("{}", losses(&written));
    if let Some(path) = &args.report {
        let report = serde_json::to_string_pretty(&written.quantized).or_input()?;
        let report = files::write("--report", path, (report + "\n").as_bytes());
        report.map_err(|failure| {
            let place = args.output.display();
            Failure::input(format!("{failure}; the package is in place in {place}"))
        })?;
    }
    match (args.no_check, args.allow_nonfinite) {
        (true, _) => Ok(()),
        (_, true) => {
            outln!("not checked: --allow-nonfinite");
            Ok(())
        }
        _ => super::spot_check::run(&args.output, &written.manifest),
    }
}

/// The chat template that a file holds, once it compiles.
fn chat_template(path: &Path) -> Result<String, Failure> {
    let file = super::read_text("--chat-template", path)?;
    let template = template::from_file(&file).and_then(|source| {
        template::check(&source)?;
        Ok(source)
    });
    template.map_err(|error| Failure::input(format!("--chat-template {}: {error}", path.display())))
}

/// Says what a tokenizer has that the model has not, and what it adds to a text.
fn note_tokenizer(path: &Path, special_tokens: SpecialTokens, vocab_size: usize) {
    let note = |text: String| errln!("note: --tokenizer {}: {text}", path.display());
    let added = Tokenizer::from_file(path).and_then(|tokenizer| {
        let added = tokenizer.special_tokens()?;
        Ok((tokenizer, added))
    });
    let (tokenizer, added) = match added {
        Ok(found) => found,
        Err(error) => return note(format!("generate and eval cannot use it: {error}")),
    };
    let beyond = tokenizer.tokens_beyond(vocab_size);
    if let Some(&largest) = beyond.last() {
        let known = match beyond.len() {
            1 => "knows a token".into(),
            count => format!("knows {count} tokens"),
        };
        note(format!(
            "{known} that the model does not, whose vocabulary is 0 to {}; the largest is {largest}, {}; \
             a text that has one is refused",
            vocab_size - 1,
            tokenizer.name(largest)
        ));
    }
    match (super::names(&tokenizer, &added), special_tokens) {
        (Some(names), SpecialTokens::Tokenizer) => note(format!("adds {names} to every text")),
        (Some(names), SpecialTokens::None) => note(format!(
            "would add {names} to every text; as released models saw none in training, generate and eval \
             do not add it; --special-tokens tokenizer has them do so"
        )),
        (None, SpecialTokens::Tokenizer) => note("adds no special tokens".into()),
        (None, SpecialTokens::None) => {}
    }
}

/// What is stored otherwise than in `--dtype`.
fn precision(args: &ExportArgs) -> Precision {
    let quantization = args.quantize.map(|integers| Quantization {
        bits: integers.bits(),
        block_size: args.block_size.unwrap_or(DEFAULT_BLOCK_SIZE),
        symmetric: !args.asymmetric,
        layout: args.fallback.integer_layout(),
        activations: args.activations,
    });
    Precision {
        quantization,
        keep_f32: args.keep_f32.clone().unwrap_or_default(),
    }
}

/// What quantised weights lost, a row a kind of matrix.
fn losses(written: &Written) -> String {
    let mut kinds: BTreeMap<&str, Vec<&QuantizedWeight>> = BTreeMap::new();
    for weight in &written.quantized {
        let kind = weight.name.trim_end_matches(".weight");
        let kind = kind.rsplit('.').next().unwrap_or(kind);
        kinds.entry(kind).or_default().push(weight);
    }
    if kinds.is_empty() {
        return String::new();
    }
    let mut table = Table::new(
        1,
        ["quantised", "matrices", "bytes", "rms error", "worst of"],
    );
    for (kind, weights) in kinds {
        let mean = weights
            .iter()
            .map(|weight| weight.relative_error)
            .sum::<f64>();
        let worst = weights
            .iter()
            .max_by(|a, b| a.relative_error.total_cmp(&b.relative_error));
        table.row([
            kind.to_owned(),
            weights.len().to_string(),
            bytes(weights.iter().map(|weight| weight.bytes as f64).sum()),
            format!("{:.3}%", 100.0 * mean / weights.len() as f64),
            worst.map_or(String::new(), |weight| {
                format!("{:.3}%  {}", 100.0 * weight.relative_error, weight.name)
            }),
        ]);
    }
    table.to_string()
}

/// A checkpoint's sizes, patterns and weights.
pub fn resolve(
    path: &Path,
    model: &ModelArgs,
    max_seq_len: Option<usize>,
) -> Result<Resolved, Failure> {
    resolve_with(&Checkpoint::open(path).or_input()?, model, max_seq_len)
}

fn resolve_with(
    checkpoint: &Checkpoint,
    model: &ModelArgs,
    max_seq_len: Option<usize>,
) -> Result<Resolved, Failure> {
    resolve::resolve(checkpoint, &resolve_options(model, max_seq_len)).or_input()
}

fn resolve_options(model: &ModelArgs, max_seq_len: Option<usize>) -> ResolveOptions {
    ResolveOptions {
        config_file: model.config.clone(),
        d_head: model.d_head,
        dilation: model.dilation.clone(),
        local_window: model.local_window.clone(),
        initial: model.initial.clone(),
        max_seq_len,
    }
}

/// Draws on a terminal, and nowhere else.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    let style = ProgressStyle::with_template(
        "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left  {wide_msg}",
    );
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// What an export would write.
fn print_dry_run(output: &Path, plan: &ExportPlan) {
    summarize(output, &plan.manifest);
    let mut table = Table::new(1, ["file", "bytes", ""]);
    let listed: u64 = plan.manifest.files.values().map(|file| file.bytes).sum();
    let files = plan.manifest.files.iter();
    let files = files.map(|(name, file)| (name.as_str(), file.bytes));
    for (name, count) in files.chain([(MANIFEST_FILE, plan.bytes - listed), ("all", plan.bytes)]) {
        table.row([name.to_owned(), count.to_string(), bytes(count as f64)]);
    }
    out!("{table}");
    match plan.free {
        Some(free) => outln!("{} free on its file system", bytes(free as f64)),
        None => outln!("its file system does not say how much is free"),
    }
    outln!("nothing was written");
}

fn summarize(output: &Path, manifest: &Manifest) {
    let spec = &manifest.model;
    let state = cost::state_bytes(spec, &manifest.shape());
    outln!(
        "{}: {} parameters in {}, chunks of {}, batch {}, up to {} tokens, fallback {}",
        output.display(),
        si(cost::parameters(spec) as f64).trim_end(),
        manifest.types(),
        joined(&manifest.lengths()),
        manifest.batch,
        manifest.max_seq_len,
        manifest.fallback,
    );
    outln!(
        "{} in {} files; state {} a sequence, where dense attention keeps {}",
        bytes(manifest.files.values().map(|file| file.bytes as f64).sum()),
        manifest.files.len() + 1,
        bytes((state.cache + state.recurrent) as f64),
        bytes(state.dense_cache as f64),
    );
}
