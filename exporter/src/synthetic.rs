//! Random weights of a model's sizes: packages to benchmark without a checkpoint.

use crate::ExportError;
use crate::package::WeightSource;
use half::{bf16, f16};
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::model::Weight;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::spec::ModelSpec;

/// Elements made at a time.
const PIECE: usize = 1 << 20;

/// Norms of one, matrices uniform with a variance of one over their inputs: activations keep their
/// size from layer to layer. A weight has the same numbers for one seed, whatever the type and
/// whichever weights were asked for before; a tied head has the embedding's.
#[derive(Clone, Debug)]
pub struct SyntheticWeights {
    spec: ModelSpec,
    rng: ChaCha8Rng,
    bytes: Vec<u8>,
}

impl SyntheticWeights {
    /// Weights of `spec`.
    pub fn new(spec: ModelSpec, seed: u64) -> Self {
        Self {
            spec,
            rng: ChaCha8Rng::seed_from_u64(seed),
            bytes: Vec::new(),
        }
    }
}

impl WeightSource for SyntheticWeights {
    fn stream(
        &mut self,
        weight: Weight,
        dtype: ElementType,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let place = match weight {
            Weight::LmHead if self.spec.tie_embedding => Weight::Embedding,
            other => other,
        };
        let mut places = Weight::all(&self.spec).into_iter();
        let stream = places.position(|other| other == place).unwrap_or_default();
        self.rng.set_stream(stream as u64);
        self.rng.set_word_pos(0);
        let shape = weight.shape(&self.spec);
        let (elements, inputs) = (shape.iter().product::<usize>(), shape[shape.len() - 1]);
        let range = (3.0 / inputs as f32).sqrt();
        let mut left = elements;
        while left > 0 {
            let count = left.min(PIECE);
            self.bytes.clear();
            for _ in 0..count {
                let value = match shape.len() {
                    1 => 1.0,
                    _ => range * self.rng.random_range(-1.0f32..1.0),
                };
                match dtype {
                    ElementType::F16 => {
                        let value = f16::from_f32(value);
                        self.bytes.extend_from_slice(&value.to_le_bytes());
                    }
                    ElementType::BF16 => {
                        let value = bf16::from_f32(value);
                        self.bytes.extend_from_slice(&value.to_le_bytes());
                    }
                    _ => self.bytes.extend_from_slice(&value.to_le_bytes()),
                }
            }
            sink(&self.bytes)?;
            left -= count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::{ResolveOptions, synthetic};

    fn stream(spec: &ModelSpec, weight: Weight, dtype: ElementType) -> Vec<u8> {
        let mut found = Vec::new();
        let mut weights = SyntheticWeights::new(spec.clone(), 3);
        let mut sink = |bytes: &[u8]| {
            found.extend_from_slice(bytes);
            Ok(())
        };
        weights.stream(weight, dtype, &mut sink).unwrap();
        found
    }

    #[test]
    fn released_sizes_are_known_by_name() {
        let options = ResolveOptions {
            dilation: vec![16],
            initial: vec![4],
            ..ResolveOptions::default()
        };
        let spec = synthetic("7.6b", &options).unwrap();
        assert_eq!(
            (spec.num_layers, spec.d_model, spec.num_heads()),
            (32, 4096, 32)
        );
        let parameters = ["1.5b", "2.6b", "7.6b"].map(|name| {
            let spec = synthetic(name, &options).unwrap();
            (ratplus_graphs::cost::parameters(&spec) as f64 / 1e6).round()
        });
        assert_eq!(parameters, [1475.0, 2651.0, 7648.0]);
        assert!(spec.patterns.iter().all(|layer| {
            let head = layer.kept(1)[0];
            (
                head.dilation_or_minus_one(),
                head.local_window,
                head.initial,
            ) == (16, 0, 4)
        }));
        for (name, part) in [
            ("9b", "1.5B, 2.6B, 7.6B, or config"),
            ("config", "found config"),
        ] {
            let error = synthetic(name, &ResolveOptions::default())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(part) && error.contains("`synthetic: "),
                "{error}"
            );
        }
    }

    #[test]
    fn a_tied_head_has_the_embeddings_numbers() {
        let mut spec = synthetic("1.5b", &ResolveOptions::default()).unwrap();
        (spec.d_model, spec.vocab_size) = (64, 50);
        let head = |spec: &ModelSpec| stream(spec, Weight::LmHead, ElementType::F32);
        assert_eq!(
            head(&spec),
            stream(&spec, Weight::Embedding, ElementType::F32)
        );
        spec.tie_embedding = false;
        assert_ne!(
            head(&spec),
            stream(&spec, Weight::Embedding, ElementType::F32)
        );
    }

    #[test]
    fn matrices_have_the_variance_of_their_inputs() {
        let mut spec = synthetic("1.5b", &ResolveOptions::default()).unwrap();
        spec.d_model = 256;
        let bytes = stream(&spec, Weight::OutProj(0), ElementType::F32);
        assert_eq!(bytes.len(), 256 * 256 * 4);
        let values = bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let variance = values.map(|value| f64::from(value * value)).sum::<f64>() / 65536.0;
        approx::assert_relative_eq!(variance * 256.0, 1.0, max_relative = 0.03);
        let norm = stream(&spec, Weight::FinalNorm, ElementType::BF16);
        assert_eq!(norm, bf16::ONE.to_le_bytes().repeat(256));
        // The same numbers in every type.
        let narrow = stream(&spec, Weight::OutProj(0), ElementType::BF16);
        let first = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        assert_eq!(narrow[..2], bf16::from_f32(first).to_le_bytes());
    }
}
