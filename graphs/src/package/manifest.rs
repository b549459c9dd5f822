//! `manifest.json`: what the exporter writes and the runtime reads.

use super::plans::PlanSet;
use super::{Engine, Fallback, LogitsMode, PackageShape, SpecialTokens, Target, state_tensors};
use crate::cache::CacheLayout;
use crate::model::{GraphOptions, Sizes};
use crate::none_wrong;
use crate::ops::ElementType;
use crate::precision::Precision;
use crate::spec::ModelSpec;
use blake3::Hasher;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name of the manifest in a package.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the external data file that holds every weight.
pub const WEIGHTS_FILE: &str = "weights.bin";
/// Value of [`Manifest::format`].
pub const FORMAT: &str = "ratplus-package";
/// Version of the package format this code reads and writes.
pub const FORMAT_VERSION: u32 = 5;

/// Largest batch of a package.
pub const MAX_BATCH: usize = 1 << 16;
/// Longest sequence of a package.
pub const MAX_SEQ_LEN: usize = 1 << 28;

/// Size and checksum of a file in the package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3, lower-case hexadecimal.
    pub blake3: String,
}

impl FileInfo {
    /// Of a file of these bytes; all cores read long ones.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            blake3: Hasher::new().update_rayon(bytes).finalize().to_string(),
        }
    }
}

/// How one layer's cache rows are owned; see [`crate::cache`] for the order inside a head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerCache {
    /// `R`.
    pub rows: usize,
    /// Rows per head, in head order.
    pub head_rows: Vec<usize>,
}

impl From<&CacheLayout> for LayerCache {
    fn from(layout: &CacheLayout) -> Self {
        Self {
            rows: layout.rows(),
            head_rows: layout.heads().iter().map(|head| head.rows).collect(),
        }
    }
}

/// A package, described.
///
/// ```
/// use ratplus_graphs::onnx::OPSET;
/// use ratplus_graphs::{
///     ElementType, Fallback, LayerPatterns, LogitsMode, Manifest, ModelSpec, PackageShape, Pattern,
/// };
/// let model = ModelSpec {
///     vocab_size: 1000,
///     d_model: 256,
///     num_layers: 1,
///     d_head: 64,
///     d_ffn: 1024,
///     patterns: vec![LayerPatterns::Uniform(Pattern::DENSE)],
///     ..ModelSpec::default()
/// };
/// let dtype = ElementType::F16;
/// let shape = PackageShape {
///     batch: 1,
///     max_seq_len: 128,
///     dtype,
///     cache_dtype: dtype,
///     logits: LogitsMode::Last,
/// };
/// let (precision, fallback) = (Default::default(), Fallback::Function);
/// let manifest = Manifest::new(model, shape, precision, fallback, OPSET, &[1, 64]);
/// // Keys and values of four heads in f16, and the recurrence's two states in f32.
/// assert_eq!(manifest.state_bytes, 2 * 4 * 128 * 64 * 2 + 2 * 256 * 4);
/// // Its files are not named yet, and all are missed at once.
/// let errors = Manifest::parse(&manifest.to_json()).unwrap_err();
/// assert!(errors.0.contains(&"files: `weights.bin` is missing".to_owned()), "{errors}");
/// assert!(errors.0.contains(&"files: `prefill_64.onnx` is missing".to_owned()), "{errors}");
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The program that wrote it.
    pub tool: String,
    /// Sizes and normalized patterns.
    pub model: ModelSpec,
    /// `B`.
    pub batch: usize,
    /// `M`: tokens that a sequence may have in all.
    pub max_seq_len: usize,
    /// Type of weights and activations.
    pub dtype: ElementType,
    /// Type of the KV cache; none where it is [`Manifest::dtype`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_dtype: Option<ElementType>,
    /// What is stored otherwise than in [`Manifest::dtype`].
    #[serde(default, skip_serializing_if = "Precision::is_plain")]
    pub precision: Precision,
    /// Opset of the default domain; that of [`IntegerLayout`] at least.
    ///
    /// [`IntegerLayout`]: crate::precision::IntegerLayout
    pub opset: i64,
    /// ONNX IR version.
    pub ir_version: i64,
    /// Targets, and how custom nodes are written.
    pub fallback: Fallback,
    /// Shape of the logits.
    pub logits: LogitsMode,
    /// Every static shape, by length.
    pub engines: Vec<Engine>,
    /// One entry per layer.
    pub cache: Vec<LayerCache>,
    /// Bytes of all state tensors of one package instance (`batch` sequences), past side only.
    pub state_bytes: u64,
    /// The tokenizer's file, where one was given.
    pub tokenizer: Option<String>,
    /// Which special tokens are added to a text.
    #[serde(default, skip_serializing_if = "SpecialTokens::is_none")]
    pub special_tokens: SpecialTokens,
    /// The file of the chat template, where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Every other file that `export` wrote.
    pub files: BTreeMap<String, FileInfo>,
    /// Engine plans that were built from it, by backend.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plans: BTreeMap<String, PlanSet>,
}

