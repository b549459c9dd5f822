//! What `/v1/completions` and `/v1/chat/completions` have in common.

use super::error::ApiError;
use super::guide;
use super::job::Kind;
use super::parameters::{Parameters, found};
use ratplus_runtime::grammar::Grammar;
use ratplus_runtime::sampler::Sampling;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

/// Most choices of one prompt.
const MAX_CHOICES: usize = 128;
/// Most stop strings, and the bytes of one.
const MAX_STOP_STRINGS: usize = 64;
const MAX_STOP_BYTES: usize = 4096;
/// Most tokens whose scores are told beside each token.
pub const MAX_LOGPROBS: usize = 20;

/// How a prompt is continued and told about.
#[derive(Debug)]
pub struct Generation {
    pub sampling: Sampling,
    /// Choices of each prompt.
    pub n: usize,
    pub stream: bool,
    pub include_usage: bool,
    /// None for as many as there is room for.
    pub max_tokens: Option<usize>,
    pub min_tokens: usize,
    pub stop_strings: Vec<String>,
    pub include_stop: bool,
    pub stop_tokens: BTreeSet<u32>,
    pub ignore_eos: bool,
    pub form: Option<(&'static str, Grammar)>,
    /// Tokens are told as `token_id:5`.
    pub tokens_as_ids: bool,
}

impl Generation {
    /// Takes these parameters of a request of that kind.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn take(given: &mut Parameters, kind: Kind, vocab_size: usize) -> Result<Self, ApiError> {
        let sampling = sampling(given, vocab_size)?;
        let n = given.count("n", 1..=MAX_CHOICES)?.unwrap_or(1);
        given.only("best_of", &[1.into(), n.into()])?;
        let stream = given.boolean("stream")?.unwrap_or(false);
        let include_usage = stream_options(given, stream)?;
        let most = one_of(kind.max_tokens(), |name| {
            let least = usize::from(name != "max_tokens");
            given.count(name, least..=i32::MAX as usize)
        })?;
        let most = most.or(kind.default_max_tokens());
        let min_tokens = given.count("min_tokens", 0..=i32::MAX as usize)?;
        let min_tokens = min_tokens.unwrap_or(0);
        if let Some(most) = most.filter(|&most| most < min_tokens) {
            let expected = format!("at most `{}`, which is {most}", kind.max_tokens()[0]);
            return Err(ApiError::parameter("min_tokens", &expected, min_tokens));
        }
        let (include, other) = (
            given.boolean("include_stop_str_in_output")?,
            given.boolean("no_stop_trim")?,
        );
        given.only("skip_special_tokens", &[json!(true)])?;
        let generation = Self {
            sampling,
            n,
            stream,
            include_usage,
            max_tokens: most,
            min_tokens,
            stop_strings: stop_strings(given)?,
            // Gateways fill in the one that they know with false.
            include_stop: include == Some(true) || other == Some(true),
            stop_tokens: token_list(given, "stop_token_ids", vocab_size)?
                .unwrap_or_default()
                .into_iter()
                .collect(),
            ignore_eos: given.boolean("ignore_eos")?.unwrap_or(false),
            form: guide::take(given)?,
            tokens_as_ids: given
                .boolean("return_tokens_as_token_ids")?
                .unwrap_or(false),
        };
        tolerate(given)?;
        Ok(generation)
    }
}

