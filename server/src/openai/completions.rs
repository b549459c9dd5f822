//! `/v1/completions`: prompts are continued.

use super::error::ApiError;
use super::generation::{Generation, MAX_LOGPROBS, token_id};
use super::job::{Job, Kind, Prompt, check_model};
use super::parameters::{Parameters, found};
use crate::app::{App, Asked, LONG_TEXT};
use crate::model::Model;
use serde_json::{Value, json};

/// Most prompts of one request.
const MAX_PROMPTS: usize = 1024;

/// A body as it comes, before it needs a model.
pub struct Completion {
    pub generation: Generation,
    pub prompts: Vec<Given>,
    echo: bool,
    logprobs: Option<usize>,
    add: Option<bool>,
}

impl Asked for Completion {
    type Prepared = Job;

    fn parse(model_name: &str, vocab_size: usize, body: &[u8]) -> Result<Self, ApiError> {
        let mut given = Parameters::parse(body)?;
        check_model(&mut given, model_name)?;
        let generation = Generation::take(&mut given, Kind::Completion, vocab_size)?;
        let echo = given.boolean("echo")?.unwrap_or(false);
        let logprobs = given.count("logprobs", 0..=MAX_LOGPROBS)?;
        let add = given.boolean("add_special_tokens")?;
        given.only("suffix", &[json!("")])?;
        let prompt = given.take("prompt");
        given.finish("")?;
        let prompt = prompt.ok_or_else(|| ApiError::parameter("prompt", EXPECTED, "none"))?;
        Ok(Self {
            generation,
            prompts: prompts(prompt, vocab_size)?,
            echo,
            logprobs,
            add,
        })
    }

    fn takes_long(&self) -> bool {
        let texts = self.prompts.iter().map(|prompt| match prompt {
            Given::Text(text) => text.len(),
            Given::Tokens(_) => 0,
        });
        self.generation.form.is_some() || texts.sum::<usize>() > LONG_TEXT
    }

    fn prepare(self, app: &App, model: &Model) -> Result<Job, ApiError> {
        let prompts = self.prompts.into_iter();
        let prompts = prompts.map(|prompt| prompt.tokens(model, self.echo, self.add));
        let prompts = prompts.collect::<Result<_, _>>()?;
        let score_prompts = self.echo && self.logprobs.is_some();
        if score_prompts {
            model.check_prompt_scores()?;
        }
        Job::new(
            Kind::Completion,
            prompts,
            self.generation,
            self.logprobs,
            score_prompts,
            (app.options.max_prompt_tokens, model),
        )
    }
}

const EXPECTED: &str = "a string, token ids, or an array of strings or of arrays of token ids";

/// A prompt as it comes.
#[derive(Debug, PartialEq)]
pub enum Given {
    Text(String),
    Tokens(Vec<u32>),
}

impl Given {
    fn tokens(self, model: &Model, echo: bool, add: Option<bool>) -> Result<Prompt, ApiError> {
        let (tokens, text) = match self {
            Self::Text(text) => (model.encode(&text, add)?, text),
            Self::Tokens(tokens) if echo => {
                let text = model.decode("prompt", &tokens)?;
                (tokens, text)
            }
            Self::Tokens(tokens) => (tokens, String::new()),
        };
        let echo = echo.then_some(text);
        Ok(Prompt { tokens, echo })
    }
}

fn prompts(prompt: Value, vocab_size: usize) -> Result<Vec<Given>, ApiError> {
    let tokens = |items: &[Value]| {
        let tokens = items
            .iter()
            .map(|item| token_id("prompt", item, vocab_size));
        tokens.collect::<Result<_, _>>().map(Given::Tokens)
    };
    let items = match prompt {
        Value::String(text) => return Ok(vec![Given::Text(text)]),
        Value::Array(items) if items.first().is_some_and(Value::is_number) => {
            return Ok(vec![tokens(&items)?]);
        }
        Value::Array(items) if !items.is_empty() => items,
        other => return Err(ApiError::parameter("prompt", EXPECTED, found(&other))),
    };
    if items.len() > MAX_PROMPTS {
        let expected = format!("at most {MAX_PROMPTS} prompts");
        return Err(ApiError::parameter("prompt", &expected, items.len()));
    }
    let prompt = |item: Value| match item {
        Value::String(text) => Ok(Given::Text(text)),
        Value::Array(items) => tokens(&items),
        other => Err(ApiError::parameter("prompt", EXPECTED, found(&other))),
    };
    items.into_iter().map(prompt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_come_in_four_forms() {
        let text = |text: &str| Given::Text(text.into());
        for (json, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![Given::Tokens(vec![1, 2])]),
            (
                json!([[1], [2, 3]]),
                vec![Given::Tokens(vec![1]), Given::Tokens(vec![2, 3])],
            ),
        ] {
            assert_eq!(prompts(json, 10).unwrap(), expected);
        }
    }

    #[test]
    fn other_prompts_are_refused() {
        for json in [
            json!(5),
            json!({}),
            json!([]),
            json!([1, "a"]),
            json!([1.5]),
            json!([-1]),
            json!([10]),
            json!([[10]]),
            json!([["a"]]),
            json!([[[1]]]),
            json!([null]),
            json!(vec!["a"; MAX_PROMPTS + 1]),
        ] {
            let error = prompts(json.clone(), 10).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("prompt"), "{json}");
            assert!(error.message.len() < 200, "{error:?}");
        }
    }
}
