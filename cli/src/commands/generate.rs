//! `ratplus generate`: text in, text out.

use super::prompts::{Prompt, Prompts};
use super::session_builder;
use crate::args::GenerateArgs;
use crate::output::{Failure, OrInput, Outcome};
use crate::streams::{self, errln, out};
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::engine::{Engine, Limits};
use ratplus_runtime::generate::{
    Completion, Event, Generation, Observer, Request, StopReason, check_stop_strings,
    check_stop_tokens, generate_observed,
};
use ratplus_runtime::package::Package;
use ratplus_runtime::planner::plan;
use ratplus_runtime::sampler::Sampling;
use ratplus_runtime::text::{Piece, StoppingDecoder, TextError, Tokenizer};
use ratplus_tools::verify::Implementations;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// Problems that one message lists.
const MOST_PROBLEMS: usize = 20;

/// Prints the prompt and streams its continuation, or a line for each of several prompts.
pub fn run(args: GenerateArgs) -> Outcome {
    let backend: BackendKind = args.engine.backend.parse().or_input()?;
    let mut prompts = Prompts::read(&args)?;
    let package = super::while_opening(&args.dir, || Package::open(&args.dir)).or_input()?;
    let (tokenizer, special_tokens) = super::tokenizer(&package, &args.dir, args.special_tokens)?;
    let manifest = package.manifest();
    let mut sampling = Sampling::default();
    sampling.temperature = args.temperature;
    (sampling.top_k, sampling.top_p) = (args.top_k, args.top_p);
    sampling.min_p = args.min_p;
    sampling.repetition_penalty = args.repetition_penalty;
    sampling.presence_penalty = args.presence_penalty;
    sampling.frequency_penalty = args.frequency_penalty;
    sampling.seed = args.seed.unwrap_or(sampling.seed);
    // Everything that can be refused is, before an engine is opened.
    let limits = Limits::from(manifest);
    let tokens = prompts.encode(&tokenizer, special_tokens, &limits);
    let Prompts {
        prompts,
        mut problems,
    } = prompts;
    let mut stop_tokens: BTreeSet<u32> = args.stop_tokens.iter().copied().collect();
    let checked = check_stop_tokens(&stop_tokens, &limits);
    problems.extend(checked.err().map(|error| error.to_string()));
    let checked = check_stop_strings(&args.stop);
    problems.extend(checked.err().map(|error| error.to_string()));
    if let Err(error) = sampling.check(Some(limits.vocab_size)) {
        problems.extend(error.0.iter().map(ToString::to_string));
    }
    if let Some(problems) = listed(problems) {
        return Err(Failure::input(problems));
    }
    note_idle_flags(&args);
    // The model gives no others.
    let ends = tokenizer.end_tokens().into_iter();
    stop_tokens.extend(ends.filter(|&token| (token as usize) < limits.vocab_size));
    let requests: Vec<_> = tokens
        .into_iter()
        .map(|prompt| Request {
            prompt,
            max_new_tokens: args.max_new_tokens,
            sampling: sampling.clone(),
            stop_tokens: stop_tokens.clone(),
        })
        .collect();
    let lengths = lengths(&requests, &limits);
    let session = super::while_opening(&args.dir, || {
        session_builder(&package, &args.engine.libraries)
            .engines(lengths)
            .up_front()
            .open(backend)
    });
    let session = session.or_input()?;
    for engines in Implementations::of(backend, &session).engines {
        errln!("{backend}: {engines}");
    }
    let mut engine = Engine::new(session);
    let texts = Texts::new(&tokenizer, &requests, &args.stop);
    let generation = match args.prompts {
        None => stream(&mut engine, &requests, texts, &prompts[0].text),
        Some(_) => print_lines(&mut engine, &requests, texts, &prompts),
    }?;
    if args.stats {
        print_stats(&generation);
    }
    end(&generation, &prompts, limits.max_seq_len)
}

