//! Long use of one process.

use crate::requests::good;
use crate::server::Server;
use ratplus_tests::http::{ask, post, send};
use ratplus_tests::times;
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What memory may grow by: a thread's stack and arena that were not there before.
const GROWTH: u64 = 8 << 20;

/// Good requests, streams that are left, and refusals; memory that is no file's after a fifth of the time and at its
/// end.
#[test]
fn serving_for_long_costs_no_memory() {
    let seconds = Duration::from_secs(times(5) as u64);
    let server = Server::start("--backend ort-cpu --prefix-cache 2MB");
    let (ended, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let address = server.address;
    let (before, after) = std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let seed = asked.fetch_add(1, Ordering::Relaxed);
                    // A few hundred different ones: the prefix cache has its share of them before the first look.
                    let mut body = good(seed % 400);
                    match seed % 8 {
                        0 => {
                            body["stream"] = json!(true);
                            let body = body.to_string();
                            drop(send(
                                address,
                                "POST",
                                "/v1/completions",
                                "",
                                body.as_bytes(),
                            ));
                        }
                        1 => {
                            let refused =
                                ask(address, "POST", "/v1/completions", "", b"{\"prompt\": 5}");
                            assert_eq!(refused.status, 400);
                        }
                        _ => {
                            let answer = post(address, "/v1/completions", &body);
                            assert_eq!(answer.status, 200, "{body}: {}", answer.body);
                        }
                    }
                }
            });
        }
        let begun = Instant::now();
        let at = |part: u32| {
            std::thread::sleep((seconds * part / 5).saturating_sub(begun.elapsed()));
            server.memory()
        };
        let found = (at(1), at(5));
        ended.store(true, Ordering::Relaxed);
        found
    });
    let asked = asked.into_inner();
    println!(
        "{asked} requests in {seconds:?}: {} KiB after a fifth of it, {} KiB at its end",
        before >> 10,
        after >> 10
    );
    assert!(after <= before + GROWTH, "{before} {after}");
    server.settled();
}
