//! What sequences say becomes an answer.

use super::error::{ApiError, json_body};
use super::job::{Job, Kind, Prompt};
use super::logprobs::Logprobs;
use crate::app::{App, Entered, SCHEDULER_ENDED, State, unix_seconds};
use crate::log::Record;
use crate::metrics::finish_reason;
use crate::model::TokenTexts;
use crate::sink::Counted;
use axum::http::StatusCode;
use axum::response::Response;
use ratplus_runtime::scheduler::{Ended, Finished, Refused, Score, Sink, Ticket, Update};
use serde::Serialize;
use std::sync::Arc;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::mpsc::{self, UnboundedReceiver};

/// Scores of more tokens than this are made text beside the threads of sockets.
const MANY_SCORES: usize = 256;

/// A job whose sequences run; they are cancelled when it is dropped.
pub struct Running {
    pub app: Arc<App>,
    pub record: Arc<Record>,
    pub head: Head,
    pub choices: Vec<Choice>,
    updates: UnboundedReceiver<(usize, Update)>,
    /// Choices that have not ended.
    left: usize,
    tickets: Vec<Ticket>,
    _entered: Entered,
}

/// What every part of an answer says.
#[derive(Clone, Debug)]
pub struct Head {
    pub kind: Kind,
    pub id: String,
    pub created: u64,
    pub model: String,
    /// Choices of one prompt.
    pub n: usize,
    pub logprobs: bool,
    pub include_usage: bool,
    pub tokens_as_ids: bool,
    /// The parameter that says what form the text has to have.
    form: Option<&'static str>,
}

/// One choice, as far as it is.
pub struct Choice {
    /// A prompt that is part of the answer and was not told yet.
    echo: Option<Prompt>,
    /// Characters of the tokens that scores were told of.
    offset: usize,
    /// Nothing was told yet.
    pub first: bool,
    finished: Option<Finished>,
}

/// What is new of a choice.
#[derive(Debug)]
pub struct Piece {
    pub choice: usize,
    pub text: String,
    pub logprobs: Option<Logprobs>,
    pub finish_reason: Option<&'static str>,
}

/// Tokens that an answer cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct PromptDetails {
    cached_tokens: usize,
}

/// A choice as it is written.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Written {
    Text {
        index: usize,
        text: String,
        logprobs: Option<Logprobs>,
        finish_reason: Option<&'static str>,
    },
    Message {
        index: usize,
        message: Message,
        logprobs: Option<Logprobs>,
        finish_reason: Option<&'static str>,
    },
    Delta {
        index: usize,
        delta: Delta,
        logprobs: Option<Logprobs>,
        finish_reason: Option<&'static str>,
    },
}

/// A whole message of a chat.
#[derive(Debug, Serialize)]
pub struct Message {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

/// What is new of a message.
#[derive(Debug, Default, Serialize)]
pub struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// An answer, or a part of a streamed one.
#[derive(Debug, Serialize)]
pub struct Envelope<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [Written],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

impl Head {
    /// Around `choices` of an answer or of a part of a streamed one. `usage`: left out, null, or what it is.
    pub fn around<'a>(
        &'a self,
        streamed: bool,
        choices: &'a [Written],
        usage: Option<Option<Usage>>,
    ) -> Envelope<'a> {
        Envelope {
            id: &self.id,
            object: self.kind.object(streamed),
            created: self.created,
            model: &self.model,
            choices,
            usage,
        }
    }
}

