//! `/tokenize` and `/detokenize`, in vLLM's forms.

use super::chat::Conversation;
use super::error::ApiError;
use super::generation::token_list;
use super::job::check_model;
use super::parameters::Parameters;
use crate::app::App;
use crate::model::Model;
use serde_json::{Value, json};

/// Tokens of a text or a conversation.
///
/// # Errors
/// What is wrong with the body, by its parameter.
pub fn tokenize(app: &App, model: &Model, body: &[u8]) -> Result<Value, ApiError> {
    let mut given = Parameters::parse(body)?;
    check_model(&mut given, &app.options.model_name)?;
    let names = given.boolean("return_token_strs")?.unwrap_or(false);
    let tokens = if given.has("messages") {
        let conversation = Conversation::take(&mut given)?;
        given.only("add_special_tokens", &[json!(false)])?;
        given.finish("")?;
        conversation.encode(model)?
    } else {
        let add = given.boolean("add_special_tokens")?;
        let prompt = given.text("prompt")?;
        given.finish("")?;
        let expected = "a string, or `messages`";
        let prompt = prompt.ok_or_else(|| ApiError::parameter("prompt", expected, "none"))?;
        model.encode(&prompt, add)?
    };
    let texts = model.token_texts(false);
    let texts = tokens.iter().map(|&token| texts.of(token).text);
    let texts = names.then(|| texts.collect::<Vec<_>>());
    Ok(json!({
        "count": tokens.len(),
        "max_model_len": model.limits().max_seq_len,
        "tokens": tokens,
        "token_strs": texts,
    }))
}

/// The text of tokens.
///
/// # Errors
/// What is wrong with the body, by its parameter.
pub fn detokenize(app: &App, model: &Model, body: &[u8]) -> Result<Value, ApiError> {
    let mut given = Parameters::parse(body)?;
    check_model(&mut given, &app.options.model_name)?;
    let tokens = token_list(&mut given, "tokens", model.limits().vocab_size)?;
    given.finish("")?;
    let expected = "an array of token ids";
    let tokens = tokens.ok_or_else(|| ApiError::parameter("tokens", expected, "none"))?;
    let text = model.tokenizer("tokens need")?.decode(&tokens);
    let text = text.map_err(|error| ApiError::bad_request(error.to_string()).of("tokens"))?;
    Ok(json!({"prompt": text}))
}
