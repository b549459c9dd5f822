//! What all handlers share: the model once it is there, what may run at once, the numbers.

use crate::auth::ApiKeys;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::openai::error::ApiError;
use axum::body::Body;
use axum::http::StatusCode;
use futures_util::StreamExt;
use ratplus_runtime::scheduler::Refused;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// How a server takes requests.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// What the model is called.
    pub model_name: String,
    /// Keys of which a request has to bring one.
    pub api_keys: ApiKeys,
    /// Longest body of a request.
    pub max_body_bytes: usize,
    /// Most tokens of a prompt; none for as many as the package takes.
    pub max_prompt_tokens: Option<usize>,
    /// Most requests that are read, wait, run or are written at once.
    pub max_concurrent_requests: usize,
    /// How long a request may take from its arrival; none for as long as it takes.
    pub request_timeout: Option<Duration>,
    /// How long a client may take to send headers or a body, to take what it is sent, or between requests.
    pub idle: Duration,
    /// How long requests may go on once the server ends.
    pub drain: Duration,
    /// Prompts and texts are written to the log.
    pub log_prompts: bool,
}

impl Options {
    /// For a model of that name: bodies of 8 MiB, 512 requests at once, a minute for idle clients, half a minute to
    /// drain, no keys, no time limit.
    pub fn new(model_name: impl Into<String>) -> Self {
        Self {
            model_name: model_name.into(),
            api_keys: ApiKeys::default(),
            max_body_bytes: 8 << 20,
            max_prompt_tokens: None,
            max_concurrent_requests: 512,
            request_timeout: None,
            idle: Duration::from_secs(60),
            drain: Duration::from_secs(30),
            log_prompts: false,
        }
    }
}

/// Bodies above this many bytes are large, and so many of them are held at once.
const LARGE_BODY: usize = 64 << 10;
const LARGE_BODIES: usize = 16;
/// Requests that are parsed and tokenized at once, and others that take long: the engine has the other cores.
const PREPARATIONS: usize = 2;
const LONG_PREPARATIONS: usize = 1;
/// Texts above this many bytes take long to become tokens.
pub(crate) const LONG_TEXT: usize = 8 << 10;
/// What clients of a scheduler that panicked are told.
pub(crate) const SCHEDULER_ENDED: &str =
    "the scheduler has panicked, as the log says, and takes no more requests; restart the server";

/// A body that is parsed, of one of the routes that take one.
pub(crate) trait Asked: Sized + Send + 'static {
    /// What it becomes.
    type Prepared: Send + 'static;

    /// Parses a body for the model of that name with so many tokens; quick for its length.
    ///
    /// # Errors
    /// What is wrong with it, by its parameter.
    fn parse(model_name: &str, vocab_size: usize, body: &[u8]) -> Result<Self, ApiError>;

    /// Whether the rest takes long: a grammar is compiled, or more than [`LONG_TEXT`] becomes tokens.
    fn takes_long(&self) -> bool;

    /// Makes what was asked for.
    ///
    /// # Errors
    /// The model cannot do that; which parameter asks for it.
    fn prepare(self, app: &App, model: &Model) -> Result<Self::Prepared, ApiError>;
}

/// Whether work is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Loading,
    Ready,
    Failing,
    Draining,
    /// Its scheduler has panicked.
    Ended,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Failing => "failing",
            Self::Draining => "draining",
            Self::Ended => "ended",
        }
    }
}

/// What all handlers share.
pub(crate) struct App {
    pub options: Options,
    pub metrics: Arc<Metrics>,
    /// When it started, in seconds since 1970.
    pub created: u64,
    model: OnceLock<Model>,
    draining: AtomicBool,
    work: Arc<Semaphore>,
    large: Arc<Semaphore>,
    preparing: Arc<Semaphore>,
    long_preparing: Arc<Semaphore>,
}

/// A request that is being worked on; others may be refused for it.
pub(crate) struct Entered {
    _permit: OwnedSemaphorePermit,
}

impl App {
    pub fn new(options: Options) -> Arc<Self> {
        Arc::new(Self {
            metrics: Arc::new(Metrics::new(&options.model_name)),
            created: unix_seconds(),
            model: OnceLock::new(),
            draining: AtomicBool::new(false),
            work: Arc::new(Semaphore::new(options.max_concurrent_requests)),
            large: Arc::new(Semaphore::new(LARGE_BODIES)),
            preparing: Arc::new(Semaphore::new(PREPARATIONS)),
            long_preparing: Arc::new(Semaphore::new(LONG_PREPARATIONS)),
            options,
        })
    }

    /// Takes work from now on.
    pub fn loaded(&self, model: Model) {
        // There is one load.
        let _ = self.model.set(model);
    }

