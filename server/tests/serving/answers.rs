//! What is answered: texts, scores, streams, errors.

use crate::common::{MAX_SEQ_LEN, Server, export, load, options, start, start_with};
use ratplus_graphs::package::LogitsMode;
use ratplus_runtime::scheduler;
use ratplus_tests::http::{Answer, ask, eventually, get, post};
use serde_json::{Value, json};

fn server() -> Server {
    start(options(), scheduler::Options::default())
}

/// Members of `json` and of `more`.
fn with(json: &Value, more: &Value) -> Value {
    let mut all = json.clone();
    let members = all.as_object_mut().unwrap();
    members.extend(more.as_object().unwrap().clone());
    all
}

fn completion(server: &Server, json: &Value) -> Value {
    let answer = post(server.address, "/v1/completions", json);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn text(choice: &Value) -> &str {
    choice["text"].as_str().unwrap()
}

fn error(answer: &Answer, status: u16) -> Value {
    assert_eq!(answer.status, status, "{}", answer.body);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let error = answer.json()["error"].clone();
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|message| !message.is_empty())
    );
    error
}

const GREEDY: &str = r#"{"prompt": "In the beginning", "temperature": 0, "max_tokens": 12}"#;

fn greedy() -> Value {
    serde_json::from_str(GREEDY).unwrap()
}

