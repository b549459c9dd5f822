//! A request that is ready to be queued.

use super::error::ApiError;
use super::generation::Generation;
use super::parameters::{Parameters, found};
use crate::model::Model;
use ratplus_runtime::grammar::CompiledGrammar;
use ratplus_runtime::scheduler::Request;
use serde_json::Value;

/// Which endpoint asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Completion,
    Chat,
}

impl Kind {
    /// The parameter that prompts come in.
    pub fn prompt(self) -> &'static str {
        match self {
            Self::Completion => "prompt",
            Self::Chat => "messages",
        }
    }

    /// Parameters that say the most new tokens.
    pub fn max_tokens(self) -> &'static [&'static str] {
        match self {
            Self::Completion => &["max_tokens"],
            Self::Chat => &["max_completion_tokens", "max_tokens"],
        }
    }

    /// Most new tokens where nobody says; none for as many as there is room for.
    pub fn default_max_tokens(self) -> Option<usize> {
        match self {
            Self::Completion => Some(16),
            Self::Chat => None,
        }
    }

    /// How ids of answers begin.
    pub fn id_prefix(self) -> &'static str {
        match self {
            Self::Completion => "cmpl",
            Self::Chat => "chatcmpl",
        }
    }

    /// What an answer is called, or a part of a streamed one.
    pub fn object(self, streamed: bool) -> &'static str {
        match (self, streamed) {
            (Self::Completion, _) => "text_completion",
            (Self::Chat, false) => "chat.completion",
            (Self::Chat, true) => "chat.completion.chunk",
        }
    }
}

/// One prompt.
#[derive(Debug)]
pub struct Prompt {
    pub tokens: Vec<u32>,
    /// Its text, where that is part of the answer.
    pub echo: Option<String>,
}

/// Prompts and how they are continued and told about.
pub struct Job {
    pub kind: Kind,
    pub prompts: Vec<Prompt>,
    pub generation: Generation,
    /// Scores are told, beside so many of the likeliest tokens.
    pub logprobs: Option<usize>,
    /// Of prompts too.
    pub prompt_logprobs: bool,
    /// A sequence a choice: of the first prompt, then of the second.
    pub requests: Vec<Request>,
}

impl Job {
    /// Makes the requests of prompts that may be so long, or as long as the package takes.
    ///
    /// # Errors
    /// A prompt is too long or empty, or the form that the text has to have is none.
    pub fn new(
        kind: Kind,
        prompts: Vec<Prompt>,
        generation: Generation,
        logprobs: Option<usize>,
        prompt_logprobs: bool,
        (most, model): (Option<usize>, &Model),
    ) -> Result<Self, ApiError> {
        let mut job = Self {
            kind,
            prompts,
            generation,
            logprobs,
            prompt_logprobs,
            requests: Vec::new(),
        };
        for prompt in &job.prompts {
            check_length(kind, prompt.tokens.len(), most, model)?;
        }
        let n = job.generation.n;
        let tokens = job.prompts.iter().map(|prompt| prompt.tokens.len());
        model.check_together(n * job.prompts.len(), n * tokens.sum::<usize>())?;
        if !job.generation.stop_strings.is_empty() {
            model
                .tokenizer("`stop` needs")
                .map_err(|error| error.of("stop"))?;
        }
        let grammar = job.generation.form.as_ref().map(|(name, grammar)| {
            let compiled = model.compile(grammar);
            compiled.map_err(|error| error.of(name))
        });
        let grammar = grammar.transpose()?;
        let requests = 0..n * job.prompts.len();
        let requests = requests.map(|index| job.request(index, grammar.as_ref(), model));
        job.requests = requests.collect();
        Ok(job)
    }

    fn request(&self, index: usize, grammar: Option<&CompiledGrammar>, model: &Model) -> Request {
        let (n, most) = (self.generation.n, self.generation.max_tokens);
        let mut sampling = self.generation.sampling.clone();
        // Choices of a prompt differ; a prompt's do not depend on those beside it.
        sampling.seed = sampling.seed.wrapping_add((index % n) as u64);
        let mut stop_tokens = self.generation.stop_tokens.clone();
        if !self.generation.ignore_eos {
            stop_tokens.extend(model.end_tokens());
        }
        let prompt = self.prompts[index / n].tokens.clone();
        Request {
            max_new_tokens: most.unwrap_or(model.limits().max_seq_len),
            min_new_tokens: self.generation.min_tokens,
            sampling,
            stop_tokens,
            stop_strings: self.generation.stop_strings.clone(),
            include_stop: self.generation.include_stop,
            logprobs: self.logprobs,
            prompt_logprobs: self.logprobs.filter(|_| self.prompt_logprobs),
            constraint: grammar.map(CompiledGrammar::constraint),
            ..Request::new(prompt)
        }
    }
}

fn check_length(
    kind: Kind,
    tokens: usize,
    most: Option<usize>,
    model: &Model,
) -> Result<(), ApiError> {
    let room = model.limits().max_seq_len;
    let most = most.map_or(room, |most| most.min(room));
    if (1..=most).contains(&tokens) {
        return Ok(());
    }
    let error = ApiError::parameter(kind.prompt(), &format!("1 to {most} tokens"), tokens);
    Err(match tokens > most {
        true => error.coded("context_length_exceeded"),
        false => error,
    })
}

/// Takes `model`, which has to be the one that is served.
///
/// # Errors
/// It is another.
pub fn check_model(given: &mut Parameters, name: &str) -> Result<(), ApiError> {
    match given.take("model") {
        None => Ok(()),
        Some(Value::String(asked)) if asked == name => Ok(()),
        Some(other) => Err(ApiError::not_found(
            format!("`model`: expected `{name}`, found {}", found(&other)),
            "model_not_found",
        )
        .of("model")),
    }
}
