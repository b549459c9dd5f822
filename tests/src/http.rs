//! A client of HTTP/1.1 that does what it is told, rude things too.

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longest that an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Of its first line.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// All of it.
    pub body: String,
}

impl Answer {
    /// The header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body.
    ///
    /// # Panics
    /// It is no JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// What comes after `data: ` of every event but the last, which is `[DONE]`.
    ///
    /// # Panics
    /// It is no such stream.
    pub fn events(&self) -> Vec<Value> {
        let mut events = Vec::new();
        let mut parts = self.body.split("\n\n");
        for part in parts.by_ref() {
            let data = part
                .strip_prefix("data: ")
                .unwrap_or_else(|| panic!("{part}"));
            if data == "[DONE]" {
                assert_eq!(parts.collect::<Vec<_>>(), [""]);
                return events;
            }
            events
                .push(serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}")));
        }
        panic!("no [DONE]: {}", self.body)
    }
}

/// Connects.
///
/// # Panics
/// Nobody listens.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a server listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a time limit");
    // A body does not wait for its head to be acknowledged.
    stream.set_nodelay(true).expect("a socket");
    stream
}

/// Slots of a server of ours that are in use, and requests that wait, a step ago at most.
///
/// # Panics
/// It tells none.
pub fn busy(address: SocketAddr) -> (usize, u64) {
    let slots = get(address, "/slots").json();
    let busy = slots["slots"].as_array().expect("slots").iter();
    let busy = busy.filter(|slot| slot["activity"] != "free").count();
    (busy, slots["queued_requests"].as_u64().expect("a number"))
}

/// Sends a request, and reads nothing.
///
/// # Panics
/// The connection broke.
pub fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> TcpStream {
    let mut stream = connect(address);
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).expect("a head is taken");
    // A server may answer before it has read all.
    let _ = stream.write_all(body);
    stream
}

/// Reads status, headers and, unless `head_only`, the body.
///
/// # Panics
/// What comes is no HTTP.
pub fn read(reader: &mut impl BufRead, head_only: bool) -> Answer {
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line of the head");
        line.trim_end().to_owned()
    };
    let first = line();
    let status = first
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status: {first}"));
    let mut headers = Vec::new();
    loop {
        let line = line();
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut answer = Answer {
        status,
        headers,
        body: String::new(),
    };
    if head_only {
        return answer;
    }
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).expect("a body");
    if answer.header("transfer-encoding") == Some("chunked") {
        bytes = joined(&bytes);
    }
    answer.body = String::from_utf8(bytes).expect("a body of UTF-8");
    answer
}

/// Asks for an answer in parts, and reads its head.
///
/// # Panics
/// It is refused.
pub fn stream(address: SocketAddr, body: &Value) -> BufReader<TcpStream> {
    let body = body.to_string();
    let stream = send(address, "POST", "/v1/completions", "", body.as_bytes());
    let mut reader = BufReader::new(stream);
    let head = read(&mut reader, true);
    assert_eq!(head.status, 200, "{head:?}");
    reader
}

/// What is left of an answer.
///
/// # Panics
/// It is no UTF-8, or the connection broke.
pub fn rest(mut reader: impl BufRead) -> String {
    let mut rest = String::new();
    reader.read_to_string(&mut rest).expect("the rest");
    rest
}

/// A request whose body is awaited: the server works on it, until [`finish`] sends it.
///
/// # Panics
/// It is not awaited.
pub fn begin(address: SocketAddr) -> BufReader<TcpStream> {
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: test\r\nconnection: close\r\nexpect: 100-continue\r\n\
         content-length: {}\r\n\r\n",
        SMALL.len()
    );
    let mut stream = connect(address);
    stream.write_all(head.as_bytes()).expect("a head is taken");
    let mut reader = BufReader::new(stream);
    assert_eq!(read(&mut reader, true).status, 100);
    reader
}

/// The answer to a request that was begun.
///
/// # Panics
/// What comes is no HTTP.
pub fn finish(mut begun: BufReader<TcpStream>) -> Answer {
    let sent = begun.get_mut().write_all(SMALL.as_bytes());
    sent.expect("a body is taken");
    read(&mut begun, false)
}

/// A small request.
const SMALL: &str = r#"{"prompt": "a", "max_tokens": 1}"#;

/// Waits until something is so; whether it is within a minute.
pub fn becomes(mut so: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        match so() {
            true => return true,
            false if begun.elapsed() > PATIENCE => return false,
            false => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Waits until something is so.
///
/// # Panics
/// It is not within a minute.
pub fn eventually(what: &str, so: impl FnMut() -> bool) {
    assert!(becomes(so), "never: {what}");
}

/// Asks and waits for the answer.
///
/// # Panics
/// What comes is no HTTP.
pub fn ask(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
    let stream = send(address, method, path, headers, body);
    read(&mut BufReader::new(stream), false)
}

/// Asks for JSON with JSON.
///
/// # Panics
/// What comes is no HTTP.
pub fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    let json = "content-type: application/json\r\n";
    ask(address, "POST", path, json, body.to_string().as_bytes())
}

/// Asks without a body.
///
/// # Panics
/// What comes is no HTTP.
pub fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, "GET", path, "", b"")
}

/// The chunks of a body; what was cut off is left out.
fn joined(mut chunked: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(end) = chunked.windows(2).position(|pair| pair == b"\r\n") {
        let size = std::str::from_utf8(&chunked[..end]).ok();
        let Some(size) = size.and_then(|size| usize::from_str_radix(size, 16).ok()) else {
            break;
        };
        let rest = &chunked[end + 2..];
        let Some(chunk) = rest.get(..size).filter(|_| size > 0) else {
            break;
        };
        bytes.extend(chunk);
        chunked = rest.get(size + 2..).unwrap_or_default();
    }
    bytes
}
