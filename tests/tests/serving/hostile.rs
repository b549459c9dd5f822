//! What clients send that no server likes.

use crate::requests::good;
use crate::server::{Server, VOCAB};
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ratplus_tests::http::connect;
use ratplus_tests::times;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    WrongType,
    HugeNumber,
    Deep,
    BadUtf8,
    Mutated,
    LongStop,
    BadGuide,
    Unknown,
    OutOfRange,
    Large,
    Cut,
    Slow,
    Vanishing,
    Pipelined,
    Method,
    Head,
    Good,
}

const KINDS: [Kind; 17] = [
    Kind::WrongType,
    Kind::HugeNumber,
    Kind::Deep,
    Kind::BadUtf8,
    Kind::Mutated,
    Kind::LongStop,
    Kind::BadGuide,
    Kind::Unknown,
    Kind::OutOfRange,
    Kind::Large,
    Kind::Cut,
    Kind::Slow,
    Kind::Vanishing,
    Kind::Pipelined,
    Kind::Method,
    Kind::Head,
    Kind::Good,
];

/// Members that a request may have.
const NAMES: [&str; 24] = [
    "prompt",
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "stream",
    "stream_options",
    "seed",
    "stop",
    "logprobs",
    "echo",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
    "stop_token_ids",
    "ignore_eos",
    "response_format",
    "best_of",
    "user",
];

fn value(rng: &mut ChaCha8Rng, depth: usize) -> Value {
    match rng.random_range(0..if depth > 2 { 6 } else { 8 }) {
        0 => Value::Null,
        1 => json!(rng.random::<bool>()),
        2 => json!(rng.random::<i64>()),
        3 => json!(rng.random_range(-2.0..2.0)),
        4 => json!(
            [
                "",
                "a",
                "\u{0}",
                "\u{feff}",
                "none",
                "1",
                "\u{1f600}\u{301}"
            ]
            .choose(rng)
        ),
        5 => json!(rng.random_range(-2..3)),
        6 => (0..rng.random_range(0..4))
            .map(|_| value(rng, depth + 1))
            .collect(),
        _ => {
            let members = (0..rng.random_range(0..4)).map(|_| {
                let name = *NAMES.choose(rng).unwrap();
                (name.to_owned(), value(rng, depth + 1))
            });
            Value::Object(members.collect())
        }
    }
}

/// A number as only a text can hold it.
const NUMBERS: [&str; 9] = [
    "1e308",
    "-1e308",
    "1e999",
    "-1e999",
    "18446744073709551616",
    "-9223372036854775809",
    "1e-400",
    "0.1e+39",
    "00000000000000000001",
];

