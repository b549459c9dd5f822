//! From a checkpoint, a configuration and flags to one model: sizes, patterns, and where each
//! weight is.

use crate::checkpoint::{Checkpoint, list};
use crate::official::{self, Named, PathPattern, SavedConfig, Source, StateDict};
use ratplus_graphs::pattern::Pattern;
use ratplus_graphs::spec::{LayerPatterns, ModelSpec, norm_eps, rope_base};
use std::path::{Path, PathBuf};

/// Longest configuration file read.
const MAX_CONFIG: u64 = 16 << 20;

/// What the user gave besides the checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolveOptions {
    /// `--config`: a [`ModelSpec`] as JSON.
    pub config: Option<PathBuf>,
    /// `--d-head`.
    pub d_head: Option<usize>,
    /// `--dilation`: empty, one value, or one per layer; -1 for no dilated keys.
    pub dilation: Vec<i64>,
    /// `--local-window`: empty, one value, or one per layer.
    pub local_window: Vec<i64>,
    /// `--initial`: empty, one value, or one per layer.
    pub initial: Vec<i64>,
}

/// A model whose every size, pattern and weight is known and consistent.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Sizes and patterns, as given: not normalized to a sequence length.
    pub spec: ModelSpec,
    /// What was inferred from what, and what overrode what; one sentence each.
    pub notes: Vec<String>,
    /// One entry per weight, in the order packages store them.
    pub sources: Vec<Source>,
}

/// Why a checkpoint and what was said about it do not make a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// `--config` cannot be read.
    #[error("{}: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Something that neither the weights nor anything given says.
    #[error("{}: the weights alone do not say everything:{}", path.display(), list(problems))]
    Undetermined {
        /// The checkpoint.
        path: PathBuf,
        /// What is missing, and the flag that gives it; one line each.
        problems: Vec<String>,
    },
    /// Flags or configuration that contradict themselves, or the weights.
    #[error("{}: what is expected is not what was found:{}", path.display(), list(problems))]
    Mismatch {
        /// The checkpoint.
        path: PathBuf,
        /// Every difference; one line each with the tensor or field, expected, found.
        problems: Vec<String>,
    },
}

/// Finds sizes, patterns and weights of the model in `checkpoint`.
///
/// Sizes come from the configuration file or else from the weights; the head size from
/// `--d-head`, the configuration, what a training run saved, or the released sizes. Patterns come
/// from the configuration file; without one from `--dilation`, what a training run saved, or the
/// checkpoint's path. Flags win over all of them.
///
/// # Errors
/// The configuration cannot be read; something is said nowhere; or the specification and the
/// weights differ, with all differences at once.
pub fn resolve(
    checkpoint: &Checkpoint,
    options: &ResolveOptions,
) -> Result<Resolved, ResolveError> {
    let state = StateDict::new(checkpoint);
    let saved = checkpoint
        .saved_config()
        .map(official::saved_config)
        .unwrap_or_default();
    let mut resolver = Resolver {
        checkpoint,
        options,
        state,
        saved,
        notes: Vec::new(),
    };
    let spec = match &options.config {
        Some(path) => resolver.configured(path)?,
        None => resolver.inferred()?,
    };
    let mut problems = std::mem::take(&mut resolver.state.problems);
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
    if !problems.is_empty() {
        return Err(resolver.mismatch(problems));
    }
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
    saved: SavedConfig,
    notes: Vec<String>,
}

