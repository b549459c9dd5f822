//! A few tokens through a package that was just written, against tract in f32.

use ratplus_graphs::cost;
use ratplus_graphs::model::taps;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{Manifest, Products, StateKind, WrittenPiece, written_pieces};
use ratplus_graphs::tolerance::{F32_LOGIT, NAIVE_ROUNDING_FACTOR};
use ratplus_runtime::backend::inspection::{self, Exactness, Inspection};
use ratplus_runtime::backend::{BackendError, BackendKind, SessionBuilder, Step};
use std::time::{Duration, Instant};

/// Tokens at most.
const TOKENS: usize = 8;
/// No token is begun later than that after the reference's first.
const TIME: Duration = Duration::from_secs(20);
/// Weights in f32, as tract holds them, at most.
const MAX_REFERENCE_BYTES: u64 = 8 << 30;
/// Largest finite number in f16.
const F16_MAX: f64 = 65504.0;

/// What a check of a few tokens found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SpotCheck {
    /// Tokens that ran, one by one.
    pub tokens: usize,
    /// What was compared with tract in f32.
    pub backend: BackendKind,
    /// Why it is tract itself, with the package's roundings: the graphs did not run.
    pub graphs_unseen: Option<String>,
    /// Logits, then the kinds of states.
    pub outputs: Vec<OutputCheck>,
    /// What f16 cannot hold though the package keeps it so, largest first.
    pub beyond_f16: Vec<BeyondF16>,
    /// Whether activations or cache are f16, so that `beyond_f16` says something.
    pub keeps_f16: bool,
}

impl SpotCheck {
    /// Whether every output is within tolerance.
    pub fn passed(&self) -> bool {
        let mut outputs = self.outputs.iter();
        outputs.all(|output| output.max_error.is_finite() && output.max_error <= output.tolerance)
    }
}

/// One output of the graph, a state's over all layers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OutputCheck {
    /// Its name, with `*` for the layer.
    pub output: String,
    /// The layer of the largest difference; `None` for logits.
    pub layer: Option<usize>,
    /// Largest absolute difference.
    pub max_error: f64,
    /// The most that passes.
    pub tolerance: f64,
}

/// A tensor of the model that is larger than f16's largest number on the checked tokens.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BeyondF16 {
    /// Its name in the graph, which has its layer.
    pub name: String,
    /// Its largest absolute value in f32.
    pub largest: f64,
}

/// Why no check is made of a package: what it would need, in words; `available` is in bytes.
pub fn refusal(manifest: &Manifest, available: Option<u64>) -> Option<String> {
    let gb = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    if let Some(feature) = BackendKind::Tract.missing_feature() {
        return Some(format!(
            "this build has no reference; build it with the feature `{feature}`"
        ));
    }
    let weights = cost::parameters(&manifest.model) * size_of::<f32>() as u64;
    if weights > MAX_REFERENCE_BYTES {
        return Some(format!(
            "the reference would hold {} of weights in f32, more than {}",
            gb(weights),
            gb(MAX_REFERENCE_BYTES)
        ));
    }
    // Of a 1.5B shape in bf16 a process had 1.8 times its weights in f32, mapped files apart: the reference's,
    // and what is loaded before it is given away.
    let needed = 2 * (weights + manifest.state_bytes);
    match available {
        Some(available) if available < needed => Some(format!(
            "it would take {} of memory, more than the {} that are free",
            gb(needed),
            gb(available)
        )),
        _ => None,
    }
}