/// Lengths of the engines that the requests run on: the planner's chunks are the same without the
/// others.
fn lengths(requests: &[Request], limits: &Limits) -> BTreeSet<usize> {
    let prompts = requests.iter().map(|request| request.prompt.len());
    let chunks = prompts.flat_map(|tokens| plan(tokens, &limits.lengths, limits.max_seq_len));
    let chunks = chunks.flatten().map(|chunk| chunk.engine_len);
    chunks.chain([1]).collect()
}

/// The problems as one message, the first of them where they are many.
fn listed(mut problems: Vec<String>) -> Option<String> {
    let more = problems.len().saturating_sub(MOST_PROBLEMS);
    if more > 0 {
        problems.truncate(MOST_PROBLEMS);
        problems.push(format!("and {more} more"));
    }
    (!problems.is_empty()).then(|| problems.join("\n  "))
}

/// Says which flags change nothing, because there is nothing to draw.
fn note_idle_flags(args: &GenerateArgs) {
    let one_k = args.top_k == Some(1);
    let greedy = args.temperature == 0.0;
    let given = [
        ("--top-k", greedy && args.top_k.is_some()),
        ("--top-p", (greedy || one_k) && args.top_p.is_some()),
        ("--min-p", (greedy || one_k) && args.min_p.is_some()),
        ("--seed", (greedy || one_k) && args.seed.is_some()),
    ];
    let idle: Vec<_> = given.iter().filter(|(_, idle)| *idle).collect();
    let names: Vec<_> = idle.iter().map(|(flag, _)| *flag).collect();
    let verb = if names.len() == 1 { "has" } else { "have" };
    let cause = if greedy {
        "--temperature 0, the default,"
    } else {
        "--top-k 1"
    };
    if !names.is_empty() {
        errln!(
            "note: {} {verb} no effect: {cause} always takes the likeliest token",
            names.join(", ")
        );
    }
}

/// The text of every sequence that runs.
struct Texts<'a> {
    tokenizer: &'a Tokenizer,
    requests: &'a [Request],
    stop_strings: &'a [String],
    running: BTreeMap<usize, StoppingDecoder>,
    /// Whether the last token ended its text.
    stopped: bool,
    failed: Option<TextError>,
}

impl<'a> Texts<'a> {
    fn new(tokenizer: &'a Tokenizer, requests: &'a [Request], stop_strings: &'a [String]) -> Self {
        Self {
            tokenizer,
            requests,
            stop_strings,
            running: BTreeMap::new(),
            stopped: false,
            failed: None,
        }
    }

    fn of(&mut self, request: usize) -> &mut StoppingDecoder {
        let (tokenizer, stops) = (self.tokenizer, self.stop_strings);
        let prompt = &self.requests[request].prompt;
        let text = || StoppingDecoder::new(tokenizer, prompt, stops.to_vec(), false);
        self.running.entry(request).or_insert_with(text)
    }

    /// What `event` adds; nothing for a token that ends the text.
    fn push(&mut self, event: Event) -> String {
        let ends = &self.requests[event.request].stop_tokens;
        if ends.contains(&event.token) {
            self.stopped = false;
            return String::new();
        }
        let piece = self.of(event.request).push(event.token);
        self.or_failed(piece)
    }

    /// The rest of a sequence that ended.
    fn finish(&mut self, request: usize) -> String {
        let rest = self.running.remove(&request).map(StoppingDecoder::finish);
        self.or_failed(rest.unwrap_or(Ok(Piece::default())))
    }

    fn or_failed(&mut self, piece: Result<Piece, TextError>) -> String {
        let piece = piece.unwrap_or_else(|error| {
            self.failed = Some(error);
            Piece::default()
        });
        self.stopped = piece.stopped.is_some();
        piece.text
    }
}

/// Goes on while text can be decoded and somebody reads it.
fn go_on(texts: &Texts<'_>) -> ControlFlow<()> {
    match texts.failed.is_none() && streams::is_open() {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    }
}

/// Prints what is to be seen at once.
fn show(text: &str) {
    out!("{text}");
    streams::flush();
}

/// Why text broke off, but for what standard output does not take.
fn broken_off(texts: Texts<'_>) -> Outcome {
    texts
        .failed
        .map_or(Ok(()), |error| Err(Failure::input(error)))
}

