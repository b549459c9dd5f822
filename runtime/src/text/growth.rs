//! How much longer the steps of a tokenizer can make a text: a file of a kilobyte may double it
//! forty times.

use super::TextError;
use serde::Deserialize;
use serde_json::Value;

/// Most times that the steps of one kind may lengthen a text. Those of known tokenizers come to
/// about a thousand at most.
const MOST: u64 = 4096;

/// Unicode's compatibility forms, for the worst character.
const COMPATIBILITY: u64 = 18;

/// The steps of a `tokenizer.json`.
#[derive(Deserialize)]
struct Steps {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
}

/// Refuses what is no JSON object, and steps that lengthen a text without measure.
pub(super) fn check(json: &[u8]) -> Result<(), TextError> {
    let steps: Steps = serde_json::from_slice(json).map_err(|error| {
        TextError(format!(
            "expected the contents of a tokenizer.json: {error}"
        ))
    })?;
    for (name, step) in [
        ("normalizer", steps.normalizer),
        ("pre_tokenizer", steps.pre_tokenizer),
        ("post_processor", steps.post_processor),
        ("decoder", steps.decoder),
    ] {
        let growth = step.as_ref().map_or(1, growth);
        if growth > MOST {
            return Err(TextError(format!(
                "{name}: its steps make a text up to {growth} times longer, expected at most {MOST} times"
            )));
        }
    }
    Ok(())
}

/// Times that a step, with those inside it, can lengthen a text; generous where the type is
/// unknown.
fn growth(step: &Value) -> u64 {
    let nested = ["normalizers", "pretokenizers", "decoders", "processors"];
    let lists = nested.iter().filter_map(|key| step.get(key)?.as_array());
    let inner = lists
        .flatten()
        .fold(1, |all: u64, step| all.saturating_mul(growth(step)));
    let kind = step.get("type").and_then(Value::as_str);
    let own = match kind {
        Some("Replace") => replaced(step),
        // One piece for each time that the text is repeated.
        Some("TemplateProcessing") => ["single", "pair"]
            .iter()
            .filter_map(|key| Some(step.get(key)?.as_array()?.len() as u64))
            .max()
            .unwrap_or(1)
            .max(1),
        Some("NFKC" | "NFKD" | "Nmt" | "Precompiled" | "BertNormalizer") => COMPATIBILITY,
        Some("NFC" | "NFD") => 3,
        Some("ByteLevel" | "Lowercase") => 2,
        // A space becomes the replacement, of up to four bytes.
        Some("Metaspace") => 4,
        // A byte that is no character becomes one of three bytes.
        Some("ByteFallback") => 3,
        Some(_) => 1,
        None if inner > 1 || step.is_null() => 1,
        None => 2,
    };
    inner.saturating_mul(own)
}

fn replaced(step: &Value) -> u64 {
    let len = |value: Option<&Value>| value.and_then(Value::as_str).map(|text| text.len() as u64);
    let new = len(step.get("content")).unwrap_or(1);
    match len(step
        .get("pattern")
        .and_then(|pattern| pattern.get("String")))
    {
        Some(old) if old > 0 => new.div_ceil(old).max(1),
        // It matches between all characters.
        _ => new.saturating_add(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checked(normalizer: Value) -> Result<(), String> {
        let json = json!({"normalizer": normalizer, "model": {"vocab": {}}}).to_string();
        check(json.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn steps_that_double_a_text_again_and_again_are_refused() {
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let steps = |count| json!({"type": "Sequence", "normalizers": vec![double.clone(); count]});
        assert_eq!(checked(steps(12)), Ok(()));
        assert_eq!(
            checked(json!({"type": "Sequence", "normalizers": [steps(6), steps(7)]})),
            Err("tokenizer: normalizer: its steps make a text up to 8192 times longer, expected at most 4096 times".into())
        );
        assert!(
            checked(steps(1000))
                .unwrap_err()
                .contains("18446744073709551615 times")
        );
        for kind in ["ByteLevel", "NFKC"] {
            let steps = vec![json!({"type": kind}); 13];
            assert!(checked(json!({"type": "Sequence", "normalizers": steps})).is_err());
        }
        let anywhere =
            json!({"type": "Replace", "pattern": {"Regex": "x*"}, "content": "y".repeat(5000)});
        assert!(checked(anywhere).is_err());
    }

    #[test]
    fn steps_of_known_tokenizers_are_accepted() {
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        for steps in [
            json!([{"type": "Prepend", "prepend": "\u{2581}"}, replace(" ", "\u{2581}")]),
            json!([replace("``", "\""), replace("''", "\""), {"type": "NFKD"}, {"type": "StripAccents"},
                {"type": "Lowercase"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
                {"type": "Precompiled", "precompiled_charsmap": ""}]),
        ] {
            assert_eq!(
                checked(json!({"type": "Sequence", "normalizers": steps})),
                Ok(())
            );
        }
        assert_eq!(checked(Value::Null), Ok(()));
    }
}
