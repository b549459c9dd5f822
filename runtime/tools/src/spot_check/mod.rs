//! A few tokens through a package that was just written, against tract in f32.

mod compare;
mod trace;

pub use compare::OutputCheck;

use compare::compare;
use ratplus_graphs::cost;
use ratplus_graphs::model::taps;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{Fallback, Manifest, Products, StateKind, state_tensors};
use ratplus_graphs::releases::{Host, Release, Verdict, findings, runs_functions};
use ratplus_runtime::backend::inspection::{self, Exactness};
use ratplus_runtime::backend::{BackendError, BackendKind, SessionBuilder, Step};
use ratplus_runtime::ort_library;
use std::time::Duration;
use trace::{Trace, written};

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
    /// What the graphs gave, or why none of them ran here.
    pub graphs: Result<Comparison, String>,
    /// What f16 cannot hold though the package keeps it so, largest first.
    pub beyond_f16: Vec<BeyondF16>,
    /// Whether activations or cache are f16, so that `beyond_f16` says something.
    pub keeps_f16: bool,
}

impl SpotCheck {
    /// Whether no output is out of tolerance; where no graph ran, none is.
    pub fn passed(&self) -> bool {
        let graphs = self.graphs.iter();
        graphs.flat_map(|ran| &ran.outputs).all(OutputCheck::passed)
    }
}

/// What a backend made of the package's graphs, next to the reference.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Comparison {
    /// What ran the graph of single tokens.
    pub backend: BackendKind,
    /// Logits, then the kinds of states.
    pub outputs: Vec<OutputCheck>,
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

/// Why no check is made of a package, and what to do; `available` is in bytes.
pub fn refusal(manifest: &Manifest, available: Option<u64>) -> Option<String> {
    let gb = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    if let Some(feature) = BackendKind::Tract.missing_feature() {
        return Some(format!(
            "this build has no reference; build it with the feature `{feature}`"
        ));
    }
    let f32 = size_of::<f32>() as u64;
    let weights = cost::parameters(&manifest.model) * f32;
    if weights > MAX_REFERENCE_BYTES {
        return Some(format!(
            "the reference would hold {} of weights in f32, more than {}; `ratplus verify` has no such limit",
            gb(weights),
            gb(MAX_REFERENCE_BYTES)
        ));
    }
    let states = state_tensors(&manifest.model, &manifest.shape()).into_iter();
    let states: usize = states.map(|(.., tensor)| tensor.elements()).sum();
    // Of a 1.5B shape in bf16 a process had 1.8 times its weights in f32, mapped files apart: the reference's,
    // and what is loaded before it is given away. Its states have two sides.
    let needed = 2 * (weights + states as u64 * f32);
    match available {
        Some(available) if available < needed => Some(format!(
            "it would take {} of memory (in f32 and twice each: the weights, and the states of `batch: {}` with \
             `max_seq_len: {}`), more than the {} that this process can have; `ratplus verify` needs as much: run \
             it where that is free",
            gb(needed),
            manifest.batch,
            manifest.max_seq_len,
            gb(available)
        )),
        _ => None,
    }
}

/// Runs a few tokens in slot 0, through tract in f32, then through the portable graph in ONNX Runtime, or
/// where custom nodes are bare through the CPU's.
///
/// # Errors
/// tract failed, or an ONNX Runtime that reads such graphs did.
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
    // Layers that are kept in f32 have no such bound.
    let names = names.into_iter().filter(|(_, tensor)| tensor.dtype == f16);
    let names: Vec<_> = names.map(|(name, _)| name).collect();
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
    let tokens = &tokens[..reference.tokens()];
    let graphs = match run_graphs(sessions, tokens)? {
        Err(why) => Err(why),
        Ok((backend, found)) => {
            let naive = match shape.is_f32() && !manifest.precision.rounds_rows() {
                true => None,
                false => Some(as_stored(sessions, BackendKind::Tract, tokens)?),
            };
            let outputs = compare(manifest, &reference, naive.as_ref(), &found);
            Ok(Comparison { backend, outputs })
        }
    };
    Ok(SpotCheck {
        tokens: tokens.len(),
        graphs,
        beyond_f16: beyond,
        keeps_f16: [shape.dtype, shape.cache_dtype].contains(&f16),
    })
}

fn as_stored(
    sessions: &SessionBuilder<'_>,
    backend: BackendKind,
    tokens: &[u32],
) -> Result<Trace, BackendError> {
    let how = Exactness::AsStored;
    Trace::run(sessions, backend, how, &[], tokens, &mut |_| ())
}

