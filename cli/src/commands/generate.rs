//! `ratplus generate`: text in, text out.

use super::verify::session_options;
use crate::args::GenerateArgs;
use crate::output::{Failure, OrInput, Outcome};
use crate::streams::{self, errln, out, outln};
use ratplus_runtime::backend::{BackendKind, Session};
use ratplus_runtime::generate::{self, Request, StopReason};
use ratplus_runtime::package::Package;
use ratplus_runtime::planner;
use ratplus_runtime::sampler::{Sampler, Sampling};
use ratplus_runtime::verify::Implementations;
use std::ops::ControlFlow;

/// Prints the prompt and streams its continuation.
pub fn run(args: GenerateArgs) -> Outcome {
    let backend: BackendKind = args.backend.parse().or_input()?;
    let package = Package::open(&args.dir).or_input()?;
    let tokenizer = super::tokenizer(&package, &args.dir)?;
    let vocab = package.manifest().model.vocab_size;
    if let Some(token) = args
        .stop_tokens
        .iter()
        .find(|&&token| token as usize >= vocab)
    {
        return Err(Failure::input(format!(
            "--stop-tokens: expected 0 to {}, found {token}",
            vocab - 1
        )));
    }
    let prompt = tokenizer.encode(&args.prompt).or_input()?;
    let mut stop_tokens = tokenizer.end_tokens();
    stop_tokens.extend(&args.stop_tokens);
    let request = Request {
        prompt: prompt.clone(),
        max_new_tokens: args.max_new_tokens,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            seed: args.seed,
        },
        stop_tokens: stop_tokens.clone(),
    };
    // Everything that can be refused is, before an engine is opened.
    let manifest = package.manifest();
    let lengths: Vec<_> = manifest
        .engines
        .iter()
        .map(|engine| engine.seq_len)
        .collect();
    planner::plan(prompt.len(), &lengths, manifest.max_seq_len)
        .map_err(|error| Failure::input(format!("--prompt: {error}")))?;
    Sampler::new(request.sampling).or_input()?;
    let mut session =
        Session::open(&package, backend, &session_options(&args.libraries)).or_input()?;
    for engines in Implementations::of(backend, &session).engines {
        errln!("{backend}: {engines}");
    }
    let mut text = tokenizer.stream(&prompt);
    out!("{}", args.prompt);
    streams::flush();
    let mut undecodable = None;
    let generation = generate::generate(&mut session, &[request], |event| {
        if stop_tokens.contains(&event.token) {
            return ControlFlow::Continue(());
        }
        match text.push(event.token) {
            Ok(piece) => {
                out!("{piece}");
                streams::flush();
            }
            Err(error) => undecodable = Some(error),
        }
        if !streams::is_open() || undecodable.is_some() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })
    .or_input()?;
    if let Some(error) = undecodable {
        return Err(Failure::input(error));
    }
    outln!("{}", text.finish().or_input()?);
    if args.stats {
        let stats = &generation.stats;
        errln!(
            "prefill {} tokens, {:.0} tokens/s; first token after {:.1} ms; decode {} tokens, {:.0} tokens/s",
            stats.prefill_tokens,
            stats.prefill_tokens_per_second(),
            stats
                .time_to_first_token
                .map_or(0.0, |time| time.as_secs_f64() * 1e3),
            stats.decode_tokens,
            stats.decode_tokens_per_second(),
        );
    }
    match generation
        .completions
        .into_iter()
        .map(|completion| completion.stop)
        .next()
    {
        Some(StopReason::Failed(error)) => Err(Failure::BadResult(format!(
            "{error}; `ratplus verify` names the tensor"
        ))),
        Some(StopReason::MaxSeqLen) => {
            errln!(
                "stopped: the sequence is full at {} tokens; export with a larger --max-seq-len",
                session.max_seq_len()
            );
            Ok(())
        }
        _ => Ok(()),
    }
}
