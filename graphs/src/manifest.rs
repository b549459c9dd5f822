//! `manifest.json`: what the exporter writes and the runtime reads.

use crate::cache::CacheLayout;
use crate::ops::{ElementType, TensorType};
use crate::plans::PlanSet;
use crate::precision::Precision;
use crate::spec::ModelSpec;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Name of the manifest in a package.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the external data file that holds every weight.
pub const WEIGHTS_FILE: &str = "weights.bin";
/// Name of the tokenizer in a package.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Longest `tokenizer.json` that is read.
pub const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
/// Value of [`Manifest::format`].
pub const FORMAT: &str = "ratplus-package";
/// Version of the package format this code reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// Largest batch of a package.
pub const MAX_BATCH: usize = 1 << 16;
/// Longest sequence of a package.
pub const MAX_SEQ_LEN: usize = 1 << 28;

/// How custom nodes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fallback {
    /// Custom nodes, and a model-local function of standard operators for each operator.
    Function,
    /// Standard operators only.
    Inline,
    /// Bare custom nodes.
    None,
    /// Bare custom nodes in [`TRT_PLUGINS_DOMAIN`](crate::ops::TRT_PLUGINS_DOMAIN), with the types
    /// of their outputs, for ONNX Runtime's TensorRT provider.
    TrtPlugins,
}

impl std::fmt::Display for Fallback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Function => "function",
            Self::Inline => "inline",
            Self::None => "none",
            Self::TrtPlugins => "trt-plugins",
        })
    }
}

/// Which positions of a chunk the graph returns logits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogitsMode {
    /// `[B, V]`, at each sequence's last valid token.
    Last,
    /// `[B, L, V]`.
    All,
}

/// Which special tokens are added to a text before it is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpecialTokens {
    /// None: the released models saw none in training or evaluation.
    #[default]
    None,
    /// Those that the tokenizer's post-processor adds, `<s>` at the start for example.
    Tokenizer,
}

impl SpecialTokens {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

impl std::fmt::Display for SpecialTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Tokenizer => "tokenizer",
        })
    }
}

/// A named input or output of an engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    /// Name in the graph.
    pub name: String,
    /// Type and shape.
    #[serde(flatten)]
    pub tensor: TensorType,
}

impl TensorInfo {
    /// A tensor of this name and type.
    pub fn new(name: impl Into<String>, dtype: ElementType, shape: impl Into<Vec<usize>>) -> Self {
        Self {
            name: name.into(),
            tensor: TensorType::new(dtype, shape),
        }
    }
}

/// One ONNX file: the model for chunks of a static length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// File in the package.
    pub file: String,
    /// Tokens per sequence and run; 1 is decode.
    pub seq_len: usize,
    /// Graph inputs in order.
    pub inputs: Vec<TensorInfo>,
    /// Graph outputs in order.
    pub outputs: Vec<TensorInfo>,
}

/// Size and checksum of a file in the package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
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
    /// Opset of the default domain.
    pub opset: i64,
    /// ONNX IR version.
    pub ir_version: i64,
    /// How custom nodes are written.
    pub fallback: Fallback,
    /// Shape of the logits.
    pub logits: LogitsMode,
    /// Every static shape, decode first, then ascending.
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
    /// Every other file that `export` wrote.
    pub files: BTreeMap<String, FileInfo>,
    /// Engine plans that were built from it, by backend.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plans: BTreeMap<String, PlanSet>,
}

/// File name of the engine for chunks of `seq_len` tokens.
pub fn engine_file(seq_len: usize) -> String {
    if seq_len == 1 {
        "decode.onnx".into()
    } else {
        format!("prefill_{seq_len}.onnx")
    }
}

/// Graph input `input_ids`, `[B, L]` i64.
pub const INPUT_IDS: &str = "input_ids";
/// Graph input `past_length`, `[B]` i64.
pub const PAST_LENGTH: &str = "past_length";
/// Graph input `seq_length`, `[B]` i64.
pub const SEQ_LENGTH: &str = "seq_length";
/// Graph output `logits`, f32.
pub const LOGITS: &str = "logits";

/// One kind of tensor that crosses a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateKind {
    /// Keys after rotary embedding, `[B, R, d_head]`.
    Key,
    /// Values, `[B, R, d_head]`.
    Value,
    /// Last gated key before rotary embedding, `[B, d_model]` f32.
    RecurrentKey,
    /// Last gated value, `[B, d_model]` f32.
    RecurrentValue,
}

impl StateKind {
    /// All kinds, in the order graphs list them; the recurrent ones only where there is a recurrence.
    pub fn all(recurrence: bool) -> &'static [Self] {
        const ALL: [StateKind; 4] = [
            StateKind::Key,
            StateKind::Value,
            StateKind::RecurrentKey,
            StateKind::RecurrentValue,
        ];
        if recurrence { &ALL } else { &ALL[..2] }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Value => "value",
            Self::RecurrentKey => "recurrent_key",
            Self::RecurrentValue => "recurrent_value",
        }
    }

    /// Name of the graph input.
    pub fn past_name(self, layer: usize) -> String {
        format!("past_key_values.{layer}.{}", self.suffix())
    }

    /// Name of the graph output.
    pub fn present_name(self, layer: usize) -> String {
        format!("present.{layer}.{}", self.suffix())
    }

    /// Type of the tensor for one layer.
    pub fn tensor(self, spec: &ModelSpec, layer: usize, shape: &PackageShape) -> TensorType {
        match self {
            Self::Key | Self::Value => {
                let rows = spec.cache_layout(layer, shape.max_seq_len).rows();
                TensorType::new(shape.cache_dtype, [shape.batch, rows, spec.d_head])
            }
            Self::RecurrentKey | Self::RecurrentValue => {
                TensorType::new(ElementType::F32, [shape.batch, spec.d_model])
            }
        }
    }
}