#[test]
fn a_completion_is_whole_and_the_same_in_parts_and_in_company() {
    let server = server();
    let alone = completion(&server, &greedy());
    assert_eq!(alone["object"], "text_completion");
    assert_eq!(alone["model"], "kjv");
    let choice = &alone["choices"][0];
    assert_eq!(
        (choice["index"].as_u64(), choice["finish_reason"].as_str()),
        (Some(0), Some("length"))
    );
    let usage = &alone["usage"];
    assert_eq!(usage["completion_tokens"], 12);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    let whole = text(choice);
    assert!(whole.len() > 12, "{whole}");
    // Streamed.
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = post(
        server.address,
        "/v1/completions",
        &with(&greedy(), &options),
    );
    assert_eq!(
        answer.header("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    let mut events = answer.events();
    let last = events.pop().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), usage));
    let streamed: String = events
        .iter()
        .map(|event| text(&event["choices"][0]))
        .collect();
    assert_eq!(streamed, whole);
    assert!(
        events
            .iter()
            .all(|event| event["usage"].is_null() && event["id"] == last["id"])
    );
    let reasons = events
        .iter()
        .map(|event| &event["choices"][0]["finish_reason"]);
    assert_eq!(reasons.filter(|reason| !reason.is_null()).count(), 1);
    // No usage unless it is asked for.
    let answer = post(
        server.address,
        "/v1/completions",
        &with(&greedy(), &json!({"stream": true})),
    );
    assert!(!answer.body.contains("usage"));
    // Beside others, of all kinds.
    let many = json!({"prompt": ["In the beginning", "And God said", "In the beginning"], "n": 2,
        "seed": 3, "temperature": 0.9});
    let together = completion(
        &server,
        &with(&greedy(), &with(&many, &json!({"temperature": 0}))),
    );
    let choices = together["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 6);
    for index in [0, 1, 4, 5] {
        assert_eq!(text(&choices[index]), whole);
    }
    let drawn = completion(&server, &with(&greedy(), &many));
    let drawn = drawn["choices"].as_array().unwrap().clone();
    let indices: Vec<_> = drawn
        .iter()
        .map(|choice| choice["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
    // A prompt's draws depend on the seed and the choice, not on the prompts beside it.
    assert_eq!(text(&drawn[0]), text(&drawn[4]));
    assert_eq!(text(&drawn[1]), text(&drawn[5]));
    assert_ne!(text(&drawn[0]), text(&drawn[1]));
    let one = json!({"prompt": "And God said", "seed": 3, "temperature": 0.9});
    assert_eq!(
        text(&completion(&server, &with(&greedy(), &one))["choices"][0]),
        text(&drawn[2])
    );
}

#[test]
fn scores_of_prompts_are_what_they_are_of_answers() {
    let server = server();
    let asked_scores = json!({"max_tokens": 6, "logprobs": 2});
    let answered = completion(&server, &with(&greedy(), &asked_scores));
    let scored = &answered["choices"][0]["logprobs"];
    let values = |scored: &Value, name: &str| scored[name].as_array().unwrap().clone();
    assert_eq!(values(scored, "tokens").len(), 6);
    let prompt = post(
        server.address,
        "/tokenize",
        &json!({"prompt": "In the beginning"}),
    )
    .json();
    let prompt: Vec<u64> = serde_json::from_value(prompt["tokens"].clone()).unwrap();
    // As lm-evaluation-harness asks, for the tokens that were answered.
    let whole = format!("In the beginning{}", text(&answered["choices"][0]));
    let tokens = post(server.address, "/tokenize", &json!({"prompt": whole})).json();
    let tokens: Vec<u64> = serde_json::from_value(tokens["tokens"].clone()).unwrap();
    let asked =
        json!({"prompt": [tokens], "max_tokens": 1, "logprobs": 1, "echo": true, "temperature": 0});
    let echoed = completion(&server, &asked)["choices"][0].clone();
    assert!(text(&echoed).starts_with(&whole));
    let echo = &echoed["logprobs"];
    let logprobs = values(echo, "token_logprobs");
    assert_eq!(logprobs.len(), tokens.len() + 1);
    assert!(logprobs[0].is_null() && values(echo, "top_logprobs")[0].is_null());
    assert!(
        logprobs[1..]
            .iter()
            .all(|score| score.as_f64().unwrap() <= 0.0)
    );
    // The same tokens again, which a text's tokens need not be.
    let ids = json!({"return_tokens_as_token_ids": true});
    let ids = completion(&server, &with(&greedy(), &with(&asked_scores, &ids)));
    let ids = values(&ids["choices"][0]["logprobs"], "tokens");
    let ids = ids.iter().map(|id| {
        let id = id.as_str().unwrap().strip_prefix("token_id:");
        id.unwrap().parse::<u64>().unwrap()
    });
    assert_eq!(tokens[..prompt.len()], prompt);
    assert_eq!(tokens[prompt.len()..], ids.collect::<Vec<_>>());
    for (index, score) in values(scored, "token_logprobs").iter().enumerate() {
        let (found, expected) = (&logprobs[prompt.len() + index], score.as_f64().unwrap());
        assert!(
            (found.as_f64().unwrap() - expected).abs() < 1e-4,
            "{found} {expected}"
        );
    }
    // Greedy: the likeliest is the token, as clients see it.
    let tokens = values(scored, "tokens");
    for (token, best) in tokens.iter().zip(values(scored, "top_logprobs")) {
        let best = best.as_object().unwrap();
        assert_eq!(best.len(), 2);
        let top = best
            .iter()
            .max_by(|a, b| a.1.as_f64().partial_cmp(&b.1.as_f64()).unwrap());
        assert_eq!(top.unwrap().0, token.as_str().unwrap());
    }
    let texts: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(texts, text(&answered["choices"][0]));
    let offsets = values(scored, "text_offset");
    assert_eq!((offsets[0].as_u64(), offsets.len()), (Some(0), 6));
    // The prompt alone.
    let none = json!({"prompt": "In the beginning", "max_tokens": 0, "echo": true});
    let none = completion(&server, &none);
    assert_eq!(text(&none["choices"][0]), "In the beginning");
    assert_eq!(none["usage"]["completion_tokens"], 0);
    let ids = json!({"logprobs": 0, "return_tokens_as_token_ids": true, "max_tokens": 1});
    let ids = completion(&server, &with(&greedy(), &ids));
    let first = &ids["choices"][0]["logprobs"]["tokens"][0];
    assert!(first.as_str().unwrap().starts_with("token_id:"));
}

#[test]
fn stop_strings_are_never_told() {
    let server = server();
    let whole = completion(&server, &greedy());
    let whole = text(&whole["choices"][0]);
    // The end of one word and the start of the next.
    let middle = whole
        .char_indices()
        .nth(whole.chars().count() / 2)
        .unwrap()
        .0;
    let end = whole[middle..].char_indices().nth(4).unwrap().0;
    let stop = &whole[middle..middle + end];
    let before = &whole[..whole.find(stop).unwrap()];
    let stopped = completion(&server, &with(&greedy(), &json!({"stop": ["never", stop]})));
    assert_eq!(text(&stopped["choices"][0]), before);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let streamed = json!({"stop": stop, "stream": true});
    let events = post(
        server.address,
        "/v1/completions",
        &with(&greedy(), &streamed),
    )
    .events();
    let streamed: String = events
        .iter()
        .map(|event| text(&event["choices"][0]))
        .collect();
    assert_eq!(streamed, before);
    let included = json!({"stop": stop, "include_stop_str_in_output": true});
    let included = completion(&server, &with(&greedy(), &included));
    assert_eq!(text(&included["choices"][0]), format!("{before}{stop}"));
    // By token: of the first one nothing is told.
    let first = json!({"logprobs": 0, "max_tokens": 1, "return_tokens_as_token_ids": true});
    let first = completion(&server, &with(&greedy(), &first));
    let first = first["choices"][0]["logprobs"]["tokens"][0]
        .as_str()
        .unwrap();
    let id: u64 = first.strip_prefix("token_id:").unwrap().parse().unwrap();
    let stopped = completion(&server, &with(&greedy(), &json!({"stop_token_ids": [id]})));
    let choice = &stopped["choices"][0];
    assert_eq!(
        (text(choice), choice["finish_reason"].as_str()),
        ("", Some("stop"))
    );
    assert_eq!(stopped["usage"]["completion_tokens"], 1);
}

#[test]
fn a_chat_has_a_role_first_and_the_template_of_the_package() {
    let server = server();
    let messages =
        json!([{"role": "user", "content": [{"type": "text", "text": "Who made the earth?"}]}]);
    let chat = json!({"messages": messages, "temperature": 0, "max_completion_tokens": 8});
    let whole = post(server.address, "/v1/chat/completions", &chat).json();
    assert_eq!(whole["object"], "chat.completion");
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["role"], "assistant");
    // What the template writes, as a text.
    let text = "<user>Who made the earth?\n<assistant>";
    let plain = json!({"prompt": text, "temperature": 0, "max_tokens": 8});
    let plain = completion(&server, &plain);
    assert_eq!(plain["choices"][0]["text"], message["content"]);
    assert_eq!(plain["usage"], whole["usage"]);
    let tokens = post(server.address, "/tokenize", &json!({"messages": messages})).json();
    assert_eq!(tokens["count"], whole["usage"]["prompt_tokens"]);
    let back = post(
        server.address,
        "/detokenize",
        &json!({"tokens": tokens["tokens"]}),
    )
    .json();
    assert_eq!(back["prompt"].as_str().unwrap().trim_start(), text);
    // As vllm-router passes it on.
    let routed = json!({"logprobs": false, "no_stop_trim": false, "ignore_eos": false,
        "continue_final_message": false, "skip_special_tokens": true, "separate_reasoning": true,
        "stream_reasoning": true, "return_hidden_states": false, "include_reasoning": true});
    let routed = post(
        server.address,
        "/v1/chat/completions",
        &with(&chat, &routed),
    );
    assert_eq!(routed.json()["choices"], whole["choices"]);
    // Streamed, with scores.
    let more = json!({"stream": true, "logprobs": true, "top_logprobs": 2, "n": 2});
    let events = post(server.address, "/v1/chat/completions", &with(&chat, &more)).events();
    for index in 0..2 {
        let mine = events.iter().map(|event| &event["choices"][0]);
        let mine: Vec<_> = mine.filter(|choice| choice["index"] == index).collect();
        assert_eq!(
            mine[0]["delta"],
            json!({"role": "assistant", "content": ""})
        );
        let parts = mine
            .iter()
            .filter_map(|choice| choice["delta"]["content"].as_str());
        assert_eq!(
            parts.collect::<String>(),
            message["content"].as_str().unwrap()
        );
        let last = mine.last().unwrap();
        assert_eq!(
            (&last["delta"], last["finish_reason"].as_str()),
            (&json!({}), Some("length"))
        );
        let scored = mine
            .iter()
            .filter_map(|choice| choice["logprobs"]["content"].as_array());
        let scored: Vec<_> = scored.flatten().collect();
        assert_eq!(scored.len(), 8);
        assert!(
            scored
                .iter()
                .all(|token| token["top_logprobs"].as_array().unwrap().len() == 2)
        );
        assert!(
            scored
                .iter()
                .all(|token| token["token"] == token["top_logprobs"][0]["token"])
        );
    }
    assert!(
        events
            .iter()
            .all(|event| event["object"] == "chat.completion.chunk")
    );
    // The template's own refusal.
    let refused = with(&chat, &json!({"chat_template_kwargs": {"fail": true}}));
    let refused = error(&post(server.address, "/v1/chat/completions", &refused), 400);
    assert_eq!(refused["message"], "`messages`: chat template: no more");
}

#[test]
fn a_package_says_what_it_was_exported_without() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("plain");
    export(&package, None, LogitsMode::Last);
    let server = start_with(options(), move || {
        load(&package, scheduler::Options::default())
    });
    server.wait_until("ready");
    let chat = json!({"messages": [{"role": "user", "content": "a"}]});
    let refused = error(&post(server.address, "/v1/chat/completions", &chat), 400);
    assert_eq!(refused["code"], "no_chat_template");
    let echo = with(&greedy(), &json!({"echo": true, "logprobs": 1}));
    let refused = error(&post(server.address, "/v1/completions", &echo), 400);
    assert_eq!(refused["param"], "echo");
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("--logits all")
    );
    drop(dir);
}

