//! Options that change a pattern.

use super::ResolveOptions;
use super::patterns::join;
use ratplus_graphs::none_wrong;
use ratplus_graphs::pattern::Pattern;
use ratplus_graphs::spec::{LayerPatterns, ModelSpec};

impl ResolveOptions {
    fn fields(&self) -> [(&'static str, &[i64]); 3] {
        [
            ("dilation", &self.dilation),
            ("local_window", &self.local_window),
            ("initial", &self.initial),
        ]
    }

    /// The fields of patterns that are given.
    pub(super) fn given_fields(&self) -> Vec<String> {
        self.fields()
            .into_iter()
            .filter(|(_, values)| !values.is_empty())
            .map(|(field, values)| format!("`{field}: {}`", join(values)))
            .collect()
    }

    /// Options win, field by field, in every head of their layers; where blocks are chosen, for what is seen
    /// besides. Every problem else.
    pub(super) fn override_patterns(&self, spec: &mut ModelSpec) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        let layers = spec.patterns.len();
        for (field, values) in self.fields() {
            if values.is_empty() {
                continue;
            }
            if values.len() != 1 && values.len() != layers {
                problems.push(format!(
                    "`{field}`: expected one value or one per layer ({layers}), found {}",
                    values.len()
                ));
                continue;
            }
            for (layer, patterns) in spec.patterns.iter_mut().enumerate() {
                let value = values[if values.len() == 1 { 0 } else { layer }];
                let heads = match patterns {
                    LayerPatterns::Uniform(pattern) => std::slice::from_mut(pattern),
                    LayerPatterns::PerHead(heads) => heads,
                    LayerPatterns::BlockTopK(blocks) => std::slice::from_mut(&mut blocks.beside),
                };
                for pattern in heads {
                    let (dilation, window, initial) = (
                        pattern.dilation_or_minus_one(),
                        pattern.local_window.into(),
                        pattern.initial.into(),
                    );
                    let changed = match field {
                        "dilation" => Pattern::new(value, window, initial),
                        "local_window" => Pattern::new(dilation, value, initial),
                        _ => Pattern::new(dilation, window, value),
                    };
                    match changed {
                        Ok(changed) => *pattern = changed,
                        Err(error) => {
                            let problem = format!("`{field}`: {error}");
                            if !problems.contains(&problem) {
                                problems.push(problem);
                            }
                        }
                    }
                }
            }
        }
        none_wrong(problems)
    }
}
