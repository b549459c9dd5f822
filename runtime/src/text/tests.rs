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

fn stream(tokenizer: &Tokenizer, context: &[u32], tokens: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream(context);
    let mut parts: Vec<_> = tokens
        .iter()
        .map(|&token| stream.push(token).unwrap())
        .collect();
    parts.push(stream.finish().unwrap());
    parts
}

/// Bytes as text, and how many at the end are the start of a character; each byte that is no part of
/// one is a U+FFFD where `each` says so.
fn lossy(bytes: &[u8], each: bool) -> (String, usize) {
    let starts_one = |tail: &[u8]| {
        let error = std::str::from_utf8(tail).err();
        error.is_some_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    let tails = 1..=bytes.len().min(4);
    let unfinished = tails
        .filter(|&count| starts_one(&bytes[bytes.len() - count..]))
        .max()
        .unwrap_or(0);
    let mut bytes = &bytes[..bytes.len() - unfinished];
    if !each {
        return (String::from_utf8_lossy(bytes).into_owned(), unfinished);
    }
    let mut text = String::new();
    while let Err(error) = std::str::from_utf8(bytes) {
        let (valid, rest) = bytes.split_at(error.valid_up_to());
        text += std::str::from_utf8(valid).unwrap();
        text.push('\u{fffd}');
        bytes = &rest[1..];
    }
    (text + std::str::from_utf8(bytes).unwrap(), unfinished)
}

proptest! {
    #[test]
    fn streaming_returns_whole_characters(text in "[ -~]{0,9}\\PC{0,9}[ab\u{e9}\u{4f60}\u{1f600} ]{0,30}") {
        for tokenizer in [byte_level(), byte_fallback()] {
            let tokens = ids(&tokenizer, &text);
            let parts = stream(&tokenizer, &[], &tokens);
            prop_assert_eq!(parts.concat(), tokenizer.decode(&tokens).unwrap());
            // LLaMA's tokenizer drops a space at the start.
            let streamed = parts.concat();
            prop_assert_eq!(streamed.trim_start_matches(' '), text.trim_start_matches(' '));
        }
    }

    /// Any cut of a text into prompt and continuation, where the cut is between characters.
    #[test]
    fn streaming_continues_a_prompt(text in "[a-c \u{e9}\u{4f60}\u{1f600}]{1,30}", cut: prop::sample::Index) {
        let cuts: Vec<_> = text.char_indices().map(|(at, _)| at).skip(1).collect();
        prop_assume!(!cuts.is_empty());
        let at = *cut.get(&cuts);
        let tokenizer = byte_level();
        let (prompt, rest) = text.split_at(at);
        let prompt = ids(&tokenizer, prompt);
        let parts = stream(&tokenizer, &prompt, &ids(&tokenizer, rest));
        prop_assert_eq!(parts.concat(), rest);
    }

    /// Any bytes at all, after any others: every character is shown with its last byte, every other
    /// byte when it is known to be none, and all of it is the text of the whole.
    #[test]
    fn byte_level_streams_show_what_can_be_shown(
        tokens in prop::collection::vec(0u32..257, 0..60), cut: prop::sample::Index,
    ) {
        let tokenizer = byte_level();
        let bytes = |tokens: &[u32]| -> Vec<u8> {
            tokens.iter().filter_map(|&token| u8::try_from(token).ok()).collect()
        };
        let (context, tokens) = tokens.split_at(cut.index(tokens.len() + 1));
        let parts = stream(&tokenizer, context, tokens);
        let before = lossy(&bytes(context), false).0;
        let mut shown = before.clone();
        let mut ran = context.to_vec();
        for (&token, part) in tokens.iter().zip(&parts) {
            ran.push(token);
            shown += part;
            let (text, unfinished) = lossy(&bytes(&ran), false);
            prop_assert!(unfinished <= 3);
            prop_assert_eq!(&shown, &text);
        }
        shown += parts.last().unwrap();
        prop_assert_eq!(shown, tokenizer.decode(&ran).unwrap());
    }

    /// The same where some tokens are bytes and others text, special or unknown.
    #[test]
    fn byte_fallback_streams_show_what_can_be_shown(
        tokens in prop::collection::vec(prop_oneof![
            128u32..192, 194u32..245, 0u32..256, 256u32..270, Just(257), Just(0xf0), Just(0x9f),
        ], 0..60),
        cut: prop::sample::Index,
    ) {
        let tokenizer = byte_fallback();
        let (context, tokens) = tokens.split_at(cut.index(tokens.len() + 1));
        // The text of tokens as far as it can be shown, the rest of it, and whether a run of bytes
        // has characters as well as others.
        let expected = |tokens: &[u32]| {
            let (mut text, mut run, mut mixed) = (String::new(), Vec::new(), false);
            let end_run = |run: &mut Vec<u8>, text: &mut String, mixed: &mut bool| {
                let (shown, unfinished) = lossy(run, true);
                *text += &shown;
                let whole = std::str::from_utf8(run).is_ok();
                *mixed |= !whole && shown.chars().any(|c| c != '\u{fffd}');
                run.clear();
                "\u{fffd}".repeat(unfinished)
            };
            for &token in tokens {
                let piece = match token {
                    0..=255 => {
                        run.push(token as u8);
                        continue;
                    }
                    257..=262 => PIECES[token as usize - 257],
                    263 => "<tool> ",
                    _ => continue,
                };
                let rest = end_run(&mut run, &mut text, &mut mixed);
                text += &rest;
                text += &piece.replace('\u{2581}', " ");
            }
            let rest = end_run(&mut run, &mut text, &mut mixed);
            let gone = usize::from(text.starts_with(' '));
            (text[gone..].to_owned(), rest, mixed)
        };
        let parts = stream(&tokenizer, context, tokens);
        let mut shown = expected(context).0;
        let mut ran = context.to_vec();
        for (&token, part) in tokens.iter().zip(&parts) {
            ran.push(token);
            shown += part;
            prop_assert_eq!(&shown, &expected(&ran).0);
        }
        shown += parts.last().unwrap();
        let (text, rest, mixed) = expected(&ran);
        prop_assert_eq!(&shown, &(text + &rest));
        if !mixed {
            prop_assert_eq!(shown, tokenizer.decode(&ran).unwrap());
        }
    }

    /// Decoders that change tokens one by one, and some that do not, on their own tokens.
    #[test]
    fn other_decoders_stream_the_whole_text(tokens in prop::collection::vec(0u32..12, 0..40)) {
        let words = ["a", "##b", "\u{2581}c", ".", "\u{2581}", " ", "n't", "d</w>", "e", "\u{e9}", "", "##"];
        let vocab: serde_json::Map<_, _> =
            words.iter().zip(0u32..).map(|(word, id)| ((*word).to_owned(), id.into())).collect();
        let metaspace = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"});
        let space = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
        let strip = json!({"type": "Strip", "content": " ", "start": 2, "stop": 0});
        let sequence = |decoders: &[&Value]| json!({"type": "Sequence", "decoders": decoders});
        let fuse = json!({"type": "Fuse"});
        for decoder in [
            Value::Null,
            metaspace.clone(),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            json!({"type": "BPEDecoder", "suffix": "</w>"}),
            sequence(&[&space, &fuse, &strip]),
            sequence(&[&space, &strip, &fuse]),
            sequence(&[&metaspace, &sequence(&[&fuse, &fuse])]),
        ] {
            let json = tokenizer_json(
                json!({"type": "WordLevel", "vocab": vocab, "unk_token": "a"}), Value::Null, decoder.clone(),
            );
            let tokenizer = made(&json);
            let parts = stream(&tokenizer, &[], &tokens);
            prop_assert_eq!(parts.concat(), tokenizer.decode(&tokens).unwrap(), "{}", decoder);
            // What was shown is never taken back.
            let mut shown = String::new();
            for (count, part) in (1..).zip(&parts[..tokens.len()]) {
                shown += part;
                let whole = tokenizer.decode(&tokens[..count]).unwrap();
                prop_assert!(whole == shown || decoder["type"] == "BPEDecoder", "{decoder}: {whole:?} {shown:?}");
            }
        }
    }
}

/// Byte tokens in a chain whose steps are in no order that is known.
#[test]
fn any_chain_of_decoders_holds_little_back() {
    let mut json = byte_fallback_json();
    json["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "ByteFallback"}, {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"},
    ]});
    let tokenizer = made(&json);
    let parts = stream(
        &tokenizer,
        &[],
        &[257, 258, 257, 0xe4, 0xbd, 0xa0, 259, 0xf0, 0x9f],
    );
    assert_eq!(
        parts,
        [
            "",
            "a",
            " ",
            "",
            "",
            "\u{4f60}",
            "b",
            "",
            "",
            "\u{fffd}\u{fffd}"
        ]
    );
    let mut stream = tokenizer.stream(&[]);
    let mut shown = 0;
    for count in 1..=1000 {
        shown += stream.push(0x80).unwrap().chars().count();
        assert!(shown + 3 >= count, "{shown} of {count}");
    }
    assert!(stream.work <= 25 * 1000, "{}", stream.work);
}

