//! Small packages with random weights, and the libraries that tests need.

use half::{bf16, f16};
use prost::Message;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::blocks::{BlockTopK, Score};
use ratplus_graphs::model::{ROTARY_TABLES, Weight, build, rotary_row, storage};
use ratplus_graphs::onnx::OPSET;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{
    Fallback, FileInfo, LogitsMode, MANIFEST_FILE, Manifest, PackageShape, Target, WEIGHTS_FILE,
};
use ratplus_graphs::pattern::Pattern;
use ratplus_graphs::precision::{Precision, Quantization};
use ratplus_graphs::spec::{LayerPatterns, ModelSpec};
use ratplus_runtime::backend::{BackendKind, Session};
use ratplus_runtime::ort_library;
use ratplus_runtime::package::{OpenOptions, Package};
use ratplus_tools::verify::{VerifyOptions, VerifyReport, verify};
use std::path::Path;

#[derive(Clone, Copy)]
pub struct Options {
    pub fallback: Fallback,
    pub dtype: ElementType,
    /// `None`: that of the activations.
    pub cache_dtype: Option<ElementType>,
    pub logits: LogitsMode,
    pub batch: usize,
    pub lengths: &'static [usize],
    pub quantization: Option<Quantization>,
    /// Whether there is a third layer, whose queries choose blocks.
    pub chooses: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fallback: Fallback::Function,
            dtype: ElementType::F32,
            cache_dtype: None,
            logits: LogitsMode::Last,
            batch: 2,
            lengths: &[1, 4, 16],
            quantization: None,
            chooses: false,
        }
    }
}

pub const MAX_SEQ_LEN: usize = 48;
pub const VOCAB: usize = 61;

pub fn spec() -> ModelSpec {
    let pattern = |d, w, i| Pattern::new(d, w, i).unwrap();
    let hybrid = vec![Pattern::DENSE, pattern(4, 3, 1), pattern(-1, 5, 2)];
    ModelSpec {
        vocab_size: VOCAB,
        d_model: 24,
        num_layers: 2,
        d_head: 8,
        d_ffn: 96,
        patterns: vec![
            LayerPatterns::Uniform(pattern(8, 6, 2)),
            LayerPatterns::PerHead(hybrid),
        ],
        ..ModelSpec::default()
    }
}

/// Writes the package of `options` with weights from `seed`.
pub fn write_package(dir: &Path, options: Options, seed: u64) -> Manifest {
    let mut spec = spec();
    if options.chooses {
        let beside = Pattern::new(8, 0, 1).unwrap();
        let blocks = BlockTopK::new(5, 3, Score::Bounds, beside).unwrap();
        spec.patterns.push(LayerPatterns::BlockTopK(blocks));
        spec.num_layers += 1;
    }
    write_spec(dir, options, seed, spec, MAX_SEQ_LEN)
}

