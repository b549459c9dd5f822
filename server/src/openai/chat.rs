//! `/v1/chat/completions`: a conversation is continued.

use super::error::ApiError;
use super::generation::{Generation, MAX_LOGPROBS};
use super::job::{Job, Kind, Prompt, check_model};
use super::parameters::{Parameters, found};
use crate::app::{App, Asked, LONG_TEXT};
use crate::model::Model;
use crate::template::TemplateError;
use serde_json::{Map, Value, json};

/// A body as it comes, before it needs a model.
pub struct Chat {
    pub generation: Generation,
    pub conversation: Conversation,
    logprobs: Option<usize>,
}

impl Asked for Chat {
    type Prepared = Job;

    fn parse(model_name: &str, vocab_size: usize, body: &[u8]) -> Result<Self, ApiError> {
        let mut given = Parameters::parse(body)?;
        check_model(&mut given, model_name)?;
        refuse_tools(&mut given)?;
        let generation = Generation::take(&mut given, Kind::Chat, vocab_size)?;
        let logprobs = given.boolean("logprobs")?.unwrap_or(false);
        let top = given.count("top_logprobs", 0..=MAX_LOGPROBS)?;
        if let (false, Some(top @ 1..)) = (logprobs, top) {
            let expected = "none without `logprobs: true`";
            return Err(ApiError::parameter("top_logprobs", expected, top));
        }
        for (name, neutral) in [
            ("echo", vec![json!(false)]),
            ("modalities", vec![json!(["text"])]),
            ("reasoning_effort", vec![]),
            ("verbosity", vec![]),
            ("prediction", vec![]),
            ("audio", vec![]),
            ("web_search_options", vec![]),
            ("documents", vec![]),
            ("chat_template", vec![]),
        ] {
            given.only(name, &neutral)?;
        }
        let conversation = Conversation::take(&mut given)?;
        given.finish("")?;
        Ok(Self {
            generation,
            conversation,
            logprobs: logprobs.then(|| top.unwrap_or(0)),
        })
    }

    fn takes_long(&self) -> bool {
        self.generation.form.is_some() || self.conversation.is_long()
    }

    fn prepare(self, app: &App, model: &Model) -> Result<Job, ApiError> {
        let prompt = Prompt {
            tokens: self.conversation.encode(model)?,
            echo: None,
        };
        Job::new(
            Kind::Chat,
            vec![prompt],
            self.generation,
            self.logprobs,
            false,
            (app.options.max_prompt_tokens, model),
        )
    }
}

fn refuse_tools(given: &mut Parameters) -> Result<(), ApiError> {
    for name in ["tools", "functions"] {
        given.only(name, &[json!([])])?;
    }
    for name in ["tool_choice", "function_call"] {
        given.only(name, &[json!("none"), json!("auto")])?;
    }
    Ok(())
}

/// Messages and how they are written.
#[derive(Debug)]
pub struct Conversation {
    messages: Vec<Value>,
    add_generation_prompt: bool,
    /// Values for the template.
    more: Map<String, Value>,
}

impl Conversation {
    /// Takes these parameters.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn take(given: &mut Parameters) -> Result<Self, ApiError> {
        let expected = "an array of messages";
        let messages = match given.take("messages") {
            Some(Value::Array(items)) if !items.is_empty() => items,
            Some(other) => return Err(ApiError::parameter("messages", expected, found(&other))),
            None => return Err(ApiError::parameter("messages", expected, "none")),
        };
        let messages = messages.into_iter().enumerate();
        let messages = messages.map(|(index, item)| message(index, item));
        given.only("continue_final_message", &[json!(false)])?;
        let more = match given.take("chat_template_kwargs") {
            None => Map::new(),
            Some(Value::Object(more)) => more,
            Some(other) => {
                let expected = "an object";
                return Err(ApiError::parameter(
                    "chat_template_kwargs",
                    expected,
                    found(&other),
                ));
            }
        };
        Ok(Self {
            messages: messages.collect::<Result<_, _>>()?,
            add_generation_prompt: given.boolean("add_generation_prompt")?.unwrap_or(true),
            more,
        })
    }

    /// Whether it takes long to become tokens.
    pub fn is_long(&self) -> bool {
        let texts = self.messages.iter();
        let texts = texts.map(|message| message["content"].as_str().map_or(0, str::len));
        texts.sum::<usize>() > LONG_TEXT
    }

    /// Its tokens, as the package's template writes it.
    ///
    /// # Errors
    /// There is no template, it refuses the conversation, or the model does not know a token.
    pub fn encode(self, model: &Model) -> Result<Vec<u32>, ApiError> {
        let template = model.template()?;
        let named = |error: TemplateError| {
            ApiError::bad_request(format!("`messages`: chat template: {error}")).of("messages")
        };
        let text = template.render(&self.messages, self.add_generation_prompt, self.more);
        // The template spells the special tokens.
        let tokens = model.encode(&text.map_err(named)?, Some(false));
        tokens.map_err(|error| error.of("messages"))
    }
}

