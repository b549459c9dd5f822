//! Text to tokens and back, one token at a time.

mod growth;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Longest `tokenizer.json` that is read.
pub const MAX_TOKENIZER_BYTES: u64 = 128 << 20;

/// Special tokens that end a text, by the names that tokenizers give them.
const END_TOKENS: [&str; 6] = [
    "</s>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|im_end|>",
    "<eos>",
];

/// A tokenizer that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tokenizer: {0}")]
pub struct TextError(String);

/// A `tokenizer.json`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

/// The tokenizers library panics on some malformed files and inputs.
fn guarded<T>(
    what: &str,
    call: impl FnOnce() -> Result<T, tokenizers::Error>,
) -> Result<T, TextError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(TextError(format!("{what}: {error}"))),
        Err(_) => Err(TextError(format!(
            "{what}: the tokenizers library panicked"
        ))),
    }
}

impl Tokenizer {
    /// Reads the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// Not a tokenizer, or too long.
    pub fn from_json(json: &[u8]) -> Result<Self, TextError> {
        if json.len() as u64 > MAX_TOKENIZER_BYTES {
            return Err(TextError(format!(
                "expected at most {MAX_TOKENIZER_BYTES} bytes, found {}",
                json.len()
            )));
        }
        growth::check(json)?;
        let mut inner = guarded("expected the contents of a tokenizer.json", || {
            tokenizers::Tokenizer::from_bytes(json)
        })?;
        // A prompt has its own length; a file could ask for one of 2^32 tokens.
        inner.with_padding(None);
        guarded("truncation", || inner.with_truncation(None).map(drop))?;
        Ok(Self { inner })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, or is not a tokenizer.
    pub fn from_file(path: &Path) -> Result<Self, TextError> {
        let name =
            |error: &dyn std::fmt::Display| TextError(format!("`{}`: {error}", path.display()));
        let size = std::fs::metadata(path).map_err(|error| name(&error))?.len();
        if size > MAX_TOKENIZER_BYTES {
            let error = format!("expected at most {MAX_TOKENIZER_BYTES} bytes, found {size}");
            return Err(name(&error));
        }
        let json = std::fs::read(path).map_err(|error| name(&error))?;
        Self::from_json(&json).map_err(|TextError(error)| name(&error))
    }

    /// The tokens of a prompt, with the special tokens the tokenizer adds to one.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = guarded("encoding", || self.inner.encode(text, true))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of whole tokens, special ones left out.
    ///
    /// # Errors
    /// The tokenizer refuses the tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TextError> {
        guarded("decoding", || self.inner.decode(tokens, true))
    }

    /// Tokens that end a text.
    pub fn end_tokens(&self) -> BTreeSet<u32> {
        let added = self.inner.get_added_tokens_decoder();
        let ends = added
            .iter()
            .filter(|(_, token)| token.special && END_TOKENS.contains(&token.content.as_str()));
        ends.map(|(&id, _)| id).collect()
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        let ids = self.inner.get_vocab(true).into_values();
        ids.max().map_or(0, |id| id as usize + 1)
    }

    /// Decodes a continuation of `context`, token by token.
    pub fn stream(&self, context: &[u32]) -> StreamDecoder<'_> {
        // Decoders treat the start of a text specially (a leading space goes): a little text
        // before the first new token keeps that token from being the start. It must not begin
        // inside a character.
        let clean = (1..=StreamDecoder::CONTEXT.min(context.len())).find_map(|count| {
            let tokens = &context[context.len() - count..];
            let text = self.decode(tokens).ok()?;
            let clean = !text.is_empty() && !text.contains(REPLACEMENT);
            clean.then(|| (tokens.to_vec(), text.len()))
        });
        let (window, emitted) = clean.unwrap_or_default();
        StreamDecoder {
            tokenizer: self,
            complete: window.len(),
            window,
            emitted,
        }
    }
}

/// Turns tokens into text as they come, without ever returning a part of a character: bytes that
/// may still become one are held back.
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens of the last complete text, then those after it.
    window: Vec<u32>,
    /// How many tokens of the window its complete text has.
    complete: usize,
    /// Bytes of the window's text that were returned.
    emitted: usize,
}

const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

