//! Where a model's patterns come from.

use super::{ResolveError, Resolver};
use crate::config::Named;
use crate::official::PathPattern;
use ratplus_graphs::none_wrong;
use ratplus_graphs::pattern::Pattern;
use ratplus_graphs::spec::LayerPatterns;

const GIVE: &str = "give `dilation` (with `local_window` and `initial`), or `config_file`";

/// One entry per layer, and where they are from.
pub(super) struct Patterns {
    pub layers: Vec<LayerPatterns>,
    pub origin: String,
    /// Whether a configuration lists them layer by layer, which needs no note.
    pub listed: bool,
}

impl Resolver<'_> {
    /// The patterns before options that change single fields.
    pub(super) fn base_patterns(
        &mut self,
        num_layers: usize,
    ) -> Result<Result<Patterns, String>, ResolveError> {
        let listed = self.said.iter().find_map(|said| {
            let layers = said.patterns.clone()?;
            Some((layers, said.origin.clone()))
        });
        if let Some((layers, origin)) = listed {
            return Ok(Ok(Patterns {
                layers,
                origin,
                listed: true,
            }));
        }
        let named = match self.named_pattern() {
            Ok(named) => named,
            Err(problem) => return Ok(Err(problem)),
        };
        // Before as many are made as a file asks for.
        if let Some(problem) = self.state.other_layers(num_layers) {
            return Err(self.mismatch(vec![problem]));
        }
        Ok(Ok(Patterns {
            layers: expand(&named, num_layers).map_err(|problems| self.mismatch(problems))?,
            origin: named.origin,
            listed: false,
        }))
    }

    fn named_pattern(&mut self) -> Result<Named, String> {
        let path = crate::official::path_pattern(self.checkpoint.path());
        let saved = self.said.iter().find_map(|said| said.named.clone());
        if !self.options.dilation.is_empty() {
            return Ok(self.options_alone(saved, path));
        }
        let unread = self.said.iter().find_map(|said| {
            let problems = said.pattern_problems.join("; ");
            (!problems.is_empty())
                .then(|| format!("pattern: {problems} in {}; {GIVE}", said.origin))
        });
        if let (None, Some(unread)) = (&saved, unread) {
            return Err(unread);
        }
        let pretrained = self.said.iter().any(|said| said.pretrained.is_some());
        let mut named = match (saved, path) {
            (Some(named), _) => named,
            (None, _) if pretrained => {
                return Err(format!(
                    "pattern: the checkpoint was trained jointly and has to be adapted to a pattern first, or to be \
                     run dense (`dilation: 1`); {GIVE}"
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
        let given = self.options.given_fields();
        if !given.is_empty() {
            named.origin = format!("{}, changed by {}", named.origin, given.join(" and "));
        }
        Ok(named)
    }

    /// `dilation` starts a pattern of its own.
    fn options_alone(&mut self, saved: Option<Named>, path: PathPattern) -> Named {
        let mut origin = self.options.given_fields().join(" and ");
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
                "; no {}, as nothing gives any",
                zero.join(" and no ")
            ));
        }
        let elsewhere = match (saved, path) {
            (Some(named), _) | (None, PathPattern::Named(named)) => Some(named),
            _ => None,
        };
        if let Some(named) = elsewhere {
            self.notes.push(format!(
                "set aside for `dilation`: {} from {}",
                shape(&named),
                named.origin
            ));
        }
        Named {
            dilation: self.options.dilation.clone(),
            local_window: vec![0],
            initial: vec![0],
            origin,
        }
    }

    /// A sparse pattern on weights that no adaptation has seen it with.
    pub(super) fn note_pretrained(&mut self, layers: &[LayerPatterns]) {
        let Some((joint, origin)) = self
            .said
            .iter()
            .find_map(|said| Some((said.pretrained.as_ref()?, &said.origin)))
        else {
            return;
        };
        let dense = |pattern: &Pattern| pattern.dilation == Pattern::DENSE.dilation;
        let sparse = layers.iter().any(|layer| match layer {
            LayerPatterns::Uniform(pattern) => !dense(pattern),
            LayerPatterns::PerHead(heads) => !heads.iter().all(dense),
            LayerPatterns::BlockTopK(_) => true,
        });
        if sparse {
            self.notes.push(format!(
                "the checkpoint is pretrained (jointly dense and {}) and not adapted to {}, says {origin}: expect worse \
                 predictions than after adaptation",
                shape(joint),
                summary(layers),
            ));
        }
    }
}

/// One pattern per layer; every problem where values are too many, too few or no pattern's.
pub(super) fn expand(named: &Named, num_layers: usize) -> Result<Vec<LayerPatterns>, Vec<String>> {
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
    none_wrong(problems)?;
    let (mut patterns, mut problems) = (Vec::new(), Vec::new());
    for layer in 0..num_layers {
        let at = |values: &[i64]| values[if values.len() == 1 { 0 } else { layer }];
        match Pattern::new(
            at(&named.dilation),
            at(&named.local_window),
            at(&named.initial),
        ) {
            Ok(pattern) => patterns.push(LayerPatterns::Uniform(pattern)),
            Err(error) => problems.push(format!("layer {layer}: {error}, from {}", named.origin)),
        }
    }
    none_wrong(problems)?;
    Ok(patterns)
}

fn shape(named: &Named) -> String {
    format!(
        "D={} W={} I={}",
        join(&named.dilation),
        join(&named.local_window),
        join(&named.initial)
    )
}

pub(super) fn join(values: &[i64]) -> String {
    values
        .iter()
        .map(i64::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

pub(super) fn summary(patterns: &[LayerPatterns]) -> String {
    let words = |layer: &LayerPatterns| match layer {
        LayerPatterns::Uniform(pattern) => pattern.to_string(),
        LayerPatterns::PerHead(_) => "per head".into(),
        LayerPatterns::BlockTopK(blocks) => blocks.to_string(),
    };
    match patterns {
        [first, rest @ ..] if rest.iter().all(|layer| layer == first) => words(first),
        _ => {
            let layers: Vec<_> = patterns.iter().map(words).collect();
            format!("by layer ({})", layers.join("; "))
        }
    }
}
