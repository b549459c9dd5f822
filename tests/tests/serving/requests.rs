//! Requests that are good, of all lengths and samplings, and what their answers come to.

use crate::server::VOCAB;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ratplus_tests::http::Answer;
use serde_json::{Map, Value, json};

const WORDS: [&str; 6] = [
    "In the beginning",
    "And God said",
    "the LORD",
    "unto",
    " of Israel",
    "Verily",
];

/// The request of that number. Many prompts begin as others do, and not all end at their limit.
pub fn good(seed: u64) -> Value {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let prompt = match rng.random_range(0..4) {
        0 => json!(
            (0..rng.random_range(1..20))
                .map(|_| *WORDS.choose(&mut rng).unwrap())
                .collect::<String>()
        ),
        1 => json!([tokens(&mut rng), tokens(&mut rng)]),
        _ => json!(tokens(&mut rng)),
    };
    let mut body = json!({"prompt": prompt, "max_tokens": rng.random_range(1..24), "logprobs": rng.random_range(0..4)});
    let mut add = |name: &str, value: Value| body[name] = value;
    add(
        "temperature",
        json!([0.0, 0.7, 1.3][rng.random_range(0..3)]),
    );
    add("seed", json!(rng.random::<u32>()));
    for (name, value) in [
        ("top_k", json!(rng.random_range(1..50))),
        ("top_p", json!(0.8)),
        ("min_p", json!(0.05)),
        ("repetition_penalty", json!(1.2)),
        ("presence_penalty", json!(0.5)),
        ("frequency_penalty", json!(-0.5)),
        ("logit_bias", json!({"17": 3.5, "40": -100})),
        ("n", json!(2)),
        ("stop", json!([" the", "and"])),
        ("min_tokens", json!(1)),
        ("stop_token_ids", json!([rng.random_range(0..VOCAB)])),
        ("echo", json!(true)),
    ] {
        if rng.random_bool(0.2) {
            add(name, value);
        }
    }
    body
}

/// A beginning that a third of all prompts have, of some length, and an end of its own.
fn tokens(rng: &mut ChaCha8Rng) -> Vec<u32> {
    let mut common = ChaCha8Rng::seed_from_u64(rng.random_range(0..3));
    let length = *[0, 5, 16, 64, 70, 140].choose(rng).unwrap();
    let mut tokens: Vec<u32> = (0..length).map(|_| common.random_range(0..VOCAB)).collect();
    let own = rng.random_range(0..9) + usize::from(length == 0);
    tokens.extend((0..own).map(|_| rng.random_range(0..VOCAB)));
    tokens
}

/// Everything that an answer says of its choices, streamed or not: scores as they are written, which is exact.
pub fn said(answer: &Answer) -> Vec<Value> {
    let events = match answer.header("content-type") {
        Some(kind) if kind.starts_with("text/event-stream") => answer.events(),
        _ => vec![answer.json()],
    };
    let mut said: Vec<Map<String, Value>> = Vec::new();
    for event in events {
        assert!(event["error"].is_null(), "{event}");
        for choice in event["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            said.resize_with(said.len().max(index + 1), Map::new);
            let all = &mut said[index];
            let text = all.entry("text").or_insert_with(|| "".into());
            *text = format!(
                "{}{}",
                text.as_str().unwrap(),
                choice["text"].as_str().unwrap()
            )
            .into();
            if !choice["finish_reason"].is_null() {
                all.insert("finish_reason".into(), choice["finish_reason"].clone());
            }
            let Some(scores) = choice["logprobs"].as_object() else {
                continue;
            };
            for (name, more) in scores {
                let list = all.entry(name).or_insert_with(|| json!([]));
                let more = more.as_array().unwrap().iter().cloned();
                list.as_array_mut().unwrap().extend(more);
            }
        }
    }
    said.into_iter().map(Value::from).collect()
}
