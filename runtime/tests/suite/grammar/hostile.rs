//! Grammars of strangers.

use super::{End, drawn, factory, tokenizer};
use ratplus_runtime::grammar::{Grammar, GrammarFactory, MOST_BYTES};
use std::time::{Duration, Instant};

/// A grammar that is none, and how its message begins.
fn refused(factory: &GrammarFactory, grammar: Grammar) -> String {
    let Err(error) = factory.compile(&grammar) else {
        panic!("{grammar:?} is taken");
    };
    let message = error.to_string();
    assert!(
        message.starts_with("grammar: ") && message.len() < 600,
        "{message}"
    );
    assert!(!message.contains("backtrace"), "{message}");
    message
}

#[test]
fn what_is_no_grammar_is_refused() {
    let tokenizer = tokenizer();
    let factory = factory(&tokenizer);
    let schema = |text: &str| Grammar::JsonSchema(text.into());
    let lark = |text: &str| Grammar::Lark(text.into());
    let regex = |text: &str| Grammar::Regex(text.into());
    for (grammar, expected) in [
        (
            schema("{"),
            "EOF while parsing an object at line 1 column 1",
        ),
        (schema(""), "EOF while parsing a value"),
        (schema("[1]"), "schema must be an object or boolean"),
        (schema("{\"type\": \"text\"}"), "text"),
        (schema("{\"not\": {}}"), "not"),
        (schema("{\"$ref\": \"#/$defs/none\"}"), "none"),
        (
            schema("{\"$ref\": \"https://example.com/\"}"),
            "https://example.com/",
        ),
        (
            schema(&("{\"items\":".repeat(5000) + &"}".repeat(5000))),
            "recursion limit",
        ),
        (lark(""), "no start rule"),
        (lark("a: \"x\""), "no start rule"),
        (lark("start: ("), "Expected token ')'"),
        (lark("start: other"), "other"),
        // The library panics, and says so.
        (lark("start: <|none|>"), "grammar: "),
        (regex("("), "unclosed group"),
        (regex("(?=a)b"), "look-ahead"),
        (regex("(a)\\1"), "backreferences"),
        (
            regex(&("(".repeat(30_000) + "a" + &")".repeat(30_000))),
            "invalid regex",
        ),
        (
            lark(&"a".repeat(1 << 20)),
            "expected at most 65536 bytes, found 1048576",
        ),
        (schema(&" ".repeat(MOST_BYTES + 1)), "found 65537"),
    ] {
        let short = format!("{grammar:?}").chars().take(60).collect::<String>();
        let message = refused(&factory, grammar);
        assert!(message.contains(expected), "{short}: {message}");
    }
}

