mod stop;
mod stream;

use super::*;
use SpecialTokens::{None as Plain, Tokenizer as WithSpecial};
use proptest::prelude::*;
use serde_json::{Value, json};

/// The end of every text, in all these tokenizers.
const END: u32 = 256;

/// The characters that byte-level tokenizers write bytes as.
fn byte_characters() -> Vec<char> {
    let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut other = 256;
    (0..256u32)
        .map(|byte| {
            let code = if printable(&byte) {
                byte
            } else {
                other += 1;
                other - 1
            };
            char::from_u32(code).unwrap()
        })
        .collect()
}

fn added(id: u32, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": special,
    })
}

fn tokenizer_json(mut model: Value, pre_tokenizer: Value, decoder: Value) -> Value {
    model["vocab"]["</s>"] = END.into();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "post_processor": null, "added_tokens": [added(END, "</s>", true)],
        "pre_tokenizer": pre_tokenizer, "decoder": decoder, "model": model,
    })
}

fn made(json: &Value) -> Tokenizer {
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

/// One token per byte.
fn byte_level_json() -> Value {
    let vocab: serde_json::Map<_, _> = byte_characters()
        .into_iter()
        .enumerate()
        .map(|(id, c)| (c.to_string(), id.into()))
        .collect();
    tokenizer_json(
        json!({"type": "BPE", "vocab": vocab, "merges": []}),
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}),
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true}),
    )
}

fn byte_level() -> Tokenizer {
    made(&byte_level_json())
}

/// The tokens of [`byte_fallback`] that are no bytes, from 257 on.
const PIECES: [&str; 6] = [
    "\u{2581}",
    "a",
    "b",
    "\u{e9}",
    "\u{2581}ab",
    "\u{2581}\u{2581}",
];

/// A few letters, and bytes for everything else; spaces as in LLaMA 2. 263 is an added token, 264 a
/// special one.
fn byte_fallback_json() -> Value {
    let bytes = (0..256).map(|byte| (format!("<0x{byte:02X}>"), byte.into()));
    let pieces = PIECES.into_iter().zip(257..);
    let vocab: serde_json::Map<_, _> = bytes
        .chain(pieces.map(|(piece, id)| (piece.to_owned(), id.into())))
        .collect();
    let replace = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
    let mut json = tokenizer_json(
        json!({"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true, "unk_token": null}),
        json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": false}),
        json!({"type": "Sequence", "decoders": [
            replace, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]}),
    );
    let list = json["added_tokens"].as_array_mut().unwrap();
    list.extend([added(263, "<tool> ", false), added(264, "<s>", true)]);
    json
}

fn byte_fallback() -> Tokenizer {
    made(&byte_fallback_json())
}

/// LLaMA 2's way to put `<s>` before every text.
fn template() -> Value {
    json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [264], "tokens": ["<s>"]}},
    })
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, Plain).unwrap().ids
}

#[test]
fn special_tokens_are_added_where_asked_for() {
    let mut json = byte_fallback_json();
    json["post_processor"] = template();
    let with = made(&json);
    let without = byte_fallback();
    for text in ["ab b", "", " a", "<s>a", "\u{4f60}"] {
        // All else is as without a post-processor.
        let plain = with.encode(text, Plain).unwrap();
        assert_eq!(plain, without.encode(text, Plain).unwrap());
        assert_eq!(plain, without.encode(text, WithSpecial).unwrap());
        assert_eq!(plain.added, [0usize; 0]);
        let encoded = with.encode(text, WithSpecial).unwrap();
        assert_eq!(encoded.ids, [&[264], &plain.ids[..]].concat());
        assert_eq!(encoded.added, [0]);
    }
    assert_eq!(with.special_tokens().unwrap(), [264]);
    assert_eq!(without.special_tokens().unwrap(), [0u32; 0]);
    for (kind, ids) in [
        ("BertProcessing", [264, END]),
        ("RobertaProcessing", [264, END]),
    ] {
        json["post_processor"] = json!({"type": kind, "cls": ["<s>", 264], "sep": ["</s>", END],
            "trim_offsets": true, "add_prefix_space": false});
        let tokenizer = made(&json);
        assert_eq!(tokenizer.special_tokens().unwrap(), ids, "{kind}");
        assert_eq!(tokenizer.encode("a", WithSpecial).unwrap().added, [0, 3]);
        assert_eq!(tokenizer.encode("a", Plain).unwrap().ids, [257, 258]);
    }
}

