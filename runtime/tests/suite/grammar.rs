//! Texts that follow a grammar, whatever the model says.

mod hostile;

use crate::common::{Options as Shape, VOCAB, fixture, open, tokens};
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::engine::Engine;
use ratplus_runtime::grammar::{Grammar, GrammarFactory};
use ratplus_runtime::sampler::{Sampler, Sampling, TokenSet};
use ratplus_runtime::scheduler::{
    Constraint, ConstraintError, Ended, Options, Request, Service, Sink, Update,
};
use ratplus_runtime::text::Tokenizer;
use ratplus_tests::golden_case;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A model's vocabulary is often padded.
const PADDED: usize = 2100;

fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(&golden_case("kjv_d16w64i4").file("tokenizer.json")).unwrap()
}

fn factory(tokenizer: &Tokenizer) -> GrammarFactory {
    GrammarFactory::new(tokenizer, PADDED, &tokenizer.end_tokens()).unwrap()
}

/// Logits without meaning, but for tokens that lead to an end: what is drawn would go on for long otherwise.
struct Noise {
    seed: u64,
    logits: Vec<f32>,
    closing: Vec<usize>,
}

impl Noise {
    fn new(tokenizer: &Tokenizer, seed: u64) -> Self {
        let closes = |token: &usize| {
            let bytes = tokenizer.bytes(*token as u32).unwrap();
            bytes.iter().any(|byte| b"\"]}".contains(byte))
        };
        let ends = tokenizer.end_tokens().into_iter();
        let closing = (0..PADDED)
            .filter(closes)
            .chain(ends.map(|end| end as usize));
        Self {
            seed,
            logits: vec![0.0; PADDED],
            closing: closing.collect(),
        }
    }

    fn next(&mut self) -> &[f32] {
        for logit in &mut self.logits {
            self.seed = self
                .seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            *logit = (self.seed >> 40) as f32 / (1 << 22) as f32;
        }
        self.closing
            .iter()
            .for_each(|&token| self.logits[token] += 4.0);
        &self.logits
    }
}

/// How a text went on.
#[derive(Debug, PartialEq)]
enum End {
    /// Nothing else may come, or an end of text did.
    Done,
    /// It may go on.
    Open,
    Failed(String),
}

/// A text of at most `most` tokens, drawn from noise; and the longest time for a token.
fn drawn(
    tokenizer: &Tokenizer,
    constraint: &mut dyn Constraint,
    seed: u64,
    most: usize,
) -> (String, End, Duration) {
    let mut noise = Noise::new(tokenizer, seed);
    let mut sampling = Sampling::default();
    (sampling.temperature, sampling.seed) = (1.0, seed);
    let mut sampler = Sampler::new(&sampling).unwrap();
    let mut stream = tokenizer.stream(&[]);
    let (mut text, mut longest) = (String::new(), Duration::ZERO);
    let mut step = || {
        let begin = Instant::now();
        let allowed = match constraint.allowed() {
            Ok(allowed) => allowed,
            Err(error) => return Some(End::Failed(error.to_string())),
        };
        let mut time = begin.elapsed();
        let none = BTreeSet::new();
        let token = sampler.sample_among(noise.next(), Some(&allowed), &none);
        let token = token.unwrap().expect("something is allowed");
        assert!(token < 2048, "{token} has no text");
        if tokenizer.end_tokens().contains(&token) {
            assert_eq!(constraint.accept(token), Ok(()));
            assert!(constraint.must_end());
            return Some(End::Done);
        }
        text += &stream.push(token).unwrap();
        let begin = Instant::now();
        if let Err(error) = constraint.accept(token) {
            return Some(End::Failed(error.to_string()));
        }
        time += begin.elapsed();
        longest = longest.max(time);
        constraint.must_end().then_some(End::Done)
    };
    let end = (0..most).find_map(|_| step()).unwrap_or(End::Open);
    (text + &stream.finish().unwrap(), end, longest)
}

