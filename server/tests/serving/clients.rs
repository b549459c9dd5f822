//! Clients that go away, are slow or ask for too much.

use crate::common::{SLOTS, options, start};
use ratplus_runtime::scheduler;
use ratplus_tests::http::{ask, connect, eventually, get, post, send, stream};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Asks for an answer that takes a while.
fn long(more: &Value) -> Value {
    let mut long =
        json!({"prompt": "In the beginning", "max_tokens": 4000, "ignore_eos": true, "seed": 1});
    let members = long.as_object_mut().unwrap();
    members.extend(more.as_object().unwrap().clone());
    long
}

fn streamed() -> Value {
    long(&json!({"stream": true}))
}

/// Asks for a stream and waits for its first event.
fn streaming(address: std::net::SocketAddr) -> BufReader<TcpStream> {
    let mut reader = stream(address, &streamed());
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0);
    }
    reader
}

/// Asks, and reads nothing.
fn asking(address: std::net::SocketAddr, body: &Value) -> TcpStream {
    let body = body.to_string();
    send(address, "POST", "/v1/completions", "", body.as_bytes())
}

#[test]
fn a_client_that_goes_away_frees_its_slots() {
    let server = start(options(), scheduler::Options::default());
    let stream = streaming(server.address);
    eventually("a slot in use", || server.busy() == (1, 0));
    drop(stream);
    eventually("a free slot", || server.busy() == (0, 0));
    assert_eq!(
        server.metric("vllm:request_success_total", "\"abort\""),
        1.0
    );
    // One that waits for its whole answer, and sequences that wait in the queue.
    let unary = asking(server.address, &long(&json!({"n": 5})));
    eventually("a full house", || server.busy() == (SLOTS, 3));
    drop(unary);
    eventually("a free house", || server.busy() == (0, 0));
    assert_eq!(
        server.metric("vllm:request_success_total", "\"abort\""),
        6.0
    );
    // And others are answered.
    let answer = post(
        server.address,
        "/v1/completions",
        &json!({"prompt": "a", "max_tokens": 1}),
    );
    assert_eq!(answer.status, 200);
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let mut scheduling = scheduler::Options::default();
    scheduling.max_queued_requests = 3;
    let server = start(options(), scheduling);
    let held: Vec<_> = (0..SLOTS).map(|_| streaming(server.address)).collect();
    let waiting = asking(server.address, &long(&json!({"n": 2})));
    eventually("waiting requests", || server.busy() == (SLOTS, 2));
    let answer = post(server.address, "/v1/completions", &long(&json!({"n": 2})));
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (429, Some("queue_full"))
    );
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!(wait >= 1);
    // More than the queue will ever hold is no matter of time.
    let answer = post(server.address, "/v1/completions", &long(&json!({"n": 4})));
    assert_eq!(answer.status, 400);
    // What never ran was not cut off.
    assert_eq!(
        server.metric("vllm:request_success_total", "\"abort\""),
        0.0
    );
    drop((held, waiting));
    eventually("a free house", || server.busy() == (0, 0));
}

#[test]
fn more_requests_than_may_be_worked_on_are_refused() {
    let mut few = options();
    few.max_concurrent_requests = 1;
    let server = start(few, scheduler::Options::default());
    let held = streaming(server.address);
    let answer = post(server.address, "/v1/completions", &streamed());
    assert_eq!(answer.status, 429);
    // Probes are no work.
    assert_eq!(get(server.address, "/ready").status, 200);
    drop(held);
    let small = json!({"prompt": "a", "max_tokens": 1});
    eventually("room", || {
        post(server.address, "/v1/completions", &small).status == 200
    });
}

#[test]
fn a_request_ends_in_its_time() {
    let mut hasty = options();
    hasty.request_timeout = Some(Duration::from_millis(300));
    let server = start(hasty, scheduler::Options::default());
    let answer = post(server.address, "/v1/completions", &long(&json!({})));
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (504, Some("deadline"))
    );
    let answer = post(server.address, "/v1/completions", &streamed());
    assert_eq!(answer.status, 200);
    let events = answer.events();
    assert!(events.len() > 1);
    assert_eq!(events.last().unwrap()["error"]["code"], "deadline");
    // Also where its body is still to come.
    let mut half = connect(server.address);
    let head = b"POST /tokenize HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{";
    half.write_all(head).unwrap();
    let mut rest = [0; 12];
    half.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"HTTP/1.1 504");
    eventually("free slots", || server.busy() == (0, 0));
}

#[test]
fn slow_and_large_requests_are_ended() {
    let mut hasty = options();
    hasty.idle = Duration::from_millis(500);
    hasty.max_body_bytes = 100_000;
    let server = start(hasty, scheduler::Options::default());
    let ends = |mut stream: TcpStream| {
        let begun = Instant::now();
        let mut rest = Vec::new();
        // An end, in whatever way.
        let _ = stream.read_to_end(&mut rest);
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(20), "{waited:?}");
        String::from_utf8_lossy(&rest).into_owned()
    };
    // Nothing, half a head, and half a body.
    assert_eq!(ends(connect(server.address)), "");
    let mut half = connect(server.address);
    half.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n")
        .unwrap();
    let answer = ends(half);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
        "{answer}"
    );
    let mut half = connect(server.address);
    let head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{";
    half.write_all(head).unwrap();
    assert!(ends(half).starts_with("HTTP/1.1 408"));
    // Drop by drop.
    let mut drops = connect(server.address);
    drops.write_all(b"GET /health HTTP/1.1\r\n").unwrap();
    let begun = Instant::now();
    while drops.write_all(b"x: y\r\n").is_ok() {
        std::thread::sleep(Duration::from_millis(50));
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    // Large in every way.
    let answer = ask(
        server.address,
        "POST",
        "/v1/completions",
        "",
        &[b' '; 150_000],
    );
    assert_eq!(answer.status, 413);
    let headers: String = (0..100).map(|index| format!("x-{index}: y\r\n")).collect();
    assert_eq!(
        ask(server.address, "GET", "/health", &headers, b"").status,
        431
    );
    let long = format!("x: {}\r\n", "y".repeat(1_000_000));
    assert_eq!(
        ask(server.address, "GET", "/health", &long, b"").status,
        431
    );
    let mut nonsense = connect(server.address);
    nonsense
        .write_all(b"\x16\x03\x01 nonsense\r\n\r\n")
        .unwrap();
    ends(nonsense);
    assert_eq!(get(server.address, "/health").status, 200);
}