/// Runs a few tokens in slot 0, first through tract in f32, then through the portable graphs in ONNX
/// Runtime, or the nearest to them that runs here.
///
/// # Errors
/// tract, or a backend that is there, failed.
pub fn spot_check(sessions: &SessionBuilder<'_>) -> Result<SpotCheck, BackendError> {
    let manifest = sessions.package().manifest();
    let shape = manifest.shape();
    let vocab = manifest.model.vocab_size as u64;
    // Far from one another, the same for each package of that vocabulary.
    let tokens =
        (0..TOKENS.min(manifest.max_seq_len) as u64).map(|n| ((n * n + n) * 7919 + 1) % vocab);
    let tokens: Vec<_> = tokens.map(|token| token as u32).collect();
    let f16 = ElementType::F16;
    let names = match shape.dtype == f16 {
        true => taps(
            &manifest.model,
            &shape,
            &manifest.precision,
            1,
            Products::Floats,
        ),
        false => Vec::new(),
    };
    let names: Vec<_> = names.into_iter().map(|(name, _)| name).collect();
    let mut beyond = Vec::new();
    let exact = Exactness::WithoutRounding;
    let reference = Trace::run(
        sessions,
        BackendKind::Tract,
        exact,
        &names,
        &tokens,
        &mut |step| {
            note_beyond(step, &names, &mut beyond);
        },
    )?;
    if shape.cache_dtype == f16 {
        note_cache(&reference, manifest, &mut beyond);
    }
    beyond.sort_by(|a, b| b.largest.total_cmp(&a.largest));
    let tokens = &tokens[..reference.logits.len()];
    let run = |backend| {
        Trace::run(
            sessions,
            backend,
            Exactness::AsStored,
            &[],
            tokens,
            &mut |_| (),
        )
    };
    let naive = match shape.is_f32() && !manifest.precision.rounds_rows() {
        true => None,
        false => Some(run(BackendKind::Tract)?),
    };
    let (mut found, mut unseen) = (None, None);
    for backend in [BackendKind::OrtFallback, BackendKind::OrtCpu] {
        match run(backend) {
            Ok(trace) => {
                found = Some((backend, trace));
                break;
            }
            Err(BackendError::Unavailable { reason, .. }) => {
                unseen.get_or_insert(reason);
            }
            Err(error) => return Err(error),
        }
    }
    let graphs_unseen = if found.is_none() { unseen } else { None };
    let (backend, found) = match found {
        Some(found) => found,
        None => (BackendKind::Tract, run(BackendKind::Tract)?),
    };
    Ok(SpotCheck {
        tokens: tokens.len(),
        backend,
        graphs_unseen,
        outputs: compare(manifest, &reference, naive.as_ref(), &found),
        beyond_f16: beyond,
        keeps_f16: [shape.dtype, shape.cache_dtype].contains(&f16),
    })
}

/// What tokens left: of each its logits, and the states after the last.
struct Trace {
    logits: Vec<Vec<f32>>,
    states: Vec<Vec<f32>>,
}

