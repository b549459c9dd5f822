//! Golden files: tokens with the logits and intermediate tensors they have to give.

use super::Differences;
use ratplus_graphs::model::Tap;
use safetensors::{Dtype, SafeTensors};
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
    /// Name of the value in the graph of a model of `num_layers`.
    pub fn graph_name(&self, num_layers: usize) -> String {
        self.tap
            .name(self.layer.unwrap_or(num_layers.saturating_sub(1)))
    }
}

/// Why a golden file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("golden file {}: {problem}", path.display())]
pub struct GoldenError {
    /// The file.
    pub path: PathBuf,
    /// Expected and found.
    pub problem: String,
}

/// Largest golden file that is read into memory.
const MAX_BYTES: u64 = 8 << 30;

impl Golden {
    /// Reads a golden file (DESIGN.md section 4).
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

    /// Largest absolute logit.
    pub fn largest_logit(&self) -> f64 {
        self.logits.iter().fold(0.0, |largest: f64, &value| {
            largest.max(f64::from(value).abs())
        })
    }
}

fn parse(file: &SafeTensors<'_>) -> Result<Golden, String> {
    let (tokens_shape, tokens) = integers(file, "tokens")?;
    let (positions_shape, positions) = integers(file, "positions")?;
    let (logits_shape, logits) = floats(file, "logits")?;
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

fn integers(file: &SafeTensors<'_>, name: &str) -> Result<(Vec<usize>, Vec<i64>), String> {
    elements(file, name, Dtype::I64, i64::from_le_bytes)
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Result<(Vec<usize>, Vec<f32>), String> {
    elements(file, name, Dtype::F32, f32::from_le_bytes)
}

/// Shape and elements of a tensor.
fn elements<T, const SIZE: usize>(
    file: &SafeTensors<'_>,
    name: &str,
    dtype: Dtype,
    read: fn([u8; SIZE]) -> T,
) -> Result<(Vec<usize>, Vec<T>), String> {
    let missing = |_| format!("tensor `{name}` is missing");
    let view = file.tensor(name).map_err(missing)?;
    if view.dtype() != dtype {
        return Err(format!(
            "{name}: expected {dtype:?}, found {:?}",
            view.dtype()
        ));
    }
    let (values, _) = view.data().as_chunks();
    let values = values.iter().copied().map(read).collect();
    Ok((view.shape().to_vec(), values))
}
