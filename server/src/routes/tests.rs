//! Routes while nothing is loaded; what a model answers is tested over sockets, in tests/.

use super::*;
use crate::app::Options;
use crate::auth::ApiKeys;
use axum::http::Method;
use ratplus_exporter::checkpoint::{Checkpoint, ReadOptions};
use ratplus_exporter::package::{CheckpointWeights, PackageOptions, write};
use ratplus_exporter::resolve::{ResolveOptions, resolve};
use ratplus_runtime::backend::{BackendKind, Session};
use ratplus_runtime::package::Package;
use ratplus_runtime::scheduler::{self, Update};
use ratplus_tests::golden_case;
use ratplus_tests::http::eventually;
use tower::ServiceExt;

struct Answered {
    status: u16,
    headers: axum::http::HeaderMap,
    body: String,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

fn ask(app: &Arc<App>, method: &str, path: &str, headers: &[(&str, &str)]) -> Answered {
    let mut request = Request::new(Body::from("{}"));
    *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
    *request.uri_mut() = path.parse().unwrap();
    for (name, value) in headers {
        let name = axum::http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().build().unwrap().block_on(async {
        let response = router(app.clone()).oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        Answered {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    })
}

#[test]
fn while_it_loads_it_lives_and_is_not_ready() {
    let app = App::new(Options::new("kjv"));
    assert_eq!(ask(&app, "GET", "/health", &[]).status, 200);
    let ready = ask(&app, "GET", "/ready", &[]);
    assert_eq!(
        (ready.status, ready.json()["status"].as_str()),
        (503, Some("loading"))
    );
    for (method, path) in [
        ("GET", "/v1/models"),
        ("GET", "/slots"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
    ] {
        let answer = ask(&app, method, path, &[]);
        assert_eq!(answer.status, 503, "{path}");
        assert_eq!(answer.headers["retry-after"], "1");
        assert_eq!(answer.json()["error"]["code"], "loading", "{path}");
    }
    app.drain();
    assert_eq!(ask(&app, "GET", "/ready", &[]).json()["status"], "draining");
    let answer = ask(&app, "POST", "/v1/completions", &[]);
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (503, Some("draining"))
    );
}

#[test]
fn wrong_paths_and_methods_are_error_objects() {
    let app = App::new(Options::new("kjv"));
    let answer = ask(&app, "POST", "/v1/completions/render", &[]);
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (404, Some("not_found"))
    );
    let answer = ask(&app, "GET", "/v1/completions", &[]);
    assert_eq!(answer.status, 405);
    assert_eq!(answer.headers["allow"], "POST");
    let message = answer.json()["error"]["message"].to_string();
    assert!(
        message.contains("GET /v1/completions: expected another"),
        "{message}"
    );
    let answer = ask(&app, "DELETE", "/health", &[]);
    assert_eq!(
        (answer.status, answer.json()["error"]["param"].clone()),
        (405, Value::Null)
    );
}

#[test]
fn keys_guard_all_but_probes_and_the_page() {
    let mut options = Options::new("kjv");
    options.api_keys = ApiKeys::parse("secret").unwrap();
    let app = App::new(options);
    for path in ["/health", "/ready", "/"] {
        assert_ne!(ask(&app, "GET", path, &[]).status, 401, "{path}");
    }
    for path in ["/metrics", "/slots", "/v1/models"] {
        let answer = ask(&app, "GET", path, &[]);
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
        let right = ask(&app, "GET", path, &[("authorization", "Bearer secret")]);
        assert_ne!(right.status, 401, "{path}");
    }
}

#[test]
fn an_answer_has_the_id_of_its_request() {
    let app = App::new(Options::new("kjv"));
    let answer = ask(&app, "GET", "/health", &[("x-request-id", "mine-7")]);
    assert_eq!(answer.headers["x-request-id"], "mine-7");
    let answer = ask(&app, "GET", "/nothing", &[]);
    assert!(
        answer.headers["x-request-id"]
            .to_str()
            .unwrap()
            .starts_with("req-")
    );
    let text = ask(&app, "GET", "/metrics", &[]).body;
    let counted =
        "ratplus:http_requests_total{path=\"/health\",status=\"200\",model_name=\"kjv\"} 1";
    assert!(text.contains(counted), "{text}");
    assert!(
        text.contains("path=\"other\",status=\"404\",model_name=\"kjv\"} 1"),
        "{text}"
    );
}

#[test]
fn the_page_is_one_file_under_a_policy() {
    let app = App::new(Options::new("kjv"));
    let page = ask(&app, "GET", "/", &[]);
    assert_eq!(page.status, 200);
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    let nonce = policy
        .split("'nonce-")
        .nth(1)
        .unwrap()
        .split('\'')
        .next()
        .unwrap();
    assert_eq!(page.body.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    assert_ne!(ask(&app, "GET", "/", &[]).body, page.body);
}

#[test]
fn a_panic_is_an_answer_and_others_go_on() {
    let app = App::new(Options::new("kjv"));
    async fn broken() {
        panic!("a bug")
    }
    let routes = Router::new()
        .route("/broken", get(broken))
        .layer(CatchPanicLayer::custom(panicked))
        .merge(router(app));
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().build().unwrap().block_on(async {
        for (path, status) in [("/broken", 500), ("/health", 200)] {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            let response = routes.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()["content-type"], "application/json");
        }
    });
}

/// A trained model without a tokenizer.
fn model() -> Model {
    let (dir, case) = (tempfile::tempdir().unwrap(), golden_case("kjv_d16w64i4"));
    let checkpoint = Checkpoint::open(case.checkpoint()).unwrap();
    let from = ResolveOptions {
        config_file: Some(case.file("config.json")),
        ..ResolveOptions::default()
    };
    let resolved = resolve(&checkpoint, &from).unwrap();
    let options = PackageOptions::new(resolved.spec, 64);
    let mut weights =
        CheckpointWeights::new(&checkpoint, &resolved.sources, ReadOptions::default());
    let target = dir.path().join("kjv");
    write(&target, &options, &mut weights, &mut |_| ()).unwrap();
    let package = Package::open(&target).unwrap();
    let session = Session::builder(&package).open(BackendKind::Tract);
    Model::start(&package, session.unwrap(), scheduler::Options::default()).unwrap()
}

#[test]
fn a_scheduler_that_panicked_is_no_life_and_no_end_that_was_asked_for() {
    let app = App::new(Options::new("kjv"));
    app.loaded(model());
    assert_eq!(ask(&app, "GET", "/health", &[]).status, 200);
    let broken = Box::new(|_: Update| -> bool { panic!("a bug") });
    let requests = vec![(scheduler::Request::new(vec![1]), broken as _)];
    let _tickets = app.model().unwrap().submit(requests).unwrap();
    let ready = || ask(&app, "GET", "/ready", &[]);
    eventually("ended", || ready().json()["status"] == "ended");
    assert_eq!(ready().status, 503);
    for (method, path, status) in [("GET", "/health", 500), ("POST", "/v1/completions", 503)] {
        let answer = ask(&app, method, path, &[]);
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, error["code"].as_str()),
            (status, Some("scheduler_ended"))
        );
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("restart the server"), "{message}");
    }
    assert!(ask(&app, "GET", "/metrics", &[]).status == 200);
    assert!(ask(&app, "GET", "/slots", &[]).json()["state"] == "ended");
    // It still ends when it is told to.
    app.drain();
    app.stop();
    assert_eq!(ready().json()["status"], "draining");
}
