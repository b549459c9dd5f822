//! Holds what the graphs gave to the tolerances.

use super::largest;
use super::trace::{Trace, written};
use ratplus_graphs::package::{Manifest, StateKind};
use ratplus_graphs::tolerance::{F32_LOGIT, NAIVE_ROUNDING_FACTOR};

/// One output of the graph, over all tokens, a state's over all layers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OutputCheck {
    /// Its name, with `*` for the layer.
    pub output: String,
    /// The layer of the largest difference; `None` for logits.
    pub layer: Option<usize>,
    /// Largest absolute difference; infinite where something is not a number.
    pub max_error: f64,
    /// The most that passes, finite; `None`: the reference, or its error with the package's roundings, is not.
    pub tolerance: Option<f64>,
}

impl OutputCheck {
    /// Whether it is within tolerance.
    pub fn passed(&self) -> bool {
        self.tolerance.is_some_and(|most| self.max_error <= most)
    }
}

/// Largest difference, infinite where something is not a number.
fn difference(expected: &[f32], found: &[f32]) -> f64 {
    if expected.len() != found.len() {
        return f64::INFINITY;
    }
    let pairs = expected.iter().zip(found);
    let differences = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    differences.fold(0.0, |most, one| {
        if one.is_nan() {
            f64::INFINITY
        } else {
            most.max(one)
        }
    })
}

/// What is known of one output.
#[derive(Clone, Copy, Default)]
struct Seen {
    error: f64,
    /// Of the reference with the package's roundings.
    naive: f64,
    largest: f64,
    /// Of the error.
    layer: Option<usize>,
}

impl Seen {
    fn add(&mut self, layer: Option<usize>, [expected, naive, found]: [&[f32]; 3]) {
        let error = difference(expected, found);
        if error > self.error || self.layer.is_none() {
            self.layer = layer;
        }
        self.error = self.error.max(error);
        self.naive = self.naive.max(difference(expected, naive));
        self.largest = self.largest.max(largest(expected));
    }

    fn judged(&self, output: String) -> OutputCheck {
        let tolerance = (NAIVE_ROUNDING_FACTOR * self.naive).max(F32_LOGIT * self.largest);
        OutputCheck {
            output,
            layer: self.layer,
            max_error: self.error,
            tolerance: Some(tolerance).filter(|tolerance| tolerance.is_finite()),
        }
    }
}

