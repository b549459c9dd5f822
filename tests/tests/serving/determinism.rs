//! Answers do not depend on the load, on the prefix cache, nor on how they are told.

use crate::requests::{good, said};
use crate::server::Server;
use ratplus_tests::http::post;
use ratplus_tests::times;
use serde_json::{Value, json};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is answered to `count` requests, `concurrency` at once; every other one is streamed, beginning with the first
/// where `stream` is 0 and with the second where it is 1.
fn all(server: &Server, count: u64, concurrency: usize, stream: u64) -> Vec<Vec<Value>> {
    let (next, answers) = (
        AtomicU64::new(0),
        Mutex::new(vec![Vec::new(); count as usize]),
    );
    std::thread::scope(|scope| {
        for _ in 0..concurrency {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    let mut body = good(seed);
                    body["stream"] = json!(seed % 2 == stream);
                    let answer = post(server.address, "/v1/completions", &body);
                    assert_eq!(answer.status, 200, "{body}: {}", answer.body);
                    answers.lock().unwrap()[seed as usize] = said(&answer);
                }
            });
        }
    });
    answers.into_inner().unwrap()
}

fn check(backend: &str) {
    let count = times(50) as u64;
    let start = |cache: &str| Server::start(&format!("--backend {backend} --prefix-cache {cache}"));
    let server = start("0");
    let alone = all(&server, count, 1, 0);
    let mut asked = count;
    let mut same = |server: &Server, concurrency: usize, stream: u64, what: &str| {
        let found = all(server, count, concurrency, stream);
        for (seed, (found, expected)) in found.iter().zip(&alone).enumerate() {
            let body = good(seed as u64);
            assert_eq!(
                found, expected,
                "{backend}, {what}, {concurrency} at once: {body}"
            );
        }
        asked += count;
    };
    same(&server, 8, 1, "no prefix cache");
    same(&server, 16, 0, "no prefix cache");
    let hits = |server: &Server| {
        let prefix = &server.settled()["prefix_cache"];
        prefix["hit_tokens"].as_u64().unwrap()
    };
    assert_eq!(hits(&server), 0);
    drop(server);
    let server = start("256MB");
    same(&server, 1, 1, "a cold prefix cache");
    let cold = hits(&server);
    same(&server, 8, 0, "a warm prefix cache");
    same(&server, 16, 1, "a warm prefix cache");
    assert!(hits(&server) > 2 * cold && cold > 0, "{}", server.slots());
    drop(server);
    for (cache, concurrency) in [("256MB", 16), ("3MB", 8)] {
        let server = start(cache);
        same(
            &server,
            concurrency,
            0,
            &format!("a cold prefix cache of {cache}"),
        );
        let prefix = &server.settled()["prefix_cache"];
        assert!(
            prefix["bytes"].as_u64() <= prefix["budget_bytes"].as_u64(),
            "{prefix}"
        );
        assert_eq!(
            cache == "3MB",
            prefix["evicted"].as_u64() > Some(0),
            "{prefix}"
        );
    }
    println!("{backend}: {asked} requests, {count} answers");
}

#[test]
fn served_answers_are_the_same_under_every_load_on_ort_cpu() {
    check("ort-cpu");
}

#[test]
fn served_answers_are_the_same_under_every_load_on_tract() {
    check("tract");
}
