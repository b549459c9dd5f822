//! Chat templates: messages become the text that a model was trained on.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use ratplus_graphs::package::MAX_CHAT_TEMPLATE_BYTES;
use ratplus_runtime::text::Tokenizer;
use serde::Serialize;
use serde_json::ser::Formatter;
use std::io::{self, Write};

/// Steps that a template may take for one conversation.
const FUEL: u64 = 2_000_000;
/// Most bytes of what it renders.
const MAX_RENDERED_BYTES: usize = 64 << 20;
const NAME: &str = "chat";

/// Special tokens that begin a text, by the names that tokenizers give them.
const BEGIN_TOKENS: [&str; 4] = ["<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>"];

/// A template that is none, or that fails on a conversation: why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(String);

impl From<minijinja::Error> for TemplateError {
    fn from(error: minijinja::Error) -> Self {
        let line = error
            .line()
            .map_or(String::new(), |line| format!("line {line}: "));
        let detail = error
            .detail()
            .map_or_else(|| error.kind().to_string(), str::to_owned);
        match error.kind() {
            // In the template's own words.
            ErrorKind::InvalidOperation if detail.starts_with(RAISED) => {
                Self(detail[RAISED.len()..].into())
            }
            ErrorKind::OutOfFuel => Self("it takes too many steps for this conversation".into()),
            kind => Self(match error.detail() {
                Some(_) => format!("{line}{kind}: {detail}"),
                None => format!("{line}{kind}"),
            }),
        }
    }
}

/// What marks an error as one that the template raised itself.
const RAISED: &str = "the template refuses the conversation: ";

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Compiles `source`; `bos_token` and `eos_token` are the tokenizer's.
    ///
    /// # Errors
    /// It is no template, or too long.
    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let end = tokenizer.end_tokens().into_iter().next();
        let name = |token: Option<u32>| token.and_then(|token| tokenizer.token(token));
        Ok(Self {
            environment: compile(source)?,
            bos_token: name(begin_token(tokenizer)).unwrap_or_default(),
            eos_token: name(end).unwrap_or_default(),
        })
    }

    /// The text of a conversation. `more` are values for the template beside its own.
    ///
    /// # Errors
    /// The template refuses the conversation, fails or takes too long.
    pub fn render(
        &self,
        messages: &impl Serialize,
        add_generation_prompt: bool,
        more: serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, TemplateError> {
        let own = [
            ("messages", Serde(messages).into()),
            ("add_generation_prompt", add_generation_prompt.into()),
            ("bos_token", self.bos_token.as_str().into()),
            ("eos_token", self.eos_token.as_str().into()),
        ];
        let more = more.into_iter();
        let more = more.map(|(name, value)| (name, Value::from(Serde(value))));
        let own = own.map(|(name, value)| (name.to_owned(), value));
        let values = Value::from_pairs(more.chain(own));
        let template = self.environment.get_template(NAME)?;
        let mut text = Bounded(Vec::new());
        template.render_captured_to(values, &mut text)?;
        String::from_utf8(text.0).map_err(|error| TemplateError(error.to_string()))
    }
}

/// The token that begins a text: the first one that the tokenizer adds, or one with a name that such tokens have.
pub fn begin_token(tokenizer: &Tokenizer) -> Option<u32> {
    let added = tokenizer.special_tokens().unwrap_or_default();
    let known = || BEGIN_TOKENS.iter().find_map(|name| tokenizer.id(name));
    added.first().copied().or_else(known)
}

/// Whether `source` is a template.
///
/// # Errors
/// It is none, or too long.
pub fn check(source: &str) -> Result<(), TemplateError> {
    compile(source).map(drop)
}

/// Compiles a template as Hugging Face's tokenizers read them.
fn compile(source: &str) -> Result<Environment<'static>, TemplateError> {
    if source.len() as u64 > MAX_CHAT_TEMPLATE_BYTES {
        return Err(TemplateError(format!(
            "expected at most {MAX_CHAT_TEMPLATE_BYTES} bytes, found {}",
            source.len()
        )));
    }
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    environment.set_syntax(syntax.trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<(), _> {
        let message = format!("{RAISED}{message}");
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_template_owned(NAME, source.to_owned())?;
    Ok(environment)
}

/// What a file that users have holds as a template: a Jinja file; or, where it is JSON, a `chat_template` as
/// Hugging Face's tokenizer_config.json and chat_template.json have it, one text or a list of named ones, of which
/// the one called `default` is taken. Where that file names `bos_token` and `eos_token`, the template says so.
///
/// # Errors
/// JSON without a template.
pub fn from_file(content: &str) -> Result<String, TemplateError> {
    let Ok(serde_json::Value::Object(file)) = serde_json::from_str(content) else {
        return Ok(content.to_owned());
    };
    let template = match file.get("chat_template") {
        Some(serde_json::Value::String(template)) => Some(template.as_str()),
        Some(serde_json::Value::Array(named)) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            default.and_then(|entry| entry["template"].as_str())
        }
        _ => None,
    };
    let Some(template) = template else {
        return Err(TemplateError(
            "expected a Jinja file, or JSON with a `chat_template` that is a string or a list with one called \
             `default`; found JSON with none"
                .into(),
        ));
    };
    let mut text = String::new();
    for name in ["bos_token", "eos_token"] {
        // A string, or an object that describes the token.
        let token = file.get(name);
        let token = token.and_then(|token| token.as_str().or(token["content"].as_str()));
        if let Some(token) = token {
            text += &format!("{{%- set {name} = {} -%}}", serde_json::Value::from(token));
        }
    }
    Ok(text + template)
}