/// What parameters that mean the same say, each of which `take` takes.
fn one_of<T: PartialEq + Display>(
    names: &[&'static str],
    mut take: impl FnMut(&str) -> Result<Option<T>, ApiError>,
) -> Result<Option<T>, ApiError> {
    let mut said: Option<(&str, T)> = None;
    for name in names {
        let Some(value) = take(name)? else {
            continue;
        };
        match &said {
            Some((other, first)) if *first != value => {
                let expected = format!("{first} as in `{other}`, or one of the two alone");
                return Err(ApiError::parameter(name, &expected, value));
            }
            _ => said = Some((name, value)),
        }
    }
    Ok(said.map(|(_, value)| value))
}

fn sampling(given: &mut Parameters, vocab_size: usize) -> Result<Sampling, ApiError> {
    let mut sampling = Sampling::default();
    sampling.temperature = given.number("temperature")?.unwrap_or(1.0);
    sampling.top_p = given.number("top_p")?;
    sampling.min_p = given.number("min_p")?;
    // -1 and 0 are ways to say: all.
    let top_k = given.integer("top_k", -1..=i128::from(u32::MAX))?;
    sampling.top_k = top_k.filter(|&k| k > 0).map(|k| k as usize);
    for (name, penalty) in [
        ("repetition_penalty", &mut sampling.repetition_penalty),
        ("presence_penalty", &mut sampling.presence_penalty),
        ("frequency_penalty", &mut sampling.frequency_penalty),
    ] {
        *penalty = given.number(name)?.unwrap_or(*penalty);
    }
    sampling.logit_bias = logit_bias(given, vocab_size)?;
    let any_seed = i64::MIN.into()..=u64::MAX.into();
    let seed = one_of(&["seed", "sampling_seed"], |name| {
        given.integer(name, any_seed.clone())
    })?;
    // What is below 0 has the bits of its two's complement.
    sampling.seed = seed.map_or_else(rand::random, |seed| seed as u64);
    match sampling.check(Some(vocab_size)) {
        Ok(()) => Ok(sampling),
        Err(error) => Err(error.into()),
    }
}

/// By token id, which JSON has as a string.
fn logit_bias(given: &mut Parameters, vocab_size: usize) -> Result<BTreeMap<u32, f32>, ApiError> {
    const NAME: &str = "logit_bias";
    let Some(biases) = given.object(NAME)? else {
        return Ok(BTreeMap::new());
    };
    let bias = |(token, bias): (String, Value)| {
        let id = token.parse::<u32>().ok();
        let Some(id) = id.filter(|&id| (id as usize) < vocab_size) else {
            let expected = format!("token ids of 0 to {}", vocab_size.saturating_sub(1));
            return Err(ApiError::parameter(NAME, &expected, found(&token.into())));
        };
        match bias.as_f64() {
            Some(bias) => Ok((id, bias as f32)),
            None => Err(ApiError::parameter(NAME, "numbers", found(&bias))),
        }
    };
    biases.into_members().map(bias).collect()
}

fn stream_options(given: &mut Parameters, stream: bool) -> Result<bool, ApiError> {
    let Some(mut options) = given.object("stream_options")? else {
        return Ok(false);
    };
    if !stream {
        return Err(
            ApiError::bad_request("`stream_options`: expected `stream` to be true")
                .of("stream_options"),
        );
    }
    let named = |error: ApiError| ApiError {
        param: error.param.map(|name| format!("stream_options.{name}")),
        ..error
    };
    let include_usage = options.boolean("include_usage").map_err(named)?;
    for name in ["include_obfuscation", "continuous_usage_stats"] {
        options.only(name, &[json!(false)]).map_err(named)?;
    }
    options.finish("stream_options.")?;
    Ok(include_usage.unwrap_or(false))
}

fn stop_strings(given: &mut Parameters) -> Result<Vec<String>, ApiError> {
    let expected = "a string or an array of strings";
    let texts = match given.take("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) => {
            let text = |item: Value| match item {
                Value::String(text) => Ok(text),
                other => Err(ApiError::parameter("stop", expected, found(&other))),
            };
            items.into_iter().map(text).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(ApiError::parameter("stop", expected, found(&other))),
    };
    if texts.len() > MAX_STOP_STRINGS {
        let expected = format!("at most {MAX_STOP_STRINGS} strings");
        return Err(ApiError::parameter("stop", &expected, texts.len()));
    }
    let wrong = |text: &&String| text.is_empty() || text.len() > MAX_STOP_BYTES;
    match texts.iter().find(wrong) {
        None => Ok(texts),
        Some(text) => Err(ApiError::parameter(
            "stop",
            &format!("strings of 1 to {MAX_STOP_BYTES} bytes"),
            format!("one of {}", text.len()),
        )),
    }
}

/// Token ids of the vocabulary.
pub fn token_list(
    given: &mut Parameters,
    name: &str,
    vocab_size: usize,
) -> Result<Option<Vec<u32>>, ApiError> {
    let Some(value) = given.take(name) else {
        return Ok(None);
    };
    let Value::Array(items) = &value else {
        return Err(ApiError::parameter(
            name,
            "an array of token ids",
            found(&value),
        ));
    };
    let tokens = items.iter().map(|item| token_id(name, item, vocab_size));
    tokens.collect::<Result<_, _>>().map(Some)
}

/// One token id of the vocabulary.
pub fn token_id(name: &str, value: &Value, vocab_size: usize) -> Result<u32, ApiError> {
    let id = value.as_u64().filter(|&id| id < vocab_size as u64);
    id.map(|id| id as u32).ok_or_else(|| {
        let expected = format!("token ids of 0 to {}", vocab_size.saturating_sub(1));
        ApiError::parameter(name, &expected, found(value))
    })
}

/// What clients and gateways send that changes no token, and what can only be asked for so that nothing changes.
fn tolerate(given: &mut Parameters) -> Result<(), ApiError> {
    // Whom or what a request is for; hints to a cache that needs none; what only tool or reasoning parsers do.
    for name in ["user", "safety_identifier", "prompt_cache_key", "metadata"] {
        drop(given.take(name));
    }
    for name in [
        "spaces_between_special_tokens",
        "parallel_tool_calls",
        "include_reasoning",
        "separate_reasoning",
        "stream_reasoning",
    ] {
        given.boolean(name)?;
    }
    let no = json!(false);
    for (name, neutral) in [
        ("store", vec![no.clone()]),
        ("service_tier", vec![json!("auto"), json!("default")]),
        ("return_hidden_states", vec![no.clone()]),
        ("use_beam_search", vec![no.clone()]),
        ("length_penalty", vec![json!(1), json!(1.0)]),
        ("priority", vec![json!(0)]),
        ("bad_words", vec![json!([])]),
        ("allowed_token_ids", vec![]),
        ("truncate_prompt_tokens", vec![]),
        ("prompt_logprobs", vec![]),
        ("lora_path", vec![]),
        ("session_params", vec![]),
        ("logits_processors", vec![]),
    ] {
        given.only(name, &neutral)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(json: Value) -> Result<Generation, ApiError> {
        let mut given = Parameters::parse(json.to_string().as_bytes())?;
        let kind = match json["messages"].is_null() {
            true => Kind::Completion,
            false => Kind::Chat,
        };
        let taken = Generation::take(&mut given, kind, 100)?;
        given.take("messages");
        given.finish("")?;
        Ok(taken)
    }

    #[test]
    fn what_routers_and_load_generators_send_is_taken() {
        let taken = take(json!({
            "ignore_eos": true, "min_tokens": 5, "max_tokens": 5, "skip_special_tokens": true,
            "no_stop_trim": false, "return_hidden_states": false, "top_k": -1, "user": "me",
            "stream": true, "stream_options": {"include_usage": true}, "suffix": null, "best_of": 1,
            "spaces_between_special_tokens": true, "seed": -1, "min_p": 0.1, "presence_penalty": -2,
            "frequency_penalty": 0.5, "repetition_penalty": 1.2, "logit_bias": {"5": -100, "7": 1.5},
        }))
        .unwrap();
        assert!(taken.ignore_eos && taken.include_usage && taken.stream);
        assert_eq!((taken.min_tokens, taken.max_tokens), (5, Some(5)));
        assert_eq!(
            (taken.sampling.top_k, taken.sampling.seed),
            (None, u64::MAX)
        );
        let sampling = &taken.sampling;
        assert_eq!((sampling.temperature, sampling.min_p), (1.0, Some(0.1)));
        let penalties = (sampling.presence_penalty, sampling.frequency_penalty);
        assert_eq!((penalties, sampling.repetition_penalty), ((-2.0, 0.5), 1.2));
        assert_eq!(sampling.logit_bias, [(5, -100.0), (7, 1.5)].into());
    }

    #[test]
    fn what_is_said_twice_is_taken_where_it_is_the_same() {
        let taken = take(json!({"messages": [], "max_tokens": 7, "max_completion_tokens": 7, "min_tokens": 6,
            "seed": 5, "sampling_seed": 5, "no_stop_trim": true, "include_stop_str_in_output": false}))
        .unwrap();
        assert_eq!((taken.max_tokens, taken.sampling.seed), (Some(7), 5));
        assert!(taken.include_stop);
        assert_eq!(take(json!({})).unwrap().max_tokens, Some(16));
        let chat = take(json!({"messages": [], "min_tokens": 17})).unwrap();
        assert_eq!((chat.max_tokens, chat.min_tokens), (None, 17));
    }

    #[test]
    fn what_is_wrong_or_unsupported_is_named() {
        for (json, name) in [
            (json!({"temperature": -1}), "temperature"),
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"top_p": 0}), "top_p"),
            (json!({"top_p": 1.01}), "top_p"),
            (json!({"min_p": 2}), "min_p"),
            (json!({"repetition_penalty": 0}), "repetition_penalty"),
            (json!({"presence_penalty": 2.5}), "presence_penalty"),
            (json!({"frequency_penalty": [1]}), "frequency_penalty"),
            (json!({"logit_bias": [1]}), "logit_bias"),
            (json!({"logit_bias": {"100": 1}}), "logit_bias"),
            (json!({"logit_bias": {"a": 1}}), "logit_bias"),
            (json!({"logit_bias": {"1": "a"}}), "logit_bias"),
            (json!({"logit_bias": {"1": 101}}), "logit_bias"),
            (json!({"top_k": -2}), "top_k"),
            (json!({"top_k": 1.5}), "top_k"),
            (json!({"seed": 0.5}), "seed"),
            (json!({"n": 0}), "n"),
            (json!({"n": 129}), "n"),
            (json!({"best_of": 3}), "best_of"),
            (json!({"stream": 1}), "stream"),
            (json!({"stream_options": {}}), "stream_options"),
            (
                json!({"stream": true, "stream_options": {"include_usage": 1}}),
                "stream_options.include_usage",
            ),
            (
                json!({"stream": true, "stream_options": {"x": 1}}),
                "stream_options.x",
            ),
            (json!({"max_tokens": -1}), "max_tokens"),
            (json!({"max_tokens": 1e10}), "max_tokens"),
            (json!({"max_tokens": 2, "min_tokens": 3}), "min_tokens"),
            (json!({"min_tokens": 17}), "min_tokens"),
            (
                json!({"max_tokens": 2, "max_completion_tokens": 3, "messages": []}),
                "max_tokens",
            ),
            (json!({"seed": 1, "sampling_seed": 2}), "sampling_seed"),
            (json!({"stop": 5}), "stop"),
            (json!({"stop": [5]}), "stop"),
            (json!({"stop": ""}), "stop"),
            (json!({"stop": "x".repeat(1 << 20)}), "stop"),
            (json!({"stop": vec!["x"; 65]}), "stop"),
            (json!({"stop_token_ids": [100]}), "stop_token_ids"),
            (json!({"stop_token_ids": [-1]}), "stop_token_ids"),
            (json!({"stop_token_ids": 1}), "stop_token_ids"),
            (json!({"skip_special_tokens": false}), "skip_special_tokens"),
            (
                json!({"return_hidden_states": true}),
                "return_hidden_states",
            ),
            (json!({"lora_path": "x"}), "lora_path"),
            (json!({"use_beam_search": true}), "use_beam_search"),
        ] {
            let error = take(json.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name), "{json}: {error:?}");
            assert_eq!(error.status, 400);
            assert!(error.message.len() < 200, "{error:?}");
            assert!(error.message.contains('`'), "{error:?}");
        }
    }
}
