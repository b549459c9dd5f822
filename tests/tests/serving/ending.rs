//! How the process ends.

use crate::server::Server;
use ratplus_tests::http::{get, read, send};
use serde_json::json;
use std::io::{BufReader, Read};
use std::net::TcpStream;

/// Asks for a stream of `tokens` tokens and reads its head.
fn streaming(server: &Server, tokens: usize) -> BufReader<TcpStream> {
    let body = json!({"prompt": "In the beginning", "max_tokens": tokens, "ignore_eos": true, "seed": 1, "stream": true});
    let body = body.to_string();
    let stream = send(
        server.address,
        "POST",
        "/v1/completions",
        "",
        body.as_bytes(),
    );
    let mut reader = BufReader::new(stream);
    assert_eq!(read(&mut reader, true).status, 200);
    reader
}

fn rest(mut reader: BufReader<TcpStream>) -> String {
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    rest
}

#[test]
fn sigterm_lets_streams_end_and_exits_0() {
    let server = Server::start("--backend tract --drain-seconds 60");
    let streams: Vec<_> = (0..5).map(|_| streaming(&server, 400)).collect();
    server.terminate();
    server.eventually("draining", || get(server.address, "/ready").status == 503);
    assert_eq!(get(server.address, "/health").status, 200);
    for stream in streams {
        let rest = rest(stream);
        let whole = rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]");
        assert!(whole, "{rest}");
    }
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn sigterm_cuts_off_what_does_not_end_in_time_and_exits_0() {
    let server = Server::start("--backend tract --drain-seconds 0");
    let stream = streaming(&server, 2000);
    server.terminate();
    let rest = rest(stream);
    let told = rest.contains("\"code\":\"stopped\"") && rest.contains("[DONE]");
    assert!(told, "{rest}");
    assert_eq!(server.ended().code(), Some(0));
}
