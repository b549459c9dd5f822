//! Packages in a temporary directory, and sequences run through them chunk by chunk.

// Each test file uses a part of it.
#![allow(dead_code)]

use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::model::{
    self, ROTARY_TABLES, ReferenceGraph, ReferenceOptions, Rounding, Sizes, Weight, reference,
    reference_weights,
};
use ratplus_graphs::ops::{ElementType, TensorType};
use ratplus_graphs::package::{
    INPUT_IDS, LOGITS, LogitsMode, PAST_LENGTH, PackageShape, SEQ_LENGTH, WEIGHTS_FILE,
    state_tensors,
};
use ratplus_graphs::precision::Precision;
use ratplus_graphs::spec::{Activation, ModelSpec};
use ratplus_reference::full::{self, FullAttention};
use ratplus_tract::{TensorRef, TractEngine, TractError, TractWeights};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

pub type Weights = BTreeMap<String, Vec<f32>>;

pub fn spec(json: serde_json::Value) -> ModelSpec {
    let spec: ModelSpec = serde_json::from_value(json).expect("a spec");
    spec.validate().expect("a valid spec");
    spec
}

pub fn random_weights(spec: &ModelSpec, seed: u64) -> Weights {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut weights: Weights = Weight::all(spec)
        .into_iter()
        .map(|weight| {
            let shape = weight.shape(spec);
            let count = shape.iter().product();
            let norm = shape.len() == 1;
            let spread = match weight {
                Weight::Embedding => 1.5,
                _ => 3.0 / (shape[shape.len() - 1] as f32).sqrt(),
            };
            let mut value = || match norm {
                true => rng.random_range(0.7..1.3),
                false => rng.random_range(-spread..spread),
            };
            (weight.name(), (0..count).map(|_| value()).collect())
        })
        .collect();
    if spec.tie_embedding {
        let embedding = weights[&Weight::Embedding.name()].clone();
        weights.insert(Weight::LmHead.name(), embedding);
    }
    weights
}

pub fn round_to(dtype: ElementType, value: f32) -> f32 {
    match dtype {
        ElementType::F16 => f16::from_f32(value).to_f32(),
        ElementType::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

fn push(bytes: &mut Vec<u8>, dtype: ElementType, value: f32) {
    match dtype {
        ElementType::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
        ElementType::BF16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
        _ => bytes.extend(value.to_le_bytes()),
    }
}

/// Writes the weights file of a package.
pub fn write_weights(spec: &ModelSpec, shape: &PackageShape, weights: &Weights, dir: &Path) {
    let (stored, length) = model::storage(spec, shape, &Precision::default());
    let mut bytes = Vec::new();
    for tensor in stored {
        bytes.resize(tensor.offset as usize, 0);
        if ROTARY_TABLES.contains(&tensor.name.as_str()) {
            for position in 0..shape.max_seq_len {
                for value in model::rotary_row(spec, &tensor.name, position) {
                    push(&mut bytes, ElementType::F32, value);
                }
            }
        } else {
            for &value in &weights[&tensor.name] {
                push(&mut bytes, shape.dtype, value);
            }
        }
    }
    assert_eq!(bytes.len() as u64, length);
    std::fs::write(dir.join(WEIGHTS_FILE), bytes).expect("weights written");
}

/// A package's directory and sizes.
pub struct Package {
    pub dir: TempDir,
    pub spec: ModelSpec,
    pub shape: PackageShape,
}

impl Package {
    pub fn new(spec: &ModelSpec, shape: PackageShape, weights: &Weights) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let spec = spec.normalized(shape.max_seq_len);
        write_weights(&spec, &shape, weights, dir.path());
        Self { dir, spec, shape }
    }

    /// The graph for chunks of `seq_len`, whose operators are nodes or, `inline`, their bodies.
    pub fn graph(
        &self,
        seq_len: usize,
        inline: bool,
        rounding: Rounding,
        taps: &[&str],
    ) -> ReferenceGraph {
        let taps: Vec<_> = taps.iter().map(|&name| name.to_owned()).collect();
        reference(&ReferenceOptions {
            sizes: Sizes {
                spec: &self.spec,
                shape: self.shape,
                seq_len,
                precision: &Precision::default(),
            },
            rounding,
            inline,
            taps: &taps,
        })
    }

    pub fn weights(&self) -> Result<TractWeights, TractError> {
        let weights = reference_weights(&self.spec, &self.shape, &Precision::default());
        TractWeights::load(&weights, &self.dir.path().join(WEIGHTS_FILE))
    }

    /// Engines of the given lengths that share their weights; `taps` are outputs too.
    pub fn engines(&self, lengths: &[usize], inline: bool, taps: &[&str]) -> Engines {
        self.load(lengths, inline, taps, Rounding::AsStored)
    }

    /// Engines that leave the package's roundings out.
    pub fn unrounded(&self, lengths: &[usize]) -> Engines {
        self.load(lengths, false, &[], Rounding::None)
    }

    fn load(&self, lengths: &[usize], inline: bool, taps: &[&str], rounding: Rounding) -> Engines {
        let weights = self.weights().expect("weights");
        let engines = lengths
            .iter()
            .map(|&length| {
                let graph = self.graph(length, inline, rounding, taps);
                let plain = self.graph(length, inline, rounding, &[]);
                let tapped = graph.outputs.len() - plain.outputs.len();
                assert_eq!(tapped, taps.len(), "{taps:?}");
                let engine = TractEngine::new(&graph, &weights)
                    .unwrap_or_else(|error| panic!("inline {inline}, {length}: {error}"));
                (length, engine)
            })
            .collect();
        Engines {
            spec: self.spec.clone(),
            shape: self.shape,
            engines,
            states: state_tensors(&self.spec, &self.shape),
        }
    }
}

/// Engines of one package.
pub struct Engines {
    spec: ModelSpec,
    shape: PackageShape,
    engines: BTreeMap<usize, TractEngine>,
    states: Vec<(String, String, TensorType)>,
}

/// One run: engine length, and valid tokens per slot.
#[derive(Clone, Debug)]
pub struct Chunk {
    pub engine: usize,
    pub lengths: Vec<usize>,
}

/// Per slot: `[T][V]` logits where computed, and the taps' rows `[T][width]`.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub logits: Vec<Vec<Option<Vec<f32>>>>,
    pub taps: BTreeMap<String, Vec<Vec<Vec<f32>>>>,
    /// Final state tensors.
    pub states: BTreeMap<String, Vec<f32>>,
}

