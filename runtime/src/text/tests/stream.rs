//! Text token by token.

use super::*;

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

/// A decoder takes no time for a context but for its ends.
#[test]
fn a_long_context_is_gone_past_quickly() {
    for tokenizer in [byte_level(), byte_fallback()] {
        let context = vec![u32::from(b'a'); 20_000];
        let stream = tokenizer.stream(&context);
        assert!(stream.work < 10, "{}", stream.work);
    }
}