/// Everything wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n  "))]
pub struct ManifestErrors(pub Vec<String>);

impl Manifest {
    /// The manifest of a package with engines of these ascending lengths, without files. `model` is
    /// normalized.
    pub fn new(
        model: ModelSpec,
        shape: PackageShape,
        precision: Precision,
        fallback: Fallback,
        opset: i64,
        lengths: &[usize],
    ) -> Self {
        let targets = fallback.targets(&shape, &precision);
        let layout = precision.layout().unwrap_or_default();
        let (least_opset, ir_version) = layout.onnx_versions();
        let mut manifest = Self {
            format: FORMAT.into(),
            format_version: FORMAT_VERSION,
            tool: concat!("ratplus ", env!("CARGO_PKG_VERSION")).into(),
            batch: shape.batch,
            max_seq_len: shape.max_seq_len,
            dtype: shape.dtype,
            cache_dtype: shape.own_cache_dtype(),
            precision: precision.normalized(shape.dtype),
            opset: opset.max(least_opset),
            ir_version,
            fallback,
            logits: shape.logits,
            engines: shape.engines(&model, &targets, lengths),
            cache: Vec::new(),
            state_bytes: 0,
            tokenizer: None,
            special_tokens: SpecialTokens::None,
            chat_template: None,
            files: BTreeMap::new(),
            plans: BTreeMap::new(),
            model,
        };
        manifest.cache = manifest.expected_cache();
        manifest.state_bytes = manifest.expected_state_bytes();
        manifest
    }

    fn expected_cache(&self) -> Vec<LayerCache> {
        let layers = 0..self.model.num_layers;
        layers
            .map(|layer| LayerCache::from(&self.model.cache_layout(layer, self.max_seq_len)))
            .collect()
    }

    fn expected_state_bytes(&self) -> u64 {
        let states = state_tensors(&self.model, &self.shape());
        states
            .iter()
            .map(|(_, _, tensor)| tensor.bytes() as u64)
            .sum()
    }