/// The body of a request, and the path it goes to.
fn body(kind: Kind, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut asked = good(rng.random_range(0..1000));
    asked["max_tokens"] = json!(2);
    let name = *NAMES.choose(rng).unwrap();
    match kind {
        Kind::WrongType => asked[name] = value(rng, 0),
        Kind::HugeNumber => {
            let number = match rng.random_range(0..12) {
                at @ 0..9 => NUMBERS[at].to_owned(),
                9 => "9".repeat(10_000),
                10 => format!("0.{}1", "0".repeat(10_000)),
                _ => format!("[{}]", ["1e30"; 100].join(",")),
            };
            asked[name] = json!("HERE");
            return asked.to_string().replace("\"HERE\"", &number).into_bytes();
        }
        Kind::Deep => {
            let (open, close) = *[("[", "]"), ("{\"a\":", "}")].choose(rng).unwrap();
            let depth = *[100, 127, 128, 1000, 100_000].choose(rng).unwrap();
            let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            asked[name] = json!("HERE");
            return asked.to_string().replace("\"HERE\"", &deep).into_bytes();
        }
        Kind::BadUtf8 => {
            let mut bytes = asked.to_string().into_bytes();
            let bad: &[u8] = [
                &b"\xff"[..],
                b"\xc0\x80",
                b"\xed\xa0\x80",
                b"\xf4\x90\x80\x80",
                b"\\ud800",
            ]
            .choose(rng)
            .unwrap();
            let at = rng.random_range(0..bytes.len());
            bytes.splice(at..at, bad.iter().copied());
            return bytes;
        }
        Kind::Mutated => {
            let mut bytes = asked.to_string().into_bytes();
            for _ in 0..rng.random_range(1..6) {
                let at = rng.random_range(0..bytes.len());
                match rng.random_range(0..3) {
                    0 => bytes[at] = rng.random(),
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, *b"{}[]\",:\\0e-".choose(rng).unwrap()),
                }
            }
            return bytes;
        }
        Kind::LongStop => {
            let long = ["a", "\u{0}", "\u{1f600}"]
                .choose(rng)
                .unwrap()
                .repeat(1 << 20);
            asked["stop"] = if rng.random() {
                json!(long)
            } else {
                json!([long, "b"])
            };
        }
        Kind::BadGuide => {
            let (name, guide) = [
                ("guided_regex", json!("((((a{1000}){1000}){1000}")),
                ("guided_regex", json!("(a{1000}){1000}")),
                ("guided_regex", json!("[")),
                ("guided_regex", json!("(?P<n>a)(?P=n)")),
                ("guided_grammar", json!("start: start start start")),
                ("guided_grammar", json!("?: %%% \u{0}")),
                ("guided_grammar", json!("start: nothing")),
                ("guided_json", json!({"$ref": "#"})),
                ("guided_json", json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}})),
                ("guided_json", json!({"type": "nothing"})),
                ("guided_json", json!({"enum": []})),
                ("guided_json", json!({"type": "string", "minLength": 1_000_000_000})),
                ("guided_json", json!("{")),
                ("guided_choice", json!([])),
                ("guided_choice", json!([5])),
                ("response_format", json!({"type": "json_schema"})),
                ("response_format", json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}})),
                ("response_format", json!({"type": "nothing"})),
                ("response_format", json!(5)),
            ]
            .choose(rng)
            .unwrap()
            .clone();
            asked[name] = guide;
        }
        Kind::Unknown => {
            let name: String = (0..rng.random_range(1..3000))
                .map(|_| rng.random::<char>())
                .collect();
            asked[name] = value(rng, 0);
            if rng.random() {
                let twice = asked.to_string();
                return format!("{},\"prompt\":\"x\"}}", &twice[..twice.len() - 1]).into_bytes();
            }
        }
        Kind::OutOfRange => {
            let (name, value) = [
                ("prompt", json!("")),
                ("prompt", json!([])),
                ("prompt", json!([VOCAB])),
                ("prompt", json!([[]])),
                ("prompt", json!(vec![0; 5000])),
                ("prompt", json!(vec!["a"; 2000])),
                ("prompt", json!("a ".repeat(100_000))),
                ("prompt", json!("\u{1f600}".repeat(50_000))),
                ("n", json!(129)),
                ("max_tokens", json!(-1)),
                ("logprobs", json!(1000)),
                ("top_p", json!(0)),
                ("temperature", json!(-0.1)),
                ("logit_bias", json!({"99999": 1})),
                ("logit_bias", json!({"a": 1})),
                ("logit_bias", json!({"1": 1e30})),
                ("stop_token_ids", json!([VOCAB])),
                ("min_tokens", json!(3)),
                ("stop", json!(vec!["a"; 1000])),
                ("stop", json!("")),
            ]
            .choose(rng)
            .unwrap()
            .clone();
            asked[name] = value;
        }
        Kind::Large => {
            asked["user"] = json!("a".repeat(*[70_000, 1 << 20, 9 << 20].choose(rng).unwrap()))
        }
        Kind::Vanishing => {
            asked["max_tokens"] = json!(1500);
            asked["ignore_eos"] = json!(true);
            asked["stream"] = json!(rng.random::<bool>());
        }
        Kind::Cut | Kind::Slow | Kind::Pipelined | Kind::Method | Kind::Head | Kind::Good => {}
    }
    asked.to_string().into_bytes()
}

