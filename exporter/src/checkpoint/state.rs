//! Which dict of a pickle is the state dict, and what of it are tensors.

use super::error::{Fail, show};
use super::list;
use super::pickle::{Id, Node, Pickle};
use crate::config::is_ratplus;
use crate::official::{
    STATE_DICT_KEYS, STATE_OF_A_MODULE, ignored, is_extra_state, names_a_weight,
};
use std::collections::HashSet;

/// Most values of a checkpoint's own configuration that are read, its deepest nesting, and the most
/// items of one list or dict: what is beyond says nothing about a model.
const MAX_CONFIG_VALUES: usize = 100_000;
const MAX_CONFIG_DEPTH: usize = 32;
const MAX_CONFIG_ITEMS: usize = 4_096;

/// Keys under which training code saves a configuration, besides `config`: read where it is a RAT+
/// model's.
const OTHER_CONFIGS: [&str; 9] = [
    "cfg",
    "conf",
    "configuration",
    "hparams",
    "hyper_parameters",
    "model_args",
    "model_config",
    "args",
    "opt",
];

/// Most entries that are no tensors and are told apart.
const MOST_PROBLEMS: usize = 100;

type Entries = [(Id, Id)];

/// A state dict in a pickle.
pub(super) struct Found<'a> {
    /// Name and index of every tensor, in the pickle's order.
    pub tensors: Vec<(&'a str, usize)>,
    /// The configuration saved beside it.
    pub config: Option<serde_json::Value>,
    /// What was chosen and what was left out; one sentence each.
    pub notes: Vec<String>,
}

/// A dict that may be the state dict.
struct Candidate<'a> {
    /// Keys that lead to it; empty for the root.
    path: Vec<&'a str>,
    entries: &'a Entries,
}

impl Candidate<'_> {
    fn shown(&self) -> String {
        let keys = self.path.iter().map(|key| show(key.as_bytes()));
        format!("`{}`", keys.collect::<Vec<_>>().join("`.`"))
    }

    /// Whether its keys are those under which state dicts are saved.
    fn named(&self) -> bool {
        self.path.iter().all(|key| STATE_DICT_KEYS.contains(key))
    }
}

fn bad<T>(problem: impl std::fmt::Display) -> Result<T, Fail> {
    Err(Fail::malformed("pickle", problem))
}

/// Finds the state dict: one under a usual key, or at top level, or under any key that holds names
/// of the model's weights.
pub(super) fn find<'a>(pickle: &'a Pickle<'_>) -> Result<Found<'a>, Fail> {
    let Node::Dict(root) = pickle.node(pickle.root) else {
        return bad(pickle
            .foreign(pickle.root)
            .unwrap_or_else(|| format!("it holds {}, expected a dict", pickle.kind(pickle.root))));
    };
    let whole = Candidate {
        path: Vec::new(),
        entries: root,
    };
    let mut notes = Vec::new();
    let (models, others): (Vec<_>, Vec<_>) = within(pickle, root)
        .into_iter()
        .partition(|candidate| holds_weights(pickle, candidate.entries));
    let is_tensor = |&(_, value): &(Id, Id)| matches!(pickle.node(value), Node::Tensor(_));
    let (named, unnamed): (Vec<_>, Vec<_>) = models.into_iter().partition(Candidate::named);
    let chosen = if !named.is_empty() {
        let chosen = only(pickle, named)?;
        if !unnamed.is_empty() {
            let shown: Vec<_> = unnamed.iter().take(8).map(Candidate::shown).collect();
            notes.push(format!(
                "the weights are those under {}; others that the file holds, under {}, are not read",
                chosen.shown(),
                shown.join(", ")
            ));
        }
        chosen
    } else if holds_weights(pickle, root) {
        whole
    } else if !unnamed.is_empty() {
        let chosen = only(pickle, unnamed)?;
        notes.push(format!("the weights are those under {}", chosen.shown()));
        chosen
    } else {
        // No names of this model: what looks like a state dict, for a message about its names.
        let mut named = others;
        if named.len() > 1 {
            named.retain(|found| !found.entries.is_empty() && found.entries.iter().all(is_tensor));
        }
        match named.as_slice() {
            [] if !root.is_empty() && root.iter().all(is_tensor) => whole,
            [] => return bad(nothing(pickle, root)),
            _ => only(pickle, named)?,
        }
    };
    let saved = root
        .iter()
        .rev()
        .find(|&&(key, _)| pickle.string(key) == Some("config"))
        .map(|&(_, value)| value);
    let read = |value| {
        let readable = matches!(pickle.node(value), Node::Dict(_) | Node::Str(_))
            || content(pickle, value).is_some();
        let mut budget = MAX_CONFIG_VALUES;
        readable.then(|| to_json(pickle, value, MAX_CONFIG_DEPTH, &mut budget))
    };
    let mut config = saved.and_then(read);
    let unread = |key: &str, what: &str| {
        format!(
            "the configuration saved under `{key}` ({what}) is not read; what it says about the model has to be given"
        )
    };
    match saved {
        Some(saved) if config.is_none() && !matches!(pickle.node(saved), Node::None) => {
            notes.push(unread("config", &describe(pickle, saved)));
        }
        Some(_) => {}
        None => {
            for &(key, value) in root {
                let name = pickle.string(key).unwrap_or_default();
                let says = match pickle.node(value) {
                    Node::Dict(entries) => !entries.is_empty(),
                    node => matches!(node, Node::Object(_) | Node::Str(_)),
                };
                if !says || !OTHER_CONFIGS.contains(&name) {
                    continue;
                }
                match read(value).filter(is_ratplus) {
                    Some(found) if config.is_none() => {
                        notes.push(format!("the configuration is that saved under `{name}`"));
                        config = Some(found);
                    }
                    _ => notes.push(unread(name, &describe(pickle, value))),
                }
            }
        }
    }
    let tensors = tensors(pickle, &chosen, &mut notes)?;
    Ok(Found {
        tensors,
        config,
        notes,
    })
}

