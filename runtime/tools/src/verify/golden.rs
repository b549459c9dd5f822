//! Golden files: tokens with the logits and intermediate tensors they have to give.

use super::Differences;
use ratplus_graphs::model::Tap;
use ratplus_graphs::spec::ModelSpec;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What a package's outputs are compared with.
#[derive(Clone, Debug)]
pub struct Golden {
    /// `[batch][seq_len]`, all equally long.
    pub tokens: Vec<Vec<i64>>,
    /// Positions that `logits` holds, ascending.
    pub positions: Vec<usize>,
    /// `[batch, positions, vocab]`.
    pub logits: Vec<f32>,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Intermediate tensors over all tokens.
    pub taps: Vec<GoldenTap>,
}

/// An intermediate tensor.
#[derive(Clone, Debug)]
pub struct GoldenTap {
    /// Name in the golden file.
    pub name: String,
    /// What it is.
    pub tap: Tap,
    /// Its layer; `None` is the last.
    pub layer: Option<usize>,
    /// `[batch, seq_len, width]`.
    pub values: Vec<f32>,
    /// Channels of one token.
    pub width: usize,
}

impl GoldenTap {
    /// The residual stream after `layer`, without values.
    pub(super) fn hidden(model: &ModelSpec, layer: usize) -> Self {
        Self {
            name: format!("layer{layer}.hidden"),
            tap: Tap::Hidden,
            layer: Some(layer),
            values: Vec::new(),
            width: model.d_model,
        }
    }

    /// Those of the released code's golden files, without values.
    pub(super) fn usual(model: &ModelSpec) -> Vec<Self> {
        let first = |kind: &str, tap| Self {
            name: format!("layer0.{kind}"),
            tap,
            layer: Some(0),
            values: Vec::new(),
            width: tap.width(model),
        };
        let last = Self {
            name: "last_hidden".into(),
            layer: None,
            ..Self::hidden(model, 0)
        };
        vec![
            first("gated_key", Tap::GatedKey),
            first("gated_value", Tap::GatedValue),
            Self::hidden(model, 0),
            last,
        ]
    }

    /// With room for the values of so many tokens.
    pub(super) fn over(mut self, tokens: usize) -> Self {
        self.values = vec![0.0; tokens * self.width];
        self
    }

    /// Largest absolute value.
    pub(super) fn largest(&self) -> f64 {
        let values = self.values.iter();
        values.fold(0.0, |most, &value| most.max(f64::from(value).abs()))
    }

    /// How far `other`'s values are from these, of sequences of `seq_len` tokens.
    pub(super) fn differences(&self, other: &Self, seq_len: usize) -> Differences {
        let mut differences = Differences::default();
        let rows = self
            .values
            .chunks(self.width)
            .zip(other.values.chunks(self.width));
        for (row, (expected, found)) in rows.enumerate() {
            differences.add(row / seq_len, row % seq_len, expected, found);
        }
        differences
    }

    /// Name of the value in the graph of a model of `num_layers`.
    pub fn graph_name(&self, num_layers: usize) -> String {
        self.tap
            .name(self.layer.unwrap_or(num_layers.saturating_sub(1)))
    }
}

/// Why a golden file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`golden`: {}: {problem}", path.display())]
pub struct GoldenError {
    /// The file.
    pub path: PathBuf,
    /// Expected and found.
    pub problem: String,
}

/// Largest golden file that is read into memory.
const MAX_BYTES: u64 = 8 << 30;

impl Golden {
    /// Reads a golden file: safetensors of `tokens` (or `input_ids`) `[batch, tokens]`, `logits`
    /// `[batch, positions, vocabulary]`, `positions` unless logits are of every token, and
    /// `layerN.gated_key`, `layerN.gated_value`, `layerN.hidden` and `last_hidden`, which may be absent.
    /// Integers are i64 or i32, others f32, f64, f16 or bf16; what these were rounded to is what is compared
    /// with.
    ///
    /// # Errors
    /// The file is missing, not safetensors, lacks a tensor, or its shapes contradict one another.
    pub fn read(path: &Path) -> Result<Self, GoldenError> {
        let fail = |problem: String| GoldenError {
            path: path.into(),
            problem,
        };
        let size = std::fs::metadata(path)
            .map_err(|error| fail(error.to_string()))?
            .len();
        if size > MAX_BYTES {
            return Err(fail(format!(
                "expected at most {MAX_BYTES} bytes, found {size}"
            )));
        }
        let bytes = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
        Self::from_bytes(&bytes).map_err(fail)
    }

