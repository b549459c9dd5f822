//! Tokenizers of every kind of model, with a prompt.

use serde_json::{Value, json};

pub const WORDS: &[&[u8]] = &[
    b"\"type\":\"BPE\"",
    b"\"type\":\"WordPiece\"",
    b"\"type\":\"Unigram\"",
    b"\"type\":\"WordLevel\"",
    b"\"type\":\"ByteLevel\"",
    b"\"type\":\"Metaspace\"",
    b"\"type\":\"Sequence\"",
    b"\"type\":\"Replace\"",
    b"\"type\":\"Split\"",
    b"\"type\":\"Strip\"",
    b"\"type\":\"TemplateProcessing\"",
    b"\"pattern\":{\"Regex\":\"(a*)*\"}",
    b"\"pattern\":{\"String\":\"\"}",
    b"\"padding\":{\"strategy\":{\"Fixed\":4294967295},\"direction\":\"Right\",\"pad_to_multiple_of\":null,\"pad_id\":0,\"pad_type_id\":0,\"pad_token\":\"a\"}",
    b"\"truncation\":{\"max_length\":0,\"strategy\":\"LongestFirst\",\"stride\":1,\"direction\":\"Right\"}",
    b"\"content\":\"\"",
    b"\"normalizers\":[",
    b"\"pretokenizers\":[",
    b"\"decoders\":[",
    b"\"merges\":[\"a b\"]",
    b"\"unk_id\":",
    b"4294967295",
    b"\xff",
];

fn with(model: Value, normalizer: Value, splitter: Value, decoder: Value, post: Value) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{
            "id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "normalizer": normalizer, "pre_tokenizer": splitter, "post_processor": post,
        "decoder": decoder, "model": model,
    })
}

pub fn seeds() -> Vec<Vec<u8>> {
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let metaspace = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": false});
    let letters =
        json!({"</s>": 0, "a": 1, "b": 2, "ab": 3, "\u{2581}": 4, "<0xE4>": 5, "\u{120}": 6});
    let replace = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
    let decoders = json!({"type": "Sequence", "decoders": [
        replace, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]});
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [0], "tokens": ["</s>"]}},
    });
    let bpe = json!({"type": "BPE", "dropout": null, "unk_token": "</s>", "byte_fallback": true,
        "vocab": letters, "merges": ["a b"]});
    let words = json!({"type": "WordPiece", "unk_token": "</s>", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"</s>": 0, "a": 1, "##b": 2}});
    let unigram = json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["</s>", 0.0], ["a", -1.0], ["ab", -1.5]]});
    let level = json!({"type": "WordLevel", "unk_token": "</s>", "vocab": {"</s>": 0, "ab": 1}});
    let normal = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u{2581}"}, {"type": "NFKC"}, {"type": "Lowercase"}, replace,
    ]});
    let split = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\s+|\\w+"}, "behavior": "Isolated", "invert": false},
        {"type": "Digits", "individual_digits": true},
    ]});
    let null = || Value::Null;
    let tokenizers = super::json([
        with(bpe.clone(), null(), byte_level.clone(), byte_level, null()),
        with(bpe, normal, metaspace, decoders, template),
        with(
            words,
            null(),
            json!({"type": "Whitespace"}),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            null(),
        ),
        with(unigram, null(), null(), json!({"type": "Fuse"}), null()),
        with(level, null(), split, null(), null()),
    ]);
    let prompt = "ab a\u{4f60}\u{e9} 12\n";
    tokenizers
        .into_iter()
        .map(|json| [&json[..], b"\xff", prompt.as_bytes()].concat())
        .collect()
}