/// Those dicts under string keys of the root, and under string keys of theirs, that have a usual key
/// or hold weights; each once.
fn within<'a>(pickle: &'a Pickle<'_>, entries: &'a Entries) -> Vec<Candidate<'a>> {
    let mut seen = HashSet::new();
    let mut found: Vec<Candidate<'a>> = Vec::new();
    let dicts = |entries: &'a Entries| {
        entries.iter().filter_map(
            |&(key, value)| match (pickle.string(key), pickle.node(value)) {
                (Some(key), Node::Dict(entries)) => Some((key, value, entries.as_slice())),
                _ => None,
            },
        )
    };
    let mut keep = |path: &[&'a str], entries| {
        let usual = path.len() == 1 && STATE_DICT_KEYS.contains(&path[0]);
        if usual || holds_weights(pickle, entries) {
            let path = path.to_vec();
            found.push(Candidate { path, entries });
        }
    };
    let outer: Vec<_> = dicts(entries)
        .filter(|&(_, id, _)| seen.insert(id))
        .collect();
    for &(key, _, entries) in &outer {
        keep(&[key], entries);
    }
    for (key, _, entries) in outer {
        for (inner, id, entries) in dicts(entries) {
            if seen.insert(id) {
                keep(&[key, inner], entries);
            }
        }
    }
    found
}

/// Whether the names of the model's weights are among the keys of tensors, known or not.
fn holds_weights(pickle: &Pickle<'_>, entries: &Entries) -> bool {
    entries.iter().any(|&(key, value)| {
        matches!(pickle.node(value), Node::Tensor(_) | Node::Object(_))
            && pickle.string(key).is_some_and(names_a_weight)
    })
}

/// The one of several dicts, which may be the same twice.
fn only<'a>(pickle: &Pickle<'_>, found: Vec<Candidate<'a>>) -> Result<Candidate<'a>, Fail> {
    let same = |a: &Entries, b: &Entries| {
        a.len() == b.len()
            && a.iter().zip(b).all(|(a, b)| {
                let tensor = |id| match *pickle.node(id) {
                    Node::Tensor(tensor) => Some(&pickle.tensors[tensor]),
                    _ => None,
                };
                pickle.string(a.0) == pickle.string(b.0) && tensor(a.1) == tensor(b.1)
            })
    };
    let shown: Vec<_> = found.iter().map(Candidate::shown).collect();
    let mut found = found.into_iter();
    let first = found.next();
    match first {
        Some(first) if found.all(|other| same(first.entries, other.entries)) => Ok(first),
        _ => bad(format!(
            "several state dicts: {}; save the one to export alone",
            shown.join(", ")
        )),
    }
}

/// A value's kind, or the name of its type where that means nothing here.
fn describe(pickle: &Pickle<'_>, id: Id) -> String {
    pickle.maker(id).map_or_else(
        || pickle.kind(id).to_owned(),
        |(module, name)| format!("`{}.{}`", show(module.as_bytes()), show(name.as_bytes())),
    )
}

fn nothing(pickle: &Pickle<'_>, root: &Entries) -> String {
    let keys: Vec<String> = root
        .iter()
        .take(32)
        .map(|&(key, value)| match pickle.string(key) {
            Some(name) => format!("`{}` ({})", show(name.as_bytes()), describe(pickle, value)),
            None => format!("{} ({})", pickle.kind(key), describe(pickle, value)),
        })
        .collect();
    let found = match (keys.is_empty(), root.len() - keys.len()) {
        (true, _) => "an empty dict".into(),
        (_, 0) => keys.join(", "),
        (_, more) => format!("{} and {more} more", keys.join(", ")),
    };
    format!(
        "no state dict: expected one under `{}`, or nothing but tensors; found {found}",
        STATE_DICT_KEYS.join("`, `")
    )
}

