//! From a checkpoint, configurations and options to one model: sizes, patterns, what is computed, and
//! where each weight is.

mod overrides;
mod patterns;
mod said;
mod synthetic;
#[cfg(test)]
mod tests;

pub use synthetic::synthetic;

use crate::checkpoint::{Checkpoint, CheckpointError, list};
use crate::config::{self, Beside, Described};
use crate::official::{Source, StateDict};
use patterns::summary;
use ratplus_graphs::model::Weight;
use ratplus_graphs::none_wrong;
use ratplus_graphs::spec::ModelSpec;
use std::path::PathBuf;

/// What the user gave besides the checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolveOptions {
    /// A [`ModelSpec`] as JSON, or the configuration of a training run as JSON or YAML; whole or in
    /// part.
    pub config_file: Option<PathBuf>,
    /// Channels of one head.
    pub d_head: Option<usize>,
    /// Every how many keys one is kept: empty, one value, or one per layer; -1 for none.
    pub dilation: Vec<i64>,
    /// Tokens before the current one that are visible: empty, one value, or one per layer.
    pub local_window: Vec<i64>,
    /// Tokens at the start that are always visible: empty, one value, or one per layer.
    pub initial: Vec<i64>,
    /// Longest sequence, which is compared with the length that the model was trained with.
    pub max_seq_len: Option<usize>,
}

/// A model whose every size, pattern and weight is known and consistent.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Resolved {
    /// Sizes and patterns, as given: not normalized to a sequence length.
    pub spec: ModelSpec,
    /// What was inferred from what, and what overrode what; one sentence each.
    pub notes: Vec<String>,
    /// One entry per place of a weight, in the order packages store them; head and embedding have
    /// the same parts where they are one matrix.
    pub sources: Vec<Source>,
}

/// Why a checkpoint and what was said about it do not make a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// A configuration file cannot be read.
    #[error("{}: {}", path.display(), lines(problems))]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong; one line each with the field, expected, found.
        problems: Vec<String>,
    },
    /// Something that neither the weights nor anything given says.
    #[error("{}: the weights alone do not say everything:{}", path.display(), list(problems))]
    Undetermined {
        /// The checkpoint.
        path: PathBuf,
        /// What is missing, and the field of [`ResolveOptions`] that gives it; one line each.
        problems: Vec<String>,
    },
    /// Options or configuration that contradict themselves, or the weights.
    #[error("{}: what is expected is not what was found:{}", path.display(), list(problems))]
    Mismatch {
        /// The checkpoint.
        path: PathBuf,
        /// Every difference; one line each with the tensor or field, expected, found.
        problems: Vec<String>,
    },
    /// Weights cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// One problem on the message's own line, several on lines of their own.
fn lines(problems: &[String]) -> String {
    match problems {
        [one] => one.clone(),
        several => format!("not a model configuration:{}", list(several)),
    }
}

/// Finds sizes, patterns, function and weights of the model in `checkpoint`.
///
/// Each field comes from the first that says it: options, their configuration file, the configuration that a
/// training run saved in the checkpoint, or without either the `config.json` beside the weights,
/// and then the weights, for sizes, or the checkpoint's path, for patterns. What all of them leave
/// open is as in the released models.
///
/// Where only one of head and embedding is there, it is both if the file's metadata or a
/// configuration says that they are tied. Two that are bit-identical become one.
///
/// # Errors
/// The configuration cannot be read; something is said nowhere; the model computes what no export
/// can; or the specification and the weights differ, with all differences at once.
pub fn resolve(
    checkpoint: &Checkpoint,
    options: &ResolveOptions,
) -> Result<Resolved, ResolveError> {
    let mut resolver = Resolver {
        checkpoint,
        options,
        state: StateDict::new(checkpoint),
        said: Vec::new(),
        given: false,
        notes: Vec::new(),
        problems: Vec::new(),
    };
    resolver.read_configurations()?;
    let mut spec = resolver.spec()?;
    resolver.contradictions(&spec);
    let mut problems = std::mem::take(&mut resolver.state.problems);
    problems.append(&mut resolver.problems);
    let sources = match spec.validate() {
        Err(errors) => {
            problems.extend(errors.0);
            Vec::new()
        }
        Ok(()) => resolver.state.sources(&spec).unwrap_or_else(|found| {
            problems.extend(found);
            Vec::new()
        }),
    };
    none_wrong(problems).map_err(|problems| resolver.mismatch(problems))?;
    resolver.tie(&mut spec, &sources)?;
    resolver.note_layout(&spec);
    Ok(Resolved {
        spec,
        notes: resolver.notes,
        sources,
    })
}

