//! Configuration files: what each says about a model, field by field.
//!
//! A configuration file is a [`ModelSpec`](ratplus_graphs::spec::ModelSpec) as JSON, whole or in part; the
//! resolved configuration of a training run, as JSON or YAML (see [`crate::official`]); and the
//! `config.json` that lies beside a conversion to safetensors, whose names are those of Hugging
//! Face's model library.

mod model;
mod object;
mod patterns;
mod text;

pub(crate) use model::{named as activation, unsupported_activation};
pub(crate) use object::{Object, Said, one_of, show};

use crate::official;
use ratplus_graphs::spec::{Activation, LayerPatterns, MODEL_TYPE};
use serde_json::Value;
use std::path::Path;

/// Longest configuration file read.
const MAX_CONFIG: u64 = 16 << 20;

/// A pattern as one value, or one per layer, of each of its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub dilation: Vec<i64>,
    pub local_window: Vec<i64>,
    pub initial: Vec<i64>,
    /// Where it was found, for a note.
    pub origin: String,
}

/// A field whose value no export can keep, unless something that comes first says another.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refusal {
    /// What it is about.
    pub what: Function,
    /// Field, expected and found.
    pub problem: String,
}

/// What of a model's function has values that are not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Activation,
    Rope,
    /// Anything that no configuration can say in another way.
    Other,
}

/// What one configuration says about a model; nothing where it is silent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Described {
    /// Where it is, for messages.
    pub origin: String,
    pub vocab_size: Option<Said<usize>>,
    pub d_model: Option<Said<usize>>,
    pub num_layers: Option<Said<usize>>,
    pub d_ffn: Option<Said<usize>>,
    pub d_head: Option<Said<usize>>,
    pub num_heads: Option<Said<usize>>,
    /// Heads of keys and values.
    pub num_kv_heads: Option<Said<usize>>,
    /// Channels that are rotated.
    pub rotated: Option<Said<usize>>,
    pub rope_base: Option<Said<f64>>,
    pub norm_eps: Option<Said<f64>>,
    pub recurrence: Option<Said<bool>>,
    pub rope: Option<Said<bool>>,
    pub activation: Option<Said<Activation>>,
    pub tie_embedding: Option<Said<bool>>,
    /// One entry per layer.
    pub patterns: Option<Vec<LayerPatterns>>,
    /// A pattern in the way of a training run.
    pub named: Option<Named>,
    /// The sparse pattern of a joint pretraining that was not followed by adaptation.
    pub pretrained: Option<Named>,
    /// Tokens of a training sequence.
    pub trained_len: Option<usize>,
    /// What was read in a way worth telling.
    pub notes: Vec<String>,
    pub refusals: Vec<Refusal>,
    /// Values that are not what their fields hold.
    pub problems: Vec<String>,
    /// The same of the pattern's fields, which options may give instead.
    pub pattern_problems: Vec<String>,
}

impl Described {
    /// Whether it says every field of a model that the weights do not show.
    pub(crate) fn is_whole(&self) -> bool {
        let sizes = [
            &self.vocab_size,
            &self.d_model,
            &self.num_layers,
            &self.d_ffn,
            &self.d_head,
        ];
        sizes.iter().all(|size| size.is_some())
            && (self.patterns.is_some() || self.named.is_some())
            && [&self.rope_base, &self.norm_eps]
                .iter()
                .all(|it| it.is_some())
            && self.rope.is_some()
            && self.activation.is_some()
    }
}

/// Why a file is no configuration: one problem a line.
pub(crate) type Problems = Vec<String>;

/// Reads a configuration file.
pub(crate) fn read(path: &Path) -> Result<Described, Problems> {
    let value = parse_file(path).map_err(|problem| vec![problem])?;
    from_file(&value, path)
}

fn parse_file(path: &Path) -> Result<Value, String> {
    let metadata = std::fs::metadata(path).map_err(|error| format!("cannot open: {error}"))?;
    if !metadata.is_file() || metadata.len() > MAX_CONFIG {
        return Err(format!(
            "expected a configuration file of at most {MAX_CONFIG} bytes, found {}",
            if metadata.is_file() {
                format!("{} bytes", metadata.len())
            } else {
                "no regular file".into()
            }
        ));
    }
    let bytes = std::fs::read(path).map_err(|error| format!("cannot read: {error}"))?;
    text::parse(&bytes)
}

/// What the content of `path` says. A file can be mended, so that every problem in it is one.
fn from_file(value: &Value, path: &Path) -> Result<Described, Problems> {
    let mut described = describe(value, &path.display().to_string())?;
    described.problems.append(&mut described.pattern_problems);
    match described.problems.is_empty() {
        true => Ok(described),
        false => Err(described.problems),
    }
}

/// What a parsed configuration says, in whichever form it is.
pub(crate) fn describe(value: &Value, origin: &str) -> Result<Described, Problems> {
    let Value::Object(fields) = value else {
        return Err(vec![format!(
            "expected the fields of a model's configuration, found {}",
            show(value)
        )]);
    };
    let run = fields.get("model").is_some_and(|model| !model.is_null());
    Ok(if run || fields.contains_key("backbone") {
        official::training_run(value, origin)
    } else {
        model::read(value, origin)
    })
}

/// Reads a configuration that a checkpoint holds, as fields or as their text.
pub(crate) fn saved(value: &Value, origin: &str) -> Result<Described, Problems> {
    match value {
        Value::String(text) => {
            let value = text::parse(text.as_bytes()).map_err(|problem| vec![problem])?;
            describe(&value, origin)
        }
        value => describe(value, origin),
    }
}

/// Whether `value` is about a RAT+ model at all.
pub(crate) fn is_ratplus(value: &Value) -> bool {
    value.get("model_type").and_then(Value::as_str) == Some(MODEL_TYPE)
        || value.get("patterns").is_some()
        || value.pointer("/model/backbone").is_some()
}

/// A `config.json` that lies beside weights.
pub(crate) enum Beside {
    /// One of a RAT+ model.
    Read(Box<Result<Described, Problems>>),
    /// Another one, and why it is not read.
    Other(String),
}

/// The `config.json` in `folder`, where there is one.
pub(crate) fn beside(folder: &Path) -> Option<Beside> {
    let path = folder.join("config.json");
    if !path.exists() {
        return None;
    }
    Some(match parse_file(&path) {
        Ok(value) if is_ratplus(&value) => Beside::Read(Box::new(from_file(&value, &path))),
        Ok(_) => Beside::Other(format!("it does not say \"model_type\": \"{MODEL_TYPE}\"")),
        Err(problem) => Beside::Other(problem),
    })
}
