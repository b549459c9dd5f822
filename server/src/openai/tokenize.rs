//! `/tokenize` and `/detokenize`, in vLLM's forms.

use super::chat::Conversation;
use super::error::ApiError;
use super::generation::token_list;
use super::job::check_model;
use super::parameters::Parameters;
use crate::app::{App, Asked, LONG_TEXT};
use crate::model::Model;
use serde_json::{Value, json};

/// A body whose tokens are asked for.
pub struct Tokenize {
    of: Source,
    /// Whether the tokens' texts are told, too.
    names: bool,
}

enum Source {
    Conversation(Conversation),
    Text(String, Option<bool>),
}

impl Asked for Tokenize {
    type Prepared = Value;

    fn parse(model_name: &str, _: usize, body: &[u8]) -> Result<Self, ApiError> {
        let mut given = Parameters::parse(body)?;
        check_model(&mut given, model_name)?;
        let names = given.boolean("return_token_strs")?.unwrap_or(false);
        let of = if given.has("messages") {
            given.only("add_special_tokens", &[json!(false)])?;
            Source::Conversation(Conversation::take(&mut given)?)
        } else {
            let add = given.boolean("add_special_tokens")?;
            let expected = "a string, or `messages`";
            let prompt = given.text("prompt")?;
            let prompt = prompt.ok_or_else(|| ApiError::parameter("prompt", expected, "none"))?;
            Source::Text(prompt, add)
        };
        given.finish("")?;
        Ok(Self { of, names })
    }

    fn takes_long(&self) -> bool {
        match &self.of {
            Source::Conversation(conversation) => conversation.is_long(),
            Source::Text(text, _) => text.len() > LONG_TEXT,
        }
    }

    fn prepare(self, _: &App, model: &Model) -> Result<Value, ApiError> {
        let tokens = match self.of {
            Source::Conversation(conversation) => conversation.encode(model)?,
            Source::Text(text, add) => model.encode(&text, add)?,
        };
        let texts = model.token_texts(false);
        let texts = tokens.iter().map(|&token| texts.of(token).text);
        let texts = self.names.then(|| texts.collect::<Vec<_>>());
        Ok(json!({
            "count": tokens.len(),
            "max_model_len": model.limits().max_seq_len,
            "tokens": tokens,
            "token_strs": texts,
        }))
    }
}

/// Tokens whose text is asked for.
pub struct Detokenize(Vec<u32>);

impl Asked for Detokenize {
    type Prepared = Value;

    fn parse(model_name: &str, vocab_size: usize, body: &[u8]) -> Result<Self, ApiError> {
        let mut given = Parameters::parse(body)?;
        check_model(&mut given, model_name)?;
        let tokens = token_list(&mut given, "tokens", vocab_size)?;
        given.finish("")?;
        let expected = "an array of token ids";
        let tokens = tokens.ok_or_else(|| ApiError::parameter("tokens", expected, "none"))?;
        Ok(Self(tokens))
    }

    fn takes_long(&self) -> bool {
        false
    }

    fn prepare(self, _: &App, model: &Model) -> Result<Value, ApiError> {
        model.tokenizer("tokens need")?;
        Ok(json!({"prompt": model.decode("tokens", &self.0)?}))
    }
}
