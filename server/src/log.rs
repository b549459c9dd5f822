//! A line a request.

use crate::app::App;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is taken over.
const MAX_ID: usize = 128;

/// What is known of a request; it is logged when nobody holds it any more.
pub(crate) struct Record {
    pub id: String,
    method: Method,
    path: String,
    pub started: Instant,
    app: Arc<App>,
    work: Mutex<Work>,
}

/// What a request cost.
#[derive(Default)]
pub(crate) struct Work {
    pub status: u16,
    /// Whether the answer was made to its end.
    pub complete: bool,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub new_tokens: usize,
    /// Of the slowest of its sequences.
    pub queued: Duration,
    pub prefill: Duration,
    pub decode: Duration,
    /// Why its sequences ended.
    pub ended: Vec<&'static str>,
    /// Where they are to be logged.
    pub prompt: Option<String>,
    pub text: Option<String>,
}

impl Record {
    pub fn update(&self, change: impl FnOnce(&mut Work)) {
        change(&mut self.work.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let work = std::mem::take(self.work.get_mut().unwrap_or_else(PoisonError::into_inner));
        // A client that left before there was an answer got none.
        if work.status != 0 {
            self.app.metrics.answered(&self.path, work.status);
        }
        let (id, path, method) = (self.id.as_str(), self.path.as_str(), self.method.as_str());
        let (status, seconds) = (work.status, self.started.elapsed().as_secs_f64());
        let answer = if work.complete { "complete" } else { "cut off" };
        if work.ended.is_empty() {
            match path {
                // What asks every few seconds.
                "/health" | "/ready" | "/metrics" | "/slots" => {
                    tracing::debug!(id, method, path, status, answer, seconds, "request");
                }
                _ => tracing::info!(id, method, path, status, answer, seconds, "request"),
            }
            return;
        }
        let (prompt_tokens, cached_tokens) = (work.prompt_tokens, work.cached_tokens);
        tracing::info!(
            id,
            method,
            path,
            status,
            answer,
            seconds,
            prompt_tokens,
            cached_tokens,
            new_tokens = work.new_tokens,
            queued = work.queued.as_secs_f64(),
            prefill = work.prefill.as_secs_f64(),
            decode = work.decode.as_secs_f64(),
            ended = work.ended.join(","),
            prompt = work.prompt,
            text = work.text,
            "request"
        );
    }
}

/// Gives a request its id and has it logged once its answer is out.
pub(crate) async fn record(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let record = Arc::new(Record {
        id: request_id(request.headers()),
        method: request.method().clone(),
        path: known_path(request.uri().path()),
        started: Instant::now(),
        app,
        work: Mutex::default(),
    });
    request.extensions_mut().insert(record.clone());
    let mut response = next.run(request).await;
    if let Ok(id) = HeaderValue::from_str(&record.id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    record.update(|work| work.status = response.status().as_u16());
    response.map(|inner| Body::new(Recorded { inner, record }))
}

/// Paths that are logged and counted; others are as many as clients like.
fn known_path(path: &str) -> String {
    match crate::routes::PATHS.contains(&path) {
        true => path.into(),
        false => "other".into(),
    }
}

fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID);
    let given = given.and_then(|id| id.to_str().ok()).filter(|id| {
        (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    });
    given.map_or_else(
        || format!("req-{:016x}", rand::random::<u64>()),
        str::to_owned,
    )
}

/// A body that keeps its request's record until it is out.
struct Recorded {
    inner: Body,
    record: Arc<Record>,
}

impl http_body::Body for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(None) = frame {
            self.record.update(|work| work.complete = true);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        let ended = self.inner.is_end_stream();
        if ended {
            self.record.update(|work| work.complete = true);
        }
        ended
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_over_where_it_can_be_shown() {
        let id = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
            request_id(&headers)
        };
        assert_eq!(id(b"abc-1"), "abc-1");
        for other in [&b"a b"[..], b"", b"\xff", &[b'x'; 129]] {
            assert!(id(other).starts_with("req-"), "{other:?}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
