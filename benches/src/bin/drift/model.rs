//! Gates and keys of a trained model's first layer: they depend on each token alone.

use crate::report::Text;
use crate::state::{Drift, Tokens};
use ratplus_exporter::checkpoint::{Checkpoint, ReadOptions};
use ratplus_graphs::ops::ElementType;
use std::path::Path;
use tokenizers::Tokenizer;

/// The model's `norm_eps`.
const NORM_EPS: f64 = 1e-6;

/// What the first layer makes of a text.
pub struct FirstLayer {
    pub tokens: Tokens,
    /// Tokens of the text, which is read again from its start where it ends.
    pub text_tokens: usize,
}

impl FirstLayer {
    /// What there is to say of it, but for the drift.
    pub fn about(&self) -> Text {
        let gates = self
            .tokens
            .gate
            .iter()
            .map(|&z| 1.0 / (1.0 + (-f64::from(z)).exp()));
        let mut gates: Vec<f64> = gates.collect();
        gates.sort_by(f64::total_cmp);
        let above = |limit: f64| gates.iter().filter(|&&gate| gate > limit).count() as f64;
        Text {
            tokens: self.text_tokens,
            channels: self.tokens.channels,
            median: gates[gates.len() / 2],
            above: [0.9, 0.99, 0.999].map(|limit| (limit, above(limit) / gates.len() as f64)),
            largest: gates[gates.len() - 1],
            drift: Drift { at: Vec::new() },
        }
    }
}

/// Keys and gates of `count` tokens of the folder's sample.txt.
pub fn first_layer(folder: &Path, count: usize) -> Result<FirstLayer, String> {
    let path = folder.join("sample.txt");
    let text =
        std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json"))
        .map_err(|error| format!("tokenizer.json: {error}"))?;
    let encoding = tokenizer
        .encode(text, false)
        .map_err(|error| error.to_string())?;
    let ids = encoding.get_ids();
    let checkpoint =
        Checkpoint::open(folder.join("model.pth")).map_err(|error| error.to_string())?;
    let embedding = Matrix::read(&checkpoint, "embedding.wte.weight")?;
    let norm = Matrix::read(&checkpoint, "backbone.layers.0.seq_layer.input_norm.weight")?;
    let projection = Matrix::read(&checkpoint, "backbone.layers.0.seq_layer.in_proj.weight")?;
    let width = embedding.columns;
    // Output gate, query, key, value, gate.
    let block = |index: usize, x: &[f64]| -> Vec<f32> {
        (index * width..(index + 1) * width)
            .map(|row| {
                let products = projection.row(row).iter().zip(x);
                products.map(|(&w, &x)| f64::from(w) * x).sum::<f64>() as f32
            })
            .collect()
    };
    // Each token of the vocabulary once.
    let mut made = std::collections::HashMap::new();
    let mut tokens = Tokens {
        channels: width,
        gate: Vec::with_capacity(count * width),
        value: Vec::with_capacity(count * width),
    };
    for &id in ids.iter().cycle().take(count) {
        let (key, gate) = made.entry(id).or_insert_with(|| {
            let row = embedding.row(id as usize);
            let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width as f64;
            let root = (mean + NORM_EPS).sqrt();
            let weighed = row.iter().zip(&norm.values);
            let x: Vec<f64> = weighed
                .map(|(&x, &w)| f64::from(x) / root * f64::from(w))
                .collect();
            (block(2, &x), block(4, &x))
        });
        tokens.value.extend_from_slice(key);
        tokens.gate.extend_from_slice(gate);
    }
    Ok(FirstLayer {
        tokens,
        text_tokens: ids.len(),
    })
}

struct Matrix {
    values: Vec<f32>,
    columns: usize,
}

impl Matrix {
    fn read(checkpoint: &Checkpoint, name: &str) -> Result<Self, String> {
        let missing = || {
            format!(
                "{}: expected the tensor `{name}`",
                checkpoint.path().display()
            )
        };
        let tensor = checkpoint.tensor(name).ok_or_else(missing)?;
        let mut bytes = vec![0; 4 * tensor.rows() * tensor.row_len()];
        checkpoint
            .reader(ReadOptions::default())
            .read_rows(tensor, 0..tensor.rows(), ElementType::F32, &mut bytes)
            .map_err(|error| error.to_string())?;
        let (values, _) = bytes.as_chunks::<4>();
        let values = values
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        let columns = tensor.shape().last().copied().unwrap_or(1);
        Ok(Self { values, columns })
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }
}