impl Trace {
    /// Runs `tokens`, or as many as there is time for, and shows every step.
    fn run(
        sessions: &SessionBuilder<'_>,
        backend: BackendKind,
        exactness: Exactness,
        extra_outputs: &[String],
        tokens: &[u32],
        see: &mut dyn FnMut(&Step<'_>),
    ) -> Result<Self, BackendError> {
        let mut sessions = sessions.clone().engines([1]).inspect(Inspection {
            extra_outputs: extra_outputs.to_vec(),
            exactness,
            ..Inspection::default()
        });
        sessions.ort.passive_wait = true;
        let mut session = sessions.open(backend)?;
        let started = Instant::now();
        let mut logits = Vec::new();
        for token in tokens {
            // Only the reference, whose tokens the others take, may stop early.
            let late = exactness == Exactness::WithoutRounding && started.elapsed() > TIME;
            if late && !logits.is_empty() {
                break;
            }
            let step = session.run_slot(0, 1, &[*token])?;
            see(&step);
            logits.push(step.last_logits(0).unwrap_or_default().to_vec());
        }
        let buffers = session.state_buffers();
        let states = session.read_state(0)?.tensors;
        let states = buffers.iter().zip(&states).map(|(buffer, bytes)| {
            let dtype = match backend {
                BackendKind::Tract => ElementType::F32,
                _ => buffer.tensor.dtype,
            };
            floats(dtype, bytes)
        });
        let states = states.collect();
        Ok(Self { logits, states })
    }
}

fn floats(dtype: ElementType, bytes: &[u8]) -> Vec<f32> {
    let pairs = || bytes.as_chunks().0.iter().copied();
    match dtype {
        ElementType::F16 => pairs()
            .map(|pair| half::f16::from_le_bytes(pair).to_f32())
            .collect(),
        ElementType::BF16 => pairs()
            .map(|pair| half::bf16::from_le_bytes(pair).to_f32())
            .collect(),
        _ => {
            let words = bytes.as_chunks().0.iter();
            words.map(|word| f32::from_le_bytes(*word)).collect()
        }
    }
}

/// Largest absolute value; infinite where something is not a number.
fn largest(values: &[f32]) -> f64 {
    let sizes = values.iter().map(|value| f64::from(value.abs()));
    sizes.fold(0.0, |most, size| {
        if size.is_nan() {
            f64::INFINITY
        } else {
            most.max(size)
        }
    })
}

fn note(name: String, size: f64, beyond: &mut Vec<BeyondF16>) {
    if size <= F16_MAX {
        return;
    }
    match beyond.iter_mut().find(|seen| seen.name == name) {
        Some(seen) => seen.largest = seen.largest.max(size),
        None => beyond.push(BeyondF16 {
            name,
            largest: size,
        }),
    }
}

fn note_beyond(step: &Step<'_>, names: &[String], beyond: &mut Vec<BeyondF16>) {
    for name in names {
        if let Some((_, values)) = inspection::extra_output(step, name) {
            note(name.clone(), largest(&values), beyond);
        }
    }
}

/// The cache rows that the reference has written.
fn note_cache(reference: &Trace, manifest: &Manifest, beyond: &mut Vec<BeyondF16>) {
    for (layer, kind, piece) in written(manifest, reference.logits.len()) {
        if matches!(kind, StateKind::Key | StateKind::Value) {
            let rows = &reference.states[piece.state][piece.elements];
            note(kind.present_name(layer), largest(rows), beyond);
        }
    }
}

/// What so many tokens have written: (layer, kind, where).
fn written(
    manifest: &Manifest,
    tokens: usize,
) -> impl Iterator<Item = (usize, StateKind, WrittenPiece)> {
    let kinds = StateKind::all(manifest.model.recurrence);
    let pieces = written_pieces(&manifest.model, manifest.max_seq_len, 0..tokens).into_iter();
    pieces.map(|piece| {
        (
            piece.state / kinds.len(),
            kinds[piece.state % kinds.len()],
            piece,
        )
    })
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

    fn judged(&self, output: String, naive: f64) -> OutputCheck {
        OutputCheck {
            output,
            layer: self.layer,
            max_error: self.error,
            tolerance: (NAIVE_ROUNDING_FACTOR * naive).max(F32_LOGIT * self.largest),
        }
    }
}

fn compare(
    manifest: &Manifest,
    reference: &Trace,
    naive: Option<&Trace>,
    found: &Trace,
) -> Vec<OutputCheck> {
    // Without roundings the reference's own error is none.
    let naive = naive.unwrap_or(reference);
    let mut logits = Seen::default();
    for (token, expected) in reference.logits.iter().enumerate() {
        logits.add(None, [expected, &naive.logits[token], &found.logits[token]]);
    }
    let kinds = StateKind::all(manifest.model.recurrence);
    let mut states = vec![Seen::default(); kinds.len()];
    for (
        layer,
        kind,
        WrittenPiece {
            state, elements, ..
        },
    ) in written(manifest, reference.logits.len())
    {
        let parts = [reference, naive, found].map(|trace| &trace.states[state][elements.clone()]);
        let at = kinds.iter().position(|known| *known == kind);
        states[at.unwrap_or(0)].add(Some(layer), parts);
    }
    let mut outputs = vec![logits.judged("logits".into(), logits.naive)];
    for (index, kind) in kinds.iter().enumerate() {
        // A recurrent state is the last token of what the cache has of all: one token is a small sample of
        // rounding errors. Keys and values take turns.
        let same = states.iter().skip(index % 2).step_by(2);
        let naive = same.map(|state| state.naive).fold(0.0, f64::max);
        let name = kind.present_name(0).replacen(".0.", ".*.", 1);
        outputs.push(states[index].judged(name, naive));
    }
    outputs
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratplus_graphs::onnx::OPSET;
    use ratplus_graphs::package::{Fallback, LogitsMode, PackageShape};
    use ratplus_graphs::pattern::Pattern;
    use ratplus_graphs::precision::Precision;
    use ratplus_graphs::spec::{LayerPatterns, ModelSpec};

    fn manifest(num_layers: usize, d_model: usize) -> Manifest {
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

    fn trace(manifest: &Manifest, value: f32) -> Trace {
        let state = |kind: &StateKind, layer| {
            let shape = kind.slot_shape(&manifest.model, layer, manifest.max_seq_len);
            vec![value; shape.into_iter().product()]
        };
        let kinds = StateKind::all(true);
        Trace {
            logits: vec![vec![value; 32]; 2],
            states: (0..manifest.model.num_layers)
                .flat_map(|layer| kinds.iter().map(move |kind| state(kind, layer)))
                .collect(),
        }
    }

    #[test]
    fn differences_name_their_output_and_layer() {
        let manifest = manifest(2, 8);
        let reference = trace(&manifest, 1.0);
        let (naive, mut found) = (trace(&manifest, 1.25), trace(&manifest, 1.0));
        // The second layer's value, of the second token; the fourth was never written.
        found.states[5][7] = 1.75;
        found.states[5][15] = f32::NAN;
        let outputs = compare(&manifest, &reference, Some(&naive), &found);
        let names: Vec<_> = outputs
            .iter()
            .map(|output| output.output.as_str())
            .collect();
        let states = ["key", "value", "recurrent_key", "recurrent_value"];
        assert_eq!(names[0], "logits");
        assert_eq!(names[1..], states.map(|state| format!("present.*.{state}")));
        assert_eq!((outputs[2].max_error, outputs[2].layer), (0.75, Some(1)));
        assert!(outputs.iter().all(|output| output.tolerance == 0.5));
        let exact = compare(&manifest, &reference, None, &found);
        assert_eq!(exact[0].tolerance, F32_LOGIT);
        found.logits[1][3] = f32::NAN;
        assert_eq!(
            compare(&manifest, &reference, None, &found)[0].max_error,
            f64::INFINITY
        );
    }

    #[test]
    fn what_f16_cannot_hold_is_named_once_with_its_largest() {
        let manifest = manifest(2, 8);
        let mut reference = trace(&manifest, 1.0);
        reference.states[4][0] = -70000.0;
        reference.states[4][3] = 80000.0;
        // Recurrent states are f32.
        reference.states[2][0] = 1e9;
        let mut beyond = Vec::new();
        note_cache(&reference, &manifest, &mut beyond);
        assert_eq!(beyond.len(), 1, "{beyond:?}");
        assert_eq!(
            (beyond[0].name.as_str(), beyond[0].largest),
            ("present.1.key", 80000.0)
        );
    }

    #[test]
    fn large_models_and_small_machines_are_left_out() {
        let small = manifest(1, 8);
        assert_eq!(refusal(&small, None), None);
        assert_eq!(refusal(&small, Some(1 << 30)), None);
        let why = refusal(&small, Some(1000)).unwrap();
        assert!(why.contains("more than the 0.0 GB that are free"), "{why}");
        let why = refusal(&manifest(32, 4096), None).unwrap();
        assert!(why.contains("of weights in f32, more than 8.6 GB"), "{why}");
    }
}