    /// Takes no more.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        if let Some(model) = self.model.get() {
            model.drain();
        }
    }

    /// Waits until nothing is worked on.
    pub async fn idle(&self) {
        let all = self.options.max_concurrent_requests as u32;
        let _ = self.work.acquire_many(all).await;
    }

    /// Ends what runs.
    pub fn stop(&self) {
        if let Some(model) = self.model.get() {
            model.stop();
        }
    }

    pub fn state(&self) -> State {
        let snapshot = || self.model.get()?.snapshot();
        match () {
            () if self.draining.load(Ordering::SeqCst) => State::Draining,
            () if self.model.get().is_none() => State::Loading,
            () => match snapshot() {
                Some(now) if now.ended => State::Ended,
                Some(now) if now.failing => State::Failing,
                Some(now) if !now.draining => State::Ready,
                _ => State::Draining,
            },
        }
    }

    /// The model.
    ///
    /// # Errors
    /// It is not there yet.
    pub fn model(&self) -> Result<&Model, ApiError> {
        let loading = || ApiError::unavailable("the model is loading; try again later", "loading");
        self.model.get().ok_or_else(loading)
    }

    /// Why no more work is taken.
    pub fn closed(&self) -> ApiError {
        match self.state() {
            State::Ended => ApiError::unavailable(SCHEDULER_ENDED, "scheduler_ended"),
            _ => Refused::Draining.into(),
        }
    }

    /// Begins to work on a request.
    ///
    /// # Errors
    /// Not now: the model is loading, the server ends, or it has enough to do.
    pub fn enter(&self) -> Result<Entered, ApiError> {
        match self.state() {
            State::Draining | State::Ended => return Err(self.closed()),
            _ => self.model()?,
        };
        match self.work.clone().try_acquire_owned() {
            Ok(permit) => Ok(Entered { _permit: permit }),
            Err(_) => Err(ApiError::busy(
                format!(
                    "expected at most {} requests at once; try again later",
                    self.options.max_concurrent_requests
                ),
                Duration::from_secs(1),
            )),
        }
    }

    /// When the time of a request that began at `started` is over.
    pub fn deadline(&self, started: std::time::Instant) -> Option<std::time::Instant> {
        let timeout = self.options.request_timeout;
        timeout.and_then(|timeout| started.checked_add(timeout))
    }

    /// The error of a request whose time is over.
    pub fn late(&self, new_tokens: usize) -> ApiError {
        let seconds = self.options.request_timeout.unwrap_or_default();
        let message = format!(
            "expected an answer within {} s of the request, found its time over after {new_tokens} new tokens; ask \
             for fewer, or when less is going on",
            seconds.as_secs_f64()
        );
        ApiError::status(StatusCode::GATEWAY_TIMEOUT, message).coded("deadline")
    }

    /// Reads the body of a request that began at `started` and makes of it what it asks for, on threads that may take
    /// their time.
    pub async fn prepare<A: Asked>(
        self: &Arc<Self>,
        started: std::time::Instant,
        body: Body,
    ) -> Result<A::Prepared, ApiError> {
        let prepared = self.prepare_whenever::<A>(body);
        let Some(deadline) = self.deadline(started) else {
            return prepared.await;
        };
        match timeout_at(deadline.into(), prepared).await {
            Ok(prepared) => prepared,
            Err(_) => Err(self.late(0)),
        }
    }

    async fn prepare_whenever<A: Asked>(
        self: &Arc<Self>,
        body: Body,
    ) -> Result<A::Prepared, ApiError> {
        let (bytes, large) = self.read(body).await?;
        let parse = move |app: &App, model: &Model| {
            let limits = model.limits();
            A::parse(&app.options.model_name, limits.vocab_size, &bytes)
        };
        // What takes long keeps nobody waiting but its own kind.
        if let Some(held) = large {
            let all = move |app: &App, model: &Model| {
                let _held = held;
                parse(app, model)?.prepare(app, model)
            };
            return self.on(&self.long_preparing, all).await;
        }
        let short = move |app: &App, model: &Model| match parse(app, model)? {
            asked if asked.takes_long() => Ok(Err(asked)),
            asked => asked.prepare(app, model).map(Ok),
        };
        match self.on(&self.preparing, short).await? {
            Ok(prepared) => Ok(prepared),
            Err(asked) => {
                let rest = move |app: &App, model: &Model| asked.prepare(app, model);
                self.on(&self.long_preparing, rest).await
            }
        }
    }

    /// Does `work` on a thread for that, once it is its turn among what `lane` has.
    async fn on<T: Send + 'static>(
        self: &Arc<Self>,
        lane: &Arc<Semaphore>,
        work: impl FnOnce(&App, &Model) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = lane.clone().acquire_owned().await;
        let app = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&app, app.model()?)
        });
        done.await.unwrap_or_else(|_| {
            let message = "reading this request panicked, as the log says; others go on";
            Err(ApiError::internal(message))
        })
    }

    async fn read(&self, body: Body) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), ApiError> {
        let slow = |_| {
            let status = StatusCode::REQUEST_TIMEOUT;
            let seconds = self.options.idle.as_secs_f64();
            let message = format!(
                "the body: expected all of it within {seconds} s, found less; send it faster"
            );
            ApiError::status(status, message)
        };
        let most = self.options.max_body_bytes;
        let (mut bytes, mut large) = (Vec::new(), None);
        let mut chunks = body.into_data_stream();
        let mut until = Instant::now() + self.options.idle;
        while let Some(chunk) = timeout_at(until, chunks.next()).await.map_err(slow)? {
            let broken = |error| ApiError::bad_request(format!("the body broke off: {error}"));
            let chunk = chunk.map_err(broken)?;
            if bytes.len() + chunk.len() > most {
                return Err(ApiError::status(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body: expected at most {most} bytes, found more"),
                ));
            }
            if large.is_none() && bytes.len() + chunk.len() > LARGE_BODY {
                // The server keeps the client waiting here.
                let begun = Instant::now();
                large = self.large.clone().acquire_owned().await.ok();
                until += begun.elapsed();
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok((bytes, large))
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
