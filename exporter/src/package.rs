//! Writes a package: beside the target, whole, then renamed into place.

use crate::ExportError;
use crate::checkpoint::{Checkpoint, ReadOptions, Reader};
use crate::official::Source;
use crate::plan::ExportPlan;
use crate::publish::{Staging, clear_left_over};
use crate::quantize::QuantizedWeight;
use crate::weights_file::WeightsFile;
use ratplus_graphs::model::Weight;
use ratplus_graphs::none_wrong;
use ratplus_graphs::onnx::OPSET;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{
    self, Fallback, LogitsMode, MAX_CHAT_TEMPLATE_BYTES, MAX_TOKENIZER_BYTES, Manifest,
    PackageShape, SpecialTokens,
};
use ratplus_graphs::precision::{IntegerLayout, Precision};
use ratplus_graphs::spec::ModelSpec;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Longest sequence where nothing is said: the released models' in training.
pub const DEFAULT_MAX_SEQ_LEN: usize = 4096;

/// Static lengths of prefill chunks where nothing is said.
const DEFAULT_PREFILL_LENGTHS: [usize; 2] = [64, 512];

/// What to write.
///
/// ```
/// use ratplus_exporter::PackageOptions;
/// use ratplus_graphs::{ElementType, ModelSpec};
/// let mut options = PackageOptions::new(ModelSpec::default(), 256);
/// assert_eq!(options.prefill_lengths, [64]);
/// options.shape.cache_dtype = ElementType::BF16;
/// // An empty specification is no model: everything that is wrong is said.
/// assert!(options.validate().is_err());
/// ```
#[derive(Clone, Debug)]
pub struct PackageOptions {
    /// Sizes and patterns; patterns are normalized on the way.
    pub spec: ModelSpec,
    /// Batch, longest sequence, type, logits.
    pub shape: PackageShape,
    /// Static lengths of prefill chunks. Decode (1) is always written.
    pub prefill_lengths: Vec<usize>,
    /// What is stored otherwise than in the package's type.
    pub precision: Precision,
    /// How custom nodes are written.
    pub fallback: Fallback,
    /// Opset of the default domain.
    pub opset: i64,
    /// Copied into the package where given.
    pub tokenizer: Option<PathBuf>,
    /// Which special tokens are added to a text.
    pub special_tokens: SpecialTokens,
    /// A Jinja template that writes conversations; what reads it checks that it is one.
    pub chat_template: Option<String>,
}

/// Streams the bytes of weights.
pub trait WeightSource {
    /// Hands `weight`, converted to `dtype`, little-endian and row-major, to `sink` in pieces of
    /// bounded size.
    ///
    /// # Errors
    /// The weight cannot be read or converted; or what `sink` returned.
    fn stream(
        &mut self,
        weight: Weight,
        dtype: ElementType,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError>;
}

/// The weights of an opened checkpoint.
pub struct CheckpointWeights<'a> {
    reader: Reader<'a>,
    sources: &'a [Source],
    buffer: Vec<u8>,
}

/// Bytes read at a time; far more than one row of any released model.
const READ_BYTES: usize = 4 << 20;

impl<'a> CheckpointWeights<'a> {
    /// Weights found by [`crate::resolve::resolve`].
    pub fn new(checkpoint: &'a Checkpoint, sources: &'a [Source], options: ReadOptions) -> Self {
        let longest_row = sources
            .iter()
            .map(|source| 4 * source.row_len())
            .max()
            .unwrap_or(0);
        let buffer = vec![0; READ_BYTES.max(longest_row)];
        Self {
            reader: checkpoint.reader(options),
            sources,
            buffer,
        }
    }
}

impl WeightSource for CheckpointWeights<'_> {
    fn stream(
        &mut self,
        weight: Weight,
        dtype: ElementType,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let source = self.sources.iter().find(|source| source.weight == weight);
        let Some(source) = source else {
            let problem = "the checkpoint has no source for it".into();
            return Err(ExportError::Weight {
                name: weight.name(),
                problem,
            });
        };
        source.stream(&mut self.reader, dtype, &mut self.buffer, sink)
    }
}

/// How far an export has come.
#[derive(Clone, Debug)]
pub struct Progress<'a> {
    /// What is being written.
    pub what: &'a str,
    /// Bytes of the weights file written.
    pub bytes: u64,
    /// Bytes of the weights file in all.
    pub total: u64,
}

