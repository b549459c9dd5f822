//! Writes a package: beside the target, whole, then renamed into place.

use crate::ExportError;
use crate::checkpoint::{Checkpoint, ReadOptions, Reader};
use crate::official::Source;
use crate::plan::ExportPlan;
use crate::publish::{HashingWriter, Staging, clear_left_over};
use crate::quantize::{NotFinite, QuantizedWeight, Quantizer};
use ratplus_graphs::manifest::{
    self, Fallback, FileInfo, LogitsMode, MAX_TOKENIZER_BYTES, Manifest, PackageShape,
    SpecialTokens,
};
use ratplus_graphs::model::{self, Content, StoredContent, StoredTensor, Weight};
use ratplus_graphs::onnx::OPSET;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::precision::{MATMUL_NBITS, MICROSOFT_DOMAIN, Precision, Stored};
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
    /// All problems at once, each naming its flag.
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
        for (flag, value, max) in [
            ("--batch", batch, manifest::MAX_BATCH),
            ("--max-seq-len", max_seq_len, manifest::MAX_SEQ_LEN),
        ] {
            if value == 0 || value > max {
                errors.push(format!("{flag}: expected 1 to {max}, found {value}"));
            }
        }
        for (flag, dtype) in [("--dtype", dtype), ("--cache-dtype", cache_dtype)] {
            if !ElementType::ACTIVATIONS.contains(&dtype) {
                errors.push(format!("{flag}: expected f32, f16 or bf16, found {dtype}"));
            }
        }
        if self.fallback == Fallback::TrtPlugins && cache_dtype != dtype {
            errors.push(format!(
                "--cache-dtype: with --fallback trt-plugins expected {dtype}, the type of --dtype, \
                 found {cache_dtype}: plugins have no other cache"
            ));
        }
        if let Err(precision) = self.precision.validate(self.spec.num_layers) {
            let flag = |field: &str| match field {
                "bits" => "--quantize".to_owned(),
                field => format!("--{}", field.replace('_', "-")),
            };
            let named = |(field, error)| format!("{}: {error}", flag(field));
            errors.extend(precision.into_iter().map(named));
        }
        if self.precision.quantization.is_some()
            && matches!(self.fallback, Fallback::Inline | Fallback::TrtPlugins)
        {
            errors.push(format!(
                "--quantize: expected --fallback function or none, found {}: its products are nodes of \
                 {MICROSOFT_DOMAIN}.{MATMUL_NBITS}, which ONNX Runtime alone has",
                self.fallback
            ));
        }
        for &length in &self.prefill_lengths {
            if length == 0 || length > max_seq_len {
                errors.push(format!(
                    "--prefill-lengths: expected 1 to --max-seq-len {max_seq_len}, found {length}"
                ));
            }
        }
        if !(18..=25).contains(&self.opset) {
            errors.push(format!("--opset: expected 18 to 25, found {}", self.opset));
        }
        if let Some(path) = &self.tokenizer
            && let Err(error) = check_tokenizer(path)
        {
            errors.push(format!("--tokenizer {}: {error}", path.display()));
        }
        if self.tokenizer.is_none() && self.special_tokens != SpecialTokens::None {
            errors.push(format!(
                "--special-tokens: expected none without --tokenizer, found {}",
                self.special_tokens
            ));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(ExportError::Options(errors))
        }
    }

    /// What it will be, without files.
    pub(crate) fn manifest(&self) -> Manifest {
        let spec = self.spec.normalized(self.shape.max_seq_len);
        let tokenizer = self.tokenizer.as_ref();
        Manifest {
            tokenizer: tokenizer.map(|_| manifest::TOKENIZER_FILE.into()),
            special_tokens: self.special_tokens,
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
    let mut weights = WeightsFile {
        writer: HashingWriter::create(staging.path(manifest::WEIGHTS_FILE))?,
        manifest: &plan.manifest,
        total,
        progress,
        quantized: Vec::new(),
    };
    for stored in &contents {
        weights.write(stored, source)?;
    }
    let quantized = std::mem::take(&mut weights.quantized);
    files.insert(manifest::WEIGHTS_FILE.to_owned(), weights.finish()?);
    for (file, graph) in &plan.graphs {
        files.insert(file.clone(), staging.write(file, graph)?);
    }
    if let Some(path) = &options.tokenizer {
        let bytes = std::fs::read(path).map_err(|error| ExportError::io("read", path, error))?;
        let file = manifest::TOKENIZER_FILE;
        files.insert(file.into(), staging.write(file, &bytes)?);
    }
    let manifest = Manifest {
        files,
        ..plan.manifest
    };
    staging.write(manifest::MANIFEST_FILE, &manifest.to_json())?;
    staging.publish()?;
    Ok(Written {
        manifest,
        quantized,
    })
}

/// The weights file, tensor by tensor.
struct WeightsFile<'a> {
    writer: HashingWriter,
    manifest: &'a Manifest,
    total: u64,
    progress: &'a mut dyn FnMut(Progress<'_>),
    quantized: Vec<QuantizedWeight>,
}