impl Resolver<'_> {
    fn mismatch(&self, problems: Vec<String>) -> ResolveError {
        ResolveError::Mismatch {
            path: self.checkpoint.path().to_owned(),
            problems,
        }
    }

    fn configured(&mut self, path: &Path) -> Result<ModelSpec, ResolveError> {
        let mut spec = read_config(path)?;
        if let Some(d_head) = self.options.d_head
            && d_head != spec.d_head
        {
            self.notes.push(format!(
                "--d-head {d_head} overrides d_head {} of {}",
                spec.d_head,
                path.display()
            ));
            spec.d_head = d_head;
        }
        let before = spec.patterns.clone();
        self.override_patterns(&mut spec)?;
        if spec.patterns != before {
            self.notes.push(format!(
                "{} overrides the patterns of {}",
                self.pattern_flags().join(" and "),
                path.display()
            ));
        }
        Ok(spec)
    }

    fn inferred(&mut self) -> Result<ModelSpec, ResolveError> {
        let sizes = match self.state.sizes() {
            Ok(sizes) => sizes,
            Err(found) => {
                let mut problems = self.state.problems.clone();
                problems.extend(found);
                return Err(self.mismatch(problems));
            }
        };
        self.notes.push(format!(
            "sizes from the weights: {} layers, d_model {}, d_ffn {}, vocabulary {}, {}",
            sizes.num_layers,
            sizes.d_model,
            sizes.d_ffn,
            sizes.vocab_size,
            if sizes.recurrence {
                "with recurrence"
            } else {
                "attention only"
            }
        ));
        let mut missing = Vec::new();
        let d_head = self
            .d_head(sizes.num_layers, sizes.d_model)
            .unwrap_or_else(|problem| {
                missing.push(problem);
                0
            });
        let base = self.base_pattern().unwrap_or_else(|problem| {
            missing.push(problem);
            Named {
                dilation: vec![1],
                local_window: vec![0],
                initial: vec![0],
                origin: String::new(),
            }
        });
        if !missing.is_empty() {
            return Err(ResolveError::Undetermined {
                path: self.checkpoint.path().to_owned(),
                problems: missing,
            });
        }
        let patterns = self.expand(&base, sizes.num_layers)?;
        let mut spec = ModelSpec {
            model_type: "ratplus".into(),
            vocab_size: sizes.vocab_size,
            d_model: sizes.d_model,
            num_layers: sizes.num_layers,
            d_head,
            d_ffn: sizes.d_ffn,
            rope_base: self.saved.rope_base.unwrap_or_else(rope_base),
            norm_eps: norm_eps(),
            recurrence: sizes.recurrence,
            patterns,
        };
        self.override_patterns(&mut spec)?;
        self.notes.push(format!(
            "pattern {} from {}",
            summary(&spec.patterns),
            base.origin
        ));
        Ok(spec)
    }

    fn d_head(&mut self, num_layers: usize, d_model: usize) -> Result<usize, String> {
        if let Some(d_head) = self.options.d_head {
            return Ok(d_head);
        }
        if let Some(d_head) = self.saved.d_head {
            self.notes.push(format!(
                "d_head {d_head} from the training configuration saved in the checkpoint"
            ));
            return Ok(d_head);
        }
        match official::released_size(num_layers, d_model) {
            Some((name, d_head)) => {
                self.notes.push(format!(
                    "d_head {d_head}: the size is the released {name} model's"
                ));
                Ok(d_head)
            }
            None => Err(format!(
                "d_head: {num_layers} layers of width {d_model} are no released size; give --d-head or --config"
            )),
        }
    }

    /// Where the pattern comes from without a configuration file.
    fn base_pattern(&mut self) -> Result<Named, String> {
        let path = official::path_pattern(self.checkpoint.path());
        if !self.options.dilation.is_empty() {
            let mut origin = self.pattern_flags().join(" and ");
            let zero: Vec<_> = [
                ("local window", &self.options.local_window),
                ("initial tokens", &self.options.initial),
            ]
            .iter()
            .filter(|(_, values)| values.is_empty())
            .map(|&(name, _)| name)
            .collect();
            if !zero.is_empty() {
                origin.push_str(&format!(
                    "; no {}, as no flag gives any",
                    zero.join(" and no ")
                ));
            }
            let elsewhere = match (&self.saved.pattern, &path) {
                (Some(named), _) | (None, PathPattern::Named(named)) => Some(named),
                _ => None,
            };
            if let Some(named) = elsewhere {
                self.notes.push(format!(
                    "set aside for --dilation: D={} W={} I={} from {}",
                    join(&named.dilation),
                    join(&named.local_window),
                    join(&named.initial),
                    named.origin
                ));
            }
            return Ok(Named {
                dilation: self.options.dilation.clone(),
                local_window: vec![0],
                initial: vec![0],
                origin,
            });
        }
        const GIVE: &str = "give --dilation (with --local-window and --initial), or --config";
        let mut named = match (self.saved.pattern.clone(), path) {
            (Some(named), _) => named,
            (None, _) if self.saved.pretrained => {
                return Err(format!(
                    "pattern: the checkpoint was trained jointly and has to be adapted to a pattern first, or to be \
                     run dense (--dilation 1); {GIVE}"
                ));
            }
            (None, PathPattern::Named(named)) => named,
            (None, PathPattern::Unclear(reason)) => {
                return Err(format!("pattern: {reason}; {GIVE}"));
            }
            (None, PathPattern::Silent) => {
                return Err(format!(
                    "pattern: neither the checkpoint nor its path names one; {GIVE}"
                ));
            }
        };
        let flags = self.pattern_flags();
        if !flags.is_empty() {
            named.origin = format!("{}, changed by {}", named.origin, flags.join(" and "));
        }
        Ok(named)
    }

    /// The pattern flags that were given.
    fn pattern_flags(&self) -> Vec<String> {
        self.options
            .flags()
            .into_iter()
            .filter(|(_, values)| !values.is_empty())
            .map(|(flag, values)| format!("{flag} {}", join(values)))
            .collect()
    }

    fn expand(&self, named: &Named, num_layers: usize) -> Result<Vec<LayerPatterns>, ResolveError> {
        let mut problems = Vec::new();
        let counted = [
            ("dilation", &named.dilation),
            ("local window", &named.local_window),
            ("initial", &named.initial),
        ];
        for (field, values) in counted {
            if values.len() != 1 && values.len() != num_layers {
                problems.push(format!(
                    "{field}: expected one value or one per layer ({num_layers}), found {} from {}",
                    values.len(),
                    named.origin
                ));
            }
        }
        if !problems.is_empty() {
            return Err(self.mismatch(problems));
        }
        let mut patterns = Vec::new();
        for layer in 0..num_layers {
            let at = |values: &[i64]| values[if values.len() == 1 { 0 } else { layer }];
            match Pattern::new(
                at(&named.dilation),
                at(&named.local_window),
                at(&named.initial),
            ) {
                Ok(pattern) => patterns.push(LayerPatterns::Uniform(pattern)),
                Err(error) => {
                    problems.push(format!("layer {layer}: {error}, from {}", named.origin))
                }
            }
        }
        if problems.is_empty() {
            Ok(patterns)
        } else {
            Err(self.mismatch(problems))
        }
    }

    fn override_patterns(&self, spec: &mut ModelSpec) -> Result<(), ResolveError> {
        let overridden = self.options.override_patterns(spec);
        overridden.map_err(|problems| self.mismatch(problems))
    }

    fn note_layout(&mut self, spec: &ModelSpec) {
        self.notes.append(&mut self.state.notes);
        if spec.recurrence && self.state.separate_gate() {
            self.notes
                .push("the forget gate is stored apart: stacked below in_proj".into());
        }
    }
}