/// A message as templates take it: its content one text.
fn message(index: usize, item: Value) -> Result<Value, ApiError> {
    let place = format!("messages[{index}]");
    let Value::Object(members) = item else {
        return Err(ApiError::parameter(&place, "an object", found(&item)));
    };
    let mut members = Parameters::of(members);
    let named = |error: ApiError| match error.param.clone() {
        Some(name) => ApiError {
            message: error.message.replacen('`', &format!("`{place}."), 1),
            ..error.of(&format!("{place}.{name}"))
        },
        None => error,
    };
    let role = members.text("role").map_err(named)?;
    const ROLES: [&str; 4] = ["system", "developer", "user", "assistant"];
    let role = match role {
        Some(role) if ROLES.contains(&role.as_str()) => role,
        _ => {
            let found = role.map_or_else(|| "none".into(), |role| found(&role.into()));
            let error = ApiError::parameter("role", &ROLES.join(", "), found);
            return Err(named(error));
        }
    };
    for name in ["tool_calls", "function_call", "audio", "refusal"] {
        members.only(name, &[json!([])]).map_err(named)?;
    }
    let name = members.text("name").map_err(named)?;
    let content = content(members.take("content")).map_err(named)?;
    members.finish(&format!("{place}."))?;
    let mut message = Map::new();
    message.insert("role".into(), role.into());
    message.insert("content".into(), content.into());
    message.extend(name.map(|name| ("name".to_owned(), name.into())));
    Ok(message.into())
}

/// A text, or the texts of its parts, a line each.
fn content(value: Option<Value>) -> Result<String, ApiError> {
    let expected = "a string or an array of parts of type text";
    let parts = match value {
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(parts)) => parts,
        None => return Err(ApiError::parameter("content", expected, "none")),
        Some(other) => return Err(ApiError::parameter("content", expected, found(&other))),
    };
    let mut texts = Vec::new();
    for part in parts {
        match (&part["type"], &part["text"]) {
            (Value::String(kind), Value::String(text)) if kind == "text" => {
                texts.push(text.clone());
            }
            (Value::String(kind), _) if kind != "text" => {
                let kind = found(&Value::from(kind.as_str()));
                let message = format!("a part of type {kind}");
                return Err(ApiError::parameter("content", expected, message));
            }
            _ => return Err(ApiError::parameter("content", expected, found(&part))),
        }
    }
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(json: Value) -> Result<Conversation, ApiError> {
        let mut given = Parameters::parse(json.to_string().as_bytes())?;
        refuse_tools(&mut given)?;
        let conversation = Conversation::take(&mut given)?;
        given.finish("")?;
        Ok(conversation)
    }

    #[test]
    fn contents_become_one_text() {
        let conversation = take(json!({"messages": [
            {"role": "system", "content": "a"},
            {"role": "user", "name": "me", "content": [
                {"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
            {"role": "assistant", "content": "d", "tool_calls": null, "refusal": null},
        ], "tools": [], "tool_choice": "auto", "chat_template_kwargs": {"x": 1}}))
        .unwrap();
        assert_eq!(
            Value::from(conversation.messages),
            json!([
                {"role": "system", "content": "a"},
                {"role": "user", "name": "me", "content": "b\nc"},
                {"role": "assistant", "content": "d"},
            ])
        );
        assert!(conversation.add_generation_prompt);
    }

    #[test]
    fn what_is_wrong_or_unsupported_is_named() {
        let one = |message: Value| json!({"messages": [message]});
        let user = json!({"role": "user", "content": "a"});
        for (json, name) in [
            (json!({}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": "a"}), "messages"),
            (one(json!("a")), "messages[0]"),
            (one(json!({"content": "a"})), "messages[0].role"),
            (
                one(json!({"role": "king", "content": "a"})),
                "messages[0].role",
            ),
            (
                one(json!({"role": "tool", "content": "a"})),
                "messages[0].role",
            ),
            (one(json!({"role": "user"})), "messages[0].content"),
            (
                one(json!({"role": "user", "content": 5})),
                "messages[0].content",
            ),
            (
                one(json!({"role": "user", "content": [{"type": "image_url"}]})),
                "messages[0].content",
            ),
            (
                one(json!({"role": "user", "content": [5]})),
                "messages[0].content",
            ),
            (
                one(json!({"role": "assistant", "content": "a", "tool_calls": [{}]})),
                "messages[0].tool_calls",
            ),
            (
                one(json!({"role": "user", "content": "a", "x": 1})),
                "messages[0].x",
            ),
            (json!({"messages": [user], "tools": [{}]}), "tools"),
            (json!({"messages": [user], "functions": [{}]}), "functions"),
            (
                json!({"messages": [user], "tool_choice": "required"}),
                "tool_choice",
            ),
            (
                json!({"messages": [user], "continue_final_message": true}),
                "continue_final_message",
            ),
            (
                json!({"messages": [user], "chat_template_kwargs": 1}),
                "chat_template_kwargs",
            ),
        ] {
            let error = take(json.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name), "{json}: {error:?}");
            assert!(error.message.contains(&format!("`{name}`")), "{error:?}");
        }
    }
}
