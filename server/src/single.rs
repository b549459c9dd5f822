//! One prompt for a [`Model`], of servers of other protocols: the parameters of `/v1/completions`, and their scores.

use crate::model::{Model, TokenTexts};
use crate::openai::error::ApiError;
use crate::openai::generation::{Generation, MAX_LOGPROBS};
use crate::openai::job::{Job, Kind, Prompt as JobPrompt};
use crate::openai::logprobs::Logprobs;
use crate::openai::parameters::Parameters;
use ratplus_runtime::scheduler::{Refused, Request, Score};
use ratplus_runtime::text::Tokenizer;
use serde_json::Value;

pub use crate::metrics::finish_reason;

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A text, which becomes tokens with the special tokens that the package says.
    Text(String),
    /// Token ids of the vocabulary.
    Tokens(Vec<u32>),
}

/// Why a request is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Something is wrong with it: which parameter, what was expected and found.
    #[error("{0}")]
    Request(String),
    /// The queue is full, or the service ends.
    #[error("{0}")]
    NotNow(String),
    /// Anything else.
    #[error("{0}")]
    Defect(String),
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        match error.status.as_u16() {
            429 | 503 => Self::NotNow(error.message),
            400..=499 => Self::Request(error.message),
            _ => Self::Defect(error.message),
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        ApiError::from(refused).into()
    }
}

impl Model {
    /// A request of one prompt. `parameters` is a JSON object of what `/v1/completions` takes but for the prompt,
    /// `n` above 1, and streams; `beside` are members that came in another way. Tokens are scored where `logprobs`
    /// is given, or `scored`.
    ///
    /// # Errors
    /// What is wrong with it, by its parameter.
    pub fn single(
        &self,
        prompt: Prompt,
        parameters: Option<&str>,
        beside: Vec<(String, Value)>,
        scored: bool,
    ) -> Result<(Request, Scores), Refusal> {
        let mut given = Parameters::parse(parameters.unwrap_or("{}").as_bytes())?;
        for (name, value) in beside {
            given.add(name, value)?;
        }
        given.only("stream", &[Value::Bool(false)])?;
        given.only("n", &[1.into()])?;
        let vocab_size = self.limits().vocab_size;
        let generation = Generation::take(&mut given, Kind::Completion, vocab_size)?;
        let logprobs = given.count("logprobs", 0..=MAX_LOGPROBS)?;
        let add = given.boolean("add_special_tokens")?;
        given.finish("")?;
        let tokens = match prompt {
            Prompt::Text(text) => self.encode(&text, add)?,
            Prompt::Tokens(tokens) => tokens,
        };
        let prompt = JobPrompt { tokens, echo: None };
        let texts = self.token_texts(generation.tokens_as_ids);
        let scores = Scores {
            tokenizer: texts.tokenizer().cloned(),
            told: Logprobs::new(Kind::Completion),
            offset: 0,
        };
        let logprobs = logprobs.or(scored.then_some(0));
        let job = Job::new(
            Kind::Completion,
            vec![prompt],
            generation,
            logprobs,
            false,
            (None, self),
        )?;
        let request = job.requests.into_iter().next();
        let none = || Refusal::Defect("a prompt has become no request".into());
        Ok((request.ok_or_else(none)?, scores))
    }

    /// Whether answers have texts.
    pub fn has_tokenizer(&self) -> bool {
        self.tokenizer("").is_ok()
    }
}

/// Scores of tokens, as JSON that `/v1/completions` has as `logprobs`.
pub struct Scores {
    tokenizer: Option<Tokenizer>,
    told: Logprobs,
    /// Characters of the tokens before.
    offset: usize,
}

impl Scores {
    /// Adds a token.
    pub fn push(&mut self, token: u32, score: Score) {
        let texts = TokenTexts::new(self.tokenizer.as_ref());
        self.told.push(&texts, &mut self.offset, token, Some(score));
    }

    /// Those since the last call.
    pub fn take(&mut self) -> String {
        let told = std::mem::replace(&mut self.told, Logprobs::new(Kind::Completion));
        // Texts and numbers: what cannot fail.
        serde_json::to_string(&told).unwrap_or_default()
    }
}