/// JSON as Python writes it, which models have seen.
fn to_json(value: Value) -> Result<Value, minijinja::Error> {
    let mut json = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, PythonSpaces);
    let failed = |error: &dyn std::fmt::Display| {
        minijinja::Error::new(ErrorKind::BadSerialization, error.to_string())
    };
    value
        .serialize(&mut serializer)
        .map_err(|error| failed(&error))?;
    let json = String::from_utf8(json).map_err(|error| failed(&error))?;
    Ok(Value::from_safe_string(json))
}

struct PythonSpaces;

impl Formatter for PythonSpaces {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// Takes so many bytes and no more.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED_BYTES {
            return Err(io::Error::other("the text is too long"));
        }
        self.0.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

    fn tokenizer() -> Tokenizer {
        let json = json!({
            "added_tokens": [
                {"id": 0, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
                 "rstrip": false, "normalized": false},
                {"id": 1, "content": "</s>", "special": true, "single_word": false, "lstrip": false,
                 "rstrip": false, "normalized": false},
            ],
            "model": {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1, "a": 2}, "unk_token": "a"},
        });
        Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
    }

    fn render(source: &str) -> Result<String, TemplateError> {
        let messages = json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "a < b"},
        ]);
        ChatTemplate::new(source, &tokenizer())?.render(&messages, true, Map::new())
    }

    #[test]
    fn conversations_are_written_as_python_writes_them() {
        let source = "{{ bos_token }}{% for message in messages %}\n    {% if message['role'] == 'system' -%}\n\
            [{{ message.content.strip().upper() }}]\n    {%- elif message.role.startswith('u') %}\n\
            <u>{{ message['content'] | trim }}{{ eos_token }}\n    {%- endif %}\n{% endfor %}\n\
            {% if add_generation_prompt %}{{ '<a>' }}{% endif %}";
        assert_eq!(render(source).unwrap(), "<s>[BE BRIEF]<u>a < b</s><a>");
        assert_eq!(
            render("{{ messages[0] | tojson }}").unwrap(),
            r#"{"role": "system", "content": "be brief"}"#
        );
        assert_eq!(
            render("{{ tools is defined }}{{ strftime_now is defined }}").unwrap(),
            "FalseFalse"
        );
        let looped =
            "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}x{% endfor %}";
        assert_eq!(render(looped).unwrap(), "x");
        let spaced = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}";
        assert_eq!(render(spaced).unwrap(), "2");
    }

    #[test]
    fn a_bad_template_fails_with_a_reason_and_in_bounds() {
        for (source, reason) in [
            (
                "{{ raise_exception('roles must alternate') }}",
                "roles must alternate",
            ),
            ("{% for %}", "syntax error"),
            ("{{ 1 / }}", "syntax error"),
            ("{{ nothing() }}", "nothing"),
            (
                "{% for a in range(9999) %}{% for b in range(9999) %}{% set x = a %}{% endfor %}{% endfor %}",
                "too many steps",
            ),
            ("{% include 'other' %}", ""),
        ] {
            let error = render(source).unwrap_err().to_string();
            assert!(error.contains(reason), "{source}: {error}");
        }
        let long = "x".repeat(2 << 20);
        assert!(render(&long).unwrap_err().to_string().contains("at most"));
    }

    #[test]
    fn files_of_hugging_face_are_read() {
        assert_eq!(from_file("{{ x }}").unwrap(), "{{ x }}");
        // A Jinja file may look like the start of JSON.
        assert_eq!(from_file("{\"a\": {{ x }}").unwrap(), "{\"a\": {{ x }}");
        let plain = json!({"chat_template": "{{ x }}", "bos_token": "<s>", "eos_token": {"content": "\"e\""}});
        let source = from_file(&plain.to_string()).unwrap();
        assert_eq!(
            source,
            r#"{%- set bos_token = "<s>" -%}{%- set eos_token = "\"e\"" -%}{{ x }}"#
        );
        assert_eq!(
            render(&source.replace("{{ x }}", "{{ bos_token }}{{ eos_token }}")).unwrap(),
            "<s>\"e\""
        );
        let named = json!({"chat_template": [
            {"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]});
        assert_eq!(from_file(&named.to_string()).unwrap(), "yes");
        for none in [
            json!({}),
            json!({"chat_template": null}),
            json!({"chat_template": []}),
        ] {
            let error = from_file(&none.to_string()).unwrap_err().to_string();
            assert!(error.contains("found JSON with none"), "{error}");
        }
    }
}
