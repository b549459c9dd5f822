//! What wrappers, containers and buffers do to the names of weights.

use super::{LAYERS, StateDict, TIED};
use crate::checkpoint::{Checkpoint, StoredType, Tensor};
use ratplus_graphs::model::Weight;
use std::collections::{BTreeMap, BTreeSet};

/// Keys of a saved dict under which the state dict may be.
pub(crate) const STATE_DICT_KEYS: [&str; 4] = ["task", "state_dict", "model", "model_state_dict"];

/// What modules around modules put into names, at any depth, and who does.
const WRAPPERS: [(&str, &str); 6] = [
    ("_orig_mod", "torch.compile"),
    ("module", "DataParallel"),
    ("_fsdp_wrapped_module", "FSDP"),
    ("_fpw_module", "FSDP"),
    ("_checkpoint_wrapped_module", "activation checkpointing"),
    ("_forward_module", "Lightning Fabric"),
];

/// State of a module that is no weight.
const EXTRA_STATE: &str = "_extra_state";

/// Tables of rotary embeddings, which follow from the base.
const ROTARY: [&str; 10] = [
    "inv_freq",
    "original_inv_freq",
    "freqs",
    "freqs_cis",
    "cos",
    "sin",
    "cos_cached",
    "sin_cached",
    "cos_sin_cache",
    "rope_cache",
];

/// What FSDP calls a parameter that it has flattened.
const FLAT: [&str; 2] = ["_flat_param", "flat_param"];

fn wrapper(part: &str) -> Option<(&'static str, &'static str)> {
    WRAPPERS.into_iter().find(|(name, _)| *name == part)
}

fn unwrapped(name: &str) -> String {
    let parts = name.split('.').filter(|part| wrapper(part).is_none());
    parts.collect::<Vec<_>>().join(".")
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Whether an entry of a state dict is the state of a module, of any kind, and no weight.
pub(crate) fn is_extra_state(name: &str) -> bool {
    last(name) == EXTRA_STATE
}

/// What stands before the name of a weight of the model; `None` for any other name.
fn prefix(name: &str) -> Option<&str> {
    let whole = [Weight::Embedding, Weight::FinalNorm, Weight::LmHead];
    let before = whole
        .iter()
        .find_map(|weight| name.strip_suffix(weight.name().as_str()))
        .or_else(|| name.find(LAYERS).map(|at| &name[..at]))?;
    (before.is_empty() || before.ends_with('.')).then_some(before)
}

/// Whether a name is that of a weight of the model, whatever is around it.
pub(crate) fn names_a_weight(name: &str) -> bool {
    prefix(&unwrapped(name)).is_some()
}

/// Why [`is_extra_state`] is.
pub(crate) const STATE_OF_A_MODULE: &str = "the state of a module, not a weight";

/// A note on what is left out, where there is any.
pub(crate) fn ignored(names: &[String], why: &str) -> Option<String> {
    const MOST: usize = 8;
    let shown = names.iter().take(MOST).map(|name| format!("`{name}`"));
    let shown = shown.collect::<Vec<_>>().join(", ");
    let more = match names.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!names.is_empty()).then(|| format!("ignored: {shown}{more}; {why}"))
}

impl<'a> StateDict<'a> {
    /// Takes off what stands around the names, and leaves out what is no weight. Notes say so.
    pub(crate) fn new(checkpoint: &'a Checkpoint) -> Self {
        let mut notes = checkpoint.notes().to_vec();
        let mut problems = Vec::new();
        let plain: Vec<(String, &Tensor)> = checkpoint
            .tensors()
            .map(|tensor| (unwrapped(tensor.name()), tensor))
            .collect();
        notes.extend(note_wrappers(&plain));
        let mut prefixes: BTreeMap<&str, usize> = BTreeMap::new();
        for prefix in plain.iter().filter_map(|(name, _)| prefix(name)) {
            *prefixes.entry(prefix).or_default() += 1;
        }
        let common = match prefixes.keys().collect::<Vec<_>>().as_slice() {
            [one] => (**one).to_owned(),
            several => {
                if several.len() > 1 && !prefixes.contains_key("") {
                    let counted = prefixes.iter();
                    let counted =
                        counted.map(|(name, count)| format!("`{name}` ({count} tensors)"));
                    problems.push(format!(
                        "weights of several models, named {}; save those of the one to export",
                        counted.collect::<Vec<_>>().join(", ")
                    ));
                }
                String::new()
            }
        };
        if !common.is_empty() {
            notes.push(format!("`{common}` removed from the tensors' names"));
        }
        let mut tensors: BTreeMap<String, &'a Tensor> = BTreeMap::new();
        let (mut rotary, mut extra) = (Vec::new(), Vec::new());
        for (name, tensor) in plain {
            let name = name.strip_prefix(&common).unwrap_or(&name).to_owned();
            if is_extra_state(&name) {
                extra.push(name);
                continue;
            }
            if ROTARY.contains(&last(&name)) {
                rotary.push(name);
                continue;
            }
            if FLAT.contains(&last(&name)) {
                problems.push(format!(
                    "`{name}`: expected weights, found FSDP's flattened parameters; save with \
                     StateDictType.FULL_STATE_DICT"
                ));
            }
            if let Some(other) = tensors.insert(name.clone(), tensor) {
                problems.push(format!(
                    "`{name}`: expected once, found as `{}` and as `{}`",
                    other.name(),
                    tensor.name()
                ));
            }
        }
        let why = "tables of the rotary embedding follow from its base";
        notes.extend(ignored(&rotary, why));
        notes.extend(ignored(&extra, STATE_OF_A_MODULE));
        let doubles = tensors
            .values()
            .filter(|tensor| tensor.dtype() == StoredType::F64);
        match doubles.count() {
            0 => {}
            1 => notes.push("1 tensor is stored in f64: its values are rounded".into()),
            count => notes.push(format!(
                "{count} tensors are stored in f64: their values are rounded"
            )),
        }
        let [embedding, head] = TIED.map(Weight::name);
        let tied = checkpoint.metadata().iter().any(|(dropped, kept)| {
            let plain = [dropped, kept].map(|name| unwrapped(name));
            let pair = plain
                .each_ref()
                .map(|name| name.strip_prefix(&common).unwrap_or(name));
            pair == [&head, &embedding] || pair == [&embedding, &head]
        });
        Self {
            tensors,
            problems,
            notes,
            tied_by: tied.then(|| "the file's metadata".into()),
        }
    }
}

/// One note for all wrappers.
fn note_wrappers(names: &[(String, &Tensor)]) -> Option<String> {
    let changed = names
        .iter()
        .filter(|(plain, tensor)| plain != tensor.name());
    let found: BTreeSet<_> = changed
        .flat_map(|(_, tensor)| tensor.name().split('.').filter_map(wrapper))
        .collect();
    if found.is_empty() {
        return None;
    }
    let found = found.iter().map(|(name, who)| format!("`{name}.` ({who})"));
    Some(format!(
        "{} removed from the tensors' names",
        found.collect::<Vec<_>>().join(", ")
    ))
}
