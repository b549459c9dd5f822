//! `ratplus eval`: perplexity of a text.

use super::{backends, read_text, session_builder, spinner};
use crate::args::{EvalArgs, LibraryArgs};
use crate::output::{Failure, OrInput, Outcome, Table, bytes};
use crate::streams::outln;
use ratplus_graphs::package::SpecialTokens;
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::package::Package;
use ratplus_runtime::text::Encoded;
use ratplus_tools::eval::{EvalError, EvalOptions, Evaluation, Text, evaluate};
use ratplus_tools::verify::{Golden, Implementations};
use serde::Serialize;
use std::path::Path;

/// One row: a package on a backend, or the golden logits.
#[derive(Default, Serialize)]
struct Report {
    /// `None` for the golden logits.
    package: Option<String>,
    backend: Option<String>,
    patterns: Option<String>,
    types: Option<String>,
    state_bytes: Option<u64>,
    implementations: Vec<String>,
    /// Names of the special tokens that were added to the text; `None` where tokens were given.
    special_tokens: Option<Vec<String>>,
    /// Tokens scored.
    tokens: usize,
    /// Nats a token.
    mean_nll: f64,
    perplexity: f64,
    /// Bits a byte of the text; `None` where tokens were given.
    bits_per_byte: Option<f64>,
    /// Share of tokens that were the most likely one.
    accuracy: f64,
    /// `None` for the golden logits.
    tokens_per_second: Option<f64>,
}

/// Tokens of one text.
struct Source {
    texts: Vec<(Vec<u32>, Option<Vec<usize>>)>,
    /// Bytes of text that are predicted: those of scored tokens.
    bytes: Option<usize>,
    /// Names of the special tokens that were added.
    special_tokens: Option<Vec<String>>,
}

impl Source {
    fn texts(&self) -> Vec<Text<'_>> {
        let texts = self.texts.iter();
        let texts = texts.map(|(tokens, scored)| Text {
            tokens,
            scored: scored.as_deref(),
        });
        texts.collect()
    }
}

/// Scores every package on every backend.
pub fn run(args: EvalArgs) -> Outcome {
    let backends = backends(&args.backend)?;
    let packages = args.dirs.iter().map(Package::open);
    let packages = packages.collect::<Result<Vec<_>, _>>().or_input()?;
    let golden = args.golden.as_deref().map(Golden::read).transpose();
    let golden = golden.or_input()?;
    let text = args.text.as_deref();
    let text = text
        .map(|path| Ok((path, read_text("--text", path)?)))
        .transpose()?;
    // Everything is read and compared before the first engine is opened.
    let sources = args
        .dirs
        .iter()
        .zip(&packages)
        .map(|(dir, package)| match (&golden, &text) {
            (Some(golden), _) => of_golden(golden, package, dir),
            (None, Some((path, text))) => of_text(path, text, package, dir, args.special_tokens),
            (None, None) => unreachable!("clap asks for one of them"),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let rooms = packages.iter().map(|found| found.manifest().max_seq_len);
    let room = rooms.min().unwrap_or(0);
    let window = args.window.unwrap_or(room);
    let options = EvalOptions {
        window,
        stride: args.stride.unwrap_or(window.saturating_sub(1)),
    };
    options.check(room).or_input()?;
    let mut reports: Vec<_> = golden.iter().map(score_golden).collect::<Result<_, _>>()?;
    for ((dir, package), source) in args.dirs.iter().zip(&packages).zip(&sources) {
        for &backend in &backends {
            reports.push(score(
                dir,
                package,
                backend,
                &args.libraries,
                source,
                options,
            )?);
        }
    }
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&reports).or_input()?);
    } else {
        print(&reports, options, args.golden.is_some());
    }
    Ok(())
}

fn of_text(
    path: &Path,
    text: &str,
    package: &Package,
    dir: &Path,
    special_tokens: Option<SpecialTokens>,
) -> Result<Source, Failure> {
    let (tokenizer, special_tokens) = super::tokenizer(package, dir, special_tokens)?;
    let named = |error: String| Failure::input(format!("--text {}: {error}", path.display()));
    let encoded = tokenizer.encode(text, special_tokens);
    let encoded = encoded.map_err(|error| named(error.to_string()))?;
    tokenizer
        .check_vocabulary(&encoded, package.manifest().model.vocab_size)
        .map_err(|error| named(error.to_string()))?;
    let Encoded { ids, added, .. } = encoded;
    // Special tokens that were added are context; the first token has no prediction.
    let scored = (1..ids.len()).filter(|index| added.binary_search(index).is_err());
    let scored: Vec<_> = scored.collect();
    let Some(&first_scored) = scored.first() else {
        return Err(named(format!(
            "expected at least 2 tokens, found {}: the first one has no prediction",
            ids.len()
        )));
    };
    let unscored = tokenizer.decode(&ids[..first_scored]).or_input()?;
    let names = added
        .iter()
        .filter_map(|&index| tokenizer.token(ids[index]));
    Ok(Source {
        bytes: Some(text.len().saturating_sub(unscored.len())),
        special_tokens: Some(names.collect()),
        texts: vec![(ids, Some(scored))],
    })
}