impl Engines {
    /// Runs one sequence per slot through `chunks`, from states full of NaN.
    pub fn run(&mut self, tokens: &[Vec<i64>], chunks: &[Chunk]) -> Trace {
        let batch = self.shape.batch;
        let mut states: Vec<_> = self
            .states
            .iter()
            .map(|(_, _, tensor)| vec![f32::NAN; tensor.elements()])
            .collect();
        let mut past = vec![0usize; batch];
        let mut trace = Trace {
            logits: vec![Vec::new(); batch],
            ..Trace::default()
        };
        for chunk in chunks {
            let engine = self.engines.get_mut(&chunk.engine).expect("an engine");
            let length = chunk.engine;
            // Padding is a valid token id that no sequence has meant.
            let mut ids = vec![(self.spec.vocab_size - 1) as i64; batch * length];
            for slot in 0..batch {
                let own = &tokens[slot][past[slot]..past[slot] + chunk.lengths[slot]];
                ids[slot * length..][..own.len()].copy_from_slice(own);
            }
            let past_length: Vec<_> = past.iter().map(|&p| p as i64).collect();
            let seq_length: Vec<_> = chunk.lengths.iter().map(|&l| l as i64).collect();
            let mut inputs = vec![
                (INPUT_IDS, TensorRef::I64(&ids)),
                (PAST_LENGTH, TensorRef::I64(&past_length)),
                (SEQ_LENGTH, TensorRef::I64(&seq_length)),
            ];
            for ((name, _, _), state) in self.states.iter().zip(&states) {
                inputs.push((name, TensorRef::F32(state)));
            }
            let infos = engine.outputs().to_vec();
            let mut results: Vec<_> = infos
                .iter()
                .map(|info| vec![0f32; info.tensor.elements()])
                .collect();
            let mut outputs: Vec<_> = infos
                .iter()
                .zip(&mut results)
                .map(|(info, result)| (info.name.as_str(), &mut result[..]))
                .collect();
            engine.run(&inputs, &mut outputs).expect("a run");
            for (info, result) in infos.iter().zip(results) {
                let state = self
                    .states
                    .iter()
                    .position(|(_, name, _)| *name == info.name);
                if let Some(index) = state {
                    states[index] = result;
                } else if info.name == LOGITS {
                    self.keep_logits(&mut trace, &result, chunk);
                } else {
                    let width = result.len() / (batch * length);
                    let slots = trace
                        .taps
                        .entry(info.name.clone())
                        .or_insert_with(|| vec![Vec::new(); batch]);
                    for (slot, rows) in slots.iter_mut().enumerate() {
                        for row in 0..chunk.lengths[slot] {
                            rows.push(result[(slot * length + row) * width..][..width].to_vec());
                        }
                    }
                }
            }
            for (past, length) in past.iter_mut().zip(&chunk.lengths) {
                *past += length;
            }
        }
        let names = self.states.iter().map(|(_, name, _)| name.clone());
        trace.states = names.zip(states).collect();
        trace
    }

