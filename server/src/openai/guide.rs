//! Structured outputs: what a text has to be, however it is asked for.

use super::error::ApiError;
use super::parameters::{Parameters, found};
use ratplus_runtime::grammar::Grammar;
use serde_json::Value;
use std::fmt::Write;

/// Takes what asks for a form: OpenAI's `response_format`, vLLM's `guided_*` and `structured_outputs`, SGLang's
/// `regex` and `json_schema`. The name is that of the parameter.
///
/// # Errors
/// One is no schema, expression or grammar by its type, or there are several.
pub fn take(given: &mut Parameters) -> Result<Option<(&'static str, Grammar)>, ApiError> {
    let mut forms = Vec::new();
    forms.extend(response_format(given)?.map(|form| ("response_format", form)));
    for (name, kind) in [
        ("guided_json", Kind::Schema),
        ("guided_regex", Kind::Regex),
        ("guided_grammar", Kind::Lark),
        ("guided_choice", Kind::Choice),
        ("json_schema", Kind::Schema),
        ("regex", Kind::Regex),
    ] {
        forms.extend(kind.take(given, name)?.map(|form| (name, form)));
    }
    for name in [
        "ebnf",
        "guided_decoding_backend",
        "guided_whitespace_pattern",
    ] {
        given.only(name, &[])?;
    }
    const OUTPUTS: &str = "structured_outputs";
    if let Some(mut outputs) = given.object(OUTPUTS)? {
        for (name, kind) in [
            ("json", Kind::Schema),
            ("regex", Kind::Regex),
            ("grammar", Kind::Lark),
            ("choice", Kind::Choice),
        ] {
            forms.extend(kind.take(&mut outputs, name)?.map(|form| (OUTPUTS, form)));
        }
        if outputs.boolean("json_object")? == Some(true) {
            forms.push((OUTPUTS, Grammar::AnyJson));
        }
        outputs.finish("structured_outputs.")?;
    }
    match forms.len() {
        0 | 1 => Ok(forms.pop()),
        _ => {
            let names: Vec<_> = forms.iter().map(|(name, _)| format!("`{name}`")).collect();
            let message = format!("expected one form of the text, found {}", names.join(", "));
            Err(ApiError::bad_request(message).of(forms[1].0))
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Schema,
    Regex,
    Lark,
    Choice,
}

impl Kind {
    fn take(self, given: &mut Parameters, name: &str) -> Result<Option<Grammar>, ApiError> {
        let guide = match self {
            Self::Schema => match given.take(name) {
                None => return Ok(None),
                // A schema as text, as some clients send it.
                Some(Value::String(text)) => Grammar::JsonSchema(text),
                Some(schema @ (Value::Object(_) | Value::Bool(_))) => {
                    Grammar::JsonSchema(schema.to_string())
                }
                Some(other) => {
                    let expected = "a JSON schema, an object or one as a string";
                    return Err(ApiError::parameter(name, expected, found(&other)));
                }
            },
            Self::Regex => match given.text(name)? {
                None => return Ok(None),
                Some(text) => Grammar::Regex(text),
            },
            Self::Lark => match given.text(name)? {
                None => return Ok(None),
                Some(text) => Grammar::Lark(text),
            },
            Self::Choice => match given.take(name) {
                None => return Ok(None),
                Some(value) => Grammar::Lark(choices(name, &value)?),
            },
        };
        Ok(Some(guide))
    }
}

/// A grammar of these texts.
fn choices(name: &str, value: &Value) -> Result<String, ApiError> {
    let items = value.as_array().filter(|items| !items.is_empty());
    let mut grammar = String::from("start: ");
    for (index, item) in items.into_iter().flatten().enumerate() {
        let Some(text) = item.as_str().filter(|text| !text.is_empty()) else {
            return Err(ApiError::parameter(
                name,
                "strings that are not empty",
                found(item),
            ));
        };
        let separator = if index == 0 { "" } else { " | " };
        // A literal of the grammar is written as JSON writes strings.
        let _ = write!(grammar, "{separator}{}", Value::from(text));
    }
    match items {
        Some(_) => Ok(grammar),
        None => Err(ApiError::parameter(
            name,
            "an array of strings",
            found(value),
        )),
    }
}

fn response_format(given: &mut Parameters) -> Result<Option<Grammar>, ApiError> {
    const NAME: &str = "response_format";
    let Some(mut format) = given.object(NAME)? else {
        return Ok(None);
    };
    let kind = format.take("type");
    let guide = match kind.as_ref().and_then(Value::as_str) {
        Some("text") => None,
        Some("json_object") => Some(Grammar::AnyJson),
        Some("json_schema") => {
            let Some(mut schema) = format.object("json_schema")? else {
                return Err(ApiError::parameter(
                    NAME,
                    "`json_schema` with a `schema` in it",
                    "none",
                ));
            };
            // What the schema is called and whether it is held to; it always is.
            drop((
                schema.take("name"),
                schema.take("description"),
                schema.take("strict"),
            ));
            let found = Kind::Schema.take(&mut schema, "schema")?;
            schema.finish("response_format.json_schema.")?;
            Some(found.unwrap_or(Grammar::AnyJson))
        }
        _ => {
            let found = kind.as_ref().map_or_else(|| "none".into(), found);
            let expected = "a `type` of text, json_object or json_schema";
            return Err(ApiError::parameter(NAME, expected, found));
        }
    };
    format.finish("response_format.")?;
    Ok(guide)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn take(json: Value) -> Result<Option<(&'static str, Grammar)>, ApiError> {
        let mut given = Parameters::parse(json.to_string().as_bytes())?;
        let guide = super::take(&mut given)?;
        given.finish("")?;
        Ok(guide)
    }

    #[test]
    fn every_way_to_ask_is_understood() {
        let schema = json!({"type": "object"});
        let text = schema.to_string();
        for (json, guide) in [
            (json!({}), None),
            (json!({"response_format": {"type": "text"}}), None),
            (
                json!({"response_format": {"type": "json_object"}}),
                Some(Grammar::AnyJson),
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema":
                    {"name": "x", "strict": true, "schema": schema}}}),
                Some(Grammar::JsonSchema(text.clone())),
            ),
            (
                json!({"guided_json": schema}),
                Some(Grammar::JsonSchema(text.clone())),
            ),
            (
                json!({"guided_json": text}),
                Some(Grammar::JsonSchema(text.clone())),
            ),
            (
                json!({"json_schema": text}),
                Some(Grammar::JsonSchema(text.clone())),
            ),
            (
                json!({"guided_regex": "a+"}),
                Some(Grammar::Regex("a+".into())),
            ),
            (json!({"regex": "a+"}), Some(Grammar::Regex("a+".into()))),
            (
                json!({"guided_grammar": "start: \"a\""}),
                Some(Grammar::Lark("start: \"a\"".into())),
            ),
            (
                json!({"guided_choice": ["a\"b", "c"]}),
                Some(Grammar::Lark("start: \"a\\\"b\" | \"c\"".into())),
            ),
            (
                json!({"structured_outputs": {"regex": "a"}}),
                Some(Grammar::Regex("a".into())),
            ),
            (
                json!({"structured_outputs": {"json_object": true}}),
                Some(Grammar::AnyJson),
            ),
        ] {
            let taken = take(json.clone()).unwrap().map(|(_, grammar)| grammar);
            assert_eq!(taken, guide, "{json}");
        }
    }

    #[test]
    fn what_is_no_form_is_named() {
        for (json, name) in [
            (json!({"response_format": "json"}), "response_format"),
            (json!({"response_format": {}}), "response_format"),
            (
                json!({"response_format": {"type": "xml"}}),
                "response_format",
            ),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format",
            ),
            (
                json!({"response_format": {"type": "text", "x": 1}}),
                "response_format.x",
            ),
            (json!({"guided_json": 5}), "guided_json"),
            (json!({"guided_regex": {}}), "guided_regex"),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_choice": [1]}), "guided_choice"),
            (json!({"ebnf": "root ::= a"}), "ebnf"),
            (json!({"regex": "a", "guided_json": {}}), "regex"),
        ] {
            let error = take(json.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name), "{json}");
        }
    }
}