/// Whether `value` is what `schema` says, of the keywords that are used here.
fn valid(schema: &Value, root: &Value, value: &Value) -> bool {
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => panic!("{kind}"),
    };
    let length = value.as_str().map_or(0, |text| text.chars().count());
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let fields = value.as_object();
    let number = value.as_f64().unwrap_or_default();
    let keywords = schema.as_object().unwrap();
    keywords
        .iter()
        .all(|(keyword, says)| match keyword.as_str() {
            "type" => is(says.as_str().unwrap()),
            "enum" => says.as_array().unwrap().contains(value),
            "const" => says == value,
            "minLength" => length as u64 >= says.as_u64().unwrap(),
            "maxLength" => length as u64 <= says.as_u64().unwrap(),
            "minimum" => number >= says.as_f64().unwrap(),
            "maximum" => number <= says.as_f64().unwrap(),
            "minItems" => items.len() as u64 >= says.as_u64().unwrap(),
            "maxItems" => items.len() as u64 <= says.as_u64().unwrap(),
            "items" => items.iter().all(|item| valid(says, root, item)),
            "anyOf" => says
                .as_array()
                .unwrap()
                .iter()
                .any(|one| valid(one, root, value)),
            "required" => {
                let mut names = says.as_array().unwrap().iter();
                names.all(|name| {
                    fields.is_none_or(|fields| fields.contains_key(name.as_str().unwrap()))
                })
            }
            "properties" => fields.into_iter().flatten().all(|(name, field)| {
                says.get(name)
                    .is_none_or(|schema| valid(schema, root, field))
            }),
            "additionalProperties" => fields.into_iter().flatten().all(|(name, field)| {
                schema["properties"].get(name).is_some()
                    || match says {
                        Value::Bool(any) => *any,
                        schema => valid(schema, root, field),
                    }
            }),
            // A word of letters.
            "pattern" => {
                assert_eq!(says, "^[a-z]+$");
                length > 0
                    && value
                        .as_str()
                        .unwrap()
                        .bytes()
                        .all(|byte| byte.is_ascii_lowercase())
            }
            "$ref" => valid(
                root.pointer(&says.as_str().unwrap()[1..]).unwrap(),
                root,
                value,
            ),
            "$defs" => true,
            _ => panic!("{keyword}"),
        })
}