fn of_golden(golden: &Golden, package: &Package, dir: &Path) -> Result<Source, Failure> {
    let manifest = package.manifest();
    let (vocab, room) = (manifest.model.vocab_size, manifest.max_seq_len);
    if golden.vocab_size != vocab || golden.seq_len() > room {
        return Err(Failure::input(format!(
            "{}: expected golden logits of {vocab} tokens and at most {room} positions, found {} and {}; \
             use the golden file of this model, or export with a larger --max-seq-len",
            dir.display(),
            golden.vocab_size,
            golden.seq_len()
        )));
    }
    let texts = golden.tokens.iter().map(|tokens| {
        let tokens = tokens.iter().map(|&token| u32::try_from(token));
        let tokens: Vec<_> = tokens.collect::<Result<_, _>>().or_input()?;
        Ok((tokens, Some(golden_targets(golden))))
    });
    Ok(Source {
        texts: texts.collect::<Result<_, Failure>>()?,
        bytes: None,
        special_tokens: None,
    })
}

/// Indices of the tokens that golden logits predict.
fn golden_targets(golden: &Golden) -> Vec<usize> {
    let next = golden.positions.iter().map(|position| position + 1);
    next.filter(|&index| index < golden.seq_len()).collect()
}

fn score_golden(golden: &Golden) -> Result<Report, Failure> {
    let mut evaluation = Evaluation::default();
    for (sequence, tokens) in golden.tokens.iter().enumerate() {
        for target in golden_targets(golden) {
            let logits = golden.logits_at(sequence, target - 1).unwrap_or_default();
            let token = usize::try_from(tokens[target]).or_input()?;
            if !evaluation.score(logits, token) {
                return Err(Failure::input(format!(
                    "--golden: sequence {sequence}, position {}: expected finite logits of the token that \
                     follows",
                    target - 1
                )));
            }
        }
    }
    if evaluation.tokens == 0 {
        return Err(Failure::input(
            "--golden: expected logits at a position that a token follows, found none",
        ));
    }
    Ok(report(&evaluation, None))
}

fn score(
    dir: &Path,
    package: &Package,
    backend: BackendKind,
    libraries: &LibraryArgs,
    source: &Source,
    options: EvalOptions,
) -> Result<Report, Failure> {
    let mut session = session_builder(package, libraries)
        .open(backend)
        .or_input()?;
    let bar = spinner();
    let evaluation = evaluate(&mut session, &source.texts(), options, &mut |ran, total| {
        bar.set_message(format!(
            "{} on {backend}: {ran} of {total} tokens",
            dir.display()
        ));
    });
    bar.finish_and_clear();
    let evaluation = evaluation.map_err(|error| {
        let message = format!("{} on {backend}: {error}", dir.display());
        match error {
            EvalError::NotFinite { .. } => Failure::BadResult(message),
            _ => Failure::input(message),
        }
    })?;
    let manifest = package.manifest();
    let implementations = Implementations::of(backend, &session).engines;
    Ok(Report {
        package: Some(dir.display().to_string()),
        backend: Some(backend.to_string()),
        patterns: Some(super::inspect::pattern_summary(&manifest.model)),
        types: Some(manifest.types()),
        state_bytes: Some(session.state_bytes()),
        special_tokens: source.special_tokens.clone(),
        implementations: implementations.iter().map(ToString::to_string).collect(),
        tokens_per_second: Some(evaluation.ran as f64 / evaluation.time.as_secs_f64().max(1e-9)),
        ..report(&evaluation, source.bytes)
    })
}

fn report(evaluation: &Evaluation, text_bytes: Option<usize>) -> Report {
    Report {
        tokens: evaluation.tokens,
        mean_nll: evaluation.mean_nll(),
        perplexity: evaluation.perplexity(),
        bits_per_byte: text_bytes
            .map(|bytes| evaluation.nll / std::f64::consts::LN_2 / bytes.max(1) as f64),
        accuracy: evaluation.accuracy(),
        ..Report::default()
    }
}

fn print(reports: &[Report], options: EvalOptions, golden: bool) {
    let mut table = Table::new(
        2,
        [
            "package",
            "backend",
            "state",
            "scored",
            "nats/token",
            "perplexity",
            "against first",
            "bits/byte",
            "accuracy",
            "tokens/s",
        ],
    );
    let first = reports.first().map_or(f64::NAN, |report| report.perplexity);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    for report in reports {
        table.row([
            report
                .package
                .clone()
                .unwrap_or_else(|| "golden logits".into()),
            or_dash(report.backend.clone()),
            or_dash(report.state_bytes.map(|state| bytes(state as f64))),
            report.tokens.to_string(),
            format!("{:.5}", report.mean_nll),
            format!("{:.4}", report.perplexity),
            format!("{:+.3} %", 100.0 * (report.perplexity / first - 1.0)),
            or_dash(report.bits_per_byte.map(|bits| format!("{bits:.4}"))),
            format!("{:.2} %", 100.0 * report.accuracy),
            or_dash(report.tokens_per_second.map(|rate| format!("{rate:.0}"))),
        ]);
    }
    outln!("{table}");
    for report in reports {
        if let (Some(package), Some(patterns), Some(types)) =
            (&report.package, &report.patterns, &report.types)
        {
            outln!("{package}: {types}, {patterns}");
        }
        if let Some(added) = &report.special_tokens {
            let added = match added.is_empty() {
                true => "no special token".into(),
                false => format!("`{}`", added.join("`, `")),
            };
            outln!("  {} tokens scored, {added} added", report.tokens);
        }
        for engine in &report.implementations {
            outln!("  ran {engine}");
        }
    }
    if golden {
        outln!("scored where the golden file has logits");
    } else {
        outln!(
            "windows of {} tokens, {} apart",
            options.window,
            options.stride
        );
    }
}
