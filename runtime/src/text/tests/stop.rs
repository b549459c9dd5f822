//! Stop strings.

use super::*;

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
