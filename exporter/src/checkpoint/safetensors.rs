//! Headers of safetensors files, and the index of sharded ones.

use super::Contents;
use super::error::{Fail, show};
use super::source::{Source, read_vec};
use super::tensor::{StoredType, Tensor};
use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::marker::PhantomData;

/// The format's own limit.
const MAX_HEADER: u64 = 100_000_000;
pub(super) const MAX_INDEX: u64 = 64 << 20;
const MAX_DIMS: usize = 16;

fn bad<T>(problem: impl fmt::Display) -> Result<T, Fail> {
    Err(Fail::malformed("safetensors header", problem))
}

/// A map whose keys are all different; keys whose values are not needed are still compared.
pub(super) struct UniqueMap<V>(pub BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Unique<V> {
            type Value = UniqueMap<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value::<V>()?;
                    if entries.contains_key(&key) {
                        return Err(A::Error::custom(format_args!(
                            "`{}` is listed twice",
                            show(key.as_bytes())
                        )));
                    }
                    entries.insert(key, value);
                }
                Ok(UniqueMap(entries))
            }
        }
        deserializer.deserialize_map(Unique(PhantomData))
    }
}

fn stored_type(dtype: safetensors::Dtype) -> Option<StoredType> {
    use safetensors::Dtype;
    Some(match dtype {
        Dtype::F32 => StoredType::F32,
        Dtype::F16 => StoredType::F16,
        Dtype::BF16 => StoredType::BF16,
        Dtype::F64 => StoredType::F64,
        Dtype::I64 => StoredType::I64,
        Dtype::I32 => StoredType::I32,
        Dtype::I16 => StoredType::I16,
        Dtype::I8 => StoredType::I8,
        Dtype::U64 => StoredType::U64,
        Dtype::U32 => StoredType::U32,
        Dtype::U16 => StoredType::U16,
        Dtype::U8 => StoredType::U8,
        Dtype::BOOL => StoredType::Bool,
        Dtype::C64 => StoredType::C64,
        Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F8_E8M0 => StoredType::F8,
        _ => return None,
    })
}

/// Reads the header of one file.
pub(super) fn open(source: &dyn Source, file: usize) -> Result<Contents, Fail> {
    let len = source.len();
    if len < 8 {
        return bad(format!("{len} bytes are too few; the file was cut short"));
    }
    let mut prefix = [0; 8];
    source
        .read_exact_at(&mut prefix, 0)
        .map_err(|error| Fail::io("read", error))?;
    let header_len = u64::from_le_bytes(prefix);
    if header_len > MAX_HEADER {
        return bad(format!(
            "it says it has {header_len} bytes, expected at most {MAX_HEADER}; not a safetensors file, or damaged"
        ));
    }
    if header_len > len - 8 {
        return bad(format!(
            "it says it has {header_len} bytes, yet the file ends after {len}; the file was cut short"
        ));
    }
    let header = read_vec(source, 8, header_len as usize)?;
    if header.first() != Some(&b'{') {
        return bad("it does not start with `{`; not a safetensors file, or damaged");
    }
    let json = |error: serde_json::Error| Fail::malformed("safetensors header", error);
    let _: UniqueMap<IgnoredAny> = serde_json::from_slice(&header).map_err(json)?;
    let metadata: safetensors::tensor::Metadata = serde_json::from_slice(&header).map_err(json)?;
    let data = len - 8 - header_len;
    if metadata.data_len() as u64 != data {
        return bad(format!(
            "its tensors need {} bytes after the header, found {data}; the file was cut short or has data after \
             its end",
            metadata.data_len()
        ));
    }
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let shown = show(name.as_bytes());
        let Some(dtype) = stored_type(info.dtype) else {
            return bad(format!(
                "tensor `{shown}` has the unknown type {:?}",
                info.dtype
            ));
        };
        if info.shape.len() > MAX_DIMS {
            return bad(format!(
                "tensor `{shown}` has {} dimensions",
                info.shape.len()
            ));
        }
        let mut strides = vec![1u64; info.shape.len()];
        for dim in (1..info.shape.len()).rev() {
            strides[dim - 1] = strides[dim].saturating_mul(info.shape[dim] as u64);
        }
        let tensor = Tensor {
            name: name.clone(),
            dtype,
            shape: info.shape.clone(),
            strides,
            file,
            offset: 8 + header_len + info.data_offsets.0 as u64,
            record: None,
        };
        tensors.insert(name, tensor);
    }
    Ok(Contents {
        tensors,
        metadata: metadata
            .metadata()
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        ..Contents::default()
    })
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: UniqueMap<String>,
}

/// File name of every tensor, as `*.safetensors.index.json` lists them.
pub(super) fn index(source: &dyn Source) -> Result<BTreeMap<String, String>, Fail> {
    let bad = |problem: String| Err(Fail::malformed("shard index", problem));
    if source.len() > MAX_INDEX {
        return bad(format!(
            "{} bytes, expected at most {MAX_INDEX}",
            source.len()
        ));
    }
    let bytes = read_vec(source, 0, source.len() as usize)?;
    let index: RawIndex =
        serde_json::from_slice(&bytes).map_err(|error| Fail::malformed("shard index", error))?;
    let map = index.weight_map.0;
    let mut seen = HashSet::new();
    for file in map.values().filter(|file| seen.insert(file.as_str())) {
        let bare =
            !file.is_empty() && file != "." && file != ".." && !file.contains(['/', '\\', '\0']);
        if !bare {
            return bad(format!(
                "`{}` is not a bare file name; shards lie beside the index",
                show(file.as_bytes())
            ));
        }
    }
    if map.is_empty() {
        return bad("it lists no tensors".into());
    }
    Ok(map)
}
