//! Text to tokens and back, one token at a time.

mod growth;
mod stop;
mod stream;

pub use stop::{Piece, StoppingDecoder};
pub use stream::StreamDecoder;

use ratplus_graphs::package::{MAX_TOKENIZER_BYTES, SpecialTokens};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

/// Special tokens that end a text, by the names that tokenizers give them.
const END_TOKENS: [&str; 6] = [
    "</s>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|im_end|>",
    "<eos>",
];

/// A tokenizer or a text that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tokenizer: {0}")]
pub struct TextError(String);

/// A `tokenizer.json`. Clones are cheap and share it.
///
/// ```
/// use ratplus_runtime::{SpecialTokens, Tokenizer};
/// let json = br#"{"added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
///     "model": {"type": "WordLevel", "vocab": {"?": 0, "in": 1, "the": 2}, "unk_token": "?"}}"#;
/// let tokenizer = Tokenizer::from_json(json)?;
/// let encoded = tokenizer.encode("in the beginning", SpecialTokens::None)?;
/// assert_eq!((encoded.ids, encoded.starts), (vec![1, 2, 0], vec![0, 3, 7]));
/// assert_eq!(tokenizer.decode(&[1, 2])?, "in the");
/// # Ok::<(), ratplus_runtime::TextError>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    library: tokenizers::Tokenizer,
    form: stream::Form,
}

/// The tokens of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// All of them.
    pub ids: Vec<u32>,
    /// Indices of the special tokens that were added to the text, ascending.
    pub added: Vec<usize>,
    /// Where each token begins in the text, in bytes.
    pub starts: Vec<usize>,
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
    /// Not a tokenizer, or longer than [`MAX_TOKENIZER_BYTES`].
    pub fn from_json(json: &[u8]) -> Result<Self, TextError> {
        if json.len() as u64 > MAX_TOKENIZER_BYTES {
            return Err(TextError(format!(
                "expected at most {MAX_TOKENIZER_BYTES} bytes, found {}",
                json.len()
            )));
        }
        growth::check(json)?;
        let mut library = guarded("expected the contents of a tokenizer.json", || {
            tokenizers::Tokenizer::from_bytes(json)
        })?;
        // A prompt has its own length; a file could ask for one of 2^32 tokens.
        library.with_padding(None);
        guarded("truncation", || library.with_truncation(None).map(drop))?;
        let form = stream::Form::of(library.get_decoder());
        Ok(Self(Arc::new(Inner { library, form })))
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

    /// The tokens of a text, in time that grows with its length. Special tokens that the text itself
    /// spells, `<s>` for example, are those tokens with either choice of `special_tokens`.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode(&self, text: &str, special_tokens: SpecialTokens) -> Result<Encoded, TextError> {
        let add = special_tokens == SpecialTokens::Tokenizer;
        let encoding = guarded("encoding", || self.0.library.encode(text, add))?;
        let mask = encoding.get_special_tokens_mask().iter().enumerate();
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            added: mask
                .filter(|&(_, &mask)| mask != 0)
                .map(|(index, _)| index)
                .collect(),
            starts: encoding
                .get_offsets()
                .iter()
                .map(|offsets| offsets.0)
                .collect(),
        })
    }

    /// The special tokens that [`SpecialTokens::Tokenizer`] adds to a text.
    ///
    /// # Errors
    /// The tokenizer refuses an empty text.
    pub fn special_tokens(&self) -> Result<Vec<u32>, TextError> {
        let encoded = self.encode("", SpecialTokens::Tokenizer)?;
        Ok(encoded
            .added
            .iter()
            .map(|&index| encoded.ids[index])
            .collect())
    }

    /// Checks that a model with a vocabulary of `vocab_size` knows every token of a text.
    ///
    /// # Errors
    /// Names the first token that it does not know, and how many more there are.
    pub fn check_vocabulary(&self, encoded: &Encoded, vocab_size: usize) -> Result<(), TextError> {
        let unknown = |&&id: &&u32| id as usize >= vocab_size;
        let Some(index) = encoded.ids.iter().position(|id| unknown(&id)) else {
            return Ok(());
        };
        let id = encoded.ids[index];
        let (place, advice) = match encoded.added.contains(&index) {
            true => (
                "which the tokenizer adds".into(),
                "leave special tokens out",
            ),
            false => (
                format!("at byte {}", encoded.starts[index]),
                "leave it out of the text",
            ),
        };
        let more = match encoded.ids.iter().filter(unknown).count() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Err(TextError(format!(
            "token {index} is {id}, {}, {place}{more}: expected 0 to {}, the tokens that the model knows; \
             {advice}",
            self.name(id),
            vocab_size.saturating_sub(1)
        )))
    }

    /// A token as the tokenizer writes it; none where it does not know it.
    pub fn token(&self, token: u32) -> Option<String> {
        self.0.library.id_to_token(token)
    }

    /// The token that the tokenizer writes so.
    pub fn id(&self, name: &str) -> Option<u32> {
        self.0.library.token_to_id(name)
    }

    /// The same as [`token`](Self::token) for a message, quoted.
    pub fn name(&self, token: u32) -> String {
        match self.token(token) {
            Some(name) => format!("`{}`", name.escape_debug()),
            None => "without a name".into(),
        }
    }

    /// The text of whole tokens, special ones and those that the tokenizer does not know left out.
    ///
    /// # Errors
    /// The tokenizer refuses the tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TextError> {
        guarded("decoding", || self.0.library.decode(tokens, true))
    }

    /// Tokens that end a text.
    pub fn end_tokens(&self) -> BTreeSet<u32> {
        let added = self.0.library.get_added_tokens_decoder();
        let ends = added
            .iter()
            .filter(|(_, token)| token.special && END_TOKENS.contains(&token.content.as_str()));
        ends.map(|(&id, _)| id).collect()
    }

    /// Tokens from `vocab_size` on, which a model with that vocabulary does not know, ascending.
    pub fn tokens_beyond(&self, vocab_size: usize) -> Vec<u32> {
        let ids = self.0.library.get_vocab(true).into_values();
        let beyond: BTreeSet<u32> = ids.filter(|&id| id as usize >= vocab_size).collect();
        beyond.into_iter().collect()
    }

    /// Decodes a continuation of `context`, token by token.
    pub fn stream(&self, context: &[u32]) -> StreamDecoder {
        StreamDecoder::after(self.clone(), context)
    }

    /// The bytes that a token adds to a text that has begun; none for special tokens and those that the
    /// tokenizer does not know.
    ///
    /// # Errors
    /// What a token adds depends on others.
    pub fn bytes(&self, token: u32) -> Result<Vec<u8>, TextError> {
        match self.visible(token) {
            Some(name) => guarded("decoding", || self.0.form.bytes(name)),
            None => Ok(Vec::new()),
        }
    }

    /// What a token is decoded from; none for special tokens and those that the tokenizer does not
    /// know, which have no text.
    fn visible(&self, token: u32) -> Option<String> {
        let special = |name: &str| self.0.library.get_added_vocabulary().is_special_token(name);
        self.token(token).filter(|name| !special(name))
    }
}

#[cfg(test)]
mod tests;
