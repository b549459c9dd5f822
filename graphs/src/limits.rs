//! Sizes that each are possible and together are not: products of them would not fit, or memory
//! would be taken that no file justifies.

use crate::package::{LogitsMode, Manifest};
use crate::pattern::Pattern;
use crate::spec::{LayerPatterns, ModelSpec};

/// Most elements of all weights, or of all states, of a model. No product of sizes below it
/// overflows, in bytes neither.
const MAX_ELEMENTS: u128 = 1 << 48;

fn over(what: &str, found: u128) -> Option<String> {
    (found > MAX_ELEMENTS).then(|| format!("{what}: expected at most 2^48 elements, found {found}"))
}

/// Weights of a specification whose fields are in range by themselves.
pub(crate) fn weights(spec: &ModelSpec) -> Option<String> {
    let [vocab, d, layers, d_ffn] =
        [spec.vocab_size, spec.d_model, spec.num_layers, spec.d_ffn].map(|size| size as u128);
    // No more heads than there are, whatever is said of them.
    let kv = (spec.kv_heads().min(spec.num_heads()) * spec.d_head) as u128;
    let in_proj = 2 * d + if spec.recurrence { 3 } else { 2 } * kv;
    let layer = (in_proj + d) * d + 2 * d * d_ffn + 2 * d;
    over("the model's weights", 2 * vocab * d + layers * layer + d)
}

/// What a manifest's sizes come to, and whether it lists the rows of every head: only then is
/// anything laid out for each of them.
pub(crate) fn manifest(manifest: &Manifest) -> Vec<String> {
    let spec = &manifest.model;
    let [batch, max_seq_len, heads, d_head, d, vocab] = [
        manifest.batch,
        manifest.max_seq_len,
        spec.kv_heads(),
        spec.d_head,
        spec.d_kv(),
        spec.vocab_size,
    ]
    .map(|size| size as u128);
    let mut problems = Vec::new();
    let mut rows = 0u128;
    for patterns in &spec.patterns {
        let (patterns, times) = match patterns {
            // With as many rows of summaries as of keys, at most.
            LayerPatterns::BlockTopK(_) => (&[Pattern::DENSE; 2][..], heads),
            LayerPatterns::Uniform(pattern) => (std::slice::from_ref(pattern), heads),
            LayerPatterns::PerHead(patterns) => (patterns.as_slice(), 1),
        };
        for pattern in patterns {
            let dilated = pattern
                .dilation
                .map_or(0, |d| max_seq_len / u128::from(d.get()));
            let head = u128::from(pattern.initial) + u128::from(pattern.local_window) + dilated;
            rows += times * head;
        }
    }
    let longest = match manifest.logits {
        LogitsMode::Last => 1,
        LogitsMode::All => max_seq_len,
    };
    let layers = spec.num_layers as u128;
    problems.extend(over("the states", batch * 2 * (rows * d_head + layers * d)));
    problems.extend(over("the logits", batch * longest * vocab));
    problems.extend(over("the rotary tables", max_seq_len * d_head));
    if manifest.cache.len() != spec.num_layers {
        problems.push(format!(
            "cache: expected one entry per layer ({layers}), found {}",
            manifest.cache.len()
        ));
    }
    for (layer, cache) in manifest.cache.iter().enumerate() {
        if cache.head_rows.len() as u128 != heads {
            problems.push(format!(
                "cache[{layer}]: expected rows of {heads} heads, found {}",
                cache.head_rows.len()
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::Pattern;

    #[test]
    fn a_model_of_more_weights_than_any_is_refused() {
        let mut spec = ModelSpec {
            vocab_size: 1 << 24,
            d_model: 1 << 23,
            num_layers: 1,
            d_head: 2,
            d_ffn: 1,
            recurrence: false,
            patterns: vec![LayerPatterns::Uniform(Pattern::DENSE)],
            ..ModelSpec::default()
        };
        assert_eq!(
            spec.validate().unwrap_err().0,
            ["the model's weights: expected at most 2^48 elements, found 633318739542016"]
        );
        (spec.d_model, spec.vocab_size) = (1 << 22, 1 << 22);
        spec.validate().unwrap();
    }
}
