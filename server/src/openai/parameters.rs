//! The members of a request's JSON object, each taken once by its name and type.

use super::error::ApiError;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// What a request holds and nobody has taken yet.
#[derive(Debug)]
pub struct Parameters {
    members: BTreeMap<String, Value>,
}

/// Reads an object member by member, so that what is wrong within one can be named by it.
struct Members<'a> {
    found: BTreeMap<String, Value>,
    /// The member that is being read.
    current: &'a mut Option<String>,
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = BTreeMap<String, Value>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            *self.current = Some(name.clone());
            if self.found.contains_key(&name) {
                map.next_value::<IgnoredAny>()?;
                return Err(serde::de::Error::custom("given twice"));
            }
            let value = map.next_value()?;
            *self.current = None;
            self.found.insert(name, value);
        }
        Ok(self.found)
    }
}

impl<'de> DeserializeSeed<'de> for Members<'_> {
    type Value = BTreeMap<String, Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl Parameters {
    /// Of a request's body.
    ///
    /// # Errors
    /// It is no JSON object, or a member of it is no value: which.
    pub fn parse(json: &[u8]) -> Result<Self, ApiError> {
        let mut current = None;
        let seed = Members {
            found: BTreeMap::new(),
            current: &mut current,
        };
        let mut reader = serde_json::Deserializer::from_slice(json);
        let read = seed.deserialize(&mut reader);
        let read = read.and_then(|members| reader.end().map(|()| members));
        match (read, current) {
            (Ok(members), _) => Ok(Self { members }),
            (Err(error), Some(name)) if !error.is_eof() => {
                let name = shortened(&name);
                Err(ApiError::bad_request(format!("`{name}`: {error}")).of(&name))
            }
            (Err(error), _) => Err(ApiError::bad_request(format!(
                "the body: expected a JSON object: {error}"
            ))),
        }
    }

    /// An object within a request.
    pub fn of(members: serde_json::Map<String, Value>) -> Self {
        let members = members.into_iter().collect();
        Self { members }
    }

    /// Adds a member that came in another way.
    ///
    /// # Errors
    /// It is there.
    pub fn add(&mut self, name: String, value: Value) -> Result<(), ApiError> {
        if self.members.contains_key(&name) {
            let name = shortened(&name);
            return Err(ApiError::bad_request(format!("`{name}`: given twice")).of(&name));
        }
        self.members.insert(name, value);
        Ok(())
    }

    /// The member of that name; none where it is null.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.members.remove(name).filter(|value| !value.is_null())
    }

    /// All that is left.
    pub fn into_members(self) -> impl Iterator<Item = (String, Value)> {
        self.members.into_iter()
    }

    /// Whether it is there and not null.
    pub fn has(&self, name: &str) -> bool {
        self.members.get(name).is_some_and(|value| !value.is_null())
    }

    /// True or false.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        let read = |value: Value| match value {
            Value::Bool(value) => Ok(value),
            other => Err(ApiError::parameter(name, "true or false", found(&other))),
        };
        self.take(name).map(read).transpose()
    }

    /// A whole number.
    pub fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i128>,
    ) -> Result<Option<i128>, ApiError> {
        let read = |value: Value| match whole(&value).filter(|number| range.contains(number)) {
            Some(number) => Ok(number),
            None => Err(ApiError::parameter(
                name,
                &format!("a whole number of {} to {}", range.start(), range.end()),
                found(&value),
            )),
        };
        self.take(name).map(read).transpose()
    }

    /// A count.
    pub fn count(
        &mut self,
        name: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, ApiError> {
        let range = *range.start() as i128..=*range.end() as i128;
        let count = self.integer(name, range)?;
        Ok(count.map(|count| count as usize))
    }

    /// A finite number.
    pub fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        let read = |value: Value| {
            let number = value.as_f64().map(|number| number as f32);
            let number = number.filter(|number| number.is_finite());
            number.ok_or_else(|| ApiError::parameter(name, "a finite number", found(&value)))
        };
        self.take(name).map(read).transpose()
    }

    /// A text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        let read = |value: Value| match value {
            Value::String(text) => Ok(text),
            other => Err(ApiError::parameter(name, "a string", found(&other))),
        };
        self.take(name).map(read).transpose()
    }

    /// An object.
    pub fn object(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        let read = |value: Value| match value {
            Value::Object(members) => Ok(Self::of(members)),
            other => Err(ApiError::parameter(name, "an object", found(&other))),
        };
        self.take(name).map(read).transpose()
    }

    /// Takes what is not supported and can only be `neutral`, which asks for nothing.
    pub fn only(&mut self, name: &str, neutral: &[Value]) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !neutral.contains(&value) => {
                let allowed: Vec<_> = neutral.iter().map(Value::to_string).collect();
                let why = match allowed.is_empty() {
                    true => String::new(),
                    false => format!(" but as {}, found {}", allowed.join(" or "), found(&value)),
                };
                Err(ApiError::unsupported(name, &why))
            }
            _ => Ok(()),
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// Something was not taken: what nobody knows, with names alone.
    pub fn finish(self, place: &str) -> Result<(), ApiError> {
        const MOST: usize = 5;
        let left = self
            .members
            .into_iter()
            .filter(|(_, value)| !value.is_null());
        let mut names = left.map(|(name, _)| format!("{place}{}", shortened(&name)));
        let Some(name) = names.next() else {
            return Ok(());
        };
        let more = names.take(MOST).map(|name| format!(", nor `{name}`"));
        let more: String = more.collect();
        Err(ApiError::unsupported(&name, &more))
    }
}

