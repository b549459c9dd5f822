//! A package that is served: its service, and what it has for texts.

use crate::openai::error::ApiError;
use crate::template::{ChatTemplate, TemplateError};
use crate::texts::Texts;
use ratplus_graphs::package::LogitsMode;
use ratplus_runtime::backend::Session;
use ratplus_runtime::engine::{Engine, Limits};
use ratplus_runtime::grammar::{CompiledGrammar, Grammar};
use ratplus_runtime::package::Package;
use ratplus_runtime::scheduler::{
    self, Refused, Request, Service, Sink, Snapshot, StartError, Ticket,
};
use ratplus_runtime::text::{TextError, Tokenizer};
use std::collections::BTreeSet;
use std::sync::{PoisonError, RwLock};

/// A package and what runs it.
pub struct Model {
    limits: Limits,
    all_logits: bool,
    texts: Option<Texts>,
    slots: usize,
    /// Most requests, and tokens of their prompts, that come together.
    most_together: (usize, usize),
    /// Taken out when it stops.
    service: RwLock<Option<Service>>,
}

/// Why a package cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Its tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TextError),
    /// Its chat template.
    #[error("chat template: {0}")]
    Template(#[from] TemplateError),
    /// Its scheduler.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The system starts no thread to load it on.
    #[error("starting the thread that loads: {0}")]
    Thread(#[from] std::io::Error),
    /// What else a caller's way to load it says.
    #[error("{0}")]
    Other(String),
}

impl Model {
    /// Starts a service over `session`, which is one of `package`.
    ///
    /// # Errors
    /// The tokenizer or the chat template cannot be used, or the scheduler does not start.
    pub fn start(
        package: &Package,
        session: Session,
        options: scheduler::Options,
    ) -> Result<Self, ModelError> {
        let manifest = package.manifest();
        let texts = Texts::of(package)?;
        let tokenizer = texts.as_ref().map(|texts| texts.tokenizer().clone());
        let engine = Engine::new(session);
        Ok(Self {
            limits: Limits::from(manifest),
            all_logits: manifest.logits == LogitsMode::All,
            texts,
            slots: engine.slots(),
            most_together: (options.max_queued_requests, options.max_queued_tokens),
            service: RwLock::new(Some(Service::start(engine, tokenizer, options)?)),
        })
    }

    /// What sequences may be.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How many sequences run at once.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Tokens that end a text.
    pub(crate) fn end_tokens(&self) -> &BTreeSet<u32> {
        static NONE: BTreeSet<u32> = BTreeSet::new();
        self.texts.as_ref().map_or(&NONE, Texts::end_tokens)
    }

    /// What it has for texts.
    ///
    /// # Errors
    /// There is no tokenizer: what `needs` it.
    fn texts(&self, needs: &str) -> Result<&Texts, ApiError> {
        self.texts.as_ref().ok_or_else(|| {
            ApiError::bad_request(format!(
                "the package has no tokenizer, which {needs}; export it with --tokenizer tokenizer.json"
            ))
        })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// There is none: what `needs` it.
    pub(crate) fn tokenizer(&self, needs: &str) -> Result<&Tokenizer, ApiError> {
        Ok(self.texts(needs)?.tokenizer())
    }

    /// How tokens are told in answers.
    pub(crate) fn token_texts(&self, as_ids: bool) -> TokenTexts<'_> {
        let texts = self.texts.as_ref().filter(|_| !as_ids);
        TokenTexts {
            tokenizer: texts.map(Texts::tokenizer),
        }
    }

    /// The chat template.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn template(&self) -> Result<&ChatTemplate, ApiError> {
        let template = self.texts.as_ref().and_then(Texts::template);
        template.ok_or_else(|| {
            ApiError::bad_request(
                "the package has no chat template; export it with --tokenizer tokenizer.json --chat-template \
                 FILE, or send a text to /v1/completions",
            )
            .of("messages")
            .coded("no_chat_template")
        })
    }

    /// Whether a prompt's tokens can be scored.
    ///
    /// # Errors
    /// They cannot: the package has the logits of each chunk's last token alone.
    pub(crate) fn check_prompt_scores(&self) -> Result<(), ApiError> {
        match self.all_logits {
            true => Ok(()),
            false => Err(ApiError::bad_request(
                "`echo` with `logprobs`: the package has no logits of prompts; export it with --logits all",
            )
            .of("echo")),
        }
    }

    /// Tokens of a text, all of which the model knows; with the special tokens that `add` or the package
    /// says.
    pub(crate) fn encode(&self, text: &str, add: Option<bool>) -> Result<Vec<u32>, ApiError> {
        let encoded = self.texts("texts need")?.encode(text, add);
        encoded.map_err(|error| ApiError::bad_request(error.to_string()).of("prompt"))
    }

    /// The text of tokens of the parameter `name`; none without a tokenizer, as of answers.
    ///
    /// # Errors
    /// The tokenizer does not know one of them.
    pub(crate) fn decode(&self, name: &str, tokens: &[u32]) -> Result<String, ApiError> {
        let texts = self.texts.as_ref();
        let text = texts.map(|texts| texts.tokenizer().decode(tokens));
        let refused =
            |error: TextError| ApiError::bad_request(format!("`{name}`: {error}")).of(name);
        Ok(text.transpose().map_err(refused)?.unwrap_or_default())
    }

    /// What holds texts to a form.
    ///
    /// # Errors
    /// The form is none or too large, or the tokenizer has none of that.
    pub(crate) fn compile(&self, form: &Grammar) -> Result<CompiledGrammar, ApiError> {
        let compiled = self.texts("the form of a text needs")?.compile(form);
        compiled.map_err(|error| ApiError::bad_request(error.to_string()))
    }

    /// Whether so many requests with so many tokens in their prompts can ever be queued together.
    ///
    /// # Errors
    /// The queue is not that long.
    pub(crate) fn check_together(&self, requests: usize, tokens: usize) -> Result<(), ApiError> {
        let (most_requests, most_tokens) = self.most_together;
        let too_much = |what: &str, most: usize, found: usize| {
            let expected = format!("at most {most} {what} in one request, the length of the queue");
            Err(ApiError::parameter("prompt", &expected, found))
        };
        match () {
            () if requests > most_requests => too_much("sequences", most_requests, requests),
            () if tokens > most_tokens => too_much("tokens of prompts", most_tokens, tokens),
            () => Ok(()),
        }
    }

    /// Queues requests.
    ///
    /// # Errors
    /// The queue is full, or the service ends.
    pub fn submit(&self, requests: Vec<(Request, Box<dyn Sink>)>) -> Result<Vec<Ticket>, Refused> {
        let service = self.service.read().unwrap_or_else(PoisonError::into_inner);
        let service = service.as_ref().ok_or(Refused::Draining)?;
        service.submit(requests)
    }

    /// What is going on; nothing once it has stopped.
    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        let service = self.service.read().unwrap_or_else(PoisonError::into_inner);
        service.as_ref().map(Service::snapshot)
    }

    /// Takes no more requests.
    pub(crate) fn drain(&self) {
        let service = self.service.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(service) = service.as_ref() {
            service.drain();
        }
    }

    /// Ends what runs. Waits for a step.
    pub(crate) fn stop(&self) {
        let service = self
            .service
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(service) = service {
            drop(service.stop());
        }
    }
}

