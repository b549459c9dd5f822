//! Tokens to text as they come.
//!
//! What can be shown is shown at once: of the bytes seen, only an unfinished character at the end is
//! held back, 3 bytes at most, and bytes that are no part of one appear as U+FFFD. A token takes the
//! same time wherever it comes, and so does the start, whatever the context's length.
//!
//! All parts together are the [decoded](super::Tokenizer::decode) text of context and tokens, less that
//! of the context, for every tokenizer whose decoder changes tokens one by one and may turn them into
//! bytes: `Replace`, `Metaspace`, `WordPiece`, then `ByteFallback` or `ByteLevel`, then `Fuse` and a
//! `Strip` at the start. There is one exception. `ByteFallback` looks at whole runs of byte tokens and
//! replaces every byte of a run that is not all UTF-8; a stream has shown the characters before the
//! first bad byte by then, so it shows all characters of a run, and U+FFFD for each other byte.
//!
//! Other decoders (`BPEDecoder`, `CTC`, steps in another order) are given the last few tokens again and
//! again, and what they add to the text is shown: the same, as long as they let the earlier text be.

use super::{TextError, Tokenizer, guarded};
use std::collections::VecDeque;
use std::sync::Arc;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::{Decoder, Error};

/// Characters that `ByteLevel` writes bytes as: code points below this many.
const LEVEL_CODES: usize = 324;

/// Bytes of a character that is not finished.
const MOST_HELD: usize = 3;

/// What a token becomes in `Form::Bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bytes {
    /// Text.
    None,
    /// Tokens such as `<0x41>` are bytes, all others text.
    Fallback,
    /// All tokens are bytes, a character each.
    Level,
}

/// How tokens become text.
pub(super) enum Form {
    /// One by one, by way of bytes.
    Bytes {
        /// What comes first.
        steps: Arc<Steps>,
        bytes: Bytes,
        /// A character that goes at the start, up to so many times.
        strip: Option<(char, usize)>,
    },
    /// As the library has it.
    Library,
}

/// Steps of a decoder that map a token by itself, or by that and whether it is the first.
#[derive(Default)]
pub(super) struct Steps {
    list: Vec<DecoderWrapper>,
    /// Whether a step looks at the latter.
    positional: bool,
}

impl Steps {
    fn apply(&self, token: String, first: bool) -> Result<String, Error> {
        let mut tokens = match self.positional && !first {
            true => vec!["a".to_owned(), token],
            false => vec![token],
        };
        for step in &self.list {
            tokens = step.decode_chain(tokens)?;
        }
        Ok(tokens.pop().unwrap_or_default())
    }
}

impl Form {
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Self {
        let Some(decoder) = decoder else {
            return Self::Library;
        };
        let mut rest = flattened(decoder).into_iter().peekable();
        let mut steps = Steps::default();
        while let Some(step) = rest.next_if(|step| maps_tokens(step)) {
            use DecoderWrapper::{Metaspace, WordPiece};
            steps.positional |= matches!(step, Metaspace(_) | WordPiece(_));
            steps.list.push(step.clone());
        }
        let bytes = match rest.peek() {
            Some(DecoderWrapper::ByteFallback(_)) => Bytes::Fallback,
            Some(DecoderWrapper::ByteLevel(_)) => Bytes::Level,
            _ => Bytes::None,
        };
        if bytes != Bytes::None {
            rest.next();
        }
        // ByteLevel's text is in one piece.
        let mut fused = bytes == Bytes::Level;
        let mut strip = None;
        for step in rest {
            match step {
                DecoderWrapper::Fuse(_) => fused = true,
                DecoderWrapper::Strip(found) if fused && found.stop == 0 && strip.is_none() => {
                    strip = Some((found.content, found.start));
                }
                _ => return Self::Library,
            }
        }
        Self::Bytes {
            steps: Arc::new(steps),
            bytes,
            strip,
        }
    }
}

impl Form {
    /// The bytes of a token that is not the first.
    pub(super) fn bytes(&self, token: String) -> Result<Vec<u8>, Error> {
        let Self::Bytes { steps, bytes, .. } = self else {
            return Err("its decoder changes tokens by those before and after them".into());
        };
        let token = steps.apply(token, false)?;
        let own = match bytes {
            Bytes::None => None,
            Bytes::Fallback => fallback_byte(&token).map(|byte| vec![byte]),
            Bytes::Level => level_bytes(&token),
        };
        Ok(own.unwrap_or_else(|| token.into_bytes()))
    }
}