impl ResolveOptions {
    fn flags(&self) -> [(&'static str, &[i64]); 3] {
        [
            ("--dilation", &self.dilation),
            ("--local-window", &self.local_window),
            ("--initial", &self.initial),
        ]
    }

    /// Flags win, field by field, in every head of their layers. Every problem else.
    fn override_patterns(&self, spec: &mut ModelSpec) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        let layers = spec.patterns.len();
        for (flag, values) in self.flags() {
            if values.is_empty() {
                continue;
            }
            if values.len() != 1 && values.len() != layers {
                problems.push(format!(
                    "{flag}: expected one value or one per layer ({layers}), found {}",
                    values.len()
                ));
                continue;
            }
            for (layer, patterns) in spec.patterns.iter_mut().enumerate() {
                let value = values[if values.len() == 1 { 0 } else { layer }];
                let heads = match patterns {
                    LayerPatterns::Uniform(pattern) => std::slice::from_mut(pattern),
                    LayerPatterns::PerHead(heads) => heads,
                };
                for pattern in heads {
                    let (dilation, window, initial) = (
                        pattern.dilation_or_minus_one(),
                        pattern.local_window.into(),
                        pattern.initial.into(),
                    );
                    let changed = match flag {
                        "--dilation" => Pattern::new(value, window, initial),
                        "--local-window" => Pattern::new(dilation, value, initial),
                        _ => Pattern::new(dilation, window, value),
                    };
                    match changed {
                        Ok(changed) => *pattern = changed,
                        Err(error) => {
                            let problem = format!("{flag}: {error}");
                            if !problems.contains(&problem) {
                                problems.push(problem);
                            }
                        }
                    }
                }
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }
}

/// The sizes of a released model, by name, or those of `--config` where the name is `config`;
/// dense, unless the configuration or flags say otherwise.
///
/// # Errors
/// No such model, a configuration that cannot be read, or flags that do not fit, all at once.
pub fn synthetic(name: &str, options: &ResolveOptions) -> Result<ModelSpec, ResolveError> {
    let mismatch = |problems| ResolveError::Mismatch {
        path: format!("--synthetic {name}").into(),
        problems,
    };
    let mut spec = match (&options.config, official::released(name)) {
        (Some(path), _) if name == "config" => read_config(path)?,
        (None, Some(spec)) => spec,
        (Some(_), Some(_)) => {
            let problem = "--config gives sizes of its own; with it, write `--synthetic config`";
            return Err(mismatch(vec![problem.into()]));
        }
        _ => {
            let names: Vec<_> = official::RELEASED.iter().map(|(name, ..)| *name).collect();
            return Err(mismatch(vec![format!(
                "expected one of {}, or config with --config, found {name}",
                names.join(", ")
            )]));
        }
    };
    spec.d_head = options.d_head.unwrap_or(spec.d_head);
    options.override_patterns(&mut spec).map_err(mismatch)?;
    spec.validate().map_err(|errors| mismatch(errors.0))?;
    Ok(spec)
}

fn join(values: &[i64]) -> String {
    values
        .iter()
        .map(i64::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

fn summary(patterns: &[LayerPatterns]) -> String {
    match patterns {
        [LayerPatterns::Uniform(first), rest @ ..]
            if rest
                .iter()
                .all(|layer| *layer == LayerPatterns::Uniform(*first)) =>
        {
            first.to_string()
        }
        _ => {
            let layers = patterns.iter().map(|layer| match layer {
                LayerPatterns::Uniform(pattern) => pattern.to_string(),
                LayerPatterns::PerHead(_) => "per head".into(),
            });
            format!("by layer ({})", layers.collect::<Vec<_>>().join("; "))
        }
    }
}

fn read_config(path: &Path) -> Result<ModelSpec, ResolveError> {
    let fail = |problem: String| ResolveError::Config {
        path: path.to_owned(),
        problem,
    };
    let metadata =
        std::fs::metadata(path).map_err(|error| fail(format!("cannot open: {error}")))?;
    if !metadata.is_file() || metadata.len() > MAX_CONFIG {
        return Err(fail(format!(
            "expected a configuration file of at most {MAX_CONFIG} bytes, found {}",
            if metadata.is_file() {
                format!("{} bytes", metadata.len())
            } else {
                "no file".into()
            }
        )));
    }
    let bytes = std::fs::read(path).map_err(|error| fail(format!("cannot read: {error}")))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| fail(format!("not a model configuration: {error}")))
}