pub fn write_spec(
    dir: &Path,
    options: Options,
    seed: u64,
    spec: ModelSpec,
    max_seq_len: usize,
) -> Manifest {
    let Options {
        fallback,
        dtype,
        cache_dtype,
        logits,
        batch,
        lengths,
        quantization,
        ..
    } = options;
    let precision = Precision {
        quantization,
        ..Precision::default()
    };
    let shape = PackageShape {
        batch,
        max_seq_len,
        dtype,
        cache_dtype: cache_dtype.unwrap_or(dtype),
        logits,
    };
    let (tensors, size) = storage(&spec, &shape, &precision);
    let mut weights = vec![0u8; size as usize];
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for stored in &tensors {
        let table = ROTARY_TABLES.contains(&stored.name.as_str());
        let norm = stored.tensor.shape.len() == 1;
        let scale = stored.name.ends_with(".scales");
        let fan_in = *stored.tensor.shape.last().unwrap() as f32;
        let values: Vec<f32> = if table {
            (0..max_seq_len)
                .flat_map(|position| rotary_row(&spec, &stored.name, position))
                .collect()
        } else {
            let one = |rng: &mut ChaCha8Rng| {
                let value = rng.random_range(-1.0f32..1.0);
                if scale {
                    0.02 + 0.01 * value
                } else if norm {
                    1.0 + 0.1 * value
                } else {
                    2.0 * value / fan_in.sqrt()
                }
            };
            (0..stored.tensor.elements())
                .map(|_| one(&mut rng))
                .collect()
        };
        let bytes: Vec<u8> = match stored.tensor.dtype {
            ElementType::F16 => values
                .iter()
                .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                .collect(),
            ElementType::BF16 => values
                .iter()
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect(),
            ElementType::U8 | ElementType::I8 | ElementType::I4 => {
                let bytes = values.iter().take(stored.tensor.bytes());
                bytes.map(|v| v.to_bits() as u8).collect()
            }
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        weights[stored.offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    let mut files = vec![(WEIGHTS_FILE.to_owned(), weights)];
    let mut manifest = Manifest::new(spec, shape, precision, fallback, OPSET, lengths);
    for engine in &manifest.engines {
        for (&target, file) in &engine.files {
            let graph = build(&manifest.graph(engine, target));
            files.push((file.clone(), graph.encode_to_vec()));
        }
    }
    let infos = files
        .iter()
        .map(|(name, bytes)| (name.clone(), info(bytes)));
    manifest.files = infos.collect();
    for (name, bytes) in files {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    write_manifest(dir, &manifest);
    manifest
}

pub fn write_manifest(dir: &Path, manifest: &Manifest) {
    std::fs::write(dir.join(MANIFEST_FILE), manifest.to_json()).unwrap();
}

/// The portable file of the engine `index`.
pub fn portable(manifest: &Manifest, index: usize) -> String {
    file(manifest, index, Target::Portable)
}

/// The file of the engine `index` for `target`.
pub fn file(manifest: &Manifest, index: usize, target: Target) -> String {
    manifest.engines[index].files[&target].clone()
}

pub fn info(bytes: &[u8]) -> FileInfo {
    FileInfo::of(bytes)
}

/// An opened package in a folder that is gone with it.
pub struct Fixture {
    _dir: tempfile::TempDir,
    pub package: Package,
}

impl Fixture {
    /// The package that was opened in `dir`.
    pub fn new(dir: tempfile::TempDir, package: Package) -> Self {
        Self { _dir: dir, package }
    }
}

pub fn fixture(options: Options) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    write_package(dir.path(), options, 1);
    let package = Package::open(dir.path()).unwrap();
    Fixture::new(dir, package)
}

/// A package whose tokens are all as good as others, but for the one that comes with it: its embedding has a NaN.
pub fn poisoned() -> (Fixture, u32) {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_package(dir.path(), Options::default(), 1);
    let poison = VOCAB as u32 - 1;
    // The embedding comes first in the file.
    assert_eq!(Weight::all(&manifest.model)[0], Weight::Embedding);
    let mut weights = std::fs::read(dir.path().join(WEIGHTS_FILE)).unwrap();
    let row = manifest.model.d_model * 4;
    weights[poison as usize * row..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(dir.path().join(WEIGHTS_FILE), weights).unwrap();
    let mut options = OpenOptions::default();
    options.skip_checksum = true;
    let package = Package::open_with(dir.path(), &options).unwrap();
    (Fixture::new(dir, package), poison)
}

/// Backends that this machine can run the package of `fallback` on; a missing one is printed.
pub fn backends(fallback: Fallback) -> Vec<BackendKind> {
    let mut kinds = Vec::new();
    if cfg!(feature = "tract") {
        kinds.push(BackendKind::Tract);
    }
    match ort_library::onnxruntime(None) {
        Err(error) => eprintln!("SKIPPED ort-cpu and ort-fallback: {error}"),
        Ok(_) => {
            if fallback != Fallback::None {
                kinds.push(BackendKind::OrtFallback);
            }
            match ort_library::operators(None) {
                Err(error) if fallback != Fallback::Inline => eprintln!("SKIPPED ort-cpu: {error}"),
                // The emulated library has no kernels for the CPU.
                _ if !EMULATED => kinds.push(BackendKind::OrtCpu),
                _ if fallback != Fallback::Inline => kinds.push(BackendKind::OrtCuda),
                _ => {}
            }
        }
    }
    kinds
}

/// Whether ort-cuda runs in the emulator, with the library of RAT+ operators built for that.
pub const EMULATED: bool = cfg!(feature = "cuda-emulation");

pub fn open(fixture: &Fixture, kind: BackendKind) -> Session {
    Session::builder(&fixture.package)
        .threads(1)
        .open(kind)
        .unwrap_or_else(|error| panic!("{kind}: {error}"))
}

pub fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| rng.random_range(0..VOCAB as u32))
        .collect()
}

/// What `verify` finds on random tokens, along every route.
pub fn verified(fixture: &Fixture, backends: Vec<BackendKind>) -> VerifyReport {
    let mut options = VerifyOptions::default();
    options.backends = backends;
    (options.tokens, options.seed) = (MAX_SEQ_LEN, 5);
    verify(
        &Session::builder(&fixture.package),
        None,
        &options,
        &mut |_| {},
    )
    .unwrap()
}