/// Sequences of characters that show as one are shown character by character.
#[test]
fn joined_emoji_come_as_they_are_complete() {
    let text = "\u{1f469}\u{200d}\u{1f469}\u{200d}\u{1f467} e\u{301}\u{fe0f}";
    for tokenizer in [byte_level(), byte_fallback()] {
        let tokens = ids(&tokenizer, text);
        let parts = stream(&tokenizer, &[258], &tokens);
        assert!(parts.iter().all(|part| part.chars().count() <= 1));
        assert_eq!(parts.concat().trim_start(), text);
    }
}

/// A token takes the same work after 20 others as after 20,000, and nothing piles up.
#[test]
fn work_grows_with_the_number_of_tokens() {
    for tokenizer in [byte_level(), byte_fallback()] {
        for token in [0x80, u32::from(b'a'), 0xf0, END] {
            let mut stream = tokenizer.stream(&[]);
            let mut shown = String::new();
            for _ in 0..20_000 {
                shown += &stream.push(token).unwrap();
            }
            assert!(stream.work <= 20_000, "{}", stream.work);
            let expected = match token {
                END => 0,
                0xf0 => 19_999,
                _ => 20_000,
            };
            assert_eq!(shown.chars().count(), expected);
        }
    }
}

#[test]
fn a_space_after_the_prompt_is_kept() {
    let tokenizer = byte_fallback();
    let (space, a) = (257, 258);
    assert_eq!(stream(&tokenizer, &[a], &[space, a]).concat(), " a");
    assert_eq!(stream(&tokenizer, &[], &[space, a]).concat(), "a");
    // Special tokens are no text: what follows them is at the start.
    assert_eq!(stream(&tokenizer, &[264], &[space, a]).concat(), "a");
}