#[test]
fn what_is_wrong_is_an_error_object_that_names_it() {
    let server = server();
    for (more, name) in [
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": [5000]}), "prompt"),
        (json!({"prompt": "a ".repeat(2 * MAX_SEQ_LEN)}), "prompt"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"logprobs": 21}), "logprobs"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"model": "other"}), "model"),
        (json!({"stop_token_ids": [2048]}), "stop_token_ids"),
        (json!({"unheard_of": 1}), "unheard_of"),
        (json!({"n": 128, "prompt": ["a", "b", "c"]}), "prompt"),
    ] {
        let answer = post(server.address, "/v1/completions", &with(&greedy(), &more));
        let status = if name == "model" { 404 } else { 400 };
        assert_eq!(error(&answer, status)["param"], name, "{}", answer.body);
    }
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"\xff\xfe",
        b"{\"prompt\": \"\xff\"}",
        &[b'['; 100_000],
    ] {
        error(
            &ask(server.address, "POST", "/v1/completions", "", body),
            400,
        );
    }
    let numbers = br#"{"prompt": "a", "temperature": 1e999}"#;
    let answer = ask(server.address, "POST", "/v1/completions", "", numbers);
    assert_eq!(error(&answer, 400)["param"], "temperature");
    error(
        &post(server.address, "/v1/completions/render", &json!({})),
        404,
    );
    error(&get(server.address, "/v1/models/other"), 404);
    assert_eq!(
        get(server.address, "/v1/models/kjv").json()["max_model_len"],
        MAX_SEQ_LEN
    );
    assert_eq!(
        get(server.address, "/v1/models").json()["data"][0]["id"],
        "kjv"
    );
    // Nothing of that has touched the engine.
    assert_eq!(server.busy(), (0, 0));
    assert_eq!(server.slots()["totals"]["submitted"], 0);
}

