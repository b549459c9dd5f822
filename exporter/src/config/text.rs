use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// JSON where the first character says so, YAML otherwise; the bytes may be anything. A key that is
/// there twice is an error in both.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        format!("not a model configuration: expected UTF-8 text, found another byte at {at}")
    })?;
    let text = text.trim_start_matches('\u{feff}');
    if text.trim().is_empty() {
        return Err("expected the fields of a model's configuration, found an empty file".into());
    }
    if text.trim_start().starts_with(['{', '[']) {
        let mut reader = serde_json::Deserializer::from_str(text);
        let value = Unique.deserialize(&mut reader);
        return value
            .and_then(|value| reader.end().map(|()| value))
            .map_err(|error| format!("not a model configuration: not JSON: {error}"));
    }
    // A run's other sections may hold infinities, which JSON cannot say.
    let options = serde_saphyr::options! {
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::AsString
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let first = error.to_string();
        let first = first.lines().next().unwrap_or_default();
        let first = first.strip_prefix("error: ").unwrap_or(first);
        // What the library's callers could do about it.
        let advice = [first.find("; use from_str"), first.find(", set ")];
        let first = &first[..advice.into_iter().flatten().min().unwrap_or(first.len())];
        format!("not a model configuration: neither JSON nor YAML: {first}")
    })
}

/// Any JSON without a key that is there twice.
struct Unique;

impl<'de> DeserializeSeed<'de> for Unique {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Unique)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Unique)?;
            if map.contains_key(&key) {
                return Err(Error::custom(format!("`{key}` is there twice")));
            }
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_and_yaml_say_the_same() {
        let json = parse(br#"{"a": {"b": [1, -2.5, "x", null, true]}, "c": 1e-6}"#).unwrap();
        let yaml =
            parse(b"# run\na:\n  b: [1, -2.5, x, null, true]\nc: 1.0e-06\nother: .inf\n").unwrap();
        assert_eq!(
            json,
            json!({"a": {"b": [1, -2.5, "x", null, true]}, "c": 1e-6})
        );
        assert_eq!((&yaml["a"], &yaml["c"]), (&json["a"], &json["c"]));
        let shared = parse(b"x: &id001 {a: 1}\ny: *id001\n").unwrap();
        assert_eq!(shared["y"], shared["x"]);
    }

    #[test]
    fn what_is_neither_is_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let item = format!("*a{}", level - 1);
            let items = vec![item; 10].join(", ");
            bomb += &format!("a{level}: &a{level} [{items}]\n");
        }
        for (text, part) in [
            ("{\"a\": 1, \"a\": 2}", "`a` is there twice"),
            ("{\"a\": {\"b\": 1, \"b\": 2}}", "`b` is there twice"),
            ("{\"a\": 1} x", "trailing characters"),
            ("{\"a\": ", "EOF while parsing"),
            ("a: 1\na: 2\n", "duplicate mapping key: a"),
            ("a: [1\nb: 2", "line 2"),
            ("a: 1\n---\nb: 1\n", "multiple YAML documents"),
            (&bomb, "budget"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.starts_with("not a model configuration: "), "{error}");
            assert!(error.contains(part), "{text}: {error}");
            assert!(
                !error.contains("from_str") && !error.contains("Policy"),
                "{error}"
            );
        }
        assert!(parse(b" \n").unwrap_err().ends_with("found an empty file"));
        assert!(parse(b"\xff{}").unwrap_err().contains("byte at 0"));
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err());
        let deep = "- ".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err());
    }
}
