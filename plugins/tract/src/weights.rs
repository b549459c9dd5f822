use crate::TractError;
use crate::quantized;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::model::{ReferenceWeight, StoredTensor, WeightParts, carrier};
use ratplus_graphs::ops::{ElementType, TensorType};
use ratplus_graphs::precision::Quantization;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use tract_onnx::prelude::Tensor;

/// A package's weights, loaded once and shared by its engines. f16 and bf16 are held in f32, and
/// block-wise integers are widened.
#[derive(Clone, Default)]
pub struct TractWeights {
    tensors: HashMap<String, (TensorType, Arc<Tensor>)>,
}

impl std::fmt::Debug for TractWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TractWeights({} tensors)", self.tensors.len())
    }
}

impl TractWeights {
    /// Reads `weights` from the weights file.
    ///
    /// # Errors
    /// The file is missing, or shorter than a weight says.
    pub fn load(weights: &[ReferenceWeight], file: &Path) -> Result<Self, TractError> {
        Self::read(weights, file, None)
    }

    /// [`load`](Self::load), with every weight that is stored in f16, bf16 or block-wise integers
    /// moved at random by up to half a step of its type there: what comes of it shows what rounding
    /// the weights costs.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with_noise(
        weights: &[ReferenceWeight],
        file: &Path,
        seed: u64,
    ) -> Result<Self, TractError> {
        Self::read(weights, file, Some(ChaCha8Rng::seed_from_u64(seed)))
    }

    fn read(
        weights: &[ReferenceWeight],
        path: &Path,
        mut noise: Option<ChaCha8Rng>,
    ) -> Result<Self, TractError> {
        let fail = |tensor: &str, what: String| TractError::weight(path, tensor, what);
        let mut file = File::open(path).map_err(|error| {
            let first = weights.first().map_or("", |weight| &weight.info.name);
            fail(first, error.to_string())
        })?;
        let mut tensors = HashMap::new();
        for ReferenceWeight { info, parts } in weights {
            let mut bytes = |stored: &StoredTensor| {
                read(&mut file, stored.offset, stored.tensor.bytes())
                    .map_err(|what| fail(&stored.name, what))
            };
            let loaded = match parts {
                WeightParts::Values(stored) => values(&stored.tensor, &bytes(stored)?, &mut noise),
                WeightParts::Blocks {
                    quantization,
                    constants,
                } => {
                    let constants = constants.iter().map(bytes).collect::<Result<Vec<_>, _>>()?;
                    matrix(*quantization, &info.tensor, &constants, &mut noise)
                }
            };
            let loaded = loaded.map_err(|what| fail(&info.name, what))?;
            tensors.insert(info.name.clone(), (info.tensor.clone(), loaded));
        }
        Ok(Self { tensors })
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        let size = |tensor: &TensorType| tensor.elements() * carrier(tensor.dtype).size();
        self.tensors.values().map(|(tensor, _)| size(tensor)).sum()
    }

    pub(crate) fn get(&self, name: &str, expected: &TensorType) -> Result<Arc<Tensor>, TractError> {
        match self.tensors.get(name) {
            Some((found, tensor)) if found == expected => Ok(tensor.clone()),
            other => Err(TractError(format!(
                "weight `{name}`: expected {expected} as the graph declares, found {}; load the \
                 weights of this package",
                other.map_or("none".into(), |(found, _)| found.to_string())
            ))),
        }
    }
}

/// Block-wise integers as tract takes them.
fn matrix(
    quantization: Quantization,
    tensor: &TensorType,
    constants: &[Vec<u8>],
    noise: &mut Option<ChaCha8Rng>,
) -> Result<Arc<Tensor>, String> {
    let &[outputs, inputs] = &*tensor.shape else {
        return Err(format!("expected a matrix, found {tensor}"));
    };
    let matrix = quantized::widen(quantization, [outputs, inputs], constants, noise)?;
    let matrix = Tensor::from_shape(&tensor.shape, &matrix).map_err(|error| error.to_string())?;
    Ok(Arc::new(matrix))
}