impl PackageOptions {
    /// One sequence of at most `max_seq_len` tokens at a time, f32, function bodies, logits of each
    /// chunk's last token, prefill lengths of 64 and 512 where they fit, no tokenizer.
    pub fn new(spec: ModelSpec, max_seq_len: usize) -> Self {
        let mut prefill_lengths = DEFAULT_PREFILL_LENGTHS.to_vec();
        prefill_lengths.retain(|&length| length <= max_seq_len);
        Self {
            spec,
            shape: PackageShape {
                batch: 1,
                max_seq_len,
                dtype: ElementType::F32,
                cache_dtype: ElementType::F32,
                logits: LogitsMode::Last,
            },
            prefill_lengths,
            precision: Precision::default(),
            fallback: Fallback::Function,
            opset: OPSET,
            tokenizer: None,
            special_tokens: SpecialTokens::None,
            chat_template: None,
        }
    }

    /// Static lengths in manifest order: 1, then ascending.
    pub fn lengths(&self) -> Vec<usize> {
        let mut lengths = self.prefill_lengths.clone();
        lengths.push(1);
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }

    /// Checks every option before anything is written.
    ///
    /// # Errors
    /// All problems at once, each naming its field.
    pub fn validate(&self) -> Result<(), ExportError> {
        let mut errors = Vec::new();
        if let Err(spec) = self.spec.validate() {
            errors.extend(spec.0);
        }
        let PackageShape {
            batch,
            max_seq_len,
            dtype,
            cache_dtype,
            ..
        } = self.shape;
        for (field, value, max) in [
            ("batch", batch, package::MAX_BATCH),
            ("max_seq_len", max_seq_len, package::MAX_SEQ_LEN),
        ] {
            if value == 0 || value > max {
                errors.push(format!("`{field}`: expected 1 to {max}, found {value}"));
            }
        }
        for (field, dtype) in [("dtype", dtype), ("cache_dtype", cache_dtype)] {
            if !ElementType::ACTIVATIONS.contains(&dtype) {
                errors.push(format!(
                    "`{field}`: expected f32, f16 or bf16, found {dtype}"
                ));
            }
        }
        if self.fallback == Fallback::TrtPlugins && cache_dtype != dtype {
            errors.push(format!(
                "`cache_dtype`: with `fallback: trt-plugins` expected {dtype}, the type of `dtype`, \
                 found {cache_dtype}: plugins have no other cache"
            ));
        }
        if let Err(precision) = self.precision.validate(self.spec.num_layers) {
            let named = |(field, error)| match field {
                "bits" => format!("`quantization`: {error}"),
                field => format!("`{field}`: {error}"),
            };
            errors.extend(precision.into_iter().map(named));
        }
        if let Some(quantization) = self.precision.quantization {
            let expected = self.fallback.integer_layout();
            if quantization.layout != expected {
                errors.push(format!(
                    "`quantization`: expected the layout {expected:?} for `fallback: {}`, found {:?}",
                    self.fallback, quantization.layout
                ));
            }
            let widths = [self.spec.d_model, self.spec.d_ffn];
            let ragged = widths
                .iter()
                .find(|&width| width % quantization.block_size.max(1) != 0);
            if let (IntegerLayout::Dequantized, Some(width)) = (expected, ragged) {
                errors.push(format!(
                    "`block_size`: with `fallback: {}` expected one that divides `d_model` and `d_ffn`, which \
                     are {widths:?}, found {}: TensorRT takes whole blocks alone, and {width} ends within one",
                    self.fallback, quantization.block_size
                ));
            }
        }
        for &length in &self.prefill_lengths {
            if length == 0 || length > max_seq_len {
                errors.push(format!(
                    "`prefill_lengths`: expected 1 to `max_seq_len: {max_seq_len}`, found {length}"
                ));
            }
        }
        if !(18..=25).contains(&self.opset) {
            errors.push(format!("`opset`: expected 18 to 25, found {}", self.opset));
        }
        if let Some(path) = &self.tokenizer
            && let Err(error) = check_tokenizer(path)
        {
            errors.push(format!("`tokenizer: {}`: {error}", path.display()));
        }
        if self.tokenizer.is_none() && self.special_tokens != SpecialTokens::None {
            errors.push(format!(
                "`special_tokens`: expected none without `tokenizer`, found {}",
                self.special_tokens
            ));
        }
        if let Some(template) = &self.chat_template {
            if self.tokenizer.is_none() {
                errors.push("`chat_template`: expected none without `tokenizer`, found one".into());
            }
            if template.len() as u64 > MAX_CHAT_TEMPLATE_BYTES {
                errors.push(format!(
                    "`chat_template`: expected at most {MAX_CHAT_TEMPLATE_BYTES} bytes, found {}",
                    template.len()
                ));
            }
        }
        none_wrong(errors).map_err(ExportError::Options)
    }