#[test]
fn unfinished_bytes_come_at_the_end() {
    let parts = stream(&byte_level(), &[], &[0xe4, 0xbd]);
    assert_eq!(parts, ["", "", "\u{fffd}"]);
    let parts = stream(&byte_fallback(), &[], &[0xe4, 0xbd, END]);
    assert_eq!(parts, ["", "", "", "\u{fffd}\u{fffd}"]);
}

/// Characters before a bad byte were shown; the library takes them back.
#[test]
fn characters_in_a_bad_run_of_bytes_are_shown() {
    let tokenizer = byte_fallback();
    let tokens = [0xe4, 0xbd, 0xa0, 0x80, 0xc3, 0xa9];
    assert_eq!(
        stream(&tokenizer, &[258], &tokens),
        ["", "", "\u{4f60}", "\u{fffd}", "", "\u{e9}", ""]
    );
    assert_eq!(tokenizer.decode(&tokens).unwrap(), "\u{fffd}".repeat(6));
}

#[test]
fn tokens_that_the_tokenizer_does_not_know_have_no_text() {
    for tokenizer in [byte_level(), byte_fallback()] {
        let tokens = [u32::from(b'a'), 4000, u32::MAX, u32::from(b'b')];
        assert_eq!(tokenizer.decode(&tokens).unwrap(), "ab");
        assert_eq!(stream(&tokenizer, &[4000], &tokens).concat(), "ab");
    }
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

/// The text up to the first stop string and its index, looked for in the whole text; how much of it may
/// be shown where there is none.
fn stopped_text(text: &str, stops: &[String], include: bool) -> (usize, Option<usize>) {
    let ends = stops
        .iter()
        .enumerate()
        .filter(|(_, stop)| !stop.is_empty());
    let first = ends.filter_map(|(index, stop)| {
        let begin = text.find(stop.as_str())?;
        Some((begin + stop.len(), begin, index))
    });
    if let Some((end, begin, index)) = first.min() {
        return (if include { end } else { begin }, Some(index));
    }
    let may_begin = |tail: &str| {
        stops
            .iter()
            .any(|stop| stop.len() > tail.len() && stop.starts_with(tail))
    };
    let tails = text.char_indices().map(|(at, _)| at);
    let held = tails.into_iter().find(|&at| may_begin(&text[at..]));
    (held.filter(|_| !include).unwrap_or(text.len()), None)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// After every token, what is shown is all that may be: of any bytes, with stop strings that overlap,
    /// begin in a token and go on in others.
    #[test]
    fn streams_stop_at_the_first_stop_string(
        tokens in prop::collection::vec(prop_oneof![
            6 => (257u32..263).prop_map(|token| token),
            2 => prop_oneof![Just(0xc3u32), Just(0xa9)],
            1 => 0u32..265,
        ], 0..60),
        stops in prop::collection::vec(prop_oneof![
            "[ab\u{e9} ]{1,6}", "(ab|a){1,12}b?", Just("\u{fffd}".to_owned()), Just(String::new()),
        ], 0..5),
        cut in 0usize..4, include: bool,
    ) {
        let tokenizer = byte_fallback();
        let (context, tokens) = tokens.split_at(cut.min(tokens.len()));
        let parts = stream(&tokenizer, context, tokens);
        let mut stopping = StoppingDecoder::new(&tokenizer, context, stops.clone(), include);
        let (mut text, mut shown) = (String::new(), String::new());
        for (&token, part) in tokens.iter().zip(&parts) {
            text += part;
            let piece = stopping.push(token).unwrap();
            shown += &piece.text;
            let (expected, stopped) = stopped_text(&text, &stops, include);
            prop_assert_eq!(piece.stopped, stopped);
            prop_assert_eq!(&shown, &text[..expected]);
            if stopped.is_some() {
                break;
            }
        }
        let before = stopped_text(&text, &stops, include).1;
        text += if before.is_none() { parts.last().unwrap() } else { "" };
        let rest = stopping.finish().unwrap();
        shown += &rest.text;
        let (expected, stopped) = stopped_text(&text, &stops, include);
        prop_assert_eq!(rest.stopped, stopped);
        prop_assert_eq!(&shown, &text[..if stopped.is_some() { expected } else { text.len() }]);
    }
}

#[test]
fn the_stop_string_that_ends_first_counts() {
    let tokenizer = byte_level();
    let stop = |text: &str, stops: &[&str]| {
        let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut stream = StoppingDecoder::new(&tokenizer, &[], stops, false);
        let mut shown = String::new();
        for token in ids(&tokenizer, text) {
            let piece = stream.push(token).unwrap();
            shown += &piece.text;
            if piece.stopped.is_some() {
                return (shown, piece.stopped);
            }
        }
        let rest = stream.finish().unwrap();
        (shown + &rest.text, rest.stopped)
    };
    assert_eq!(stop("xabcd", &["bcd", "abc", "bc"]), ("x".into(), Some(1)));
    assert_eq!(
        stop("xabcd", &["abcde", "bcd", "bcd"]),
        ("xa".into(), Some(1))
    );
    assert_eq!(stop("aaab", &["aab"]), ("a".into(), Some(0)));
    assert_eq!(
        stop("\n\nUser", &["\n\nUser:", "\nUse"]),
        ("\n".into(), Some(1))
    );
    assert_eq!(
        stop("\u{4f60}\u{e9}", &["\u{e9}!", "\u{e9}"]),
        ("\u{4f60}".into(), Some(1))
    );
    assert_eq!(stop("abab", &["ababa", ""]), ("abab".into(), None));
}

/// A token's time is that of its own text: megabytes of stop strings, all of which match for long.
#[test]
fn stop_strings_of_a_megabyte_cost_what_they_match() {
    let tokenizer = byte_level();
    let long = |end: &str| "a".repeat(1 << 20) + end;
    let stops = vec![
        long("b"),
        long("ab"),
        "ab".repeat(1 << 19) + "c",
        long("aab"),
    ];
    let mut stream = StoppingDecoder::new(&tokenizer, &[], stops, false);
    let (a, b, c) = (u32::from(b'a'), u32::from(b'b'), u32::from(b'c'));
    let begin = std::time::Instant::now();
    // Before the last token nothing of 50,000 can be shown, then all.
    for _ in 0..50_000 {
        assert_eq!(stream.push(a).unwrap(), Piece::default());
    }
    assert_eq!(stream.push(c).unwrap().text.len(), 50_001);
    for _ in 0..25_000 {
        stream.push(a).unwrap();
        assert_eq!(stream.push(b).unwrap().text, "");
    }
    assert_eq!(stream.push(b).unwrap().text.len(), 50_001);
    // Some 10 microseconds a token; a search of all text would take minutes.
    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
}

/// A decoder takes no time for a context but for its ends.
#[test]
fn a_long_context_is_gone_past_quickly() {
    for tokenizer in [byte_level(), byte_fallback()] {
        let context = vec![u32::from(b'a'); 20_000];
        let stream = tokenizer.stream(&context);
        assert!(stream.work < 10, "{}", stream.work);
    }
}
