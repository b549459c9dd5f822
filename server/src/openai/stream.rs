//! Answers in parts: server-sent events as OpenAI's clients read them.

use super::answer::{Delta, Piece, Running, Written, aside};
use super::error::ApiError;
use super::job::Kind;
use super::logprobs::Logprobs;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde::Serialize;
use std::convert::Infallible;

/// What comes after all parts.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// The answer of `running`, event by event.
pub fn stream(running: Running) -> Response {
    let events = futures_util::stream::unfold(Some(running), |running| async move {
        let mut running = running?;
        loop {
            let (events, running) = match running.next().await {
                // Nothing to tell yet: characters or a stop string are not whole.
                Ok(Some(piece)) => {
                    let scores = piece.logprobs.as_ref().map_or(0, Logprobs::len);
                    match aside(scores, || part(&mut running, piece)) {
                        events if events.is_empty() => continue,
                        events => (events, Some(running)),
                    }
                }
                Ok(None) => (ending(&running), None),
                Err(error) => (failed(&error), None),
            };
            return Some((Ok::<_, Infallible>(Bytes::from(events)), running));
        }
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // For proxies that would gather parts.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn event(out: &mut Vec<u8>, data: &impl Serialize) {
    out.extend(b"data: ");
    // Texts and numbers: what cannot fail.
    let _ = serde_json::to_writer(&mut *out, data);
    out.extend(b"\n\n");
}

/// Events of what is new.
fn part(running: &mut Running, piece: Piece) -> Vec<u8> {
    let Piece {
        choice: index,
        text,
        logprobs,
        finish_reason,
    } = piece;
    if text.is_empty() && logprobs.is_none() && finish_reason.is_none() {
        return Vec::new();
    }
    let first = std::mem::take(&mut running.choices[index].first);
    let head = &running.head;
    let mut events = Vec::new();
    let usage = head.include_usage.then_some(None);
    let mut write = |written: Written| {
        event(&mut events, &head.around(true, &[written], usage));
    };
    match head.kind {
        Kind::Completion => write(Written::Text {
            index,
            text,
            logprobs,
            finish_reason,
        }),
        Kind::Chat => {
            let delta = |delta, logprobs, finish_reason| Written::Delta {
                index,
                delta,
                logprobs,
                finish_reason,
            };
            if first {
                let role = Delta {
                    role: Some("assistant"),
                    content: Some(String::new()),
                };
                write(delta(role, None, None));
            }
            let content = Some(text).filter(|text| !text.is_empty() || logprobs.is_some());
            if content.is_some() {
                let content = Delta {
                    role: None,
                    content,
                };
                write(delta(content, logprobs, None));
            }
            if finish_reason.is_some() {
                write(delta(Delta::default(), None, finish_reason));
            }
        }
    }
    events
}

/// Events after the last part.
fn ending(running: &Running) -> Vec<u8> {
    let head = &running.head;
    let mut events = Vec::new();
    if head.include_usage {
        let usage = Some(Some(running.usage()));
        event(&mut events, &head.around(true, &[], usage));
    }
    events.extend(DONE);
    events
}

/// Events of a stream that ends before its time.
fn failed(error: &ApiError) -> Vec<u8> {
    let mut events = Vec::new();
    event(&mut events, &error.body());
    events.extend(DONE);
    events
}
