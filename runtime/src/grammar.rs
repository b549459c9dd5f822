//! Texts that have to follow a grammar: JSON, a schema, a grammar of rules or a regular expression.
//!
//! A [`GrammarFactory`] is made once for a package; it compiles what a request asks for, which gives a
//! [`Constraint`] to each of its texts, by the library `llguidance`, whose documentation says what schemas,
//! Lark grammars and expressions may have.
//!
//! Grammars come from strangers. The length of one is bounded, and so is what may be spent on compiling it
//! and on each token ([`LIMITS`]): one that asks for more is an error of its request alone.

use crate::sampler::TokenSet;
use crate::scheduler::{Constraint, ConstraintError};
use crate::text::Tokenizer;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Bytes of a grammar.
pub const MOST_BYTES: usize = 1 << 16;

/// Rules and references may follow one another through all of a grammar, and the compiler follows them by
/// calling itself.
const STACK: usize = 256 << 20;

/// Bytes of a message about a grammar.
const MOST_MESSAGE: usize = 500;

/// Member of a schema with llguidance's own options.
const OPTIONS: &str = "x-guidance";

/// Blanks between two parts of a JSON text: what deep indentation takes.
const BLANKS: &str = r"[\x20\x0A\x0D\x09]{1,64}";

/// What may be spent on a grammar: some 20 ms of regular expressions when it is compiled, some 15 ms of
/// these and some 3 ms of rules a token, and some 40 MB of states.
pub const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    max_lexer_states: 20_000,
    max_grammar_size: 100_000,
    precompute_large_lexemes: true,
    // They go to whoever sent the grammar.
    verbose_errors: false,
};

/// What a text has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// A JSON object; at most 64 blanks lie between two of its parts.
    AnyJson,
    /// A JSON text that a JSON schema, given as text, describes; with as many blanks, unless its `x-guidance` says what
    /// they are (`whitespace_flexible`, `whitespace_pattern`).
    JsonSchema(String),
    /// A text of the rule `start` of a grammar in llguidance's form of Lark.
    Lark(String),
    /// A text that a regular expression matches as a whole.
    Regex(String),
}

/// A grammar that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("grammar: {0}")]
pub struct GrammarError(String);

/// Compiles grammars for the tokens of one package.
pub struct GrammarFactory {
    parsers: ParserFactory,
}

impl GrammarFactory {
    /// For a model with tokens below `vocab_size`. `end_tokens` may come where a text may end.
    ///
    /// # Errors
    /// The tokenizer's tokens have no bytes of their own.
    pub fn new(
        tokenizer: &Tokenizer,
        vocab_size: usize,
        end_tokens: &BTreeSet<u32>,
    ) -> Result<Self, GrammarError> {
        let vocab_size =
            u32::try_from(vocab_size).map_err(|error| GrammarError(error.to_string()))?;
        let words: Vec<_> = (0..vocab_size)
            .map(|token| tokenizer.bytes(token))
            .collect::<Result<_, _>>()
            .map_err(|error| GrammarError(error.to_string()))?;
        let ends: Vec<_> = end_tokens
            .iter()
            .copied()
            .filter(|&end| end < vocab_size)
            .collect();
        let made = catch_unwind(AssertUnwindSafe(|| {
            let mut trie = TokTrie::from(&TokRxInfo::new(vocab_size, INVALID_TOKEN), &words);
            if !ends.is_empty() {
                trie = trie.with_eos_tokens(&ends);
            }
            let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            ParserFactory::new_simple(&tokens)
        }));
        let mut parsers = match made {
            Ok(made) => made.map_err(|error| refused(&error))?,
            Err(_) => return Err(GrammarError("llguidance cannot use the tokens".into())),
        };
        parsers.quiet();
        *parsers.limits_mut() = LIMITS;
        Ok(Self { parsers })
    }

    /// Compiles a grammar; milliseconds, on a thread of its own.
    ///
    /// # Errors
    /// It is none, or larger than [`MOST_BYTES`] or [`LIMITS`].
    pub fn compile(&self, grammar: &Grammar) -> Result<CompiledGrammar, GrammarError> {
        let text = match grammar {
            Grammar::AnyJson => "",
            Grammar::JsonSchema(text) | Grammar::Lark(text) | Grammar::Regex(text) => text,
        };
        if text.len() > MOST_BYTES {
            let found = text.len();
            return Err(GrammarError(format!(
                "expected at most {MOST_BYTES} bytes, found {found}"
            )));
        }
        let compile = || {
            let grammar = match grammar {
                Grammar::AnyJson => json(json!({"type": "object"})),
                Grammar::JsonSchema(schema) => json(serde_json::from_str(schema)?),
                Grammar::Lark(rules) => TopLevelGrammar::from_lark(rules.clone()),
                Grammar::Regex(expression) => TopLevelGrammar::from_regex(expression),
            };
            self.parsers.create_parser(grammar)
        };
        let parser = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("grammar".into());
            let thread = thread.stack_size(STACK).spawn_scoped(scope, compile);
            let compiled = thread
                .map_err(|error| GrammarError(error.to_string()))?
                .join();
            let panicked = |_| GrammarError("llguidance panicked".into());
            compiled.map_err(panicked)?.map_err(|error| refused(&error))
        })?;
        Ok(CompiledGrammar(Matcher::new(Ok(parser))))
    }
}

/// The grammar of a schema. Blanks between its parts are bounded, unless the schema says what they are in llguidance's
/// own words: a model that likes them would write nothing else to the end.
fn json(mut schema: Value) -> TopLevelGrammar {
    if schema == json!(true) {
        schema = json!({});
    }
    if let Some(members) = schema.as_object_mut() {
        let asked = members.entry(OPTIONS).or_insert_with(|| json!({}));
        let says = |name: &str| !asked[name].is_null();
        if asked.is_object() && !says("whitespace_pattern") && !says("whitespace_flexible") {
            asked["whitespace_pattern"] = BLANKS.into();
        }
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// A grammar for any number of texts.
pub struct CompiledGrammar(Matcher);

impl CompiledGrammar {
    /// What holds a text to it, with states of its own: what other texts cost does not count against it.
    pub fn constraint(&self) -> Box<dyn Constraint> {
        Box::new(Running(self.0.deep_clone()))
    }
}

/// A library's error, without what it knows of its own state.
fn message(error: &dyn std::fmt::Display) -> String {
    let mut message = error.to_string();
    let end = message.find("\n<").unwrap_or(message.len());
    message.truncate(message.floor_char_boundary(end.min(MOST_MESSAGE)));
    message
}

fn refused(error: &dyn std::fmt::Display) -> GrammarError {
    GrammarError(message(error))
}

/// A text on its way.
struct Running(Matcher);

impl Constraint for Running {
    fn allowed(&mut self) -> Result<TokenSet, ConstraintError> {
        let mask = self.0.compute_mask_or_eos();
        let mask = mask.map_err(|error| ConstraintError(message(&error)))?;
        Ok(TokenSet::from_words(mask.as_slice().to_vec()))
    }

    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        let accepted = self.0.consume_token(token);
        accepted.map_err(|error| ConstraintError(message(&error)))
    }

    fn must_end(&mut self) -> bool {
        self.0.is_stopped()
    }
}
