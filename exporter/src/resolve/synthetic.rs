//! Models without a checkpoint.

use super::patterns::expand;
use super::{ResolveError, ResolveOptions};
use crate::{config, official};
use ratplus_graphs::none_wrong;
use ratplus_graphs::pattern::Pattern;
use ratplus_graphs::spec::{LayerPatterns, ModelSpec, norm_eps, rope_base};
use std::path::Path;

/// The sizes of a released model, by name, or those of the configuration file where the name is `config`;
/// dense, unless the configuration or options say otherwise.
///
/// # Errors
/// No such model, a configuration that cannot be read, or options that do not fit, all at once.
pub fn synthetic(name: &str, options: &ResolveOptions) -> Result<ModelSpec, ResolveError> {
    let mismatch = |problems| ResolveError::Mismatch {
        path: format!("`synthetic: {name}`").into(),
        problems,
    };
    let mut spec = match (&options.config_file, official::released(name)) {
        (Some(path), _) if name == "config" => configured(path)?,
        (None, Some(spec)) => spec,
        (Some(_), Some(_)) => {
            let problem =
                "`config_file` gives sizes of its own; with it, write `synthetic: config`";
            return Err(mismatch(vec![problem.into()]));
        }
        _ => {
            let names: Vec<_> = official::RELEASED.iter().map(|(name, ..)| *name).collect();
            return Err(mismatch(vec![format!(
                "expected one of {}, or config with `config_file`, found {name}",
                names.join(", ")
            )]));
        }
    };
    spec.d_head = options.d_head.unwrap_or(spec.d_head);
    options.override_patterns(&mut spec).map_err(mismatch)?;
    spec.validate().map_err(|errors| mismatch(errors.0))?;
    Ok(spec)
}

/// Far more than any model has: a pattern is made for each.
const MOST_LAYERS: usize = 1 << 16;

/// The model that a configuration describes by itself.
fn configured(path: &Path) -> Result<ModelSpec, ResolveError> {
    let fail = |problems| ResolveError::Config {
        path: path.to_owned(),
        problems,
    };
    let said = config::read(path).map_err(fail)?;
    let mut problems: Vec<_> = said.refusals.into_iter().map(|it| it.problem).collect();
    let mut size = |name: &str, found: &Option<config::Said<usize>>| match found {
        Some(found) => found.value,
        None => {
            problems.push(format!(
                "{name}: expected a size, as there is no checkpoint to read it off, found nothing"
            ));
            0
        }
    };
    let (vocab_size, d_model) = (
        size("vocab_size", &said.vocab_size),
        size("d_model", &said.d_model),
    );
    let (num_layers, d_ffn) = (
        size("num_layers", &said.num_layers),
        size("d_ffn", &said.d_ffn),
    );
    let heads = said.num_heads.map(|heads| heads.value);
    let d_head = match (&said.d_head, heads) {
        (None, Some(heads)) if heads > 0 && d_model.is_multiple_of(heads) => d_model / heads,
        (found, _) => size("d_head", found),
    };
    if num_layers > MOST_LAYERS {
        problems.push(format!(
            "num_layers: expected 1 to {MOST_LAYERS}, found {num_layers}"
        ));
        return Err(fail(problems));
    }
    let patterns = match (said.patterns, said.named.or(said.pretrained)) {
        (Some(patterns), _) => patterns,
        (None, Some(named)) => expand(&named, num_layers).unwrap_or_else(|found| {
            problems.extend(found);
            Vec::new()
        }),
        (None, None) => vec![LayerPatterns::Uniform(Pattern::DENSE); num_layers],
    };
    none_wrong(problems).map_err(fail)?;
    Ok(ModelSpec {
        vocab_size,
        d_model,
        num_layers,
        d_head,
        num_kv_heads: said.num_kv_heads.map(|heads| heads.value),
        d_ffn,
        rope_base: said.rope_base.map_or_else(rope_base, |said| said.value),
        norm_eps: said.norm_eps.map_or_else(norm_eps, |said| said.value),
        recurrence: said.recurrence.is_none_or(|said| said.value),
        rope: said.rope.is_none_or(|said| said.value),
        activation: said.activation.map(|said| said.value).unwrap_or_default(),
        tie_embedding: said.tie_embedding.is_some_and(|said| said.value),
        patterns,
        ..ModelSpec::default()
    })
}
