//! A request that is ready to be queued.

use super::error::ApiError;
use super::generation::Generation;
use super::parameters::{Parameters, found};
use crate::app::{App, Options};
use crate::model::Model;
use ratplus_runtime::scheduler::Request;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Instant;

/// Which endpoint asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Completion,
    Chat,
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
    /// Makes the requests.
    ///
    /// # Errors
    /// A prompt is too long or empty, or the form that the text has to have is none.
    pub fn new(
        kind: Kind,
        prompts: Vec<Prompt>,
        generation: Generation,
        logprobs: Option<usize>,
        prompt_logprobs: bool,
        (app, model): (&App, &Model),
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
            check_length(kind, prompt.tokens.len(), &app.options, model)?;
        }
        let n = job.generation.n;
        let tokens = job.prompts.iter().map(|prompt| prompt.tokens.len());
        model.check_together(n * job.prompts.len(), n * tokens.sum::<usize>())?;
        let deadline = app.options.request_timeout;
        let deadline = deadline.and_then(|timeout| Instant::now().checked_add(timeout));
        let most = match (job.generation.max_tokens, kind) {
            (Some(most), _) => most,
            (None, Kind::Completion) => 16,
            (None, Kind::Chat) => model.limits().max_seq_len,
        };
        for index in 0..n * job.prompts.len() {
            let request = job.request(index, most, deadline, model)?;
            job.requests.push(request);
        }
        Ok(job)
    }

    fn request(
        &self,
        index: usize,
        max_new_tokens: usize,
        deadline: Option<Instant>,
        model: &Model,
    ) -> Result<Request, ApiError> {
        let Generation { n, form, .. } = &self.generation;
        let constraint = form.as_ref().map(|(name, grammar)| {
            let compiled = model.constraint(grammar);
            compiled.map_err(|error| error.of(name))
        });
        let mut sampling = self.generation.sampling.clone();
        // Choices of a prompt differ; a prompt's do not depend on those beside it.
        sampling.seed = sampling.seed.wrapping_add((index % n) as u64);
        let mut stop_tokens: BTreeSet<u32> = self.generation.stop_tokens.clone();
        if !self.generation.ignore_eos {
            stop_tokens.extend(model.end_tokens());
        }
        if !self.generation.stop_strings.is_empty() {
            model
                .tokenizer("`stop` needs")
                .map_err(|error| error.of("stop"))?;
        }
        let prompt = self.prompts[index / n].tokens.clone();
        Ok(Request {
            max_new_tokens,
            min_new_tokens: self.generation.min_tokens,
            sampling,
            stop_tokens,
            stop_strings: self.generation.stop_strings.clone(),
            include_stop: self.generation.include_stop,
            logprobs: self.logprobs,
            prompt_logprobs: self.logprobs.filter(|_| self.prompt_logprobs),
            constraint: constraint.transpose()?,
            deadline,
            ..Request::new(prompt)
        })
    }
}

fn check_length(
    kind: Kind,
    tokens: usize,
    options: &Options,
    model: &Model,
) -> Result<(), ApiError> {
    let name = match kind {
        Kind::Completion => "prompt",
        Kind::Chat => "messages",
    };
    let room = model.limits().max_seq_len;
    let most = options
        .max_prompt_tokens
        .map_or(room, |most| most.min(room));
    if (1..=most).contains(&tokens) {
        return Ok(());
    }
    let mut error = ApiError::parameter(name, &format!("1 to {most} tokens"), tokens);
    error.code = Some("context_length_exceeded").filter(|_| tokens > most);
    Err(error)
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