fn head(method: &str, path: &str, length: usize, more: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{more}\r\n").into_bytes()
}

/// Everything that is sent, and how much of it at once.
fn bytes(kind: Kind, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let body = body(kind, rng);
    let close = "connection: close\r\n";
    let path = *[
        "/v1/completions",
        "/v1/completions",
        "/v1/completions",
        "/v1/chat/completions",
        "/tokenize",
        "/detokenize",
    ]
    .choose(rng)
    .unwrap();
    let whole = |mut head: Vec<u8>| {
        head.extend(&body);
        head
    };
    match kind {
        Kind::Cut => {
            let mut whole = whole(head("POST", path, body.len(), close));
            whole.truncate(rng.random_range(0..whole.len()));
            whole
        }
        Kind::Pipelined => {
            let mut sent = whole(head("POST", "/v1/completions", body.len(), ""));
            for _ in 0..rng.random_range(1..5) {
                sent.extend(head("GET", "/health", 0, ""));
            }
            let mut garbage = vec![0; rng.random_range(1..5000)];
            rng.fill_bytes(&mut garbage);
            sent.extend(garbage);
            sent
        }
        Kind::Method => {
            let method = *[
                "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "post", "G E T", "\u{0}",
                "POST",
            ]
            .choose(rng)
            .unwrap();
            let long = format!("/{}", "a".repeat(70_000));
            let odd = [
                "/v1/completions",
                "*",
                "/..//v1/./completions",
                "http://other/v1/completions",
                "/%00%ff",
                "/slots",
                "/metrics?a=b",
                &long,
            ];
            whole(head(method, odd.choose(rng).unwrap(), body.len(), close))
        }
        Kind::Head => {
            let long = format!("x: {}\r\n", "y".repeat(100_000));
            let many: String = (0..200).map(|index| format!("x-{index}: y\r\n")).collect();
            let odd = [
                "content-length: 5\r\n",
                "content-length: -1\r\n",
                "transfer-encoding: chunked\r\n",
                "transfer-encoding: gzip, chunked\r\n",
                "expect: 100-continue\r\n",
                "expect: magic\r\n",
                "connection: upgrade\r\nupgrade: h2c\r\n",
                "x y: z\r\n",
                ": z\r\n",
                "x: \u{0}\r\n",
                " folded: y\r\n",
                &long,
                &many,
            ];
            whole(head(
                "POST",
                path,
                body.len(),
                &format!("{close}{}", odd.choose(rng).unwrap()),
            ))
        }
        Kind::Slow | Kind::Vanishing | Kind::Good => {
            whole(head("POST", "/v1/completions", body.len(), close))
        }
        _ => whole(head("POST", path, body.len(), close)),
    }
}

/// Sends a request and reads what comes; the first status, 0 where there is none.
fn send(address: SocketAddr, seed: u64, kinds: &[Kind]) -> (Kind, u16) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let kind = *kinds.choose(&mut rng).unwrap();
    let bytes = bytes(kind, &mut rng);
    let mut stream = connect(address);
    if kind == Kind::Slow {
        // A few drops, then the rest or nothing.
        let (drops, rest) = bytes.split_at(rng.random_range(0..bytes.len().min(200)));
        for drop in drops.chunks(drops.len() / 8 + 1) {
            if stream.write_all(drop).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(rng.random_range(0..5)));
        }
        if rng.random() {
            return (kind, 0);
        }
        let _ = stream.write_all(rest);
    } else {
        // A server may answer and close before it has read all.
        let _ = stream.write_all(&bytes);
    }
    let mut found = Vec::new();
    if kind == Kind::Vanishing {
        let mut part = vec![0; rng.random_range(0..3000)];
        stream
            .set_read_timeout(Some(Duration::from_millis(rng.random_range(1..30))))
            .unwrap();
        let read = stream.read(&mut part).unwrap_or(0);
        found.extend(&part[..read]);
    } else {
        if matches!(kind, Kind::Cut | Kind::Pipelined | Kind::Head) {
            // What is waited for does not come.
            let _ = stream.shutdown(Shutdown::Write);
        }
        let ended = stream.read_to_end(&mut found);
        let kept = ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        assert!(
            !kept,
            "{kind:?} {seed}: nothing comes and the connection stays"
        );
    }
    let status = found
        .strip_prefix(b"HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    let status = status.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    (kind, status.unwrap_or(0))
}

