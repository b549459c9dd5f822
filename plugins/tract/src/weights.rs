use crate::TractError;
use crate::carried::{carrier, step, widen};
use crate::quantized::{Product, products};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::onnx::{ModelProto, TensorProto};
use ratplus_graphs::ops::{ElementType, TensorType};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tract_onnx::prelude::Tensor;

/// A package's weights, loaded once and shared by its engines. f16 and bf16 are carried in f32.
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
    /// Reads every initializer of `model`; external ones from files in `dir`.
    ///
    /// # Errors
    /// A file is missing, shorter than an initializer says, or outside `dir`.
    pub fn load(model: &ModelProto, dir: &Path) -> Result<Self, TractError> {
        Self::read(model, dir, None)
    }

    /// [`load`](Self::load), with every weight that is stored in f16, bf16 or block-wise integers
    /// moved at random by up to half a step of its type there: what comes of it shows what rounding
    /// the weights costs.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with_noise(model: &ModelProto, dir: &Path, seed: u64) -> Result<Self, TractError> {
        Self::read(model, dir, Some(ChaCha8Rng::seed_from_u64(seed)))
    }

    fn read(
        model: &ModelProto,
        dir: &Path,
        mut noise: Option<ChaCha8Rng>,
    ) -> Result<Self, TractError> {
        let mut files = HashMap::new();
        let mut tensors = HashMap::new();
        let Some(graph) = &model.graph else {
            return Ok(Self::default());
        };
        let products = products(graph).map_err(TractError::Graph)?;
        let parts: HashSet<_> = products.iter().flat_map(Product::parts).collect();
        let mut integers = HashMap::new();
        for proto in &graph.initializer {
            let (tensor, bytes) = read_tensor(proto, dir, &mut files)?;
            if !parts.contains(&proto.name) {
                let loaded = carried(&tensor, &bytes, &mut noise);
                let loaded = loaded.map_err(|what| fail(proto, dir, what))?;
                tensors.insert(proto.name.clone(), (tensor, loaded));
                continue;
            }
            integers.insert(&proto.name, bytes);
            let whole =
                |product: &&Product| product.parts().all(|part| integers.contains_key(part));
            if let Some(product) = products.iter().find(whole) {
                let parts = product.parts().filter_map(|part| integers.remove(part));
                let loaded = widened(product, &parts.collect::<Vec<_>>(), &mut noise)?;
                tensors.insert(product.blocks.clone(), (product.matrix(), loaded));
            }
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
            other => Err(TractError::OtherWeights {
                name: name.into(),
                expected: expected.clone(),
                found: other.map(|(found, _)| found.clone()),
            }),
        }
    }
}

fn fail(proto: &TensorProto, dir: &Path, what: String) -> TractError {
    TractError::Weight {
        file: dir.join(proto.external_entry("location").unwrap_or_default()),
        tensor: proto.name.clone(),
        what,
    }
}

/// A product's matrix as tract takes it.
fn widened(
    product: &Product,
    parts: &[Vec<u8>],
    noise: &mut Option<ChaCha8Rng>,
) -> Result<Arc<Tensor>, TractError> {
    let matrix = product.widen(parts, noise).and_then(|matrix| {
        Tensor::from_shape(&product.matrix().shape, &matrix).map_err(|error| error.to_string())
    });
    matrix
        .map(Arc::new)
        .map_err(|what| TractError::Graph(vec![format!("matrix `{}`: {what}", product.blocks)]))
}

/// Type, shape and bytes of an initializer.
fn read_tensor(
    proto: &TensorProto,
    dir: &Path,
    files: &mut HashMap<PathBuf, File>,
) -> Result<(TensorType, Vec<u8>), TractError> {
    let location = proto.external_entry("location").unwrap_or_default();
    let path = dir.join(location);
    let fail = |what: String| fail(proto, dir, what);
    let tensor = proto
        .tensor_type()
        .ok_or_else(|| fail(format!("unknown data type {}", proto.data_type)))?;
    let bytes = match &proto.raw_data {
        Some(raw) if proto.data_location == 0 => raw.clone(),
        _ => {
            if location.is_empty() || location.starts_with('.') || location.contains(['/', '\\']) {
                return Err(fail(format!(
                    "expected a bare file name as its location, found `{location}`"
                )));
            }
            let offset = match proto.external_entry("offset") {
                None => 0,
                Some(text) => text
                    .parse::<u64>()
                    .map_err(|_| fail(format!("expected a number as offset, found `{text}`")))?,
            };
            let file = match files.entry(path.clone()) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    let file = File::open(&path).map_err(|error| fail(error.to_string()))?;
                    entry.insert(file)
                }
            };
            read(file, offset, tensor.bytes()).map_err(fail)?
        }
    };
    if bytes.len() != tensor.bytes() {
        return Err(fail(format!(
            "expected {} bytes for {tensor}, found {}",
            tensor.bytes(),
            bytes.len()
        )));
    }
    Ok((tensor, bytes))
}

/// An initializer as tract takes it.
fn carried(
    tensor: &TensorType,
    bytes: &[u8],
    noise: &mut Option<ChaCha8Rng>,
) -> Result<Arc<Tensor>, String> {
    let loaded = match tensor.dtype {
        ElementType::U8 => return Err("expected f32, f16, bf16 or i64, found u8".into()),
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
                let loaded = carried(&tensor, &bytes, &mut noise).unwrap();
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