    /// How far `other`'s logits are from these, at the positions that both have.
    pub fn differences(&self, other: &Self) -> Differences {
        let mut differences = Differences::default();
        for sequence in 0..self.batch() {
            for &position in &self.positions {
                let rows = [self, other].map(|golden| golden.logits_at(sequence, position));
                if let [Some(expected), Some(found)] = rows {
                    differences.add(sequence, position, expected, found);
                }
            }
        }
        differences
    }

    /// Reads the contents of a golden file.
    ///
    /// # Errors
    /// As [`Golden::read`]; the message names no file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let file = SafeTensors::deserialize(bytes)
            .map_err(|error| format!("expected a safetensors file: {error}"))?;
        parse(&file)
    }

    /// The contents of a golden file, which [`Golden::from_bytes`] reads back bit for bit.
    ///
    /// # Errors
    /// Names or sizes that safetensors cannot hold.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let integers = |values: &mut dyn Iterator<Item = i64>| -> Vec<u8> {
            values.flat_map(i64::to_le_bytes).collect()
        };
        let floats = |values: &[f32]| -> Vec<u8> {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        };
        let (batch, seq_len, count) = (self.batch(), self.seq_len(), self.positions.len());
        let tokens = integers(&mut self.tokens.iter().flatten().copied());
        let positions = integers(&mut self.positions.iter().map(|&position| position as i64));
        let mut tensors = vec![
            ("tokens", Dtype::I64, vec![batch, seq_len], tokens),
            ("positions", Dtype::I64, vec![count], positions),
            (
                "logits",
                Dtype::F32,
                vec![batch, count, self.vocab_size],
                floats(&self.logits),
            ),
        ];
        for tap in &self.taps {
            let shape = vec![batch, seq_len, tap.width];
            tensors.push((&tap.name, Dtype::F32, shape, floats(&tap.values)));
        }
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            let view = TensorView::new(*dtype, shape.clone(), data);
            view.map(|view| (*name, view))
                .map_err(|error| error.to_string())
        });
        let views = views.collect::<Result<Vec<_>, _>>()?;
        let by = concat!(
            "ratplus ",
            env!("CARGO_PKG_VERSION"),
            ", tract in f32 without rounding"
        );
        let metadata = HashMap::from([("made_by".to_owned(), by.to_owned())]);
        safetensors::serialize(views, Some(metadata)).map_err(|error| error.to_string())
    }

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens of each sequence.
    pub fn seq_len(&self) -> usize {
        self.tokens.first().map_or(0, Vec::len)
    }

    /// Logits of a sequence after the token at `position`, where the file has them.
    pub fn logits_at(&self, sequence: usize, position: usize) -> Option<&[f32]> {
        let index = self.positions.binary_search(&position).ok()?;
        let row = sequence * self.positions.len() + index;
        self.logits
            .get(row * self.vocab_size..(row + 1) * self.vocab_size)
    }

    /// Of every tensor with an infinity or something that is no number: its name and the first such element.
    pub(super) fn not_finite(&self) -> Vec<String> {
        let found = |name: &str,
                     values: &[f32],
                     width: usize,
                     position: &dyn Fn(usize) -> usize| {
            let at = values.iter().position(|value| !value.is_finite())?;
            let (batch, width) = (self.batch().max(1), width.max(1));
            let rows = (values.len() / batch / width).max(1);
            let (row, index) = (at / width, at % width);
            Some(format!(
                "{name}: expected finite numbers of f32, found {} at sequence {}, position {}, index {index}",
                values[at],
                row / rows,
                position(row % rows)
            ))
        };
        let logits = found("logits", &self.logits, self.vocab_size, &|row| {
            self.positions.get(row).copied().unwrap_or(row)
        });
        let taps = self.taps.iter();
        let taps = taps.filter_map(|tap| found(&tap.name, &tap.values, tap.width, &|row| row));
        logits.into_iter().chain(taps).collect()
    }

    /// Largest absolute logit.
    pub fn largest_logit(&self) -> f64 {
        self.logits.iter().fold(0.0, |largest: f64, &value| {
            largest.max(f64::from(value).abs())
        })
    }
}

