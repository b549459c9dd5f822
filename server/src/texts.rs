//! What a package has for texts: its tokenizer, its chat template, and the forms that texts are held to.

use crate::model::ModelError;
use crate::template::{self, ChatTemplate};
use ratplus_graphs::package::SpecialTokens;
use ratplus_runtime::grammar::{CompiledGrammar, Grammar, GrammarError, GrammarFactory};
use ratplus_runtime::package::Package;
use ratplus_runtime::text::{TextError, Tokenizer};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// Texts of a package that has a tokenizer.
pub struct Texts {
    vocab_size: usize,
    special_tokens: SpecialTokens,
    tokenizer: Tokenizer,
    end_tokens: BTreeSet<u32>,
    template: Option<ChatTemplate>,
    /// Made when a text first has a form.
    grammars: OnceLock<Result<GrammarFactory, GrammarError>>,
}

impl Texts {
    /// Those of a package; none where it has no tokenizer.
    ///
    /// # Errors
    /// The tokenizer or the chat template cannot be used.
    pub fn of(package: &Package) -> Result<Option<Self>, ModelError> {
        let Some(json) = package.tokenizer_json() else {
            return Ok(None);
        };
        let (manifest, tokenizer) = (package.manifest(), Tokenizer::from_json(json)?);
        let vocab_size = manifest.model.vocab_size;
        let mut end_tokens = tokenizer.end_tokens();
        // The model gives no others.
        end_tokens.retain(|&token| (token as usize) < vocab_size);
        let template = package.chat_template();
        let template = template.map(|source| ChatTemplate::new(source, &tokenizer));
        Ok(Some(Self {
            vocab_size,
            special_tokens: manifest.special_tokens,
            end_tokens,
            template: template.transpose()?,
            grammars: OnceLock::new(),
            tokenizer,
        }))
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The token that begins a text, as chat templates are told.
    pub fn begin_token(&self) -> Option<u32> {
        template::begin_token(&self.tokenizer)
    }

    /// Tokens that end a text.
    pub fn end_tokens(&self) -> &BTreeSet<u32> {
        &self.end_tokens
    }

    /// Tokens of a text, all of which the model knows; with special tokens where `add` says so, or else the package.
    ///
    /// # Errors
    /// The tokenizer refuses the text, or the model does not know a token.
    pub fn encode(&self, text: &str, add: Option<bool>) -> Result<Vec<u32>, TextError> {
        let special_tokens = match add {
            None => self.special_tokens,
            Some(true) => SpecialTokens::Tokenizer,
            Some(false) => SpecialTokens::None,
        };
        let encoded = self.tokenizer.encode(text, special_tokens)?;
        self.tokenizer.check_vocabulary(&encoded, self.vocab_size)?;
        Ok(encoded.ids)
    }

    /// What holds texts to a form.
    ///
    /// # Errors
    /// The form is none or too large, or the tokenizer has none of that.
    pub fn compile(&self, form: &Grammar) -> Result<CompiledGrammar, GrammarError> {
        let make = || GrammarFactory::new(&self.tokenizer, self.vocab_size, &self.end_tokens);
        let factory = self.grammars.get_or_init(make).as_ref();
        factory.map_err(Clone::clone)?.compile(form)
    }
}