#[test]
fn whatever_the_logits_texts_are_what_the_schema_says() {
    let tokenizer = tokenizer();
    let factory = factory(&tokenizer);
    let short = json!({"type": "string", "maxLength": 12});
    let schemas = [
        json!({"type": "object"}),
        json!({"type": "string", "minLength": 3, "maxLength": 9}),
        json!({"type": "string", "pattern": "^[a-z]+$", "maxLength": 20}),
        json!({"type": "integer", "minimum": -5, "maximum": 1234}),
        json!({"type": "number"}),
        json!({"type": "boolean"}),
        json!({"enum": ["God", "created\n", 7, null, {"a": ["\u{e9}\u{4f60}"]}]}),
        json!({"const": "In the beginning \u{1f600}"}),
        json!({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 5}),
        json!({"anyOf": [{"type": "null"}, short, {"type": "array", "items": short, "maxItems": 2}]}),
        json!({"type": "object", "additionalProperties": false, "required": ["name", "age"], "properties": {
            "name": short, "age": {"type": "integer", "minimum": 0, "maximum": 969},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
            "more": {"type": "object", "additionalProperties": {"type": "boolean"}},
        }}),
        json!({"$ref": "#/$defs/tree", "$defs": {"tree": {
            "type": "object", "additionalProperties": false, "required": ["value"],
            "properties": {"value": short, "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}},
        }}}),
    ];
    for (index, schema) in schemas.iter().enumerate() {
        let grammar = match index {
            0 => Grammar::AnyJson,
            _ => Grammar::JsonSchema(schema.to_string()),
        };
        let mut texts = BTreeSet::new();
        for seed in 0..25 {
            let mut constraint = factory.compile(&grammar).unwrap().constraint();
            let (text, end, _) = drawn(&tokenizer, &mut *constraint, seed, 1000);
            assert_eq!(end, End::Done, "{schema}: {text}");
            let value: Value = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{schema}: {error}: {text:?}"));
            assert!(valid(schema, schema, &value), "{schema}: {text}");
            texts.insert(text);
        }
        let one = schema.get("const").is_some();
        assert!(one || texts.len() > 1, "{schema}: {texts:?}");
    }
}

#[test]
fn rules_and_expressions_are_followed() {
    let tokenizer = tokenizer();
    let factory = factory(&tokenizer);
    let check = |grammar: &Grammar, fits: &dyn Fn(&str) -> bool| {
        for seed in 0..20 {
            let mut constraint = factory.compile(grammar).unwrap().constraint();
            let (text, end, _) = drawn(&tokenizer, &mut *constraint, seed, 1000);
            assert_eq!(end, End::Done, "{grammar:?}: {text}");
            assert!(fits(&text), "{grammar:?}: {text:?}");
        }
    };
    check(
        &Grammar::Regex("[0-9]{3}-(ab|\u{e9}\u{4f60})+".into()),
        &|text| {
            let (digits, rest) = text.split_once('-').unwrap();
            let rest = rest.replace("ab", "").replace("\u{e9}\u{4f60}", "");
            digits.len() == 3 && digits.parse::<u32>().is_ok() && rest.is_empty() && text.len() > 4
        },
    );
    check(&Grammar::Regex(String::new()), &str::is_empty);
    // As many of one as of the other, which no expression says.
    let rules = "start: \"<\" pairs \">\"\npairs: \"a\" pairs \"b\" | \"\"";
    check(&Grammar::Lark(rules.into()), &|text| {
        let inside = text
            .strip_prefix('<')
            .and_then(|text| text.strip_suffix('>'))
            .unwrap();
        let half = inside.len() / 2;
        *inside == "a".repeat(half) + &"b".repeat(half)
    });
}

/// A model that would write blanks for ever gets on with its text, unless the schema lets it.
#[test]
fn blanks_end() {
    let tokenizer = tokenizer();
    let factory = factory(&tokenizer);
    let bytes: Vec<_> = (0..2048)
        .map(|token| tokenizer.bytes(token).unwrap())
        .collect();
    let is_blank = |byte: &u8| b" \t\r\n".contains(byte);
    let blank = bytes.iter().position(|bytes| bytes == b" ").unwrap() as u32;
    // Blanks wherever they may be, and otherwise the shortest way to the end.
    let longest_run = |grammar: &Grammar| {
        let mut constraint = factory.compile(grammar).unwrap().constraint();
        let mut text = Vec::new();
        while !constraint.must_end() && text.len() < 500 {
            let allowed = constraint.allowed().unwrap();
            let ends = ["}", ":", "{", "0", "\"", "a"]
                .map(|end| bytes.iter().position(|bytes| bytes == end.as_bytes()));
            let mut wanted = [blank]
                .into_iter()
                .chain(ends.into_iter().flatten().map(|end| end as u32));
            let Some(token) = wanted.find(|&token| allowed.contains(token)) else {
                break;
            };
            constraint.accept(token).unwrap();
            text.extend(&bytes[token as usize]);
        }
        text.split(|byte| !is_blank(byte))
            .map(<[u8]>::len)
            .max()
            .unwrap()
    };
    let closed = r#"{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"],"additionalProperties":false"#;
    let schema = |rest: &str| Grammar::JsonSchema(format!("{closed}{rest}}}"));
    assert_eq!(longest_run(&schema("")), 64);
    assert_eq!(
        longest_run(&schema(r#","x-guidance":{"lenient":true}"#)),
        64
    );
    assert_eq!(longest_run(&Grammar::JsonSchema("true".into())), 64);
    assert_eq!(longest_run(&Grammar::AnyJson), 64);
    let none = r#","x-guidance":{"whitespace_flexible":false}"#;
    assert_eq!(longest_run(&schema(none)), 0);
    let any = r#","x-guidance":{"whitespace_pattern":"[ ]+"}"#;
    assert!(longest_run(&schema(any)) > 400);
}

#[test]
fn a_text_may_end_without_an_end_token() {
    let tokenizer = tokenizer();
    let factory = GrammarFactory::new(&tokenizer, 2048, &BTreeSet::new()).unwrap();
    let token = |text: &str| {
        let of = (0..2048).find(|&token| tokenizer.bytes(token).unwrap() == text.as_bytes());
        of.unwrap()
    };
    let compiled = factory.compile(&Grammar::Regex("ab".into())).unwrap();
    let mut constraint = compiled.constraint();
    assert!(!constraint.must_end());
    let allowed = constraint.allowed().unwrap();
    assert!(allowed.contains(token("a")) && !allowed.contains(token("b")));
    // What may not come is refused, and the constraint with it.
    let mut other = compiled.constraint();
    assert!(other.accept(token("b")).is_err() && other.accept(token("a")).is_err());
    constraint.accept(token("a")).unwrap();
    constraint.accept(token("b")).unwrap();
    assert!(constraint.must_end());
}

#[test]
fn tokens_need_bytes_of_their_own() {
    let json = json!({
        "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
        "model": {"type": "WordLevel", "vocab": {"a</w>": 0, "b": 1}, "unk_token": "b"},
    });
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    let Err(error) = GrammarFactory::new(&tokenizer, 2, &BTreeSet::new()) else {
        panic!("its decoder looks at several tokens");
    };
    assert!(error.to_string().contains("decoder"), "{error}");
}

/// Texts that follow grammars, and one whose grammar fails, beside others that stay what they are alone.
#[test]
fn other_requests_go_on_as_they_are() {
    struct Broken;
    impl Constraint for Broken {
        fn allowed(&mut self) -> Result<TokenSet, ConstraintError> {
            Err(ConstraintError("no rule has a text".into()))
        }
        fn accept(&mut self, _: u32) -> Result<(), ConstraintError> {
            Ok(())
        }
        fn must_end(&mut self) -> bool {
            false
        }
    }
    let vocab: serde_json::Map<_, _> = (0..VOCAB)
        .map(|token| (char::from(b'0' + token as u8).to_string(), token.into()))
        .collect();
    let json = json!({
        "added_tokens": [], "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "0"},
    });
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    let factory = GrammarFactory::new(&tokenizer, VOCAB, &BTreeSet::new()).unwrap();
    let fixture = fixture(Shape::default());
    let engine = Engine::new(open(&fixture, BackendKind::Tract));
    let service = Service::start(engine, Some(tokenizer), Options::default()).unwrap();
    let grammar = |grammar: &str| {
        factory
            .compile(&Grammar::Regex(grammar.into()))
            .unwrap()
            .constraint()
    };
    let ask = |constraints: Vec<Option<Box<dyn Constraint>>>| -> Vec<(String, Ended)> {
        let mut updates = Vec::new();
        let requests = constraints.into_iter().zip(1..).map(|(constraint, seed)| {
            let mut request = Request::new(tokens(seed, 9));
            request.max_new_tokens = 12;
            (request.sampling.temperature, request.sampling.seed) = (0.9, seed);
            request.constraint = constraint;
            let (sender, receiver) = channel();
            updates.push(receiver);
            let sink: Box<dyn Sink> = Box::new(move |update| sender.send(update).is_ok());
            (request, sink)
        });
        let _tickets = service.submit(requests.collect()).unwrap();
        let whole = |updates: Receiver<Update>| {
            let mut text = String::new();
            for update in updates {
                match update {
                    Update::Prompt(_) => {}
                    Update::Token(token) => text += &token.text,
                    Update::Finished(finished) => return (text + &finished.text, finished.ended),
                }
            }
            panic!("a request has no end");
        };
        updates.into_iter().map(whole).collect()
    };
    let free = ask(vec![None, None, None, None]);
    assert!(free.iter().all(|(text, _)| text.len() == 12), "{free:?}");
    let beside = ask(vec![
        Some(grammar("(12|345){2}[:;]")),
        None,
        Some(Box::new(Broken)),
        None,
    ]);
    assert_eq!((&beside[1], &beside[3]), (&free[1], &free[3]));
    let (text, ended) = &beside[0];
    let rest = text.replace("12", "").replace("345", "");
    assert!(rest == ":" || rest == ";", "{text}");
    assert_eq!(*ended, Ended::StopToken);
    let failed = Ended::Constraint("no rule has a text".into());
    assert_eq!(beside[2], (String::new(), failed));
    let again = ask(vec![None, Some(grammar("[a-c]{7}")), None, None]);
    assert_eq!((&again[0], &again[2..]), (&free[0], &free[2..]));
    assert!(
        again[1].0.len() == 7 && again[1].1 == Ended::StopToken,
        "{again:?}"
    );
}
