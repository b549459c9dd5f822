//! Where `generate`'s prompts come from.

use super::read_text;
use crate::args::GenerateArgs;
use crate::output::Failure;
use crate::streams::errln;
use ratplus_graphs::package::SpecialTokens;
use ratplus_runtime::engine::Limits;
use ratplus_runtime::text::Tokenizer;
use serde_json::Value;
use std::path::Path;

/// A prompt and where it was given.
pub struct Prompt {
    /// Begins every message about it.
    pub place: String,
    /// What to continue.
    pub text: String,
}

/// The prompts that were asked for, one or several, and what is wrong with others.
pub struct Prompts {
    /// Those that are texts.
    pub prompts: Vec<Prompt>,
    /// A line for each that is none.
    pub problems: Vec<String>,
}

impl Prompts {
    /// Reads them.
    pub fn read(args: &GenerateArgs) -> Result<Self, Failure> {
        let one = |place: String, text| Self {
            prompts: vec![Prompt { place, text }],
            problems: Vec::new(),
        };
        if let Some(text) = &args.prompt {
            note_likely_file(text);
            return Ok(one("--prompt".into(), text.clone()));
        }
        if let Some(path) = &args.prompt_file {
            let text = read_text("--prompt-file", path)?;
            return Ok(one(format!("--prompt-file {}", path.display()), text));
        }
        let Some(path) = &args.prompts else {
            return Err(Failure::input(
                "expected --prompt TEXT, --prompt-file FILE or --prompts FILE, found none of them; \
                 `--prompt-file -` reads standard input",
            ));
        };
        let text = read_text("--prompts", path)?;
        let place = format!("--prompts {}", path.display());
        if text.is_empty() {
            return Err(Failure::input(format!(
                "{place}: expected a JSON string a line, found no lines"
            )));
        }
        let mut found = Self {
            prompts: Vec::new(),
            problems: Vec::new(),
        };
        for (number, line) in (1..).zip(text.lines()) {
            let place = format!("{place}: line {number}");
            match json_string(line) {
                Ok(text) => found.prompts.push(Prompt { place, text }),
                Err(problem) => found.problems.push(format!(
                    "{place}: expected a JSON string such as \"In the beginning\", found {problem}"
                )),
            }
        }
        Ok(found)
    }

    /// The tokens of every prompt; what cannot run is added to the problems.
    pub fn encode(
        &mut self,
        tokenizer: &Tokenizer,
        special_tokens: SpecialTokens,
        limits: &Limits,
    ) -> Vec<Vec<u32>> {
        let encode = |text: &str| -> Result<Vec<u32>, String> {
            let encoded = tokenizer
                .encode(text, special_tokens)
                .map_err(|error| error.to_string())?;
            limits
                .check_length(0, encoded.ids.len())
                .map_err(|error| error.to_string())?;
            tokenizer
                .check_vocabulary(&encoded, limits.vocab_size)
                .map_err(|error| error.to_string())?;
            Ok(encoded.ids)
        };
        let mut tokens = Vec::with_capacity(self.prompts.len());
        for Prompt { place, text } in &self.prompts {
            match encode(text) {
                Ok(ids) => tokens.push(ids),
                Err(error) => self.problems.push(format!("{place}: {error}")),
            }
        }
        tokens
    }
}

/// A text that other programs would take for a file is one here.
fn note_likely_file(text: &str) {
    let file = match text.strip_prefix('@') {
        _ if text == "-" => "-",
        Some(path) if Path::new(path).is_file() => path,
        _ => return,
    };
    errln!(
        "note: --prompt takes the text itself, here `{text}`; --prompt-file {file} reads {}",
        if file == "-" {
            "standard input"
        } else {
            "the file"
        }
    );
}

/// The string that a line is, or what it is instead.
fn json_string(line: &str) -> Result<String, String> {
    if line.trim().is_empty() {
        return Err("an empty line".into());
    }
    match serde_json::from_str(line) {
        Ok(Value::String(text)) => Ok(text),
        Ok(Value::Null) => Err("null".into()),
        Ok(Value::Bool(_)) => Err("a boolean".into()),
        Ok(Value::Number(_)) => Err("a number".into()),
        Ok(Value::Array(_)) => Err("an array".into()),
        Ok(Value::Object(_)) => Err("an object".into()),
        Err(error) => {
            let start: String = line.chars().take(24).collect();
            let rest = if start.len() < line.len() { ".." } else { "" };
            let why = error.to_string();
            let why = why.split(" at line ").next().unwrap_or_default();
            Err(format!(
                "`{start}{rest}`: {why} at column {}",
                error.column()
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_strings_say_what_they_are() {
        assert_eq!(json_string("\"a\\n\\u00e9\" \r"), Ok("a\n\u{e9}".into()));
        for (line, found) in [
            (" ", "an empty line"),
            ("null", "null"),
            ("[\"a\"]", "an array"),
            ("{\"prompt\": \"a\"}", "an object"),
            ("1", "a number"),
            (
                "In the beginning",
                "`In the beginning`: expected value at column 1",
            ),
            (
                "\"a\" \"b\"",
                "`\"a\" \"b\"`: trailing characters at column 5",
            ),
            (
                "\"abcdefghijklmnopqrstuvwxyz",
                "`\"abcdefghijklmnopqrstuvw..`: EOF while parsing a string at column 27",
            ),
        ] {
            assert_eq!(json_string(line), Err(found.into()), "{line}");
        }
    }
}
