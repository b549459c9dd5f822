//! How servers begin and end.

use crate::common::{exported, load, options, start, start_with};
use ratplus_runtime::scheduler;
use ratplus_server::ModelError;
use ratplus_tests::http::{get, post, read, send};
use serde_json::json;
use std::io::BufReader;
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

/// Asks for a stream of `tokens` tokens and reads its head.
fn streaming(address: std::net::SocketAddr, tokens: usize) -> BufReader<std::net::TcpStream> {
    let body = json!({"prompt": "In the beginning", "max_tokens": tokens, "ignore_eos": true,
        "seed": 1, "stream": true});
    let stream = send(
        address,
        "POST",
        "/v1/completions",
        "",
        body.to_string().as_bytes(),
    );
    let mut reader = BufReader::new(stream);
    assert_eq!(read(&mut reader, true).status, 200);
    reader
}

/// The rest of a stream.
fn rest(mut reader: BufReader<std::net::TcpStream>) -> String {
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut reader, &mut rest).unwrap();
    rest
}

#[test]
fn answers_are_finished_before_the_end() {
    let mut patient = options();
    patient.drain = Duration::from_secs(60);
    let mut server = start(patient, scheduler::Options::default());
    let stream = streaming(server.address, 200);
    server.shut_down();
    server.wait_until("draining");
    // Live, not ready, and taking nothing more.
    assert_eq!(get(server.address, "/health").status, 200);
    let answer = post(server.address, "/v1/completions", &json!({"prompt": "a"}));
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (503, Some("draining"))
    );
    let rest = rest(stream);
    assert!(
        rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"),
        "{rest}"
    );
    server.ended().unwrap();
}

#[test]
fn what_does_not_finish_in_time_is_cut_off_and_told_so() {
    let mut server = start(options(), scheduler::Options::default());
    let stream = streaming(server.address, 4000);
    server.shut_down();
    let rest = rest(stream);
    assert!(
        rest.contains("\"code\":\"stopped\"") && rest.contains("[DONE]"),
        "{rest}"
    );
    server.ended().unwrap();
}