#[test]
fn a_token_beyond_the_model_is_named() {
    let tokenizer = byte_fallback();
    assert_eq!(tokenizer.tokens_beyond(263), [263, 264]);
    assert_eq!(tokenizer.tokens_beyond(265), [0u32; 0]);
    let encoded = |text| tokenizer.encode(text, Plain).unwrap();
    let check = |text, vocab_size| {
        let checked = tokenizer.check_vocabulary(&encoded(text), vocab_size);
        checked.map_err(|error| error.to_string())
    };
    assert_eq!(check("ab<s>a<s>", 265), Ok(()));
    assert_eq!(
        check("ab<s>a<s>", 264),
        Err(
            "tokenizer: token 3 is 264, `<s>`, at byte 2 and 1 more: expected 0 to 263, the tokens \
             that the model knows; leave it out of the text"
                .into()
        )
    );
    let mut json = byte_fallback_json();
    json["post_processor"] = template();
    let tokenizer = made(&json);
    let error = tokenizer
        .check_vocabulary(&tokenizer.encode("a", WithSpecial).unwrap(), 264)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "tokenizer: token 0 is 264, `<s>`, which the tokenizer adds: expected 0 to 263, the tokens \
         that the model knows; leave special tokens out"
    );
}

/// A book in one word, as LLaMA's tokenizers see it, and in many.
#[test]
fn a_megabyte_is_tokens() {
    let merges = json!(["a b", "ab ab", "abab abab"]);
    let mut level = byte_level_json();
    let mut fallback = byte_fallback_json();
    fallback["pre_tokenizer"] = Value::Null;
    fallback["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u{2581}"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
    ]});
    for json in [&mut level, &mut fallback] {
        json["model"]["merges"] = merges.clone();
        for (token, id) in [("ab", 300), ("abab", 301), ("abababab", 302)] {
            json["model"]["vocab"][token] = id.into();
        }
        let tokenizer = made(json);
        let text = "ab ba\u{4f60}abababab".repeat((1 << 20) / 16);
        let tokens = ids(&tokenizer, &text);
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
        assert!(tokens.len() < text.len() && tokens.contains(&302));
        assert_eq!(stream(&tokenizer, &[], &tokens).concat(), text);
    }
}

#[test]
fn end_tokens_are_the_special_ones() {
    assert_eq!(byte_level().end_tokens(), BTreeSet::from([END]));
}

#[test]
fn a_prompt_is_neither_padded_nor_cut() {
    let mut json = byte_level_json();
    json["padding"] = json!({
        "strategy": {"Fixed": u32::MAX}, "direction": "Right", "pad_to_multiple_of": 1u64 << 40,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "a",
    });
    json["truncation"] =
        json!({"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
    assert_eq!(ids(&made(&json), "abc").len(), 3);
}

#[test]
fn malformed_files_are_errors() {
    for json in ["", "{}", "[]", "{\"model\": 3}", "\u{0}"] {
        assert!(Tokenizer::from_json(json.as_bytes()).is_err(), "{json:?}");
    }
}

fn stream(tokenizer: &Tokenizer, context: &[u32], tokens: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream(context);
    let mut parts: Vec<_> = tokens
        .iter()
        .map(|&token| stream.push(token).unwrap())
        .collect();
    parts.push(stream.finish().unwrap());
    parts
}