/// The steps of a decoder, in order, whatever sequences they are in.
fn flattened(decoder: &DecoderWrapper) -> Vec<&DecoderWrapper> {
    match decoder {
        DecoderWrapper::Sequence(steps) => {
            steps.get_decoders().iter().flat_map(flattened).collect()
        }
        _ => vec![decoder],
    }
}

/// Whether a step gives one token for each, which depends on that one and whether it is the first.
fn maps_tokens(step: &DecoderWrapper) -> bool {
    use DecoderWrapper::{Metaspace, Replace, Strip, WordPiece};
    match step {
        Replace(_) | Metaspace(_) | WordPiece(_) => true,
        Strip(strip) => strip.stop == 0,
        _ => false,
    }
}

/// Turns tokens into text as they come.
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    state: State,
    /// Tokens that went through a decoder.
    #[cfg(test)]
    pub(super) work: usize,
}

enum State {
    Bytes(ByteState),
    Library(LibraryState),
}

impl StreamDecoder {
    /// Of a continuation of `context`.
    pub(super) fn after(tokenizer: Tokenizer, context: &[u32]) -> Self {
        let state = match &tokenizer.0.form {
            Form::Bytes {
                steps,
                bytes,
                strip,
            } => State::Bytes(ByteState {
                steps: steps.clone(),
                bytes: *bytes,
                strip: *strip,
                first: true,
                held: Vec::with_capacity(MOST_HELD + 1),
            }),
            Form::Library => State::Library(LibraryState::default()),
        };
        let mut stream = Self {
            tokenizer,
            state,
            #[cfg(test)]
            work: 0,
        };
        stream.skip(context);
        stream
    }

    /// Goes past tokens whose text was shown. What has no text here had none then.
    fn skip(&mut self, context: &[u32]) {
        if let State::Library(state) = &mut self.state {
            let visible = context
                .iter()
                .rev()
                .copied()
                .filter(|&token| self.tokenizer.visible(token).is_some());
            let last: Vec<u32> = visible.take(LibraryState::WINDOW).collect();
            state.window.extend(last.iter().rev());
            state.shown = self.tokenizer.decode(state.tokens()).unwrap_or_default();
            return;
        }
        let mut rest = context.iter();
        while let State::Bytes(state) = &self.state
            && (state.first || state.strip.is_some())
            && let Some(&token) = rest.next()
        {
            let _ = self.push(token);
        }
        // Of the others, the last bytes alone can be part of an unfinished character.
        let rest = rest.as_slice();
        let mut left = MOST_HELD;
        let last = rest.iter().rposition(|&token| {
            left -= usize::from(self.has_bytes(token));
            left == 0
        });
        for &token in &rest[last.unwrap_or(0)..] {
            let _ = self.push(token);
        }
    }

    fn has_bytes(&self, token: u32) -> bool {
        let Form::Bytes { steps, .. } = &self.tokenizer.0.form else {
            return true;
        };
        let text = self.tokenizer.visible(token).map(|name| {
            let text = guarded("decoding", || steps.apply(name, false));
            text.unwrap_or_default()
        });
        text.is_some_and(|text| !text.is_empty())
    }

    /// Adds a token and returns the text that can be shown now, often empty.
    ///
    /// # Errors
    /// The tokenizer refuses the token.
    pub fn push(&mut self, token: u32) -> Result<String, TextError> {
        let Some(name) = self.tokenizer.visible(token) else {
            return Ok(String::new());
        };
        match &mut self.state {
            State::Bytes(state) => {
                #[cfg(test)]
                {
                    self.work += 1;
                }
                guarded("decoding", || state.push(name))
            }
            State::Library(state) => {
                #[cfg(test)]
                {
                    self.work += 2 * state.window.len() + 1;
                }
                state.push(&self.tokenizer, token)
            }
        }
    }

    /// The rest: held bytes that never became a character appear as U+FFFD.
    ///
    /// # Errors
    /// The tokenizer refuses the tokens.
    pub fn finish(self) -> Result<String, TextError> {
        match self.state {
            State::Bytes(mut state) => {
                let mut out = String::new();
                state.flush(&mut out);
                Ok(state.stripped(out))
            }
            State::Library(mut state) => {
                let text = self.tokenizer.decode(state.tokens())?;
                Ok(state.new_part(&text))
            }
        }
    }
}

struct ByteState {
    steps: Arc<Steps>,
    bytes: Bytes,
    /// What may still go at the start.
    strip: Option<(char, usize)>,
    /// No token came yet.
    first: bool,
    /// The start of a character, 3 bytes at most.
    held: Vec<u8>,
}

