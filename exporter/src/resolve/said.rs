//! A specification from what configurations, options and weights say.

use super::{ResolveError, Resolver, summary};
use crate::config::{Described, Function, Said};
use crate::official::{self, Sizes};
use ratplus_graphs::spec::{ModelSpec, norm_eps, rope_base};
use std::fmt::Display;

/// What says how many channels a head has.
enum Origin {
    Options,
    Said,
    /// By the number of heads.
    Heads,
    /// The released model of that name.
    Released(&'static str),
}

impl Resolver<'_> {
    /// What the first configuration that says it says; a note where the options' file has another value than
    /// what lies in or beside the checkpoint.
    fn pick<T: Clone + PartialEq + Display>(
        &mut self,
        field: impl Fn(&Described) -> &Option<Said<T>>,
    ) -> Option<Said<T>> {
        let mut found = self
            .said
            .iter()
            .filter_map(|said| Some((field(said).clone()?, &said.origin)));
        let (first, origin) = found.next()?;
        let others: Vec<_> = found
            .filter(|(other, _)| other.value != first.value)
            .map(|(other, there)| {
                format!(
                    "{} {} of {origin} overrides {} of {there}",
                    first.field, first.value, other.field
                )
            })
            .collect();
        self.notes.extend(others);
        Some(first)
    }

    /// A size that the options' file gives; what lies with the checkpoint is compared with the weights
    /// instead.
    fn given<T: Clone>(&self, field: impl Fn(&Described) -> &Option<Said<T>>) -> Option<T> {
        let given = self.said.first().filter(|_| self.given)?;
        field(given).as_ref().map(|said| said.value.clone())
    }

    pub(super) fn spec(&mut self) -> Result<ModelSpec, ResolveError> {
        if let Some(tied) = self.pick(|said| &said.tie_embedding)
            && tied.value
            && self.state.tied_by.is_none()
        {
            let origin = self
                .said
                .iter()
                .find(|said| said.tie_embedding.as_ref().is_some_and(|said| said.value));
            let origin = origin.map(|said| said.origin.clone()).unwrap_or_default();
            self.state.tied_by = Some(format!("{} of {origin}", tied.field));
        }
        let tie_embedding = self.state.tied_by.is_some();
        let sizes = self.sizes()?;
        let mut missing = Vec::new();
        let d_head = self.d_head(&sizes).unwrap_or_else(|problem| {
            missing.push(problem);
            0
        });
        let patterns = match self.base_patterns(sizes.num_layers)? {
            Ok(patterns) => Some(patterns),
            Err(problem) => {
                missing.push(problem);
                None
            }
        };
        let (Some(patterns), true) = (patterns, missing.is_empty()) else {
            // A field that cannot be read is not said nowhere.
            if !self.problems.is_empty() {
                let mut problems = std::mem::take(&mut self.problems);
                problems.extend(missing);
                return Err(self.mismatch(problems));
            }
            let unread = |note: &&String| note.contains("is not read; what it says");
            missing.extend(self.state.notes.iter().filter(unread).cloned());
            return Err(ResolveError::Undetermined {
                path: self.checkpoint.path().to_owned(),
                problems: missing,
            });
        };
        let rope = self.pick(|said| &said.rope).is_none_or(|rope| rope.value);
        let base = self.pick(|said| &said.rope_base);
        let activation = self.pick(|said| &said.activation);
        let eps = self.pick(|said| &said.norm_eps);
        let num_kv_heads = self.pick(|said| &said.num_kv_heads);
        let num_kv_heads = num_kv_heads.map(|said| said.value);
        // As many as there are heads is what is so without a word.
        let num_kv_heads = num_kv_heads.filter(|heads| *heads != sizes.d_model / d_head.max(1));
        let mut spec = ModelSpec {
            vocab_size: sizes.vocab_size,
            d_model: sizes.d_model,
            num_layers: sizes.num_layers,
            d_head,
            num_kv_heads,
            d_ffn: sizes.d_ffn,
            rope_base: base.map_or_else(rope_base, |said| said.value),
            norm_eps: eps.map_or_else(norm_eps, |said| said.value),
            recurrence: sizes.recurrence,
            rope,
            activation: activation.map(|said| said.value).unwrap_or_default(),
            tie_embedding,
            patterns: patterns.layers,
            ..ModelSpec::default()
        };
        let before = spec.patterns.clone();
        let overridden = self.options.override_patterns(&mut spec);
        overridden.map_err(|problems| self.mismatch(problems))?;
        if !patterns.listed {
            self.notes.push(format!(
                "pattern {} from {}",
                summary(&spec.patterns),
                patterns.origin
            ));
        } else if spec.patterns != before {
            self.notes.push(format!(
                "{} overrides the patterns of {}",
                self.options.given_fields().join(" and "),
                patterns.origin
            ));
        }
        let mut differences = spec.differences();
        // Said with the sizes, and by who gives them.
        differences.retain(|difference| difference != "no recurrence");
        if !differences.is_empty() {
            self.notes.push(format!(
                "unlike the released models: {}",
                differences.join(", ")
            ));
        }
        self.note_pretrained(&spec.patterns);
        Ok(spec)
    }