/// A weight as tract takes it.
fn values(
    tensor: &TensorType,
    bytes: &[u8],
    noise: &mut Option<ChaCha8Rng>,
) -> Result<Arc<Tensor>, String> {
    let loaded = match tensor.dtype {
        ElementType::U8 | ElementType::I8 | ElementType::I4 => {
            return Err(format!(
                "expected f32, f16, bf16 or i64, found {}",
                tensor.dtype
            ));
        }
        ElementType::I64 => {
            let values: Vec<_> = bytes
                .chunks_exact(8)
                .map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap_or_default()))
                .collect();
            Tensor::from_shape(&tensor.shape, &values)
        }
        dtype => {
            let values = bytes.chunks_exact(dtype.size());
            let mut values: Vec<_> = values.map(|bytes| widen(dtype, bytes)).collect();
            if let Some(rng) = noise {
                for value in &mut values {
                    *value += step(dtype, *value) * rng.random_range(-0.5..0.5);
                }
            }
            Tensor::from_shape(&tensor.shape, &values)
        }
    };
    loaded.map(Arc::new).map_err(|error| error.to_string())
}

/// How far a value of `dtype` is from the one of the next smaller magnitude: what rounding to it may
/// have cost, doubled; 0 for f32 and i64, which round nothing here.
fn step(dtype: ElementType, value: f32) -> f32 {
    let magnitude = value.abs();
    let smaller = match dtype {
        ElementType::F16 => half::f16::from_f32(magnitude).to_bits().checked_sub(1),
        ElementType::BF16 => half::bf16::from_f32(magnitude).to_bits().checked_sub(1),
        _ => None,
    };
    smaller.map_or(0.0, |bits| magnitude - widen(dtype, &bits.to_le_bytes()))
}

/// The f32 value of one little-endian element; 0 for i64.
fn widen(dtype: ElementType, bytes: &[u8]) -> f32 {
    match (dtype, bytes) {
        (ElementType::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
        (ElementType::BF16, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f32(),
        (ElementType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        _ => 0.0,
    }
}

fn read(file: &mut File, offset: u64, bytes: usize) -> Result<Vec<u8>, String> {
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    // Before allocating: the size comes from the file being read.
    if offset
        .checked_add(bytes as u64)
        .is_none_or(|end| end > length)
    {
        return Err(format!(
            "expected {bytes} bytes at {offset}, but the file has {length}"
        ));
    }
    let mut buffer = vec![0; bytes];
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.read_exact(&mut buffer))
        .map_err(|error| error.to_string())?;
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noise reaches every stored value, and none further than rounding could have moved it.
    #[test]
    fn noise_is_up_to_half_a_step() {
        let values = [1.5f32, -3.0, 1e-3, 60000.0, -0.1, 5e-8, 0.0];
        for (dtype, least_bits) in [(ElementType::F16, 10), (ElementType::BF16, 7)] {
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|&value| match dtype {
                    ElementType::F16 => half::f16::from_f32(value).to_le_bytes(),
                    _ => half::bf16::from_f32(value).to_le_bytes(),
                })
                .collect();
            let tensor = TensorType::new(dtype, [values.len()]);
            let load = |seed: Option<u64>| {
                let mut noise = seed.map(ChaCha8Rng::seed_from_u64);
                let loaded = super::values(&tensor, &bytes, &mut noise).unwrap();
                loaded
                    .try_as_plain_ram()
                    .unwrap()
                    .as_slice::<f32>()
                    .unwrap()
                    .to_vec()
            };
            let (exact, noisy) = (load(None), load(Some(0)));
            assert_ne!(noisy, load(Some(1)));
            for (&exact, &noisy) in exact.iter().zip(&noisy) {
                let step = step(dtype, exact);
                let spacing = exact.abs() * (-least_bits as f32).exp2();
                assert!(step <= spacing || exact.abs() < 1e-6, "{exact}: {step}");
                assert!((noisy - exact).abs() <= 0.5 * step, "{exact}: {noisy}");
                assert!(noisy != exact || exact == 0.0, "{exact}");
            }
        }
        assert_eq!(step(ElementType::F32, 1.0), 0.0);
    }
}
