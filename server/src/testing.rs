//! What fuzzing sees of requests: bodies, read as far as that takes no model.

use crate::app::Asked;
use crate::openai::chat::Chat;
use crate::openai::completions::{Completion, Given};
use crate::openai::error::ApiError;
use ratplus_runtime::sampler::Sampling;
use serde_json::Value;

/// Tokens of the model that bodies are read for.
pub const VOCAB_SIZE: usize = 1000;
/// Its name.
pub const MODEL_NAME: &str = "kjv";

/// What a body that is accepted asks for.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Accepted {
    pub sampling: Sampling,
    pub n: usize,
    pub max_tokens: Option<usize>,
    pub min_tokens: usize,
    pub stop_strings: Vec<String>,
    pub stop_tokens: Vec<u32>,
    /// Of prompts that are token ids.
    pub prompts: Vec<Vec<u32>>,
}

/// What one that is refused is told.
#[derive(Debug)]
pub struct Refused {
    /// Of the answer.
    pub status: u16,
    /// Its body.
    pub body: Value,
}

fn accepted(generation: crate::openai::generation::Generation) -> Accepted {
    Accepted {
        sampling: generation.sampling,
        n: generation.n,
        max_tokens: generation.max_tokens,
        min_tokens: generation.min_tokens,
        stop_strings: generation.stop_strings,
        stop_tokens: generation.stop_tokens.into_iter().collect(),
        prompts: Vec::new(),
    }
}

fn refused(error: ApiError) -> Refused {
    Refused {
        status: error.status.as_u16(),
        body: error.body(),
    }
}

/// Reads the body of a request to `/v1/completions`.
///
/// # Errors
/// It is refused.
pub fn completion(body: &[u8]) -> Result<Accepted, Refused> {
    let asked = Completion::parse(MODEL_NAME, VOCAB_SIZE, body).map_err(refused)?;
    let prompts = asked.prompts.into_iter().filter_map(|prompt| match prompt {
        Given::Tokens(tokens) => Some(tokens),
        Given::Text(_) => None,
    });
    Ok(Accepted {
        prompts: prompts.collect(),
        ..accepted(asked.generation)
    })
}

/// Reads the body of a request to `/v1/chat/completions`.
///
/// # Errors
/// It is refused.
pub fn chat(body: &[u8]) -> Result<Accepted, Refused> {
    let asked = Chat::parse(MODEL_NAME, VOCAB_SIZE, body).map_err(refused)?;
    Ok(accepted(asked.generation))
}
