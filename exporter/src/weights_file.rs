//! Writes the weights file.

use crate::ExportError;
use crate::package::{Progress, WeightSource};
use crate::publish::HashingWriter;
use crate::quantize::{NotFinite, QuantizedWeight, Quantizer};
use ratplus_graphs::model::{self, Content, StoredContent, StoredTensor, Weight};
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{self, FileInfo, Manifest};
use ratplus_graphs::precision::Stored;
use std::path::PathBuf;

/// The weights file, tensor by tensor.
pub(crate) struct WeightsFile<'a> {
    writer: HashingWriter,
    manifest: &'a Manifest,
    total: u64,
    progress: &'a mut dyn FnMut(Progress<'_>),
    quantized: Vec<QuantizedWeight>,
}

impl<'a> WeightsFile<'a> {
    /// Creates the file of `manifest`'s package, which will have `total` bytes.
    ///
    /// # Errors
    /// It is there, or cannot be created.
    pub fn create(
        path: PathBuf,
        manifest: &'a Manifest,
        total: u64,
        progress: &'a mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, ExportError> {
        Ok(Self {
            writer: HashingWriter::create(path)?,
            manifest,
            total,
            progress,
            quantized: Vec::new(),
        })
    }
}

impl WeightsFile<'_> {
    /// Writes what `stored` says to the tensors that it names.
    ///
    /// # Errors
    /// The tensors are not those of the content, the source has not its bytes, or they cannot be written.
    pub fn write(
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
                 with `keep_f32`"
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
                    package::WEIGHTS_FILE,
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

    /// What was written, and what every quantised weight lost.
    pub fn finish(self) -> Result<(FileInfo, Vec<QuantizedWeight>), ExportError> {
        if self.writer.position() != self.total {
            return Err(ExportError::Weight {
                name: package::WEIGHTS_FILE.into(),
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
        Ok((self.writer.finish()?, self.quantized))
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
    use ratplus_graphs::package::{Fallback, LogitsMode, PackageShape};
    use ratplus_graphs::pattern::Pattern;
    use ratplus_graphs::precision::Precision;
    use ratplus_graphs::spec::{LayerPatterns, ModelSpec};

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