impl StreamDecoder<'_> {
    const CONTEXT: usize = 8;

    fn text(&self) -> Result<String, TextError> {
        self.tokenizer.decode(&self.window)
    }

    /// Adds a token and returns the text that is now certain, often empty.
    ///
    /// # Errors
    /// The tokenizer refuses the token.
    pub fn push(&mut self, token: u32) -> Result<String, TextError> {
        self.window.push(token);
        let text = self.text()?;
        let complete = !text.ends_with(REPLACEMENT);
        let certain = text.trim_end_matches(REPLACEMENT);
        let new = certain.get(self.emitted..).unwrap_or_default().to_owned();
        self.emitted += new.len();
        if complete && !new.is_empty() {
            // What was complete before is not needed any more: work per token stays constant.
            self.window.drain(..self.complete);
            self.complete = self.window.len();
            self.emitted = self.text()?.len();
        }
        Ok(new)
    }

    /// The rest: held bytes that never became a character appear as U+FFFD.
    ///
    /// # Errors
    /// The tokenizer refuses the tokens.
    pub fn finish(self) -> Result<String, TextError> {
        let text = self.text()?;
        Ok(text.get(self.emitted..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// The characters that byte-level tokenizers write bytes as.
    fn byte_characters() -> Vec<char> {
        let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let mut other = 256;
        (0..256u32)
            .map(|byte| {
                let code = if printable(&byte) {
                    byte
                } else {
                    other += 1;
                    other - 1
                };
                char::from_u32(code).unwrap()
            })
            .collect()
    }

    fn tokenizer(mut model: Value, pre_tokenizer: Value, decoder: Value) -> Tokenizer {
        model["vocab"]["</s>"] = 256.into();
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "post_processor": null,
            "added_tokens": [{
                "id": 256, "content": "</s>", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            }],
            "pre_tokenizer": pre_tokenizer, "decoder": decoder, "model": model,
        });
        Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
    }

    /// One token per byte.
    fn byte_level() -> Tokenizer {
        let vocab: serde_json::Map<_, _> = byte_characters()
            .into_iter()
            .enumerate()
            .map(|(id, c)| (c.to_string(), id.into()))
            .collect();
        tokenizer(
            json!({"type": "BPE", "vocab": vocab, "merges": []}),
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}),
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true}),
        )
    }

    /// A few letters, and bytes for everything else; spaces as in LLaMA 2.
    fn byte_fallback() -> Tokenizer {
        let bytes = (0..256).map(|byte| (format!("<0x{byte:02X}>"), byte.into()));
        let letters = ["\u{2581}", "a", "b", "\u{e9}"].into_iter().zip(257..);
        let vocab: serde_json::Map<_, _> = bytes
            .chain(letters.map(|(letter, id)| (letter.to_owned(), id.into())))
            .collect();
        let replace = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
        tokenizer(
            json!({"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true, "unk_token": null}),
            json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": false}),
            json!({"type": "Sequence", "decoders": [
                replace, {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]}),
        )
    }

    fn stream(tokenizer: &Tokenizer, context: &[u32], tokens: &[u32]) -> Vec<String> {
        let mut stream = tokenizer.stream(context);
        let mut parts: Vec<_> = tokens
            .iter()
            .map(|&token| stream.push(token).unwrap())
            .collect();
        parts.push(stream.finish().unwrap());
        parts
    }

    proptest! {
        #[test]
        fn streaming_returns_whole_characters(text in "[ -~]{0,9}\\PC{0,9}[ab\u{e9}\u{4f60}\u{1f600} ]{0,30}") {
            for tokenizer in [byte_level(), byte_fallback()] {
                let tokens = tokenizer.encode(&text).unwrap();
                let parts = stream(&tokenizer, &[], &tokens);
                prop_assert_eq!(parts.concat(), tokenizer.decode(&tokens).unwrap());
                // LLaMA's tokenizer drops a space at the start.
                let streamed = parts.concat();
                prop_assert_eq!(streamed.trim_start_matches(' '), text.trim_start_matches(' '));
                let count = |text: &str| text.matches(REPLACEMENT).count();
                prop_assert_eq!(parts.iter().map(|part| count(part)).sum::<usize>(), count(&text));
            }
        }

        /// Any cut of a text into prompt and continuation, where the cut is between characters.
        #[test]
        fn streaming_continues_a_prompt(text in "[a-c \u{e9}\u{4f60}\u{1f600}]{1,30}", cut: prop::sample::Index) {
            let cuts: Vec<_> = text.char_indices().map(|(at, _)| at).skip(1).collect();
            prop_assume!(!cuts.is_empty());
            let at = *cut.get(&cuts);
            let tokenizer = byte_level();
            let (prompt, rest) = text.split_at(at);
            let prompt = tokenizer.encode(prompt).unwrap();
            let parts = stream(&tokenizer, &prompt, &tokenizer.encode(rest).unwrap());
            prop_assert_eq!(parts.concat(), rest);
        }

        /// Any bytes at all: nothing is lost, and what is returned early stays true.
        #[test]
        fn streaming_survives_any_tokens(tokens in prop::collection::vec(0u32..256, 0..40)) {
            let tokenizer = byte_level();
            let parts = stream(&tokenizer, &[], &tokens);
            prop_assert_eq!(parts.concat(), tokenizer.decode(&tokens).unwrap());
            let tokenizer = byte_fallback();
            stream(&tokenizer, &[], &tokens);
        }
    }

    #[test]
    fn a_space_after_the_prompt_is_kept() {
        let tokenizer = byte_fallback();
        let (space, a) = (257, 258);
        assert_eq!(stream(&tokenizer, &[a], &[space, a]).concat(), " a");
        assert_eq!(stream(&tokenizer, &[], &[space, a]).concat(), "a");
    }

    #[test]
    fn unfinished_bytes_come_at_the_end() {
        let parts = stream(&byte_level(), &[], &[0xe4, 0xbd]);
        assert_eq!(parts, ["", "", "\u{fffd}"]);
    }

    #[test]
    fn end_tokens_are_the_special_ones() {
        assert_eq!(byte_level().end_tokens(), BTreeSet::from([256]));
        assert_eq!(byte_level().vocab_size(), 257);
    }

    #[test]
    fn a_prompt_is_neither_padded_nor_cut() {
        let mut json: Value = serde_json::to_value(&byte_level().inner).unwrap();
        json["padding"] = json!({
            "strategy": {"Fixed": u32::MAX}, "direction": "Right", "pad_to_multiple_of": 1u64 << 40,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "a",
        });
        json["truncation"] =
            json!({"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        assert_eq!(tokenizer.encode("abc").unwrap().len(), 3);
    }

    #[test]
    fn malformed_files_are_errors() {
        for json in ["", "{}", "[]", "{\"model\": 3}", "\u{0}"] {
            assert!(Tokenizer::from_json(json.as_bytes()).is_err(), "{json:?}");
        }
    }
}