/// Prints one text as it comes.
fn stream(
    engine: &mut Engine,
    requests: &[Request],
    texts: Texts<'_>,
    prompt: &str,
) -> Result<Generation, Failure> {
    struct Stream<'a> {
        texts: Texts<'a>,
    }
    impl Observer for Stream<'_> {
        fn token(&mut self, event: Event) -> ControlFlow<()> {
            let piece = self.texts.push(event);
            show(&piece);
            go_on(&self.texts)
        }

        fn ends(&mut self, _: usize) -> bool {
            self.texts.stopped
        }
    }
    let mut stream = Stream { texts };
    show(prompt);
    let generation = generate_observed(engine, requests, &mut stream).or_input()?;
    if stream.texts.failed.is_none() {
        let rest = stream.texts.finish(0);
        show(&(rest + "\n"));
    }
    broken_off(stream.texts)?;
    Ok(generation)
}

/// One finished prompt of several.
#[derive(Serialize)]
struct Line<'a> {
    prompt: &'a str,
    completion: &'a str,
    /// New tokens.
    tokens: usize,
    stop: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Prints a JSON object a prompt, in their order, each as soon as those before it are there.
fn print_lines(
    engine: &mut Engine,
    requests: &[Request],
    texts: Texts<'_>,
    prompts: &[Prompt],
) -> Result<Generation, Failure> {
    struct Lines<'a> {
        texts: Texts<'a>,
        prompts: &'a [Prompt],
        /// Text of the sequences that run.
        parts: BTreeMap<usize, String>,
        /// Lines whose turn has not come.
        ready: BTreeMap<usize, String>,
        next: usize,
    }
    impl Observer for Lines<'_> {
        fn token(&mut self, event: Event) -> ControlFlow<()> {
            let piece = self.texts.push(event);
            *self.parts.entry(event.request).or_default() += &piece;
            go_on(&self.texts)
        }

        fn ends(&mut self, _: usize) -> bool {
            self.texts.stopped
        }

        fn finished(&mut self, request: usize, completion: &Completion) -> ControlFlow<()> {
            let mut text = self.parts.remove(&request).unwrap_or_default();
            text += &self.texts.finish(request);
            let error = match &completion.stop {
                StopReason::Failed(error) => Some(error.to_string()),
                _ => None,
            };
            let line = Line {
                prompt: &self.prompts[request].text,
                completion: &text,
                tokens: completion.tokens.len(),
                stop: completion.stop.name(),
                error,
            };
            let line = serde_json::to_string(&line).unwrap_or_default();
            self.ready.insert(request, line + "\n");
            while let Some(line) = self.ready.remove(&self.next) {
                show(&line);
                self.next += 1;
            }
            go_on(&self.texts)
        }
    }
    let mut lines = Lines {
        texts,
        prompts,
        parts: BTreeMap::new(),
        ready: BTreeMap::new(),
        next: 0,
    };
    let generation = generate_observed(engine, requests, &mut lines).or_input()?;
    broken_off(lines.texts)?;
    Ok(generation)
}

fn print_stats(generation: &Generation) {
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

/// What the ends of the sequences mean for the command.
fn end(generation: &Generation, prompts: &[Prompt], max_seq_len: usize) -> Outcome {
    let ends = generation.completions.iter().zip(prompts);
    let full = ends
        .clone()
        .filter(|(done, _)| done.stop == StopReason::MaxSeqLen)
        .count();
    if full > 0 {
        let what = match prompts.len() {
            1 => "the sequence is full".into(),
            all => format!("{full} of {all} sequences are full"),
        };
        errln!("stopped: {what} at {max_seq_len} tokens; export with a larger --max-seq-len");
    }
    let failed = ends.filter_map(|(done, prompt)| match &done.stop {
        StopReason::Failed(error) => Some(format!("{}: {error}", prompt.place)),
        _ => None,
    });
    match listed(failed.collect()) {
        None => Ok(()),
        Some(failed) => Err(Failure::BadResult(format!(
            "{failed}; `ratplus verify` names the tensor"
        ))),
    }
}
