//! Which path does what.

use crate::app::{App, Asked, SCHEDULER_ENDED, State as Readiness};
use crate::log::{Record, record};
use crate::model::Model;
use crate::openai::answer::Running;
use crate::openai::chat::Chat;
use crate::openai::completions::Completion;
use crate::openai::error::{ApiError, json_body};
use crate::openai::job::Job;
use crate::openai::stream;
use crate::openai::tokenize::{Detokenize, Tokenize};
use crate::page::page;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use serde_json::{Value, json};
use std::any::Any;
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;

/// All of them.
pub(crate) const PATHS: [&str; 10] = [
    "/",
    "/health",
    "/ready",
    "/metrics",
    "/slots",
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
    "/tokenize",
    "/detokenize",
];

type Shared = State<Arc<App>>;
type Answer = Result<Response, ApiError>;

/// The routes of a server.
pub(crate) fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .route("/slots", get(slots))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(one_model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route_layer(from_fn_with_state(app.clone(), admit));
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .merge(guarded)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(app.clone(), record))
        .with_state(app)
}

async fn admit(State(app): Shared, request: Request, next: Next) -> Answer {
    match app.options.api_keys.admit(request.headers()) {
        true => Ok(next.run(request).await),
        false => Err(ApiError::unauthorized()),
    }
}

async fn not_found(request: Request) -> ApiError {
    let message = format!("no such route: {} {}", request.method(), shown(&request));
    ApiError::not_found(message, "not_found")
}

/// A path in a message, cut where it is long.
fn shown(request: &Request) -> String {
    request.uri().path().chars().take(80).collect()
}

async fn method_not_allowed(request: Request) -> ApiError {
    // The header `Allow` is the router's.
    let message = format!(
        "{} {}: expected another method, as the header `Allow` says",
        request.method(),
        shown(&request)
    );
    ApiError::status(StatusCode::METHOD_NOT_ALLOWED, message)
}

fn panicked(_: Box<dyn Any + Send>) -> Response {
    ApiError::internal("the handler of this request panicked; others go on").into_response()
}

async fn health(State(app): Shared) -> Answer {
    match app.state() {
        // No waiting helps.
        Readiness::Ended => Err(ApiError::internal(SCHEDULER_ENDED).coded("scheduler_ended")),
        _ => Ok(json_body(&json!({"status": "ok"}))),
    }
}

async fn ready(State(app): Shared) -> Response {
    let state = app.state();
    let status = match state {
        Readiness::Ready => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, json_body(&json!({"status": state.name()}))).into_response()
}

async fn metrics(State(app): Shared) -> Response {
    let snapshot = app.model().ok().and_then(Model::snapshot);
    let text = app.metrics.text(snapshot.as_ref());
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn slots(State(app): Shared) -> Answer {
    let snapshot = app.model()?.snapshot();
    let snapshot =
        snapshot.ok_or_else(|| ApiError::unavailable("the server has ended", "draining"))?;
    let max_seq_len = app.model()?.limits().max_seq_len;
    let slots = snapshot.slots.iter().map(|slot| {
        json!({
            "activity": format!("{:?}", slot.activity).to_lowercase(),
            "request": slot.request,
            "prompt_tokens": slot.prompt_tokens,
            "cached_tokens": slot.cached_tokens,
            "past_tokens": slot.past_tokens,
            "new_tokens": slot.new_tokens,
            "age_seconds": slot.age.as_secs_f64(),
        })
    });
    let (prefix, totals) = (&snapshot.prefix, &snapshot.totals);
    Ok(json_body(&json!({
        "model": app.options.model_name,
        "state": app.state().name(),
        "max_seq_len": max_seq_len,
        "slots": slots.collect::<Vec<_>>(),
        "queued_requests": snapshot.queued_requests,
        "queued_tokens": snapshot.queued_tokens,
        "cache_use": snapshot.cache_use,
        "prefix_cache": {
            "budget_bytes": prefix.budget_bytes,
            "bytes": prefix.bytes,
            "checkpoints": prefix.checkpoints,
            "queried_tokens": prefix.queried_tokens,
            "hit_tokens": prefix.hit_tokens,
            "evicted": prefix.evicted,
        },
        "totals": {
            "submitted": totals.submitted,
            "finished": totals.finished,
            "prompt_tokens": totals.prompt_tokens,
            "new_tokens": totals.new_tokens,
            "prefill_steps": totals.prefill_steps,
            "prefill_seconds": totals.prefill_time.as_secs_f64(),
            "decode_steps": totals.decode_steps,
            "decode_seconds": totals.decode_time.as_secs_f64(),
            "backend_errors": totals.backend_errors,
            "replayed": totals.replayed,
        },
    })))
}

/// A model as OpenAI lists it.
fn model_object(app: &App, model: &Model) -> Value {
    json!({
        "id": app.options.model_name,
        "object": "model",
        "created": app.created,
        "owned_by": "ratplus",
        "max_model_len": model.limits().max_seq_len,
        "slots": model.slots(),
    })
}

async fn models(State(app): Shared) -> Answer {
    let model = model_object(&app, app.model()?);
    Ok(json_body(&json!({"object": "list", "data": [model]})))
}

async fn one_model(
    State(app): Shared,
    axum::extract::Path(name): axum::extract::Path<String>,
) -> Answer {
    let model = app.model()?;
    match name == app.options.model_name {
        true => Ok(json_body(&model_object(&app, model))),
        false => Err(ApiError::not_found(
            format!(
                "expected the model `{}`, found another name",
                app.options.model_name
            ),
            "model_not_found",
        )),
    }
}

async fn completions(app: Shared, record: Extension<Arc<Record>>, body: Body) -> Answer {
    generate::<Completion>(app, record, body).await
}

async fn chat(app: Shared, record: Extension<Arc<Record>>, body: Body) -> Answer {
    generate::<Chat>(app, record, body).await
}

async fn generate<A: Asked<Prepared = Job>>(
    State(app): Shared,
    Extension(record): Extension<Arc<Record>>,
    body: Body,
) -> Answer {
    let entered = app.enter()?;
    let job = app.prepare::<A>(record.started, body).await?;
    let streamed = job.generation.stream;
    let running = Running::start(app, entered, record, job)?;
    match streamed {
        true => Ok(stream::stream(running)),
        false => running.whole().await,
    }
}

async fn tokenize(
    State(app): Shared,
    Extension(record): Extension<Arc<Record>>,
    body: Body,
) -> Answer {
    let _entered = app.enter()?;
    let told = app.prepare::<Tokenize>(record.started, body).await?;
    Ok(json_body(&told))
}

async fn detokenize(
    State(app): Shared,
    Extension(record): Extension<Arc<Record>>,
    body: Body,
) -> Answer {
    let _entered = app.enter()?;
    let told = app.prepare::<Detokenize>(record.started, body).await?;
    Ok(json_body(&told))
}

#[cfg(test)]
mod tests;