    /// What determines the graphs of one of its engines beside how they are written.
    pub fn sizes(&self, engine: &Engine) -> Sizes<'_> {
        Sizes {
            spec: &self.model,
            shape: self.shape().with_batch(engine.batch),
            seq_len: engine.seq_len,
            precision: &self.precision,
        }
    }

    /// What determines the graph of one of its engines for `target`.
    pub fn graph(&self, engine: &Engine, target: Target) -> GraphOptions<'_> {
        GraphOptions {
            sizes: self.sizes(engine),
            target,
            fallback: self.fallback,
            opset: self.opset,
            ir_version: self.ir_version,
        }
    }

    /// Targets that it has graphs for, ascending.
    pub fn targets(&self) -> Vec<Target> {
        self.fallback.targets(&self.shape(), &self.precision)
    }

    /// Static lengths of engines, each once, ascending.
    pub fn lengths(&self) -> Vec<usize> {
        let mut lengths: Vec<_> = self.engines.iter().map(|engine| engine.seq_len).collect();
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }

    /// [`lengths`](Self::lengths) up to `longest`, all of them for `None`.
    ///
    /// # Errors
    /// `longest` is none of them: what was expected and found.
    pub fn lengths_up_to(&self, longest: Option<usize>) -> Result<Vec<usize>, String> {
        let mut lengths = self.lengths();
        if let Some(longest) = longest {
            if !lengths.contains(&longest) {
                return Err(format!(
                    "expected one of the package's lengths, {lengths:?}, found {longest}"
                ));
            }
            lengths.retain(|&length| length <= longest);
        }
        Ok(lengths)
    }

    /// What the package fixes besides the model.
    pub fn shape(&self) -> PackageShape {
        PackageShape {
            batch: self.batch,
            max_seq_len: self.max_seq_len,
            dtype: self.dtype,
            cache_dtype: self.cache_dtype.unwrap_or(self.dtype),
            logits: self.logits,
        }
    }

    /// The types in words: the cache's and the weights' where they have their own.
    pub fn types(&self) -> String {
        let types = self.shape().types();
        match self.precision.is_plain() {
            true => types,
            false => format!("{types}, {}", self.precision),
        }
    }

    /// Whether weights may differ from the checkpoint's by rounding.
    pub fn rounds_weights(&self) -> bool {
        self.dtype != ElementType::F32 || self.precision.quantization.is_some()
    }

    /// Reads `manifest.json` and checks it against itself and this code: format, spec, every
    /// engine's tensors and the cache rows have to be what `graphs` derives from the sizes, and
    /// every file name is a bare name.
    ///
    /// # Errors
    /// All contradictions at once.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestErrors> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
            format_version: u32,
        }
        let one = |message: String| ManifestErrors(vec![message]);
        let head: Head = serde_json::from_slice(json)
            .map_err(|error| one(format!("not a ratplus manifest: {error}")))?;
        if head.format != FORMAT || head.format_version != FORMAT_VERSION {
            return Err(one(format!(
                "expected format `{FORMAT}` version {FORMAT_VERSION}, found `{}` version {}; export again \
                 with this ratplus",
                head.format, head.format_version
            )));
        }
        let manifest: Self = serde_json::from_slice(json)
            .map_err(|error| one(format!("not a ratplus manifest: {error}")))?;
        manifest.check()?;
        if manifest.to_json() != json {
            return Err(one(
                "its checksum is not that of its content: it was changed after it was \
                            written; export again"
                    .into(),
            ));
        }
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestErrors> {
        let mut errors = Vec::new();
        if let Err(spec) = self.model.validate() {
            return Err(ManifestErrors(spec.0));
        }
        for (field, value, max) in [
            ("batch", self.batch, MAX_BATCH),
            ("max_seq_len", self.max_seq_len, MAX_SEQ_LEN),
        ] {
            if value == 0 || value > max {
                errors.push(format!("{field}: expected 1 to {max}, found {value}"));
            }
        }
        let types = [
            ("dtype", Some(self.dtype)),
            ("cache_dtype", self.cache_dtype),
        ];
        for (field, dtype) in types {
            if let Some(dtype) = dtype.filter(|dtype| !ElementType::ACTIVATIONS.contains(dtype)) {
                errors.push(format!("{field}: expected f32, f16 or bf16, found {dtype}"));
            }
        }
        if let Err(found) = self.precision.validate(self.model.num_layers) {
            let found = found.into_iter();
            errors.extend(found.map(|(field, error)| format!("precision.{field}: {error}")));
        }
        let layouts = (self.fallback.integer_layout(), self.precision.layout());
        if let (expected, Some(found)) = layouts
            && expected != found
        {
            errors.push(format!(
                "precision.layout: expected {expected:?} for `fallback` {}, found {found:?}",
                self.fallback
            ));
        }
        none_wrong(errors).map_err(ManifestErrors)?;
        none_wrong(crate::limits::manifest(self)).map_err(ManifestErrors)?;
        let (shape, mut errors) = (self.shape(), Vec::new());
        let lengths: Vec<_> = self.engines.iter().map(|engine| engine.seq_len).collect();
        for engine in &self.engines {
            if engine.seq_len == 0 || engine.seq_len > self.max_seq_len {
                errors.push(format!(
                    "engine {}: expected a length of 1 to {}, found {}",
                    engine.name, self.max_seq_len, engine.seq_len
                ));
            }
        }
        if lengths.first() != Some(&1) || !lengths.is_sorted() {
            errors.push(format!(
                "engines: expected lengths 1, then ascending, found {lengths:?}"
            ));
        }
        none_wrong(errors).map_err(ManifestErrors)?;
        let (mut errors, lengths) = (Vec::new(), self.lengths());
        let engines = shape.engines(&self.model, &self.targets(), &lengths);
        if engines.len() != self.engines.len() {
            errors.push(format!(
                "engines: expected {} for lengths {lengths:?}, found {}",
                engines.len(),
                self.engines.len()
            ));
        }
        for (expected, found) in engines.iter().zip(&self.engines) {
            let Engine { name, .. } = expected;
            if (name, expected.batch) != (&found.name, found.batch) {
                errors.push(format!(
                    "engine {}: expected {name} of batch {}, found batch {}",
                    found.name, expected.batch, found.batch
                ));
            } else if expected.files != found.files {
                errors.push(format!(
                    "engine {name}: expected the files {:?} for `fallback` {}, found {:?}",
                    expected.files, self.fallback, found.files
                ));
            } else if expected != found {
                errors.push(format!(
                    "engine {name}: its tensors contradict the model's sizes"
                ));
            }
        }
        if self.cache != self.expected_cache() {
            errors.push("cache: the rows contradict the patterns".into());
        }
        let bytes = self.expected_state_bytes();
        if bytes != self.state_bytes {
            errors.push(format!(
                "state_bytes: expected {bytes}, found {}",
                self.state_bytes
            ));
        }
        for name in self.files.keys() {
            if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
                errors.push(format!("files: `{name}` is not a bare file name"));
            }
        }
        let graphs = self.engines.iter().flat_map(|engine| engine.files.values());
        let needed = graphs.map(String::as_str);
        for name in needed
            .chain([WEIGHTS_FILE])
            .chain(self.tokenizer.as_deref())
            .chain(self.chat_template.as_deref())
        {
            if !self.files.contains_key(name) {
                errors.push(format!("files: `{name}` is missing"));
            }
        }
        if self.tokenizer.is_none() && !self.special_tokens.is_none() {
            errors.push(format!(
                "special_tokens: expected none without a tokenizer, found {}",
                self.special_tokens
            ));
        }
        if let (None, Some(file)) = (&self.tokenizer, &self.chat_template) {
            errors.push(format!(
                "chat_template: expected none without a tokenizer, found `{file}`"
            ));
        }
        for (backend, plans) in &self.plans {
            errors.extend(plans.problems(backend, &self.engines));
        }
        none_wrong(errors).map_err(ManifestErrors)
    }

    /// The bytes of `manifest.json`: the manifest and a checksum over itself, so that one changed
    /// bit anywhere in a package is found.
    pub fn to_json(&self) -> Vec<u8> {
        let write = |blake3: String| {
            let sealed = Sealed {
                manifest: self,
                blake3,
            };
            let mut json = serde_json::to_vec_pretty(&sealed).unwrap_or_default();
            json.push(b'\n');
            json
        };
        write(FileInfo::of(&write(String::new())).blake3)
    }
}

/// A manifest as it is stored.
#[derive(Serialize)]
struct Sealed<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    /// Of this file with this field empty.
    blake3: String,
}