/// What the package's own graphs make of `tokens`, or why that cannot be seen here.
fn run_graphs(
    sessions: &SessionBuilder<'_>,
    tokens: &[u32],
) -> Result<Result<(BackendKind, Trace), String>, BackendError> {
    let manifest = sessions.package().manifest();
    let backend = match runs_functions(manifest) || manifest.fallback == Fallback::TrtPlugins {
        true => BackendKind::OrtFallback,
        false => BackendKind::OrtCpu,
    };
    let reads = match ort_library::onnxruntime(sessions.ort.library.as_deref()) {
        Ok(runtime) => match reads(manifest, &runtime.version) {
            Ok(known) => known,
            Err(why) => {
                let (version, path) = (&runtime.version, runtime.path.display());
                return Ok(Err(format!(
                    "ONNX Runtime {version} at {path} does not run these graphs: {why}"
                )));
            }
        },
        // Opening says so.
        Err(_) => false,
    };
    match as_stored(sessions, backend, tokens) {
        Ok(trace) => Ok(Ok((backend, trace))),
        Err(BackendError::Unavailable { reason, .. }) => Ok(Err(reason)),
        Err(error) if !reads => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Whether that ONNX Runtime is known to run the package; why, where it is known not to.
fn reads(manifest: &Manifest, version: &str) -> Result<bool, String> {
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        return Ok(false);
    };
    let release = Release {
        host: Host::OnnxRuntime,
        version: (major, minor),
    };
    let Ok(findings) = findings(manifest, release) else {
        return Ok(false);
    };
    let misfits = findings
        .into_iter()
        .filter(|finding| finding.verdict == Verdict::Misfit);
    let misfits: Vec<_> = misfits
        .map(|finding| format!("{}: {}", finding.subject, finding.text))
        .collect();
    match misfits.is_empty() {
        true => Ok(true),
        false => Err(misfits.join("; ")),
    }
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
    for (token, states) in reference.states.iter().enumerate() {
        for ((layer, kind, _), rows) in written(manifest, token).zip(states) {
            if matches!(kind, StateKind::Key | StateKind::Value) {
                note(kind.present_name(layer), largest(rows), beyond);
            }
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

#[cfg(test)]
mod tests {
    use super::compare::tests::{manifest, trace};
    use super::*;

    #[test]
    fn what_f16_cannot_hold_is_named_once_with_its_largest() {
        let manifest = manifest(2, 8);
        let mut reference = trace(&manifest, 1.0);
        let pieces: Vec<_> = written(&manifest, 0).collect();
        let of = |wanted| {
            let mut pieces = pieces.iter();
            let found = pieces.position(|(layer, kind, _)| (*layer, *kind) == wanted);
            found.unwrap()
        };
        let key = of((1, StateKind::Key));
        reference.states[0][key][0] = -70000.0;
        reference.states[1][key][3] = 80000.0;
        // Recurrent states are f32.
        reference.states[0][of((0, StateKind::RecurrentKey))][0] = 1e9;
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
        for part in [
            "`batch: 1` with `max_seq_len: 4`",
            "more than the 0.0 GB that this process can have",
        ] {
            assert!(why.contains(part), "{why}");
        }
        let why = refusal(&manifest(32, 4096), None).unwrap();
        assert!(why.contains("of weights in f32, more than 8.6 GB"), "{why}");
    }

    #[test]
    fn memory_is_counted_in_f32_whatever_the_states_type() {
        let manifest = manifest(1, 8);
        let weights = cost::parameters(&manifest.model) * 4;
        // f16 in the package, but for the recurrence.
        let cache = manifest.state_bytes - 2 * 8 * 4;
        let needed = 2 * (weights + 2 * cache + 2 * 8 * 4);
        assert_eq!(refusal(&manifest, Some(needed)), None);
        assert!(refusal(&manifest, Some(needed - 1)).is_some());
    }

    #[test]
    fn a_runtime_that_reads_less_than_a_package_has_is_named_with_what_it_lacks() {
        let mut manifest = manifest(1, 8);
        assert_eq!(reads(&manifest, "1.20.1"), Ok(true));
        manifest.opset = 23;
        let why = reads(&manifest, "1.17.3").unwrap_err();
        assert!(why.starts_with("opset: expected at most 20"), "{why}");
        assert_eq!(reads(&manifest, "9.1"), Ok(false));
    }
}