/// Milliseconds that an innocent request takes while `other` work goes on: the median, and what 99 of 100 stay below.
fn innocent(
    server: &Server,
    requests: usize,
    expected: &Value,
    go_on: impl Fn() -> bool,
) -> (f64, f64) {
    let mut times = Vec::new();
    while times.len() < requests || go_on() {
        let begun = Instant::now();
        assert_eq!(server.text(), *expected);
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_millis(5));
    }
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// What clients were answered, and how often.
type Statuses = BTreeMap<(Kind, u16), usize>;

/// Four clients that never pause send `count` requests, and an innocent one goes on beside them: what they were
/// answered, and what it took.
fn beside(server: &Server, count: u64, kinds: &[Kind], expected: &Value) -> (Statuses, (f64, f64)) {
    let (next, busy) = (AtomicU64::new(0), AtomicBool::new(true));
    let statuses: Mutex<Statuses> = Mutex::default();
    let took = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= count {
                            return;
                        }
                        let (kind, status) = send(server.address, seed, kinds);
                        let log = || server.log();
                        assert!(status < 500, "{kind:?} {seed}: {status}: {}", log());
                        *statuses.lock().unwrap().entry((kind, status)).or_default() += 1;
                    }
                })
            })
            .collect();
        let innocent =
            scope.spawn(|| innocent(server, 100, expected, || busy.load(Ordering::Relaxed)));
        let ended: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        busy.store(false, Ordering::Relaxed);
        ended.into_iter().for_each(|ended| ended.unwrap());
        innocent.join().unwrap()
    });
    (statuses.into_inner().unwrap(), took)
}

#[test]
fn whatever_clients_send_others_are_answered_and_no_slot_is_lost() {
    let count = times(400) as u64;
    let mut server = Server::start("--backend ort-cpu --prefix-cache 16MB --idle-seconds 5");
    let expected = server.text();
    let alone = innocent(&server, 100, &expected, || false);
    // As many clients that only ask what they should: they take slots and cores too.
    let (good, beside_good) = beside(&server, count, &[Kind::Good], &expected);
    assert_eq!(good, [((Kind::Good, 200), count as usize)].into());
    let begun = Instant::now();
    let (statuses, beside_hostile) = beside(&server, count, &KINDS, &expected);
    let seconds = begun.elapsed().as_secs_f64();
    assert!(server.lives());
    assert_eq!(server.text(), expected);
    server.settled();
    let log = server.log();
    assert!(!log.contains("panicked"), "{log}");
    println!("{count} requests in {seconds:.0} s, by kind and status: {statuses:?}");
    let (median, p99) = (
        beside_hostile.0 / beside_good.0 - 1.0,
        beside_hostile.1 / beside_good.1 - 1.0,
    );
    println!(
        "an innocent request, ms, median and p99: alone {alone:.1?}, beside 4 clients with good requests \
         {beside_good:.1?}, beside 4 hostile ones {beside_hostile:.1?}: {:+.0} % and {:+.0} %",
        100.0 * median,
        100.0 * p99
    );
    // The generator reaches what it is meant to.
    for kind in KINDS {
        let found = statuses.keys().any(|(found, _)| *found == kind);
        assert!(found, "no {kind:?} of {count}");
    }
    let refused = statuses.keys().filter(|(_, status)| *status >= 400).count();
    assert!(
        refused >= 10 && statuses.keys().any(|(_, status)| *status == 200),
        "{statuses:?}"
    );
}