/// What would take a naive compiler hours, gigabytes or all of its stack. Each is compiled and followed, or
/// refused, in bounded time, and another is as good as before.
#[test]
fn hostile_grammars_cost_little() {
    let tokenizer = tokenizer();
    let factory = factory(&tokenizer);
    // A list of `count` definitions, each of which names the next.
    let chain = |count: usize, first: &str, link: &dyn Fn(usize) -> String, last: &str| {
        (1..count).fold(first.to_owned(), |text, index| text + &link(index)) + last
    };
    let defs = |count: usize, link: &dyn Fn(usize) -> String| {
        let link = |index| format!("\"a{index}\":{},", link(index + 1));
        let last = format!("\"a{count}\":{{\"type\":\"null\"}}}}}}");
        let first = "{\"$ref\":\"#/$defs/a1\",\"$defs\":{";
        Grammar::JsonSchema(chain(count, first, &link, &last))
    };
    let nested = |open: &str, inside: &str, close: &str, count: usize| {
        open.repeat(count) + inside + &close.repeat(count)
    };
    let lark = |text: &str| Grammar::Lark(text.into());
    let regex = |text: &str| Grammar::Regex(text.into());
    let schema = |text: &str| Grammar::JsonSchema(text.into());
    let rule = |index| format!("a{index}: a{}\n", index + 1);
    let twice = |index| format!("A{index}: A{0} A{0}\n", index + 1);
    let grammars: Vec<(&str, Grammar)> = vec![
        (
            "rules in a chain",
            Grammar::Lark(chain(4600, "start: a1\n", &rule, "a4600: \"x\"\n")),
        ),
        (
            "terminals that double",
            Grammar::Lark(chain(300, "start: A1\n", &twice, "A300: \"x\"\n")),
        ),
        (
            "references in a chain",
            defs(1900, &|next| format!("{{\"$ref\":\"#/$defs/a{next}\"}}")),
        ),
        (
            "objects in a chain",
            defs(1100, &|next| {
                format!("{{\"properties\":{{\"a\":{{\"$ref\":\"#/$defs/a{next}\"}}}}}}")
            }),
        ),
        (
            "references that double",
            defs(500, &|next| {
                format!(
                    "{{\"allOf\":[{{\"$ref\":\"#/$defs/a{next}\"}},{{\"$ref\":\"#/$defs/a{next}\"}}]}}"
                )
            }),
        ),
        ("a schema of itself", schema("{\"$ref\":\"#\"}")),
        (
            "schemas of each other",
            schema(
                r##"{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}"##,
            ),
        ),
        ("a rule of itself", lark("start: start")),
        ("a rule without an end", lark("start: \"a\" start")),
        (
            "an ambiguous rule",
            lark("start: s\ns: s s | s s s | \"a\" | \"\""),
        ),
        ("empty repetitions", lark("start: a*\na: \"\" | a a")),
        (
            "rules repeated",
            lark("start: (((\"a\"{1000}){1000}){1000}){1000}"),
        ),
        ("terminals repeated", lark("start: /a/{100000,1000000000}")),
        ("groups in groups", regex(&nested("(", "a", ")", 200))),
        (
            "repetitions in repetitions",
            regex("((((a{1000}){1000}){1000}){1000}){1000}"),
        ),
        ("4 billion times", regex("a{4000000000}")),
        ("many states", regex("(.*a.{200}){20}")),
        ("many states, deterministic", regex("(a|b)*a(a|b){60}")),
        (
            "what many states are not",
            lark("start: A\nA: ~/(a|b)*a(a|b){40}/ & /[ab]+/"),
        ),
        (
            "words of any script",
            regex("(\\w{0,1000}x){0,1000}\\p{L}{1000}\\P{L}{1000}"),
        ),
        ("a long word", regex(&"a".repeat(60_000))),
        (
            "many words",
            regex(
                &(0..8000)
                    .map(|i| format!("{i:x}x"))
                    .collect::<Vec<_>>()
                    .join("|"),
            ),
        ),
        (
            "arrays in arrays",
            schema(&nested("{\"type\":\"array\",\"items\":", "{}", "}", 120)),
        ),
        (
            "a long array",
            schema(
                r#"{"type":"array","minItems":1000000,"items":{"type":"array","maxItems":10000000}}"#,
            ),
        ),
        (
            "a long string",
            schema(r#"{"type":"string","minLength":100000000,"maxLength":1000000000}"#),
        ),
        (
            "a string of many states",
            schema(r#"{"type":"string","pattern":"^(.*a.{200}){20}$"}"#),
        ),
        (
            "many properties",
            schema(&format!(
                "{{\"type\":\"object\",\"properties\":{{{}}}}}",
                (0..2000)
                    .map(|i| format!("\"p{i}\":{{\"type\":\"number\"}}"))
                    .collect::<Vec<_>>()
                    .join(","),
            )),
        ),
        (
            "multiples of a prime",
            schema(r#"{"type":"integer","multipleOf":104729,"minimum":7}"#),
        ),
        (
            "blanks of many states",
            schema(r#"{"x-guidance":{"whitespace_pattern":"(.*a.{200}){20}"},"type":"object"}"#),
        ),
    ];
    let plain = Grammar::JsonSchema(r#"{"type":"string","maxLength":9}"#.into());
    let innocent = || {
        let mut constraint = factory.compile(&plain).unwrap().constraint();
        drawn(&tokenizer, &mut *constraint, 5, 100).0
    };
    let expected = innocent();
    for (name, grammar) in &grammars {
        let begin = Instant::now();
        let compiled = factory.compile(grammar);
        let time = begin.elapsed();
        assert!(time < Duration::from_secs(20), "{name}: {time:?}");
        if let Ok(compiled) = compiled {
            let mut constraint = compiled.constraint();
            let (text, end, longest) = drawn(&tokenizer, &mut *constraint, 3, 100);
            assert!(
                longest < Duration::from_secs(2),
                "{name}: {longest:?} for a token"
            );
            if let End::Failed(message) = end {
                assert!(message.len() < 600, "{name}: {message}");
                // Nothing more comes of it.
                assert!(constraint.allowed().is_err(), "{name}: {text}");
            }
        }
        assert_eq!(innocent(), expected, "{name}");
    }
}