impl Running {
    /// Queues a job.
    ///
    /// # Errors
    /// The scheduler refuses it.
    pub fn start(
        app: Arc<App>,
        entered: Entered,
        record: Arc<Record>,
        job: Job,
    ) -> Result<Self, ApiError> {
        let (send, updates) = mpsc::unbounded_channel();
        let deadline = app.deadline(record.started);
        let requests = job.requests.into_iter().enumerate();
        let requests = requests.map(|(choice, mut request)| {
            request.deadline = deadline;
            let sink = Counted::new(choice, send.clone(), app.metrics.clone());
            (request, Box::new(sink) as Box<dyn Sink>)
        });
        let n = job.generation.n;
        let choices: Vec<_> = job
            .prompts
            .iter()
            .flat_map(|prompt| std::iter::repeat_n(prompt, n))
            .map(|prompt| Choice {
                echo: prompt.echo.as_ref().map(|text| Prompt {
                    tokens: match job.prompt_logprobs {
                        true => prompt.tokens.clone(),
                        false => Vec::new(),
                    },
                    echo: Some(text.clone()),
                }),
                offset: 0,
                first: true,
                finished: None,
            })
            .collect();
        let tickets = app.model()?.submit(requests.collect());
        let tickets = tickets.map_err(|refused| match refused {
            Refused::Draining => app.closed(),
            other => other.into(),
        })?;
        if app.options.log_prompts {
            record.update(|work| {
                let prompts: Vec<_> = job.prompts.iter().map(|prompt| &prompt.tokens).collect();
                work.prompt = Some(format!("{prompts:?}"));
                work.text = Some(String::new());
            });
        }
        Ok(Self {
            head: Head {
                kind: job.kind,
                id: format!("{}-{:032x}", job.kind.id_prefix(), rand::random::<u128>()),
                created: unix_seconds(),
                model: app.options.model_name.clone(),
                n,
                logprobs: job.logprobs.is_some(),
                include_usage: job.generation.include_usage,
                tokens_as_ids: job.generation.tokens_as_ids,
                form: job.generation.form.map(|(name, _)| name),
            },
            left: choices.len(),
            choices,
            updates,
            tickets,
            app,
            record,
            _entered: entered,
        })
    }

    /// What is new next; none once all choices have ended.
    ///
    /// # Errors
    /// A choice has failed; all are cancelled.
    pub async fn next(&mut self) -> Result<Option<Piece>, ApiError> {
        if self.left == 0 {
            return Ok(None);
        }
        let Some((index, update)) = self.updates.recv().await else {
            return Err(self.fail(ApiError::internal(SCHEDULER_ENDED)));
        };
        let model = self.app.model()?;
        let texts = model.token_texts(self.head.tokens_as_ids);
        let choice = &mut self.choices[index];
        let scores = match &update {
            Update::Prompt(scores) => scores.len(),
            _ => 0,
        };
        let mut piece = aside(scores, || choice.piece(index, update, &self.head, &texts));
        if self.app.options.log_prompts {
            self.record.update(|work| {
                let text = work.text.get_or_insert_default();
                *text += &piece.text;
            });
        }
        let Some(finished) = &choice.finished else {
            return Ok(Some(piece));
        };
        self.record.update(|work| {
            let timing = &finished.timing;
            // A prompt counts once, whatever choices it has.
            if index % self.head.n == 0 {
                work.prompt_tokens += finished.prompt_tokens;
                work.cached_tokens += finished.cached_tokens;
            }
            work.new_tokens += finished.new_tokens;
            work.queued = work.queued.max(timing.queued);
            work.prefill = work.prefill.max(timing.prefill);
            work.decode = work.decode.max(timing.decode);
            work.ended.push(finish_reason(&finished.ended));
        });
        if let Some(error) = failure(finished, &self.app, self.head.form) {
            return Err(self.fail(error));
        }
        piece.finish_reason = Some(finish_reason(&finished.ended));
        self.left -= 1;
        Ok(Some(piece))
    }

    fn fail(&mut self, error: ApiError) -> ApiError {
        self.left = 0;
        self.tickets.clear();
        error
    }

    /// What it cost, once all choices have ended.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for (index, choice) in self.choices.iter().enumerate() {
            let Some(finished) = &choice.finished else {
                continue;
            };
            if index % self.head.n == 0 {
                usage.prompt_tokens += finished.prompt_tokens;
                usage.prompt_tokens_details.cached_tokens += finished.cached_tokens;
            }
            usage.completion_tokens += finished.new_tokens;
        }
        usage.total_tokens = usage.prompt_tokens + usage.completion_tokens;
        usage
    }

    /// The answer in one piece.
    ///
    /// # Errors
    /// A choice has failed.
    pub async fn whole(mut self) -> Result<Response, ApiError> {
        let mut whole: Vec<_> = (0..self.choices.len())
            .map(|choice| Piece {
                choice,
                text: String::new(),
                logprobs: self.head.logprobs.then(|| Logprobs::new(self.head.kind)),
                finish_reason: None,
            })
            .collect();
        while let Some(piece) = self.next().await? {
            let choice = &mut whole[piece.choice];
            choice.text += &piece.text;
            choice.finish_reason = piece.finish_reason;
            if let (Some(all), Some(more)) = (&mut choice.logprobs, piece.logprobs) {
                all.extend(more);
            }
        }
        let scores = whole.iter().flat_map(|piece| &piece.logprobs);
        let scores = scores.map(Logprobs::len).sum();
        let written = whole.into_iter().map(|piece| match self.head.kind {
            Kind::Completion => Written::Text {
                index: piece.choice,
                text: piece.text,
                logprobs: piece.logprobs,
                finish_reason: piece.finish_reason,
            },
            Kind::Chat => Written::Message {
                index: piece.choice,
                message: Message {
                    role: "assistant",
                    content: piece.text,
                    refusal: None,
                },
                logprobs: piece.logprobs,
                finish_reason: piece.finish_reason,
            },
        });
        let choices: Vec<_> = written.collect();
        let usage = Some(Some(self.usage()));
        let answer = self.head.around(false, &choices, usage);
        Ok(aside(scores, || json_body(&answer)))
    }
}