    fn keep_logits(&self, trace: &mut Trace, result: &[f32], chunk: &Chunk) {
        let vocab = self.spec.vocab_size;
        for (slot, rows) in trace.logits.iter_mut().enumerate() {
            let valid = chunk.lengths[slot];
            for row in 0..valid {
                rows.push(match self.shape.logits {
                    LogitsMode::All => {
                        Some(result[(slot * chunk.engine + row) * vocab..][..vocab].to_vec())
                    }
                    LogitsMode::Last if row + 1 == valid => {
                        Some(result[slot * vocab..][..vocab].to_vec())
                    }
                    LogitsMode::Last => None,
                });
            }
        }
    }
}

/// Chunks that end every slot at its length; slots idle at random, and past their end.
pub fn random_chunks(rng: &mut ChaCha8Rng, engines: &[usize], lengths: &[usize]) -> Vec<Chunk> {
    let mut done = vec![0; lengths.len()];
    let mut chunks = Vec::new();
    while done != lengths {
        let engine = engines[rng.random_range(0..engines.len())];
        let lengths: Vec<_> = done
            .iter()
            .zip(lengths)
            .map(|(&done, &length)| {
                let most = engine.min(length - done);
                match rng.random_range(0..4) {
                    0 => rng.random_range(0..=most),
                    _ => most,
                }
            })
            .collect();
        for (done, length) in done.iter_mut().zip(&lengths) {
            *done += length;
        }
        chunks.push(Chunk { engine, lengths });
    }
    chunks
}

/// Chunks of one length, the last ones padded.
pub fn uniform_chunks(engine: usize, lengths: &[usize]) -> Vec<Chunk> {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    (0..longest.div_ceil(engine))
        .map(|index| Chunk {
            engine,
            lengths: lengths
                .iter()
                .map(|&length| length.saturating_sub(index * engine).min(engine))
                .collect(),
        })
        .collect()
}

pub fn random_tokens(rng: &mut ChaCha8Rng, vocab: usize, lengths: &[usize]) -> Vec<Vec<i64>> {
    lengths
        .iter()
        .map(|&length| {
            (0..length)
                .map(|_| rng.random_range(0..vocab as i64))
                .collect()
        })
        .collect()
}