/// Tokens as answers tell them.
pub(crate) struct TokenTexts<'a> {
    tokenizer: Option<&'a Tokenizer>,
}

/// A token as answers tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenText {
    pub text: String,
    /// What it adds to a text, where that is known.
    pub bytes: Option<Vec<u8>>,
}

impl<'a> TokenTexts<'a> {
    /// Of a tokenizer's tokens; ids alone where there is none.
    pub fn new(tokenizer: Option<&'a Tokenizer>) -> Self {
        Self { tokenizer }
    }

    /// That tokenizer.
    pub fn tokenizer(&self) -> Option<&'a Tokenizer> {
        self.tokenizer
    }

    /// A token's text within others, or its name where it has none of its own: special tokens, and bytes that
    /// are no whole character.
    pub fn of(&self, token: u32) -> TokenText {
        let unknown = || TokenText {
            text: format!("token_id:{token}"),
            bytes: None,
        };
        let Some(tokenizer) = self.tokenizer else {
            return unknown();
        };
        let bytes = tokenizer
            .bytes(token)
            .ok()
            .filter(|bytes| !bytes.is_empty());
        let text = bytes
            .clone()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        match text.or_else(|| tokenizer.token(token)) {
            Some(text) => TokenText { text, bytes },
            None => unknown(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tokens_have_the_text_that_they_have_within_others() {
        let vocab =
            json!({"</s>": 0, "\u{2581}the": 1, "re": 2, "<0xE2>": 3, "<0x0A>": 4, "<unk>": 5});
        let added = json!([{"id": 0, "content": "</s>", "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false}]);
        let json = json!({
            "added_tokens": added,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        });
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        let texts = TokenTexts::new(Some(&tokenizer));
        for (token, text, bytes) in [
            (0, "</s>", None),
            (1, " the", Some(b" the".to_vec())),
            (2, "re", Some(b"re".to_vec())),
            (3, "<0xE2>", Some(vec![0xe2])),
            (4, "\n", Some(b"\n".to_vec())),
            (99, "token_id:99", None),
        ] {
            let found = texts.of(token);
            assert_eq!((found.text.as_str(), &found.bytes), (text, &bytes));
        }
    }
}