/// What a package fixes besides the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackageShape {
    /// `B`.
    pub batch: usize,
    /// `M`.
    pub max_seq_len: usize,
    /// Type of weights and activations.
    pub dtype: ElementType,
    /// Type of the KV cache.
    pub cache_dtype: ElementType,
    /// Shape of the logits.
    pub logits: LogitsMode,
}

impl PackageShape {
    /// [`Manifest::cache_dtype`].
    pub fn own_cache_dtype(&self) -> Option<ElementType> {
        (self.cache_dtype != self.dtype).then_some(self.cache_dtype)
    }

    /// The types in words, the cache's where it has its own.
    pub fn types(&self) -> String {
        match self.own_cache_dtype() {
            None => self.dtype.to_string(),
            Some(cache) => format!("{}, cache {cache}", self.dtype),
        }
    }

    /// Whether every value has the range and precision of f32.
    pub fn is_f32(&self) -> bool {
        [self.dtype, self.cache_dtype] == [ElementType::F32; 2]
    }
}

/// Every state tensor in graph order: (past name, present name, type).
pub fn state_tensors(spec: &ModelSpec, shape: &PackageShape) -> Vec<(String, String, TensorType)> {
    (0..spec.num_layers)
        .flat_map(|layer| {
            StateKind::all(spec.recurrence).iter().map(move |kind| {
                (
                    kind.past_name(layer),
                    kind.present_name(layer),
                    kind.tensor(spec, layer, shape),
                )
            })
        })
        .collect()
}

/// The engine's description for chunks of `seq_len` tokens.
pub fn engine(spec: &ModelSpec, shape: &PackageShape, seq_len: usize) -> Engine {
    let batch = shape.batch;
    let mut inputs = vec![
        TensorInfo::new(INPUT_IDS, ElementType::I64, [batch, seq_len]),
        TensorInfo::new(PAST_LENGTH, ElementType::I64, [batch]),
        TensorInfo::new(SEQ_LENGTH, ElementType::I64, [batch]),
    ];
    let logits = match shape.logits {
        LogitsMode::Last => vec![batch, spec.vocab_size],
        LogitsMode::All => vec![batch, seq_len, spec.vocab_size],
    };
    let mut outputs = vec![TensorInfo::new(LOGITS, ElementType::F32, logits)];
    for (past, present, tensor) in state_tensors(spec, shape) {
        inputs.push(TensorInfo {
            name: past,
            tensor: tensor.clone(),
        });
        outputs.push(TensorInfo {
            name: present,
            tensor,
        });
    }
    Engine {
        file: engine_file(seq_len),
        seq_len,
        inputs,
        outputs,
    }
}

/// Everything wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n  "))]
pub struct ManifestErrors(pub Vec<String>);

impl Manifest {
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

    /// The engine for chunks of `seq_len` tokens.
    pub fn engine(&self, seq_len: usize) -> Option<&Engine> {
        self.engines.iter().find(|engine| engine.seq_len == seq_len)
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
        if !errors.is_empty() {
            return Err(ManifestErrors(errors));
        }
        let sizes = crate::limits::manifest(self);
        if !sizes.is_empty() {
            return Err(ManifestErrors(sizes));
        }
        let shape = self.shape();
        for found in &self.engines {
            if found.seq_len == 0 || found.seq_len > self.max_seq_len {
                errors.push(format!(
                    "{}: expected a length of 1 to {}, found {}",
                    found.file, self.max_seq_len, found.seq_len
                ));
                continue;
            }
            if *found != engine(&self.model, &shape, found.seq_len) {
                errors.push(format!(
                    "{}: its tensors contradict the model's sizes",
                    found.file
                ));
            }
        }
        let lengths: Vec<_> = self.engines.iter().map(|engine| engine.seq_len).collect();
        if lengths.first() != Some(&1) || !lengths.is_sorted_by(|a, b| a < b) {
            errors.push(format!(
                "engines: expected lengths 1, then ascending, found {lengths:?}"
            ));
        }
        let cache: Vec<_> = (0..self.model.num_layers)
            .map(|layer| LayerCache::from(&self.model.cache_layout(layer, self.max_seq_len)))
            .collect();
        if cache != self.cache {
            errors.push("cache: the rows contradict the patterns".into());
        }
        let bytes: usize = state_tensors(&self.model, &shape)
            .iter()
            .map(|(_, _, tensor)| tensor.bytes())
            .sum();
        if bytes as u64 != self.state_bytes {
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
        let needed = self.engines.iter().map(|engine| engine.file.as_str());
        for name in needed
            .chain([WEIGHTS_FILE])
            .chain(self.tokenizer.as_deref())
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
        for (backend, plans) in &self.plans {
            errors.extend(plans.problems(backend, &self.engines));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(ManifestErrors(errors))
        }
    }

    /// The bytes of `manifest.json`: the manifest and a checksum over itself, so that one changed
    /// bit anywhere in a package is found.
    pub fn to_json(&self) -> Vec<u8> {
        let write = |sha256: String| {
            let sealed = Sealed {
                manifest: self,
                sha256,
            };
            let mut json = serde_json::to_vec_pretty(&sealed).unwrap_or_default();
            json.push(b'\n');
            json
        };
        let digest = Sha256::digest(write(String::new()));
        write(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// A manifest as it is stored.
#[derive(Serialize)]
struct Sealed<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    /// Of this file with this field empty.
    sha256: String,
}