/// The tensors of the state dict. What a model can do without is left out, with a note; anything
/// else that is no tensor is an error.
fn tensors<'a>(
    pickle: &'a Pickle<'_>,
    state: &Candidate<'a>,
    notes: &mut Vec<String>,
) -> Result<Vec<(&'a str, usize)>, Fail> {
    let top = state.path.is_empty();
    let mut tensors = Vec::new();
    let (mut absent, mut extra, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for &(key, value) in state.entries {
        let Some(name) = pickle.string(key) else {
            // Beside weights at top level anything may lie.
            if top && !matches!(pickle.node(value), Node::Tensor(_)) {
                continue;
            }
            return bad(format!(
                "a key of the state dict is {}, expected a string",
                pickle.kind(key)
            ));
        };
        let shown = || show(name.as_bytes());
        match *pickle.node(value) {
            Node::Tensor(tensor) if pickle.tensors[tensor].lazy => unknown.push(format!(
                "`{}` is a negated or conjugated view of its storage; save a copy of it",
                shown()
            )),
            Node::Tensor(tensor) => tensors.push((name, tensor)),
            Node::None => absent.push(shown()),
            _ if is_extra_state(name) => extra.push(shown()),
            _ if top && !names_a_weight(name) => {}
            _ => {
                let problem = pickle.foreign(value).unwrap_or_else(|| {
                    let kind = pickle.kind(value);
                    format!(
                        "`{}` in the state dict is {kind}, expected a tensor",
                        shown()
                    )
                });
                // Often one type makes them all.
                if !unknown.contains(&problem) {
                    unknown.push(problem);
                }
                if unknown.len() > MOST_PROBLEMS {
                    break;
                }
            }
        }
    }
    match unknown.as_slice() {
        [] => {}
        [one] => return bad(one),
        several => return bad(list(several)),
    }
    notes.extend(ignored(&absent, "None, which is no weight"));
    notes.extend(ignored(&extra, STATE_OF_A_MODULE));
    Ok(tensors)
}

/// Plain data as JSON. What JSON cannot say, or is too much of it, is a text in angle brackets, which
/// no field of a model has.
fn to_json(pickle: &Pickle<'_>, id: Id, depth: usize, budget: &mut usize) -> serde_json::Value {
    use serde_json::Value;
    let unsaid = |what: &str| Value::String(format!("<{what}>"));
    *budget = budget.saturating_sub(1);
    if depth == 0 || *budget == 0 {
        return unsaid("nested or long beyond what is read");
    }
    match pickle.node(id) {
        Node::None => Value::Null,
        Node::Bool(value) => Value::Bool(*value),
        Node::Int(value) => (*value).into(),
        Node::Float(value) => serde_json::Number::from_f64(*value)
            .map_or_else(|| unsaid(&value.to_string()), Value::Number),
        Node::Str(span) => pickle.text(*span).into(),
        Node::List(items) | Node::Tuple(items) if items.len() <= MAX_CONFIG_ITEMS => items
            .iter()
            .map(|&item| to_json(pickle, item, depth - 1, budget))
            .collect::<Vec<_>>()
            .into(),
        Node::Dict(entries) if entries.len() <= MAX_CONFIG_ITEMS => {
            let mut map = serde_json::Map::new();
            for &(key, value) in entries {
                if let Some(key) = pickle.string(key) {
                    map.insert(key.to_owned(), to_json(pickle, value, depth - 1, budget));
                }
            }
            map.into()
        }
        Node::List(_) | Node::Tuple(_) | Node::Dict(_) => unsaid("longer than what is read"),
        _ => match (content(pickle, id), pickle.maker(id)) {
            (Some(content), _) => to_json(pickle, content, depth - 1, budget),
            (None, Some((module, name))) => {
                let [module, name] = [module, name].map(|part| show(part.as_bytes()));
                unsaid(&format!("{module}.{name}"))
            }
            (None, None) => unsaid(pickle.kind(id)),
        },
    }
}

/// What an object of a configuration library holds.
fn content(pickle: &Pickle<'_>, id: Id) -> Option<Id> {
    let Node::Object(object) = pickle.node(id) else {
        return None;
    };
    let state = object.state?;
    let (module, name) = pickle.maker(id)?;
    match (module, name) {
        ("argparse", "Namespace") | ("types", "SimpleNamespace") => Some(state),
        _ if module.starts_with("omegaconf.") => {
            let Node::Dict(entries) = pickle.node(state) else {
                return None;
            };
            // Of containers, and of values.
            let held =
                |&&(key, _): &&(Id, Id)| matches!(pickle.string(key), Some("_content" | "_val"));
            entries.iter().find(held).map(|&(_, value)| value)
        }
        _ => None,
    }
}
