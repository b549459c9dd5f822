//! `/`: a page to try the model on.

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

/// The page; `NONCE` in it is written anew for every answer.
const PAGE: &str = include_str!("page.html");
const NONCE: &str = "NONCE";

/// The page, which loads nothing from elsewhere and may run no script but its own.
pub(crate) async fn page() -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    let html = PAGE.replace(NONCE, &nonce);
    let mut response = ([(header::CONTENT_TYPE, kind)], html).into_response();
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
    ] {
        let name = HeaderName::from_static(name);
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        assert!(PAGE.len() < 32 << 10);
        for outside in [
            "http://",
            "https://",
            "src=",
            "@import",
            "url(",
            "innerHTML",
            "eval(",
        ] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
        // Both the style and the script are allowed, and nothing is written in attributes, which the policy forbids.
        assert_eq!(PAGE.matches("nonce=\"NONCE\"").count(), 2);
        for attribute in [" style=\"", " onclick=", " onsubmit=", " oninput="] {
            assert!(!PAGE.contains(attribute), "{attribute}");
        }
    }
}