impl ByteState {
    fn push(&mut self, token: String) -> Result<String, Error> {
        let first = std::mem::take(&mut self.first);
        let token = self.steps.apply(token, first)?;
        let mut out = String::new();
        match self.bytes {
            Bytes::None => out = token,
            Bytes::Fallback => match fallback_byte(&token) {
                Some(byte) => self.feed(&[byte], &mut out),
                None => {
                    self.flush(&mut out);
                    out += &token;
                }
            },
            Bytes::Level => match level_bytes(&token) {
                Some(bytes) => self.feed(&bytes, &mut out),
                None => self.feed(token.as_bytes(), &mut out),
            },
        }
        Ok(self.stripped(out))
    }

    /// Bytes to characters: all but an unfinished one.
    fn feed(&mut self, bytes: &[u8], out: &mut String) {
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        let mut unfinished = 0;
        let mut chunks = held.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            *out += chunk.valid();
            let invalid = chunk.invalid();
            let error = std::str::from_utf8(invalid).err();
            // At the end, bytes that are the start of a character may become one.
            if chunks.peek().is_none() && error.is_some_and(|error| error.error_len().is_none()) {
                unfinished = invalid.len();
            } else if !invalid.is_empty() {
                self.replace(invalid.len(), out);
            }
        }
        held.drain(..held.len() - unfinished);
        self.held = held;
    }

    /// What bytes that are no character look like: `ByteFallback` has a U+FFFD for each, `ByteLevel`
    /// one for those that began one character.
    fn replace(&self, bytes: usize, out: &mut String) {
        let count = match self.bytes {
            Bytes::Level => 1,
            Bytes::None | Bytes::Fallback => bytes,
        };
        out.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, count));
    }

    /// Held bytes become no character any more.
    fn flush(&mut self, out: &mut String) {
        if !self.held.is_empty() {
            self.replace(self.held.len(), out);
            self.held.clear();
        }
    }

    /// Without what goes at the start of a text.
    fn stripped(&mut self, mut text: String) -> String {
        let Some((content, left)) = self.strip.filter(|_| !text.is_empty()) else {
            return text;
        };
        let start = text.chars().take(left).take_while(|&c| c == content);
        let count = start.count();
        let gone = count * content.len_utf8();
        let goes_on = gone == text.len() && count < left;
        self.strip = goes_on.then(|| (content, left - count));
        text.drain(..gone);
        text
    }
}

/// The byte that a token such as `<0x41>` stands for.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    // The library takes a sign too.
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The bytes that `ByteLevel` writes as characters.
fn level_bytes(token: &str) -> Option<Vec<u8>> {
    const TABLE: [Option<u8>; LEVEL_CODES] = level_table();
    let bytes = token.chars().map(|c| *TABLE.get(c as usize)?);
    bytes.collect()
}

/// Printable bytes are written as the character of their number, the others in order from 256 on.
const fn level_table() -> [Option<u8>; LEVEL_CODES] {
    let mut table = [None; LEVEL_CODES];
    let (mut byte, mut other) = (0, 256);
    while byte < 256 {
        if matches!(byte, 33..=126 | 161..=172 | 174..=255) {
            table[byte] = Some(byte as u8);
        } else {
            table[other] = Some(byte as u8);
            other += 1;
        }
        byte += 1;
    }
    table
}

/// The last tokens that have text, and their text as far as it was shown.
#[derive(Default)]
struct LibraryState {
    window: VecDeque<u32>,
    shown: String,
    /// Tokens since text was held back.
    held: usize,
}

impl LibraryState {
    /// Tokens that are enough to tell what one more adds.
    const WINDOW: usize = 8;
    /// Tokens that may be the start of one character.
    const HELD: usize = 3;

    fn tokens(&mut self) -> &[u32] {
        self.window.make_contiguous()
    }

    fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, TextError> {
        self.window.push_back(token);
        let text = tokenizer.decode(self.tokens())?;
        let certain = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        // Unfinished characters look so, and bytes that will never be one.
        if certain.len() < text.len() && self.held < Self::HELD {
            self.held += 1;
            return Ok(self.new_part(certain));
        }
        self.held = 0;
        let new = self.new_part(&text);
        self.window
            .drain(..self.window.len().saturating_sub(Self::WINDOW));
        self.shown = tokenizer.decode(self.tokens())?;
        Ok(new)
    }

    /// What `text` has that was not shown.
    fn new_part(&mut self, text: &str) -> String {
        let both = text.char_indices().zip(self.shown.chars());
        let same: usize = both
            .take_while(|((_, a), b)| a == b)
            .map(|((_, a), _)| a.len_utf8())
            .sum();
        // Text that was taken back cannot be unshown.
        if same < self.shown.len() && text.len() <= self.shown.len() {
            return String::new();
        }
        let new = text[same..].to_owned();
        text.clone_into(&mut self.shown);
        new
    }
}