    /// Sizes that the options' file gives, and from the weights what it leaves open.
    fn sizes(&mut self) -> Result<Sizes, ResolveError> {
        let given = (
            self.given(|said| &said.vocab_size),
            self.given(|said| &said.d_model),
            self.given(|said| &said.num_layers),
            self.given(|said| &said.d_ffn),
        );
        let recurrence = self.given(|said| &said.recurrence);
        if let (Some(vocab_size), Some(d_model), Some(num_layers), Some(d_ffn)) = given {
            let found = || self.found().ok().map(|sizes| sizes.recurrence);
            let recurrence = recurrence.or_else(found).unwrap_or(true);
            return Ok(Sizes {
                vocab_size,
                d_model,
                num_layers,
                d_ffn,
                recurrence,
            });
        }
        let found = match self.found() {
            Ok(found) => found,
            Err(found) => {
                let mut problems = std::mem::take(&mut self.state.problems);
                problems.append(&mut self.problems);
                problems.extend(found);
                return Err(self.mismatch(problems));
            }
        };
        self.notes.push(format!(
            "sizes from the weights: {} layers, d_model {}, d_ffn {}, vocabulary {}, {}",
            found.num_layers,
            found.d_model,
            found.d_ffn,
            found.vocab_size,
            if found.recurrence {
                "with recurrence"
            } else {
                "attention only"
            }
        ));
        let (vocab_size, d_model, num_layers, d_ffn) = given;
        Ok(Sizes {
            vocab_size: vocab_size.unwrap_or(found.vocab_size),
            d_model: d_model.unwrap_or(found.d_model),
            num_layers: num_layers.unwrap_or(found.num_layers),
            d_ffn: d_ffn.unwrap_or(found.d_ffn),
            recurrence: recurrence.unwrap_or(found.recurrence),
        })
    }

    /// The sizes that the weights have.
    fn found(&self) -> Result<Sizes, Vec<String>> {
        self.state.sizes(|d_model, num_layers| {
            let kv_heads = self.first(|said| &said.num_kv_heads)?;
            let (d_head, _) = self.head_channels(d_model, num_layers)?;
            kv_heads.checked_mul(d_head)
        })
    }

    /// What the first configuration that says it says, without a note.
    fn first<T: Copy>(&self, field: impl Fn(&Described) -> &Option<Said<T>>) -> Option<T> {
        let mut said = self.said.iter();
        said.find_map(|said| Some(field(said).as_ref()?.value))
    }

    /// Channels of a head in a model of this width and depth, and what says so.
    fn head_channels(&self, d_model: usize, num_layers: usize) -> Option<(usize, Origin)> {
        if let Some(d_head) = self.options.d_head {
            return Some((d_head, Origin::Options));
        }
        if let Some(d_head) = self.first(|said| &said.d_head) {
            return Some((d_head, Origin::Said));
        }
        if let Some(heads) = self.first(|said| &said.num_heads)
            && let Some(d_head) = d_model.checked_div(heads)
            && d_head * heads == d_model
        {
            return Some((d_head, Origin::Heads));
        }
        let released = official::released_size(num_layers, d_model);
        released.map(|(name, d_head)| (d_head, Origin::Released(name)))
    }