#[test]
fn numbers_are_what_was_asked_for() {
    let server = server();
    let asked = with(
        &greedy(),
        &json!({"prompt": ["In the beginning", "And God said"], "max_tokens": 5}),
    );
    let usage = completion(&server, &asked)["usage"].clone();
    let number = |name: &str| usage[name].as_f64().unwrap();
    assert_eq!(
        server.metric("vllm:prompt_tokens_total", ""),
        number("prompt_tokens")
    );
    assert_eq!(
        server.metric("vllm:generation_tokens_total", ""),
        number("completion_tokens")
    );
    assert_eq!(
        server.metric("vllm:request_success_total", "\"length\""),
        2.0
    );
    assert_eq!(
        server.metric("vllm:time_to_first_token_seconds_count", ""),
        2.0
    );
    assert_eq!(
        server.metric("vllm:inter_token_latency_seconds_count", ""),
        8.0
    );
    assert_eq!(
        server.metric("vllm:e2e_request_latency_seconds_count", ""),
        2.0
    );
    let running = || server.metric("vllm:num_requests_running", "");
    eventually("nothing runs", || running() == 0.0);
    let answered = server.metric(
        "ratplus:http_requests_total",
        "path=\"/v1/completions\",status=\"200\"",
    );
    assert_eq!(answered, 1.0);
}

#[test]
fn a_text_has_the_form_that_is_asked_for() {
    let server = server();
    let choices = ["heaven", "the earth"];
    let asked = json!({"guided_choice": choices, "max_tokens": 40});
    let chosen = completion(&server, &with(&greedy(), &asked));
    assert!(choices.contains(&text(&chosen["choices"][0])), "{chosen}");
    assert_eq!(chosen["choices"][0]["finish_reason"], "stop");
    let asked = json!({"guided_regex": "[0-9]{3}", "max_tokens": 40, "temperature": 1, "n": 3});
    let drawn = completion(&server, &with(&greedy(), &asked));
    for choice in drawn["choices"].as_array().unwrap() {
        let digits = text(choice);
        assert!(
            digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit()),
            "{digits}"
        );
    }
    let schema = json!({"type": "object", "properties": {"day": {"enum": ["first", "second"]}},
        "required": ["day"], "additionalProperties": false,
        "x-guidance": {"whitespace_flexible": false}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "day", "schema": schema}});
    let chat = json!({"messages": [{"role": "user", "content": "Which day?"}], "temperature": 0,
        "response_format": format, "max_tokens": 60});
    let answer = post(server.address, "/v1/chat/completions", &chat).json();
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    let object: Value = serde_json::from_str(content).unwrap_or_else(|_| panic!("{content}"));
    assert!(["first", "second"].contains(&object["day"].as_str().unwrap()));
    // What is no form is an error of its request.
    for (form, name) in [
        (json!({"guided_regex": "("}), "guided_regex"),
        (
            json!({"guided_grammar": "start: nothing"}),
            "guided_grammar",
        ),
        (json!({"guided_json": {"type": "no type"}}), "guided_json"),
        (json!({"guided_regex": "a".repeat(100_000)}), "guided_regex"),
    ] {
        let refused = post(server.address, "/v1/completions", &with(&greedy(), &form));
        assert_eq!(error(&refused, 400)["param"], name);
    }
    assert_eq!(
        completion(&server, &greedy())["usage"]["completion_tokens"],
        12
    );
}