pub(super) fn compare(
    manifest: &Manifest,
    reference: &Trace,
    naive: Option<&Trace>,
    found: &Trace,
) -> Vec<OutputCheck> {
    // Without roundings the reference's own error is none.
    let naive = naive.unwrap_or(reference);
    let traces = [reference, naive, found];
    let kinds = StateKind::of_any_layer(&manifest.model);
    let mut logits = Seen::default();
    let mut states = vec![Seen::default(); kinds.len()];
    for token in 0..reference.tokens() {
        logits.add(None, traces.map(|trace| &trace.logits[token][..]));
        for (piece, (layer, kind, _)) in written(manifest, token).enumerate() {
            let parts = traces.map(|trace| &trace.states[token][piece][..]);
            let at = kinds.iter().position(|known| *known == kind);
            states[at.unwrap_or(0)].add(Some(layer), parts);
        }
    }
    let names = kinds
        .iter()
        .map(|kind| kind.present_name(0).replacen(".0.", ".*.", 1));
    let states = states
        .iter()
        .zip(names)
        .map(|(seen, name)| seen.judged(name));
    [logits.judged("logits".into())]
        .into_iter()
        .chain(states)
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ratplus_graphs::onnx::OPSET;
    use ratplus_graphs::ops::ElementType;
    use ratplus_graphs::package::{Fallback, LogitsMode, PackageShape};
    use ratplus_graphs::pattern::Pattern;
    use ratplus_graphs::precision::Precision;
    use ratplus_graphs::spec::{LayerPatterns, ModelSpec};

    pub fn manifest(num_layers: usize, d_model: usize) -> Manifest {
        let spec = ModelSpec {
            vocab_size: 32,
            d_model,
            num_layers,
            d_head: 4,
            d_ffn: 4 * d_model,
            patterns: vec![LayerPatterns::Uniform(Pattern::DENSE); num_layers],
            ..ModelSpec::default()
        };
        let shape = PackageShape {
            batch: 1,
            max_seq_len: 4,
            dtype: ElementType::F16,
            cache_dtype: ElementType::F16,
            logits: LogitsMode::Last,
        };
        Manifest::new(
            spec,
            shape,
            Precision::default(),
            Fallback::Function,
            OPSET,
            &[1],
        )
    }

    /// Two tokens that leave `value` everywhere.
    pub fn trace(manifest: &Manifest, value: f32) -> Trace {
        let states = |token| {
            let pieces = written(manifest, token);
            pieces.map(|(.., piece)| vec![value; piece.elements.len()])
        };
        Trace {
            logits: vec![vec![value; 32]; 2],
            states: (0..2).map(|token| states(token).collect()).collect(),
        }
    }

    /// Which of the pieces of `token` is the first of that state.
    fn piece(manifest: &Manifest, token: usize, wanted: (usize, StateKind)) -> usize {
        let mut pieces = written(manifest, token);
        let found = pieces.position(|(layer, kind, _)| (layer, kind) == wanted);
        found.unwrap()
    }

    #[test]
    fn differences_name_their_output_and_layer() {
        let manifest = manifest(2, 8);
        let reference = trace(&manifest, 1.0);
        let (naive, mut found) = (trace(&manifest, 1.25), trace(&manifest, 1.0));
        let value = piece(&manifest, 1, (1, StateKind::Value));
        found.states[1][value][3] = 1.75;
        let outputs = compare(&manifest, &reference, Some(&naive), &found);
        let names: Vec<_> = outputs
            .iter()
            .map(|output| output.output.as_str())
            .collect();
        let states = ["key", "value", "recurrent_key", "recurrent_value"];
        assert_eq!(names[0], "logits");
        assert_eq!(names[1..], states.map(|state| format!("present.*.{state}")));
        assert_eq!((outputs[2].max_error, outputs[2].layer), (0.75, Some(1)));
        assert!(outputs.iter().all(|output| output.tolerance == Some(0.5)));
        assert!(!outputs[2].passed() && outputs[1].passed());
        let exact = compare(&manifest, &reference, None, &found);
        assert_eq!(exact[0].tolerance, Some(F32_LOGIT));
        found.logits[1][3] = f32::NAN;
        let failed = &compare(&manifest, &reference, None, &found)[0];
        assert_eq!(failed.max_error, f64::INFINITY);
        assert!(!failed.passed());
    }

    /// What the cache is rounded to is no excuse for the recurrence, which is f32.
    #[test]
    fn each_state_is_held_to_its_own_rounding() {
        let manifest = manifest(1, 8);
        let [reference, mut naive, mut found] = [1.0; 3].map(|value| trace(&manifest, value));
        let [cache, state] =
            [StateKind::Key, StateKind::RecurrentKey].map(|kind| piece(&manifest, 0, (0, kind)));
        naive.states[0][cache].fill(1.01);
        // Seen after the first token, and gone after the second.
        found.states[0][state][0] = 1.001;
        let outputs = compare(&manifest, &reference, Some(&naive), &found);
        assert_eq!(outputs[3].output, "present.*.recurrent_key");
        assert_eq!(outputs[3].tolerance, Some(F32_LOGIT));
        assert!(!outputs[3].passed());
    }

    /// No infinity is a tolerance, whichever side it comes from.
    #[test]
    fn what_is_not_finite_is_no_tolerance() {
        let manifest = manifest(1, 8);
        for broken in 0..2 {
            let mut traces = [1.0; 3].map(|value| trace(&manifest, value));
            traces[broken].logits[0][5] = f32::INFINITY;
            traces[2].logits[0][5] = f32::INFINITY;
            let [reference, naive, found] = &traces;
            let outputs = compare(&manifest, reference, Some(naive), found);
            assert_eq!(outputs[0].tolerance, None);
            assert!(!outputs[0].passed() && outputs[1].passed());
        }
    }
}
