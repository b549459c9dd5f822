//! Errors as OpenAI's clients read them.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ratplus_runtime::generate::RequestError;
use ratplus_runtime::sampler::SampleError;
use ratplus_runtime::scheduler::Refused;
use serde_json::{Value, json};
use std::time::Duration;

/// A request that is not answered.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// The parameter that is wrong.
    pub param: Option<String>,
    pub code: Option<&'static str>,
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// Of that status.
    pub fn status(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
        }
    }

    /// 400: something of the request as a whole.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::status(StatusCode::BAD_REQUEST, message)
    }

    /// 400: a parameter that is not as expected.
    pub fn parameter(name: &str, expected: &str, found: impl std::fmt::Display) -> Self {
        Self::bad_request(format!("`{name}`: expected {expected}, found {found}")).of(name)
    }

    /// 400: a parameter that does nothing here.
    pub fn unsupported(name: &str, why: &str) -> Self {
        let message = format!("`{name}`: not supported{why}");
        Self::bad_request(message)
            .of(name)
            .coded("unsupported_parameter")
    }

    /// The same, of this parameter.
    pub fn of(mut self, name: &str) -> Self {
        self.param = Some(name.into());
        self
    }

    /// The same, with a code that programs read.
    pub fn coded(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// 404.
    pub fn not_found(message: impl Into<String>, code: &'static str) -> Self {
        Self::status(StatusCode::NOT_FOUND, message).coded(code)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        let message = "expected `Authorization: Bearer KEY` with a key that this server knows";
        Self::status(StatusCode::UNAUTHORIZED, message).coded("invalid_api_key")
    }

    /// 429: too much at once.
    pub fn busy(message: impl Into<String>, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::status(StatusCode::TOO_MANY_REQUESTS, message).coded("queue_full")
        }
    }

    /// 503: not now.
    pub fn unavailable(message: impl Into<String>, code: &'static str) -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::status(StatusCode::SERVICE_UNAVAILABLE, message).coded(code)
        }
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::status(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The object that clients read.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {
            "message": self.message,
            "type": kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, json_body(&self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A JSON answer.
pub fn json_body(value: &impl serde::Serialize) -> Response {
    let json = HeaderValue::from_static("application/json");
    match serde_json::to_vec(value) {
        Ok(bytes) => ([(header::CONTENT_TYPE, json)], Body::from(bytes)).into_response(),
        Err(error) => {
            let mut response = Response::new(Body::from(error.to_string()));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

impl From<SampleError> for ApiError {
    fn from(error: SampleError) -> Self {
        let first = error.0.first().map(|problem| problem.parameter);
        Self {
            param: first.map(str::to_owned),
            ..Self::bad_request(error.to_string())
        }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Request { ref source, .. } => {
                let param = match source {
                    RequestError::Prompt(_) => "prompt",
                    RequestError::StopToken { .. } => "stop_token_ids",
                    RequestError::EmptyStopString => "stop",
                    _ => return Self::bad_request(source.to_string()),
                };
                Self::bad_request(source.to_string()).of(param)
            }
            Refused::Full { retry_after, .. } => Self::busy(refused.to_string(), retry_after),
            Refused::Draining => Self::unavailable(
                "the server is ending and takes no more requests",
                "draining",
            ),
            other => Self::internal(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_types_and_headers() {
        let full = Refused::Full {
            what: "requests",
            limit: 4,
            found: 5,
            retry_after: Duration::from_millis(1200),
        };
        let response = ApiError::from(full).into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["content-type"], "application/json");
        let response = ApiError::unauthorized().into_response();
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        for (error, kind) in [
            (ApiError::parameter("n", "1", 2), "invalid_request_error"),
            (ApiError::not_found("", "x"), "invalid_request_error"),
            (ApiError::unauthorized(), "authentication_error"),
            (ApiError::busy("", Duration::ZERO), "rate_limit_error"),
            (ApiError::from(Refused::Draining), "server_error"),
            (ApiError::internal(""), "server_error"),
        ] {
            assert_eq!(error.body()["error"]["type"], kind);
        }
        let named = ApiError::parameter("top_k", "1 or more", "true").body();
        assert_eq!(
            named,
            json!({"error": {"message": "`top_k`: expected 1 or more, found true",
                "type": "invalid_request_error", "param": "top_k", "code": null}})
        );
    }
}
