//! Bodies with every parameter.

use serde_json::json;

pub const WORDS: &[&[u8]] = &[
    b"\"prompt\":",
    b"\"messages\":[",
    b"\"role\":\"user\"",
    b"\"content\":",
    b"{\"type\":\"text\",\"text\":\"a\"}",
    b"\"max_tokens\":",
    b"\"max_completion_tokens\":",
    b"\"temperature\":",
    b"\"logit_bias\":{\"1\":2}",
    b"\"stop\":[",
    b"\"stop_token_ids\":[",
    b"\"stream\":true",
    b"\"stream_options\":{",
    b"\"logprobs\":",
    b"\"top_logprobs\":",
    b"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{",
    b"\"guided_choice\":[",
    b"\"guided_regex\":",
    b"\"structured_outputs\":{",
    b"1e999",
    b"-1",
    b"18446744073709551616",
    b"null",
    b"\\ud800",
    b"\xff",
];

pub fn seeds() -> Vec<Vec<u8>> {
    let user = json!({"role": "user", "content": "Who made the earth?"});
    super::json([
        json!({"prompt": "In the beginning", "model": "kjv", "max_tokens": 12, "temperature": 0}),
        json!({"prompt": ["a", "b"], "n": 2, "best_of": 2, "seed": -1, "stop": ["x", "\u{1f600}"], "echo": true}),
        json!({"prompt": [1, 2, 3], "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "logprobs": 3}),
        json!({"prompt": [[1], [2, 999]], "logit_bias": {"5": -100, "7": 1.5}, "repetition_penalty": 1.2,
            "presence_penalty": -2, "frequency_penalty": 2, "min_tokens": 1, "stop_token_ids": [0, 999]}),
        json!({"prompt": "a", "stream": true, "stream_options": {"include_usage": true}, "ignore_eos": true,
            "skip_special_tokens": true, "no_stop_trim": true, "return_tokens_as_token_ids": true, "user": "x"}),
        json!({"prompt": "a", "guided_choice": ["b", "c"], "add_special_tokens": false}),
        json!({"prompt": "a", "guided_regex": "[a-z]+", "suffix": ""}),
        json!({"prompt": "a", "guided_grammar": "start: \"a\"", "include_stop_str_in_output": true}),
        json!({"prompt": "a", "structured_outputs": {"json": {"type": "object"}}}),
        json!({"messages": [user], "max_completion_tokens": 8, "logprobs": true, "top_logprobs": 2}),
        json!({"messages": [{"role": "system", "content": "a"}, user,
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]}], "n": 3, "tools": [],
            "chat_template_kwargs": {"x": [1]}, "add_generation_prompt": false}),
        json!({"messages": [user], "response_format": {"type": "json_schema", "json_schema":
            {"name": "x", "schema": {"type": "array", "items": {"enum": [1, "a", null]}}}}}),
        json!({"messages": [user], "response_format": {"type": "json_object"}, "stream": false}),
    ])
}
