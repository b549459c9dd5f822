//! Texts that end where a stop string does.
//!
//! What may be the start of a stop string is held back: the longest end of the text that one begins
//! with, and nothing else. It is the start of that string, so that no text is kept, and a token takes
//! time for its own text alone, however long the strings are (Knuth, Morris and Pratt's search, whose
//! tables grow with what has matched).

use super::{StreamDecoder, TextError, Tokenizer};
use std::cmp::Reverse;

/// What tokens have added to a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// The text that can be shown now, often none.
    pub text: String,
    /// The stop string that has ended the text, by its index: the one that ends first; of those the one
    /// that begins first, and of equal ones the first. Nothing follows.
    pub stopped: Option<usize>,
}

/// Turns tokens into text as they come, up to the first stop string.
///
/// ```
/// use ratplus_runtime::Tokenizer;
/// use ratplus_runtime::text::StoppingDecoder;
/// let json = br#"{"added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "decoder": {"type": "Fuse"},
///     "model": {"type": "WordLevel", "vocab": {"ab": 0, "c": 1, "d": 2}, "unk_token": "c"}}"#;
/// let tokenizer = Tokenizer::from_json(json)?;
/// let mut text = StoppingDecoder::new(&tokenizer, &[], vec!["bcd".into()], false);
/// assert_eq!(text.push(0)?.text, "a");
/// assert_eq!(text.push(1)?.text, "");
/// assert_eq!(text.push(1)?.text, "bcc");
/// assert_eq!(text.push(0)?.text, "a");
/// assert_eq!(text.push(1)?.text, "");
/// assert_eq!(text.push(2)?.stopped, Some(0));
/// # Ok::<(), ratplus_runtime::TextError>(())
/// ```
pub struct StoppingDecoder {
    stream: StreamDecoder,
    stops: Stops,
}

impl StoppingDecoder {
    /// Of a continuation of `context`, whose own text has no part in a stop string. `include_stop` shows
    /// the string that ends the text as well; nothing is held back then. An empty string ends no text.
    pub fn new(
        tokenizer: &Tokenizer,
        context: &[u32],
        stop_strings: Vec<String>,
        include_stop: bool,
    ) -> Self {
        Self {
            stream: tokenizer.stream(context),
            stops: Stops {
                searches: stop_strings.into_iter().map(Search::new).collect(),
                include: include_stop,
                stopped: None,
            },
        }
    }

    /// Adds a token. After a stop string, tokens have no text.
    ///
    /// # Errors
    /// The tokenizer refuses the token.
    pub fn push(&mut self, token: u32) -> Result<Piece, TextError> {
        let text = self.stream.push(token)?;
        Ok(self.stops.feed(text))
    }

    /// Adds a token whose text has no part in a stop string; only before the first that may.
    ///
    /// # Errors
    /// The tokenizer refuses the token.
    pub fn push_past(&mut self, token: u32) -> Result<String, TextError> {
        self.stream.push(token)
    }

    /// The rest: what was held back. Bytes that never became a character appear as U+FFFD, which a stop
    /// string may have.
    ///
    /// # Errors
    /// The tokenizer refuses the tokens.
    pub fn finish(mut self) -> Result<Piece, TextError> {
        let mut piece = self.stops.feed(self.stream.finish()?);
        if piece.stopped.is_none() {
            let (index, held) = self.stops.held();
            if held > 0 {
                piece.text += &self.stops.searches[index].string[..held];
            }
        }
        Ok(piece)
    }
}

/// What a text is searched for.
struct Stops {
    searches: Vec<Search>,
    include: bool,
    stopped: Option<usize>,
}

impl Stops {
    /// How much text is held back, and the stop string that it is the start of.
    fn held(&self) -> (usize, usize) {
        let matched = self.searches.iter().map(|search| search.matched);
        match matched.enumerate().max_by_key(|&(_, matched)| matched) {
            Some(longest) if !self.include => longest,
            _ => (0, 0),
        }
    }

    /// Adds text and returns what can be shown.
    fn feed(&mut self, mut text: String) -> Piece {
        if self.stopped.is_some() {
            text.clear();
            let stopped = self.stopped;
            return Piece { text, stopped };
        }
        let (holder, held) = self.held();
        let last = text.bytes().position(|byte| {
            let searches = self.searches.iter_mut().enumerate();
            let ended = searches.filter_map(|(index, search)| {
                let ended = search.step(byte);
                ended.then_some((search.matched, Reverse(index)))
            });
            self.stopped = ended.max().map(|(_, Reverse(index))| index);
            self.stopped.is_some()
        });
        let seen = held + last.map_or(text.len(), |last| last + 1);
        let hidden = match self.stopped {
            Some(index) if !self.include => self.searches[index].matched,
            Some(_) => 0,
            None => self.held().1,
        };
        let shown = seen - hidden;
        if held > 0 {
            let before = &self.searches[holder].string[..held.min(shown)];
            text.truncate(shown.saturating_sub(held));
            text.insert_str(0, before);
        } else {
            text.truncate(shown);
        }
        Piece {
            text,
            stopped: self.stopped,
        }
    }
}

/// One stop string, and how much of it the text ends with.
struct Search {
    string: String,
    matched: usize,
    /// For so many matched bytes and another byte than the next: the longest shorter match that has
    /// another next byte. As far as the text has matched.
    shorter: Vec<Option<usize>>,
    /// The longest match shorter than `shorter.len()` bytes, after those.
    border: usize,
}

impl Search {
    fn new(string: String) -> Self {
        Self {
            string,
            matched: 0,
            shorter: vec![None],
            border: 0,
        }
    }

    /// Goes past a byte; whether the string ends with it.
    fn step(&mut self, byte: u8) -> bool {
        let string = self.string.as_bytes();
        let mut matched = Some(self.matched);
        while let Some(count) = matched
            && string.get(count) != Some(&byte)
        {
            matched = self.shorter.get(count).copied().flatten();
        }
        self.matched = matched.map_or(0, |count| count + 1);
        let ended = matched.is_some() && self.matched == string.len();
        if self.matched == self.shorter.len() && !ended {
            self.extend();
        }
        ended
    }

    /// Fills the table for one more matched byte.
    fn extend(&mut self) {
        let string = self.string.as_bytes();
        let next = string[self.shorter.len()];
        let mut border = Some(self.border);
        self.shorter.push(match string[self.border] == next {
            true => self.shorter[self.border],
            false => border,
        });
        while let Some(count) = border
            && string[count] != next
        {
            border = self.shorter[count];
        }
        self.border = border.map_or(0, |count| count + 1);
    }
}
