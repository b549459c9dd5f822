//! How servers begin and end.

use crate::common::{exported, load, options, start, start_with};
use ratplus_runtime::scheduler;
use ratplus_server::ModelError;
use ratplus_tests::http::{begin, finish, get, post, rest, stream};
use serde_json::{Value, json};
use std::sync::mpsc::channel;
use std::time::Duration;

#[test]
fn a_server_answers_while_it_loads() {
    let (go_on, wait) = channel::<()>();
    let mut server = start_with(options(), move || {
        wait.recv().unwrap();
        load(&exported(), scheduler::Options::default())
    });
    assert_eq!(get(server.address, "/health").status, 200);
    assert_eq!(get(server.address, "/ready").status, 503);
    let asked = json!({"prompt": "a", "max_tokens": 1});
    let answer = post(server.address, "/v1/completions", &asked);
    assert_eq!(
        (answer.status, answer.header("retry-after")),
        (503, Some("1"))
    );
    go_on.send(()).unwrap();
    server.wait_until("ready");
    assert_eq!(post(server.address, "/v1/completions", &asked).status, 200);
    server.shut_down();
    server.ended().unwrap();
}

#[test]
fn what_cannot_be_loaded_ends_the_server_with_the_reason() {
    let server = start_with(options(), || Err(ModelError::Other("no package".into())));
    assert_eq!(server.ended().unwrap_err().to_string(), "no package");
    let server = start_with(options(), || panic!("a bug"));
    assert!(server.ended().unwrap_err().to_string().contains("panicked"));
}

fn streamed(tokens: usize, n: usize) -> Value {
    json!({"prompt": "In the beginning", "max_tokens": tokens, "n": n, "ignore_eos": true, "seed": 1,
        "stream": true})
}

#[test]
fn a_server_that_loads_ends_at_once() {
    let (go_on, wait) = channel::<()>();
    let mut server = start_with(options(), move || {
        // As long as the test runs.
        let _ = wait.recv();
        Err(ModelError::Other("nobody is there any more".into()))
    });
    assert_eq!(get(server.address, "/ready").json()["status"], "loading");
    server.shut_down();
    server.ended().unwrap();
    drop(go_on);
}

#[test]
fn answers_are_finished_before_the_end() {
    let mut patient = options();
    patient.drain = Duration::from_secs(60);
    let mut server = start(patient, scheduler::Options::default());
    let reader = stream(server.address, &streamed(200, 1));
    // The server drains until this one is answered.
    let held = begin(server.address);
    server.shut_down();
    server.wait_until("draining");
    // Live, not ready, and taking nothing more.
    assert_eq!(get(server.address, "/health").status, 200);
    let answer = post(server.address, "/v1/completions", &json!({"prompt": "a"}));
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (503, Some("draining"))
    );
    let rest = rest(reader);
    assert!(
        rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"),
        "{rest}"
    );
    // What had not come whole before the end began is too late.
    let answer = finish(held);
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (503, Some("draining"))
    );
    server.ended().unwrap();
}

#[test]
fn what_does_not_finish_in_time_is_cut_off_and_told_so() {
    let mut server = start(options(), scheduler::Options::default());
    let reader = stream(server.address, &streamed(4000, 50));
    server.shut_down();
    let rest = rest(reader);
    assert!(
        rest.contains("\"code\":\"stopped\"") && rest.contains("[DONE]"),
        "{rest}"
    );
    server.ended().unwrap();
}