impl WeightsFile<'_> {
    /// Writes what `stored` says to the tensors that it names.
    fn write(
        &mut self,
        stored: &StoredContent,
        source: &mut dyn WeightSource,
    ) -> Result<(), ExportError> {
        let manifest = self.manifest;
        let spec = &manifest.model;
        check_pair(stored, manifest)?;
        match (stored.content, &stored.tensors[..]) {
            (Content::Weight(weight, Stored::Blocks(quantization)), tensors) => {
                if let [outputs, inputs] = weight.shape(spec)[..] {
                    let quantizer = Quantizer::new(quantization, [outputs, inputs]);
                    self.blocks(weight, quantizer, tensors, source)?;
                }
                Ok(())
            }
            (Content::Weight(weight, Stored::As(dtype)), [tensor]) => {
                self.tensor(tensor, &mut |write| source.stream(weight, dtype, write))
            }
            (Content::RotaryTable(table), [tensor]) => self.tensor(tensor, &mut |write| {
                for position in 0..manifest.max_seq_len {
                    let row = model::rotary_row(spec, table, position);
                    write(&row.flat_map(f32::to_le_bytes).collect::<Vec<_>>())?;
                }
                Ok(())
            }),
            // Refused above.
            _ => Ok(()),
        }
    }

    /// A weight as block-wise integers.
    fn blocks(
        &mut self,
        weight: Weight,
        mut quantizer: Quantizer,
        tensors: &[StoredTensor],
        source: &mut dyn WeightSource,
    ) -> Result<(), ExportError> {
        let not_finite = |NotFinite { index }| ExportError::Weight {
            name: weight.name(),
            problem: format!(
                "expected finite values to quantise, found none at {index:?}; keep its layer in f32 \
                 with --keep-f32"
            ),
        };
        let Some((blocks, others)) = tensors.split_first() else {
            return Ok(());
        };
        self.tensor(blocks, &mut |write| {
            source.stream(weight, ElementType::F32, &mut |values| {
                let blocks = quantizer.push(values).map_err(not_finite)?;
                write(&blocks)
            })
        })?;
        let (mut rest, lost) = quantizer.finish(weight.name());
        for tensor in others {
            let bytes = rest.remove(&tensor.name).unwrap_or_default();
            self.tensor(tensor, &mut |write| write(&bytes))?;
        }
        self.quantized.push(lost);
        Ok(())
    }

    /// The bytes of `stored`, which `fill` hands to its argument.
    fn tensor(
        &mut self,
        stored: &StoredTensor,
        fill: &mut dyn FnMut(&mut Sink<'_>) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let StoredTensor {
            name,
            tensor,
            offset,
        } = stored;
        let (writer, total) = (&mut self.writer, self.total);
        writer.pad_to(*offset)?;
        if writer.position() != *offset {
            return Err(ExportError::Weight {
                name: name.clone(),
                problem: format!(
                    "expected its first byte at {offset} of {}, where {} bytes are written already",
                    manifest::WEIGHTS_FILE,
                    writer.position()
                ),
            });
        }
        let progress = &mut self.progress;
        let mut report = |bytes| {
            progress(Progress {
                what: name,
                bytes,
                total,
            });
        };
        report(*offset);
        fill(&mut |bytes| {
            writer.write(bytes)?;
            report(writer.position());
            Ok(())
        })?;
        let (expected, found) = (tensor.bytes() as u64, writer.position() - offset);
        if expected == found {
            return Ok(());
        }
        Err(ExportError::Weight {
            name: name.clone(),
            problem: format!("expected {expected} bytes, the checkpoint gave {found}"),
        })
    }

    fn finish(self) -> Result<FileInfo, ExportError> {
        if self.writer.position() != self.total {
            return Err(ExportError::Weight {
                name: manifest::WEIGHTS_FILE.into(),
                problem: format!(
                    "expected {} bytes in all, found {}",
                    self.total,
                    self.writer.position()
                ),
            });
        }
        (self.progress)(Progress {
            what: "",
            bytes: self.total,
            total: self.total,
        });
        self.writer.finish()
    }
}

/// Takes bytes of a tensor.
type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), ExportError> + 'a;