    /// What it will be, without files.
    pub(crate) fn manifest(&self) -> Manifest {
        let spec = self.spec.normalized(self.shape.max_seq_len);
        let (tokenizer, chat_template) = (self.tokenizer.as_ref(), self.chat_template.as_ref());
        Manifest {
            tokenizer: tokenizer.map(|_| package::TOKENIZER_FILE.into()),
            special_tokens: self.special_tokens,
            chat_template: chat_template.map(|_| package::CHAT_TEMPLATE_FILE.into()),
            ..Manifest::new(
                spec,
                self.shape,
                self.precision.clone(),
                self.fallback,
                self.opset,
                &self.lengths(),
            )
        }
    }
}

fn check_tokenizer(path: &Path) -> Result<(), String> {
    let bytes = std::fs::metadata(path)
        .map_err(|error| error.to_string())?
        .len();
    if bytes > MAX_TOKENIZER_BYTES {
        return Err(format!(
            "expected at most {MAX_TOKENIZER_BYTES} bytes, found {bytes}"
        ));
    }
    let json = std::fs::read(path).map_err(|error| error.to_string())?;
    let value: serde_json::Value = serde_json::from_slice(&json)
        .map_err(|error| format!("expected a Hugging Face tokenizer.json: {error}"))?;
    match value.get("model") {
        Some(_) => Ok(()),
        None => Err("expected a Hugging Face tokenizer.json with a `model`, found none".into()),
    }
}

/// A package that was written.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Written {
    /// What it is.
    pub manifest: Manifest,
    /// What every quantised weight lost, in the order of the weights file.
    pub quantized: Vec<QuantizedWeight>,
}

/// Writes the package to `target`, replacing a package that is there. Until everything is
/// written and synced, `target` stays as it was. What exports to it that were cut off have left is
/// cleared first; see [`ratplus_graphs::staging`].
///
/// # Errors
/// Options are wrong, `target` holds something that is not a package or has too little room, a weight
/// cannot be read, or a file cannot be written. Nothing is left behind, but where the error says so.
pub fn write(
    target: &Path,
    options: &PackageOptions,
    source: &mut dyn WeightSource,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Written, ExportError> {
    // First: what it removes is room.
    clear_left_over(target)?;
    let plan = ExportPlan::new(target, options)?;
    plan.check_room(target)?;
    let staging = Staging::beside(target)?;
    let mut files = BTreeMap::new();
    let (contents, total) = plan.contents();
    let path = staging.path(package::WEIGHTS_FILE);
    let mut weights = WeightsFile::create(path, &plan.manifest, total, progress)?;
    for stored in &contents {
        weights.write(stored, source)?;
    }
    let (file, quantized) = weights.finish()?;
    files.insert(package::WEIGHTS_FILE.to_owned(), file);
    for (file, graph) in &plan.graphs {
        files.insert(file.clone(), staging.write(file, graph)?);
    }
    if let Some(path) = &options.tokenizer {
        let bytes = std::fs::read(path).map_err(|error| ExportError::io("read", path, error))?;
        let file = package::TOKENIZER_FILE;
        files.insert(file.into(), staging.write(file, &bytes)?);
    }
    if let Some(template) = &options.chat_template {
        let file = package::CHAT_TEMPLATE_FILE;
        files.insert(file.into(), staging.write(file, template.as_bytes())?);
    }
    let manifest = Manifest {
        files,
        ..plan.manifest
    };
    staging.write(package::MANIFEST_FILE, &manifest.to_json())?;
    staging.publish()?;
    Ok(Written {
        manifest,
        quantized,
    })
}