struct Resolver<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a ResolveOptions,
    state: StateDict<'a>,
    /// Configurations, the one that wins first.
    said: Vec<Described>,
    /// Whether the first of them is the options' own.
    given: bool,
    notes: Vec<String>,
    problems: Vec<String>,
}

impl Resolver<'_> {
    fn mismatch(&self, problems: Vec<String>) -> ResolveError {
        ResolveError::Mismatch {
            path: self.checkpoint.path().to_owned(),
            problems,
        }
    }

    fn read_configurations(&mut self) -> Result<(), ResolveError> {
        if let Some(path) = &self.options.config_file {
            let read = config::read(path).map_err(|problems| ResolveError::Config {
                path: path.clone(),
                problems,
            })?;
            self.said.push(read);
            self.given = true;
        }
        if let Some(saved) = self.checkpoint.saved_config() {
            let origin = "the training configuration saved in the checkpoint";
            match config::saved(saved, origin) {
                Ok(said) => self.said.push(said),
                Err(problems) => self
                    .notes
                    .push(format!("not read: {origin}: {}", problems.join("; "))),
            }
        } else if !self.given
            && let Some(folder) = self.checkpoint.folder()
            && let Some(beside) = config::beside(&folder)
        {
            let path = folder.join("config.json");
            let (word, end) = match &beside {
                Beside::Read(_) => ("configuration read", String::new()),
                Beside::Other(why) => ("configuration not read", format!(": {why}")),
            };
            self.notes.push(format!("{word}: {}{end}", path.display()));
            if let Beside::Read(read) = beside {
                let said = (*read).map_err(|problems| ResolveError::Config { path, problems })?;
                self.said.push(said);
            }
        }
        let instead = self.given && self.said[0].is_whole();
        for said in &mut self.said {
            self.notes.append(&mut said.notes);
            for problem in std::mem::take(&mut said.problems) {
                let problem = format!("{problem} in {}", said.origin);
                match instead {
                    true => self
                        .notes
                        .push(format!("{problem}; `config_file` says it instead")),
                    false => self.problems.push(problem),
                }
            }
        }
        Ok(())
    }

    /// Head and embedding become one where they are the same matrix.
    fn tie(&mut self, spec: &mut ModelSpec, sources: &[Source]) -> Result<(), ResolveError> {
        let find = |weight| sources.iter().find(|source| source.weight == weight);
        let (Some(embedding), Some(head)) = (find(Weight::Embedding), find(Weight::LmHead)) else {
            return Ok(());
        };
        let said = std::mem::replace(&mut spec.tie_embedding, false);
        spec.tie_embedding = head.same_elements(embedding, self.checkpoint)?;
        let note = match (self.state.missing_of_tied(), &self.state.tied_by) {
            (Some(missing), Some(by)) => format!(
                "`{}` is not in the checkpoint: head and embedding are tied, says {by}",
                missing.name()
            ),
            _ if spec.tie_embedding => {
                "head and embedding are the same matrix, which is stored once".into()
            }
            (_, Some(by)) if said => format!(
                "head and embedding are tied, says {by}, but the checkpoint has two that differ: both are kept"
            ),
            _ => return Ok(()),
        };
        self.notes.push(note);
        Ok(())
    }

    fn note_layout(&mut self, spec: &ModelSpec) {
        self.notes.append(&mut self.state.notes);
        if spec.recurrence && self.state.separate_gate() {
            self.notes
                .push("the forget gate is stored apart: stacked below in_proj".into());
        }
        let trained = self.said.iter().find_map(|said| said.trained_len);
        if let (Some(trained), Some(asked)) = (trained, self.options.max_seq_len)
            && asked > trained
        {
            self.notes.push(format!(
                "`max_seq_len: {asked}` is past the {trained} tokens of the sequences that the model was trained with: \
                 nothing says how it predicts beyond them"
            ));
        }
    }
}