/// Whether the tensors are those that hold the content: sizes alone would not tell two weights of one
/// shape apart.
fn check_pair(stored: &StoredContent, manifest: &Manifest) -> Result<(), ExportError> {
    let (name, expected) = match stored.content {
        Content::Weight(weight, _) => {
            let tensors = manifest
                .precision
                .tensors(weight, &manifest.model, manifest.dtype);
            let names = tensors.into_iter().map(|(name, _)| name).collect();
            (weight.name(), names)
        }
        Content::RotaryTable(table) => (table.to_owned(), vec![table.to_owned()]),
    };
    let found = stored.tensors.iter().map(|tensor| tensor.name.clone());
    let found: Vec<_> = found.collect();
    if found == expected {
        return Ok(());
    }
    Err(ExportError::Weight {
        name,
        problem: format!(
            "expected to be written to {}, found {}",
            expected.join(", "),
            found.join(", ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratplus_graphs::manifest::LogitsMode;
    use ratplus_graphs::pattern::Pattern;
    use ratplus_graphs::spec::LayerPatterns;

    /// Bytes that tell every weight from the others.
    struct Named;

    impl WeightSource for Named {
        fn stream(
            &mut self,
            weight: Weight,
            dtype: ElementType,
            sink: &mut dyn FnMut(&[u8]) -> Result<(), ExportError>,
        ) -> Result<(), ExportError> {
            let count: usize = weight.shape(&spec()).iter().product();
            sink(&vec![tag(weight); count * dtype.size()])
        }
    }

    fn tag(weight: Weight) -> u8 {
        let position = Weight::all(&spec())
            .iter()
            .position(|&other| other == weight);
        position.map_or(0, |position| position as u8 + 1)
    }

    fn spec() -> ModelSpec {
        ModelSpec {
            vocab_size: 7,
            d_model: 8,
            num_layers: 2,
            d_head: 4,
            d_ffn: 16,
            patterns: vec![LayerPatterns::Uniform(Pattern::DENSE); 2],
            ..ModelSpec::default()
        }
    }

    /// Writes the contents after `change`; the bytes of the file.
    fn written(
        change: impl FnOnce(&mut Vec<StoredContent>),
    ) -> Result<(Vec<StoredContent>, Vec<u8>), ExportError> {
        let dtype = ElementType::F16;
        let shape = PackageShape {
            batch: 1,
            max_seq_len: 16,
            dtype,
            cache_dtype: dtype,
            logits: LogitsMode::Last,
        };
        let precision = Precision::default();
        let (mut contents, total) = model::stored_contents(&spec(), &shape, &precision);
        let fallback = Fallback::Function;
        let manifest = Manifest::new(spec(), shape, precision, fallback, 18, &[1]);
        change(&mut contents);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        let mut file = WeightsFile {
            writer: HashingWriter::create(path.clone())?,
            manifest: &manifest,
            total,
            progress: &mut |_| (),
            quantized: Vec::new(),
        };
        for stored in &contents {
            file.write(stored, &mut Named)?;
        }
        file.finish()?;
        Ok((contents, std::fs::read(path).unwrap()))
    }

    /// Two norms of one shape: wherever a list has them, neither gets the other's bytes.
    #[test]
    fn equal_sized_weights_cannot_be_swapped() {
        let (contents, bytes) = written(|_| ()).unwrap();
        for stored in &contents {
            let Content::Weight(weight, _) = stored.content else {
                continue;
            };
            let StoredTensor { name, offset, .. } = &stored.tensors[0];
            assert_eq!(
                (name, bytes[*offset as usize]),
                (&weight.name(), tag(weight))
            );
        }
        let norms = |contents: &[StoredContent]| {
            let find = |weight| {
                let is = |stored: &StoredContent| {
                    stored.content == Content::Weight(weight, Stored::As(ElementType::F16))
                };
                contents.iter().position(is).unwrap()
            };
            [find(Weight::InputNorm(0)), find(Weight::FfnNorm(1))]
        };
        let moved = written(|contents| {
            let [a, b] = norms(contents);
            contents.swap(a, b);
        });
        let error = moved.unwrap_err().to_string();
        assert!(error.contains("bytes are written already"), "{error}");
        let paired = written(|contents| {
            let [a, b] = norms(contents);
            let tensors = contents[a].tensors.clone();
            contents[a].tensors = contents[b].tensors.clone();
            contents[b].tensors = tensors;
        });
        let error = paired.unwrap_err().to_string();
        let [a, b] = [Weight::InputNorm(0), Weight::FfnNorm(1)].map(Weight::name);
        let expected = format!("tensor `{a}`: expected to be written to {a}, found {b}");
        assert_eq!(error, expected);
        let missing = written(|contents| contents[3].tensors.clear());
        assert!(missing.unwrap_err().to_string().contains("found "));
        let gone = written(|contents| drop(contents.pop()));
        assert!(gone.unwrap_err().to_string().contains("expected"));
    }
}
