//! What a library of RAT+ operators says of itself.

use crate::output::{Failure, OrInput, Outcome};
use crate::streams::outln;
use ratplus_runtime::ort_library;
use serde_json::{Map, Value};
use std::path::Path;

/// Loads the library and prints its description.
pub fn run(library: &Path, json: bool) -> Outcome {
    let text = ort_library::describe(library).or_input()?;
    let description: Map<String, Value> = serde_json::from_str(&text).map_err(|error| {
        let place = library.display();
        Failure::input(format!(
            "{place}: expected a description that is a JSON object: {error}"
        ))
    })?;
    if json {
        outln!("{}", serde_json::to_string_pretty(&description).or_input()?);
        return Ok(());
    }
    for (name, value) in &description {
        outln!("{:20}  {}", name.replace('_', " "), words(value));
    }
    Ok(())
}

/// A value on one line: what an object or a list has, with commas between.
fn words(value: &Value) -> String {
    let joined = |parts: Vec<String>| parts.join(", ");
    match value {
        Value::Null => "none".into(),
        Value::Array(values) if values.is_empty() => "none".into(),
        Value::String(text) => text.clone(),
        Value::Array(values) => joined(values.iter().map(words).collect()),
        Value::Object(fields) => match fields.get("name") {
            Some(name) => words(name),
            None => {
                let fields = fields
                    .iter()
                    .map(|(name, value)| format!("{} {}", name.replace('_', " "), words(value)));
                joined(fields.collect())
            }
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_one_line() {
        let value = serde_json::json!([{"name": "A", "types": ["f32"]}, {"name": "B"}]);
        assert_eq!(words(&value), "A, B");
        let value = serde_json::json!({"compute_capabilities": ["80", "90a"]});
        assert_eq!(words(&value), "compute capabilities 80, 90a");
        for none in [Value::Null, serde_json::json!([])] {
            assert_eq!(words(&none), "none");
        }
    }
}