fn parse(file: &SafeTensors<'_>) -> Result<Golden, String> {
    let name = match file.tensor("tokens") {
        Err(_) if file.tensor("input_ids").is_ok() => "input_ids",
        _ => "tokens",
    };
    let (tokens_shape, tokens) = integers(file, name)?;
    let (logits_shape, logits) = floats(file, "logits")?;
    let every_token =
        matches!(logits_shape[..], [_, count, _] if tokens_shape.get(1) == Some(&count));
    let (positions_shape, positions) = match file.tensor("positions") {
        Err(_) if every_token => (vec![logits_shape[1]], (0..logits_shape[1] as i64).collect()),
        _ => integers(file, "positions")?,
    };
    let &[batch, seq_len] = tokens_shape.as_slice() else {
        return Err(format!(
            "tokens: expected [batch, tokens], found {tokens_shape:?}"
        ));
    };
    if batch == 0 || seq_len == 0 {
        return Err(format!(
            "tokens: expected at least one sequence of one token, found {tokens_shape:?}"
        ));
    }
    let vocab_size = match logits_shape.as_slice() {
        &[b, p, vocab] if b == batch && positions_shape == [p] && vocab > 0 => vocab,
        found => {
            return Err(format!(
                "logits: expected [{batch}, {}, vocabulary], found {found:?}",
                positions.len()
            ));
        }
    };
    let positions: Vec<_> = positions
        .iter()
        .map(|&p| usize::try_from(p).unwrap_or(usize::MAX))
        .collect();
    if !positions.is_sorted_by(|a, b| a < b)
        || positions.last().is_some_and(|&last| last >= seq_len)
    {
        return Err(format!(
            "positions: expected ascending positions below {seq_len}"
        ));
    }
    let mut taps = Vec::new();
    for name in file.names() {
        if let Some(tap) = tap(file, name, batch, seq_len)? {
            taps.push(tap);
        }
    }
    taps.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Golden {
        tokens: tokens.chunks_exact(seq_len).map(<[i64]>::to_vec).collect(),
        positions,
        logits,
        vocab_size,
        taps,
    })
}

/// `None` for tensors that are no taps.
fn tap(
    file: &SafeTensors<'_>,
    name: &str,
    batch: usize,
    seq_len: usize,
) -> Result<Option<GoldenTap>, String> {
    let (tap, layer) = match name.split_once('.') {
        // The residual stream as it enters the final norm.
        None if name == "last_hidden" => (Tap::Hidden, None),
        Some((layer, kind)) => {
            let tap = match kind {
                "gated_key" => Tap::GatedKey,
                "gated_value" => Tap::GatedValue,
                "hidden" => Tap::Hidden,
                _ => return Ok(None),
            };
            match layer
                .strip_prefix("layer")
                .and_then(|number| number.parse().ok())
            {
                Some(layer) => (tap, Some(layer)),
                None => return Ok(None),
            }
        }
        None => return Ok(None),
    };
    let (shape, values) = floats(file, name)?;
    if shape.contains(&0) {
        return Err(format!(
            "{name}: expected at least one channel, found {shape:?}"
        ));
    }
    let (values, width) = match shape.as_slice() {
        &[b, t, width] if (b, t) == (batch, seq_len) => (values, width),
        &[b, heads, t, dim] if (b, t) == (batch, seq_len) => (
            token_major(&values, batch, heads, seq_len, dim),
            heads * dim,
        ),
        found => {
            return Err(format!(
                "{name}: expected [{batch}, {seq_len}, width] or [{batch}, heads, {seq_len}, d_head], found {found:?}"
            ));
        }
    };
    Ok(Some(GoldenTap {
        name: name.to_owned(),
        tap,
        layer,
        values,
        width,
    }))
}

/// `[B, H, T, dh]` to `[B, T, H * dh]`.
fn token_major(values: &[f32], batch: usize, heads: usize, seq_len: usize, dim: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for sequence in 0..batch {
        for token in 0..seq_len {
            for head in 0..heads {
                let start = ((sequence * heads + head) * seq_len + token) * dim;
                out.extend_from_slice(&values[start..start + dim]);
            }
        }
    }
    out
}

/// A little-endian element of `SIZE` bytes as `T`.
type Read<T, const SIZE: usize> = fn([u8; SIZE]) -> T;

fn read_all<T, const SIZE: usize>(bytes: &[u8], read: Read<T, SIZE>) -> Vec<T> {
    let (values, _) = bytes.as_chunks();
    values.iter().copied().map(read).collect()
}