fn whole(value: &Value) -> Option<i128> {
    if let Some(number) = value.as_i64() {
        return Some(number.into());
    }
    if let Some(number) = value.as_u64() {
        return Some(number.into());
    }
    // 5.0 is whole, and exact up to here.
    let number = value.as_f64()?;
    let exact = number.fract() == 0.0 && number.abs() < 2f64.powi(53);
    exact.then_some(number as i128)
}

/// A value in a message, short.
pub fn found(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("the string \"{}\"", shortened(text)),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(members) => format!("an object of {}", members.len()),
    }
}

fn shortened(text: &str) -> String {
    const MOST: usize = 40;
    let mut short: String = text
        .chars()
        .take(MOST)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(MOST).is_some() {
        short += "…";
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Parameters {
        Parameters::parse(json.as_bytes()).unwrap()
    }

    fn refusal(json: &str) -> ApiError {
        Parameters::parse(json.as_bytes()).unwrap_err()
    }

    #[test]
    fn what_is_wrong_is_named_by_its_parameter() {
        let error = refusal(r#"{"prompt": "x", "temperature": 1e999}"#);
        assert_eq!(error.param.as_deref(), Some("temperature"));
        assert!(error.message.contains("out of range"), "{error:?}");
        let error = refusal(r#"{"logit_bias": {"5": -1e999}}"#);
        assert_eq!(error.param.as_deref(), Some("logit_bias"));
        let error = refusal(r#"{"n": 1, "n": 2}"#);
        assert_eq!(error.param.as_deref(), Some("n"));
        assert!(error.message.contains("given twice"), "{error:?}");
        let deep = format!(r#"{{"stop": {}"#, "[".repeat(100_000));
        assert_eq!(refusal(&deep).param.as_deref(), Some("stop"));
        for whole in [
            "",
            "[]",
            "1",
            "\"x\"",
            "{",
            r#"{"a""#,
            r#"{"a": 1} {}"#,
            "nul",
        ] {
            let error = refusal(whole);
            assert_eq!(error.param, None, "{whole}: {error:?}");
            assert!(
                error.message.contains("expected a JSON object"),
                "{error:?}"
            );
        }
        let error = Parameters::parse(b"{\"prompt\": \"\xff\"}").unwrap_err();
        assert_eq!(error.status, 400);
        let error = refusal(&format!(r#"{{"{}": nil}}"#, "x".repeat(1 << 20)));
        assert!(error.message.len() < 200);
    }

    #[test]
    fn types_and_ranges_are_held() {
        for (value, fits) in [
            ("0", true),
            ("5.0", true),
            ("1e1", true),
            ("1.5", false),
            ("-1", false),
            ("11", false),
            ("true", false),
            ("\"3\"", false),
            ("[3]", false),
            ("18446744073709551616", false),
        ] {
            let mut parameters = parse(&format!(r#"{{"n": {value}}}"#));
            match parameters.count("n", 0..=10) {
                Ok(count) => assert!(fits && count.is_some(), "{value}"),
                Err(error) => {
                    assert!(!fits, "{value}");
                    assert_eq!(error.param.as_deref(), Some("n"));
                    assert!(
                        error
                            .message
                            .starts_with("`n`: expected a whole number of 0 to 10, found ")
                    );
                }
            }
        }
        let mut seeds = parse(r#"{"seed": 18446744073709551615}"#);
        let seed = seeds.integer("seed", i64::MIN.into()..=u64::MAX.into());
        assert_eq!(seed.unwrap(), Some(u64::MAX.into()));
        for value in ["1e39", "\"1\"", "{}", "true"] {
            let mut parameters = parse(&format!(r#"{{"temperature": {value}}}"#));
            let number = parameters.number("temperature");
            assert_eq!(number.unwrap_err().param.as_deref(), Some("temperature"));
        }
    }

    #[test]
    fn members_that_come_in_another_way_come_once() {
        let mut parameters = parse(r#"{"n": 1}"#);
        parameters.add("top_k".into(), 5.into()).unwrap();
        assert_eq!(parameters.count("top_k", 0..=9).unwrap(), Some(5));
        let error = parameters.add("n".into(), 2.into()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("n"));
        assert!(error.message.contains("given twice"), "{error:?}");
    }

    #[test]
    fn null_asks_for_nothing_and_what_is_unknown_is_refused() {
        let mut parameters = parse(r#"{"n": null, "best_of": 1, "unknown": null}"#);
        assert_eq!(parameters.count("n", 1..=2).unwrap(), None);
        parameters.only("best_of", &[1.into()]).unwrap();
        parameters.finish("").unwrap();
        let error = parse(r#"{"temprature": 1, "x": 2}"#)
            .finish("")
            .unwrap_err();
        assert_eq!(error.param.as_deref(), Some("temprature"));
        assert_eq!(error.message, "`temprature`: not supported, nor `x`");
        let error = parse(r#"{"best_of": 4}"#).only("best_of", &[1.into()]);
        assert_eq!(
            error.unwrap_err().message,
            "`best_of`: not supported but as 1, found 4"
        );
    }
}