    fn d_head(&mut self, sizes: &Sizes) -> Result<usize, String> {
        let said = self.pick(|said| &said.d_head);
        let found = self.head_channels(sizes.d_model, sizes.num_layers);
        let Some((d_head, origin)) = found else {
            return Err(format!(
                "d_head: {} layers of width {} are no released size; give `d_head` or `config_file`",
                sizes.num_layers, sizes.d_model
            ));
        };
        let there = self.said.iter().find(|said| said.d_head.is_some());
        let there = there.map(|said| said.origin.clone()).unwrap_or_default();
        let note = match origin {
            Origin::Options => said.filter(|said| said.value != d_head).map(|said| {
                format!(
                    "`d_head: {d_head}` overrides {} {} of {there}",
                    said.field, said.value
                )
            }),
            Origin::Said => {
                let given = self.given && self.given(|said| &said.d_head).is_some();
                (!given).then(|| format!("d_head {d_head} from {there}"))
            }
            Origin::Heads => self.pick(|said| &said.num_heads).map(|heads| {
                format!(
                    "d_head {d_head}: width {} over {} {}",
                    sizes.d_model, heads.field, heads.value
                )
            }),
            Origin::Released(name) => Some(format!(
                "d_head {d_head}: the size is the released {name} model's"
            )),
        };
        self.notes.extend(note);
        Ok(d_head)
    }

    /// What configurations say that the model cannot be.
    pub(super) fn contradictions(&mut self, spec: &ModelSpec) {
        let given = self.said.first().filter(|_| self.given).cloned();
        let overridden = |what: Function| match (&given, what) {
            (Some(given), Function::Activation) => given.activation.is_some(),
            (Some(given), Function::Rope) => given.rope.is_some(),
            _ => false,
        };
        let mut problems = Vec::new();
        for (at, said) in self.said.iter().enumerate() {
            let given_here = at == 0 && self.given;
            for refusal in &said.refusals {
                if given_here || !overridden(refusal.what) {
                    problems.push(format!("{} in {}", refusal.problem, said.origin));
                }
            }
            let mut compare = |found: &Option<Said<usize>>, expected: usize, why: &str| {
                if let Some(found) = found.as_ref().filter(|found| found.value != expected) {
                    problems.push(format!(
                        "{}: expected {expected}, {why}, found {} in {}",
                        found.field, found.value, said.origin
                    ));
                }
            };
            let divides = spec.d_head > 0 && spec.d_model.is_multiple_of(spec.d_head);
            if self.options.d_head.is_none() && divides {
                let why = format!("{} channels in heads of {}", spec.d_model, spec.d_head);
                compare(&said.num_heads, spec.num_heads(), &why);
                if spec.rope {
                    compare(&said.rotated, spec.d_head, "as whole heads are rotated");
                }
            }
            if given_here {
                continue;
            }
            type Size = fn(&Described) -> &Option<Said<usize>>;
            let sizes: [(Size, usize); 4] = [
                (|said| &said.vocab_size, spec.vocab_size),
                (|said| &said.d_model, spec.d_model),
                (|said| &said.num_layers, spec.num_layers),
                (|said| &said.d_ffn, spec.d_ffn),
            ];
            for (size, expected) in sizes {
                if self.given(size).is_none() {
                    compare(size(said), expected, "as the weights have");
                }
            }
            if let Some(found) = &said.recurrence
                && found.value != spec.recurrence
                && self.given(|said| &said.recurrence).is_none()
            {
                problems.push(format!(
                    "{}: expected {}, as in_proj has {} rows, found {} in {}",
                    found.field,
                    spec.recurrence,
                    spec.in_proj_rows(),
                    found.value,
                    said.origin
                ));
            }
        }
        self.problems.extend(problems);
    }
}