/// Shape and elements of a tensor of i64 or i32.
fn integers(file: &SafeTensors<'_>, name: &str) -> Result<(Vec<usize>, Vec<i64>), String> {
    let view = tensor(file, name)?;
    let bytes = view.data();
    let values = match view.dtype() {
        Dtype::I64 => read_all(bytes, i64::from_le_bytes),
        Dtype::I32 => read_all(bytes, |value| i32::from_le_bytes(value).into()),
        found => return Err(format!("{name}: expected I64 or I32, found {found:?}")),
    };
    Ok((view.shape().to_vec(), values))
}

/// Shape and elements of a tensor of floats.
fn floats(file: &SafeTensors<'_>, name: &str) -> Result<(Vec<usize>, Vec<f32>), String> {
    let view = tensor(file, name)?;
    let bytes = view.data();
    let values = match view.dtype() {
        Dtype::F32 => read_all(bytes, f32::from_le_bytes),
        Dtype::F64 => read_all(bytes, |value| f64::from_le_bytes(value) as f32),
        Dtype::F16 => read_all(bytes, |value| half::f16::from_le_bytes(value).to_f32()),
        Dtype::BF16 => read_all(bytes, |value| half::bf16::from_le_bytes(value).to_f32()),
        found => {
            return Err(format!(
                "{name}: expected F32, F64, F16 or BF16, found {found:?}"
            ));
        }
    };
    Ok((view.shape().to_vec(), values))
}

fn tensor<'a>(file: &SafeTensors<'a>, name: &str) -> Result<TensorView<'a>, String> {
    file.tensor(name)
        .map_err(|_| format!("tensor `{name}` is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Golden {
        Golden {
            tokens: vec![vec![3, 1, 2], vec![0, 4, 4]],
            positions: vec![0, 2],
            logits: (0..20).map(|value| value as f32 / 3.0).collect(),
            vocab_size: 5,
            taps: vec![GoldenTap {
                name: "layer0.hidden".into(),
                tap: Tap::Hidden,
                layer: Some(0),
                values: (0..24).map(|value| value as f32 / 7.0).collect(),
                width: 4,
            }],
        }
    }

    #[test]
    fn what_is_saved_is_read_back() {
        let saved = small();
        let read = Golden::from_bytes(&saved.to_bytes().unwrap()).unwrap();
        assert_eq!(
            (&read.tokens, &read.positions),
            (&saved.tokens, &saved.positions)
        );
        assert_eq!((&read.logits, read.vocab_size), (&saved.logits, 5));
        let tap = &read.taps[0];
        assert_eq!(
            (tap.name.as_str(), tap.tap, tap.layer),
            ("layer0.hidden", Tap::Hidden, Some(0))
        );
        assert_eq!((&tap.values, tap.width), (&saved.taps[0].values, 4));
    }

    #[test]
    fn files_of_others_name_and_type_their_tensors_otherwise() {
        let ids: Vec<u8> = [3i32, 1].iter().flat_map(|id| id.to_le_bytes()).collect();
        let values = [0.5f32, -2.0, 1.0, 8.0, 0.25, -0.125];
        let of = |dtype, bytes: &[u8]| {
            let logits = TensorView::new(dtype, vec![1, 2, 3], bytes).unwrap();
            let ids = TensorView::new(Dtype::I32, vec![1, 2], &ids).unwrap();
            let file = safetensors::serialize([("input_ids", ids), ("logits", logits)], None);
            Golden::from_bytes(&file.unwrap())
        };
        let bytes = |each: &dyn Fn(f32) -> Vec<u8>| -> Vec<u8> {
            values.iter().flat_map(|&value| each(value)).collect()
        };
        for (dtype, bytes) in [
            (
                Dtype::F64,
                bytes(&|value| f64::from(value).to_le_bytes().to_vec()),
            ),
            (
                Dtype::F16,
                bytes(&|value| half::f16::from_f32(value).to_le_bytes().to_vec()),
            ),
            (
                Dtype::BF16,
                bytes(&|value| half::bf16::from_f32(value).to_le_bytes().to_vec()),
            ),
        ] {
            let golden = of(dtype, &bytes).unwrap();
            assert_eq!(
                (&golden.tokens, &golden.positions),
                (&vec![vec![3, 1]], &vec![0, 1])
            );
            assert_eq!(golden.logits, values);
        }
        let error = of(Dtype::U32, &[0; 24]).unwrap_err();
        assert_eq!(error, "logits: expected F32, F64, F16 or BF16, found U32");
    }
}
