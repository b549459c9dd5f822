//! What all handlers share: the model once it is there, what may run at once, the numbers.

use crate::auth::ApiKeys;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::openai::error::ApiError;
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use futures_util::StreamExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
/// Requests that are parsed and tokenized at once: the engine has the other cores.
const PREPARATIONS: usize = 2;

/// Whether work is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Loading,
    Ready,
    Failing,
    Draining,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Failing => "failing",
            Self::Draining => "draining",
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
                Some(snapshot) if snapshot.draining => State::Draining,
                Some(snapshot) if snapshot.failing => State::Failing,
                Some(_) => State::Ready,
                None => State::Draining,
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

    /// Begins to work on a request.
    ///
    /// # Errors
    /// Not now: the model is loading, the server ends, or it has enough to do.
    pub fn enter(&self) -> Result<Entered, ApiError> {
        if self.draining.load(Ordering::SeqCst) {
            let message = "the server is ending and takes no more requests";
            return Err(ApiError::unavailable(message, "draining"));
        }
        self.model()?;
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

    /// Reads a body and has `prepare` make something of it, on a thread that may take its time.
    pub async fn prepare<T: Send + 'static>(
        self: &Arc<Self>,
        body: Body,
        prepare: impl FnOnce(&App, &Model, &[u8]) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let read = tokio::time::timeout(self.options.idle, self.read(body)).await;
        let slow = |_| {
            let status = StatusCode::REQUEST_TIMEOUT;
            let seconds = self.options.idle.as_secs();
            ApiError::status(status, format!("the body did not come within {seconds} s"))
        };
        let (bytes, large) = read.map_err(slow)??;
        let turn = self.preparing.clone().acquire_owned().await;
        let app = self.clone();
        let prepared = tokio::task::spawn_blocking(move || {
            let _held = (large, turn);
            prepare(&app, app.model()?, &bytes)
        });
        let failed = |_| Err(ApiError::internal("the request could not be prepared"));
        prepared.await.unwrap_or_else(failed)
    }

    async fn read(&self, body: Body) -> Result<(Bytes, Option<OwnedSemaphorePermit>), ApiError> {
        let most = self.options.max_body_bytes;
        let (mut bytes, mut large) = (Vec::new(), None);
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let broken = |error| ApiError::bad_request(format!("the body broke off: {error}"));
            let chunk = chunk.map_err(broken)?;
            if bytes.len() + chunk.len() > most {
                return Err(ApiError::status(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body: expected at most {most} bytes, found more"),
                ));
            }
            if large.is_none() && bytes.len() + chunk.len() > LARGE_BODY {
                large = self.large.clone().acquire_owned().await.ok();
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok((bytes.into(), large))
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