/// The model's definition in f64 over a whole sequence: `[T][V]` logits.
pub fn forward(spec: &ModelSpec, weights: &Weights, tokens: &[i64]) -> Vec<Vec<f64>> {
    let d = spec.d_model;
    let wide = |weight: Weight| -> Vec<f64> {
        weights[&weight.name()]
            .iter()
            .map(|&x| f64::from(x))
            .collect()
    };
    let norm = |rows: &[f64], weight: Weight| -> Vec<f64> {
        let weight = wide(weight);
        let mut out = rows.to_vec();
        for row in out.chunks_exact_mut(d) {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / d as f64;
            let root = (mean + spec.norm_eps).sqrt();
            for (x, w) in row.iter_mut().zip(&weight) {
                *x = *x / root * w;
            }
        }
        out
    };
    let linear = |rows: &[f64], weight: Weight| -> Vec<f64> {
        let (outputs, inputs) = match weight.shape(spec)[..] {
            [outputs, inputs] => (outputs, inputs),
            _ => unreachable!("a matrix"),
        };
        let weight = wide(weight);
        let mut out = Vec::with_capacity(rows.len() / inputs * outputs);
        for row in rows.chunks_exact(inputs) {
            for w in weight.chunks_exact(inputs) {
                out.push(row.iter().zip(w).map(|(a, b)| a * b).sum());
            }
        }
        out
    };
    let embedding = wide(Weight::Embedding);
    let mut x: Vec<f64> = tokens
        .iter()
        .flat_map(|&token| embedding[token as usize * d..][..d].to_vec())
        .collect();
    for layer in 0..spec.num_layers {
        let projected = linear(&norm(&x, Weight::InputNorm(layer)), Weight::InProj(layer));
        let widths = spec.in_proj_widths();
        let block = |index: usize| -> Vec<f64> {
            let first: usize = widths[..index].iter().sum();
            projected
                .chunks_exact(widths.iter().sum())
                .flat_map(|row| row[first..][..widths[index]].to_vec())
                .collect()
        };
        let (gate, query, mut key, mut value) = (block(0), block(1), block(2), block(3));
        if spec.recurrence {
            let forget = block(4);
            key = full::recurrence(&key, &forget, spec.d_kv());
            value = full::recurrence(&value, &forget, spec.d_kv());
        }
        let patterns: Vec<_> = spec
            .kept_patterns(layer)
            .iter()
            .map(|pattern| {
                (
                    pattern.dilation.map_or(-1, |d| i64::from(d.get())),
                    i64::from(pattern.local_window),
                    i64::from(pattern.initial),
                )
            })
            .collect();
        let config = FullAttention {
            num_heads: spec.num_heads(),
            patterns: &patterns,
            head_dim: spec.d_head,
            scale: 1.0 / (spec.d_head as f64).sqrt(),
            rope_base: spec.rope.then_some(spec.rope_base),
        };
        let mut attended = full::attention(&config, &query, &key, &value);
        for (x, gate) in attended.iter_mut().zip(&gate) {
            *x *= full::sigmoid(*gate);
        }
        for (x, change) in x.iter_mut().zip(linear(&attended, Weight::OutProj(layer))) {
            *x += change;
        }
        let mut inner = linear(&norm(&x, Weight::FfnNorm(layer)), Weight::Fc1(layer));
        for x in &mut inner {
            *x = activation(spec.activation, *x);
        }
        for (x, change) in x.iter_mut().zip(linear(&inner, Weight::Fc2(layer))) {
            *x += change;
        }
    }
    linear(&norm(&x, Weight::FinalNorm), Weight::LmHead)
        .chunks_exact(spec.vocab_size)
        .map(<[f64]>::to_vec)
        .collect()
}

fn activation(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Gelu => x * (1.0 + erf(x / 2f64.sqrt())) / 2.0,
        Activation::FastGelu => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Silu => x * full::sigmoid(x),
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0).powi(2),
    }
}

/// The error function by its Taylor series, and a continued fraction past 3.
pub fn erf(x: f64) -> f64 {
    let z = x.abs();
    let value = if z < 3.0 {
        let mut term = z;
        let mut sum = z;
        for n in 1..200 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let mut fraction = 0.0;
        for n in (1..=60).rev() {
            fraction = f64::from(n) / 2.0 / (z + fraction);
        }
        1.0 - (-z * z).exp() / std::f64::consts::PI.sqrt() / (z + fraction)
    };
    value.copysign(x)
}

/// Largest difference as a fraction of the largest expected value; `None` rows are not compared.
pub fn error(found: &[Option<Vec<f32>>], expected: &[Vec<f64>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let top = expected
        .iter()
        .flatten()
        .fold(0f64, |top, x| top.max(x.abs()));
    let mut worst = 0f64;
    let mut compared = 0;
    for (found, expected) in found.iter().zip(expected) {
        let Some(found) = found else { continue };
        assert_eq!(found.len(), expected.len());
        compared += 1;
        for (&found, &expected) in found.iter().zip(expected) {
            let difference = (f64::from(found) - expected).abs();
            // NaN counts as wrong.
            worst = if difference <= worst {
                worst
            } else {
                difference.max(f64::MIN_POSITIVE)
            };
            if difference.is_nan() {
                return f64::INFINITY;
            }
        }
    }
    assert!(compared > 0, "nothing was compared");
    worst / top
}
