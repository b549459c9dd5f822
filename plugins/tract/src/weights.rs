use crate::TractError;
use crate::carried::{carrier, widen};
use crate::quantized::{Product, products};
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
            if parts.contains(&proto.name) {
                integers.insert(&proto.name, bytes);
                continue;
            }
            let loaded = carried(&tensor, &bytes).map_err(|what| fail(proto, dir, what))?;
            tensors.insert(proto.name.clone(), (tensor, loaded));
            // The parts of a product follow one another.
            widen_products(&products, &mut integers, &mut tensors)?;
        }
        widen_products(&products, &mut integers, &mut tensors)?;
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

/// Widens the matrices whose parts are all there, and lets the parts go.
fn widen_products(
    products: &[Product],
    integers: &mut HashMap<&String, Vec<u8>>,
    tensors: &mut HashMap<String, (TensorType, Arc<Tensor>)>,
) -> Result<(), TractError> {
    for product in products {
        if !product.parts().all(|part| integers.contains_key(part)) {
            continue;
        }
        let parts: Vec<_> = product
            .parts()
            .filter_map(|part| integers.remove(part))
            .collect();
        let of_product =
            |what: String| TractError::Graph(vec![format!("matrix `{}`: {what}", product.blocks)]);
        let matrix = product.widen(&parts).map_err(of_product)?;
        let tensor = product.matrix();
        let loaded = Tensor::from_shape(&tensor.shape, &matrix)
            .map_err(|error| of_product(error.to_string()))?;
        tensors.insert(product.blocks.clone(), (tensor, Arc::new(loaded)));
    }
    Ok(())
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
fn carried(tensor: &TensorType, bytes: &[u8]) -> Result<Arc<Tensor>, String> {
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
            let values: Vec<_> = bytes
                .chunks_exact(dtype.size())
                .map(|bytes| widen(dtype, bytes))
                .collect();
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