impl Choice {
    fn piece(
        &mut self,
        index: usize,
        update: Update,
        head: &Head,
        texts: &TokenTexts<'_>,
    ) -> Piece {
        let mut piece = Piece {
            choice: index,
            text: String::new(),
            logprobs: None,
            finish_reason: None,
        };
        let mut scored: Vec<(u32, Option<Score>)> = Vec::new();
        if let Some(echo) = self.echo.take() {
            piece.text += &echo.echo.unwrap_or_default();
            let scores = match &update {
                Update::Prompt(scores) => scores.as_slice(),
                _ => &[],
            };
            // Nothing comes before the first token, which has no score.
            let scores = std::iter::once(None).chain(scores.iter().cloned().map(Some));
            scored.extend(echo.tokens.into_iter().zip(scores));
        }
        match update {
            Update::Prompt(_) => {}
            Update::Token(new) => {
                piece.text += &new.text;
                scored.extend(new.score.map(|score| (new.token, Some(score))));
            }
            Update::Finished(finished) => {
                piece.text += &finished.text;
                self.finished = Some(finished);
            }
        }
        if head.logprobs && !scored.is_empty() {
            let mut logprobs = Logprobs::new(head.kind);
            for (token, score) in scored {
                logprobs.push(texts, &mut self.offset, token, score);
            }
            piece.logprobs = Some(logprobs);
        }
        piece
    }
}

/// Does `work` on scores of so many tokens; beside the threads of sockets where that takes long.
pub fn aside<T>(scores: usize, work: impl FnOnce() -> T) -> T {
    let others = || Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
    match scores > MANY_SCORES && others() {
        true => tokio::task::block_in_place(work),
        false => work(),
    }
}

/// The error that an end means to a client, where it is one; `form` is the parameter that says what the text has to
/// be.
fn failure(finished: &Finished, app: &App, form: Option<&str>) -> Option<ApiError> {
    let internal = StatusCode::INTERNAL_SERVER_ERROR;
    let (status, message, code) = match &finished.ended {
        Ended::MaxNewTokens | Ended::StopToken | Ended::StopString(_) | Ended::MaxSeqLen => {
            return None;
        }
        Ended::Deadline => return Some(app.late(finished.new_tokens)),
        Ended::Stopped | Ended::Cancelled => {
            let message = match app.state() {
                State::Ended => SCHEDULER_ENDED,
                _ => "the server ended before the answer did; ask another, or again later",
            };
            (StatusCode::SERVICE_UNAVAILABLE, message.into(), "stopped")
        }
        Ended::NonFinite(found) => (
            internal,
            format!(
                "expected logits that are finite, found {} for token {}; the model overflows on this prompt",
                found.value, found.token
            ),
            "non_finite_logits",
        ),
        Ended::Constraint(why) => {
            let form = form.unwrap_or("response_format");
            let message = format!(
                "`{form}`: expected a form that the text can go on with, found none after {} tokens: {why}; \
                 simplify it",
                finished.new_tokens
            );
            let error = ApiError::bad_request(message);
            return Some(error.of(form).coded("constraint"));
        }
        Ended::Failed(why) => (internal, why.clone(), "failed"),
        _ => {
            return Some(ApiError::internal("the sequence ended unexpectedly"));
        }
    };
    Some(ApiError::status(status, message).coded(code))
}
