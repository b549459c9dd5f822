//! How the process ends.

use crate::server::{SLOTS, Server, package};
use ratplus_tests::http::{begin, finish, get, rest, stream};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::process::Command;
use std::time::{Duration, Instant};

fn streamed(tokens: usize, n: usize) -> Value {
    json!({"prompt": "In the beginning", "max_tokens": tokens, "n": n, "ignore_eos": true, "seed": 1,
        "stream": true})
}

#[test]
fn sigterm_lets_streams_end_and_exits_0() {
    let server = Server::start("--backend tract --drain-seconds 60");
    let streams: Vec<_> = (0..5)
        .map(|_| stream(server.address, &streamed(400, 1)))
        .collect();
    // It drains until this one is answered.
    let held = begin(server.address);
    server.signal("-TERM");
    let ready = || get(server.address, "/ready").json()["status"].clone();
    server.eventually("draining", || ready() == "draining");
    assert_eq!(get(server.address, "/health").status, 200);
    for stream in streams {
        let rest = rest(stream);
        let whole = rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]");
        assert!(whole, "{rest}");
    }
    assert_eq!(finish(held).status, 503);
    assert_eq!(server.ended().0.code(), Some(0));
}

#[test]
fn sigterm_cuts_off_what_does_not_end_in_time_and_exits_0() {
    let server = Server::start("--backend tract --drain-seconds 0");
    let stream = stream(server.address, &streamed(2000, 20 * SLOTS));
    server.signal("-TERM");
    let rest = rest(stream);
    let told = rest.contains("\"code\":\"stopped\"") && rest.contains("[DONE]");
    assert!(told, "{rest}");
    assert_eq!(server.ended().0.code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    for second in ["-TERM", "-INT"] {
        let server = Server::start("--backend tract --drain-seconds 600");
        let _held = begin(server.address);
        server.signal("-TERM");
        server.eventually("draining", || get(server.address, "/ready").status == 503);
        server.signal(second);
        assert_eq!(server.ended().0.code(), Some(1));
    }
}

#[test]
fn sigterm_while_it_loads_exits_0() {
    // Nobody writes to it: what loads waits for that for as long as the process lives.
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("prefixes");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let flags = ["--backend", "tract", "--prefix-cache-file"].map(OsString::from);
    let server = Server::listening(&package(), flags.into_iter().chain([fifo.into()]));
    assert_eq!(get(server.address, "/ready").json()["status"], "loading");
    let begun = Instant::now();
    server.signal("-TERM");
    assert_eq!(server.ended().0.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(20));
}
