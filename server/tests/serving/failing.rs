//! A backend that fails while answers are streamed.

use crate::common::{exported, options, start_with};
use ratplus_runtime::backend::{BackendKind, Session, inspection};
use ratplus_runtime::package::Package;
use ratplus_runtime::scheduler;
use ratplus_server::Model;
use ratplus_tests::http::post;
use serde_json::{Value, json};

/// Tokens and scores of a stream.
fn told(events: &[Value]) -> Vec<(Value, Value)> {
    let scored = events.iter().map(|event| &event["choices"][0]["logprobs"]);
    let scored = scored.filter(|scores| !scores.is_null());
    scored
        .map(|scores| (scores["tokens"].clone(), scores["token_logprobs"].clone()))
        .collect()
}

#[test]
fn clients_get_every_token_when_the_backend_fails_on_the_way() {
    // Every `n`-th step fails; 0 for none.
    let answers = |n: u64| {
        let server = start_with(options(), move || {
            let package = Package::open(exported()).unwrap();
            let session = Session::builder(&package).up_front();
            let mut session = session.open(BackendKind::Tract).unwrap();
            inspection::fail_every(&mut session, n);
            let mut scheduling = scheduler::Options::default();
            scheduling.prefix_cache_bytes = 1 << 26;
            // Two sequences are run again in fewer steps than lie between errors, though not at the first try.
            scheduling.replays = 100;
            Model::start(&package, session, scheduling)
        });
        server.wait_until("ready");
        let asked = |seed: u64| {
            json!({"prompt": "In the beginning God created", "max_tokens": 40, "temperature": 0.8, "seed": seed,
                "ignore_eos": true, "logprobs": 1, "stream": true})
        };
        let told: Vec<_> = std::thread::scope(|scope| {
            let streams: Vec<_> = (0..12)
                .map(|seed| {
                    let body = asked(seed);
                    scope.spawn(move || post(server.address, "/v1/completions", &body))
                })
                .collect();
            let answers = streams.into_iter().map(|stream| stream.join().unwrap());
            answers.map(|answer| told(&answer.events())).collect()
        });
        let totals = server.slots()["totals"].clone();
        (told, totals)
    };
    let (expected, totals) = answers(0);
    assert_eq!(totals["backend_errors"], 0);
    assert!(expected.iter().all(|stream| stream.len() == 40));
    let (found, totals) = answers(97);
    assert!(totals["backend_errors"].as_u64() > Some(1), "{totals}");
    assert!(
        totals["replayed"].as_u64() > totals["backend_errors"].as_u64(),
        "{totals}"
    );
    assert_eq!(found, expected);
}
