//! Checkpoints of any size with random weights, written without holding them in memory.

use half::bf16;
use rand::{Rng as _, SeedableRng};
use ratplus_graphs::model::Weight;
use ratplus_graphs::pattern::Pattern;
use ratplus_graphs::spec::{LayerPatterns, ModelSpec};
use std::fs::File;
use std::io::{BufWriter, Result, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A model of a released size: `1.5b`, `2.6b` or `7.6b`; head and embedding are one matrix.
pub fn released(name: &str) -> Option<ModelSpec> {
    let (num_layers, d_model) = match name {
        "1.5b" => (24, 2048),
        "2.6b" => (28, 2560),
        "7.6b" => (32, 4096),
        _ => return None,
    };
    let pattern = Pattern::new(16, 0, 4).ok()?;
    Some(ModelSpec {
        vocab_size: 32000,
        d_model,
        num_layers,
        d_head: 128,
        d_ffn: 4 * d_model,
        tie_embedding: true,
        patterns: vec![LayerPatterns::Uniform(pattern); num_layers],
        ..ModelSpec::default()
    })
}

/// Writes a bf16 safetensors file with random weights of variance `1 / columns`, and norms of 1.
///
/// # Errors
/// The file cannot be written.
pub fn write_safetensors(spec: &ModelSpec, path: &Path) -> Result<()> {
    write_weights(spec, &Weight::distinct(spec), path)
}

/// The same with matrices of zeros, which are holes of the file: it takes next to nothing of a disk.
///
/// # Errors
/// The file cannot be written.
pub fn write_holes(spec: &ModelSpec, path: &Path) -> Result<()> {
    let weights = Weight::distinct(spec);
    let mut file = File::create(path)?;
    write_header(spec, &weights, &mut file)?;
    for weight in &weights {
        let shape = weight.shape(spec);
        let count = shape.iter().product::<usize>();
        if shape.len() == 1 {
            file.write_all(&bf16::ONE.to_le_bytes().repeat(count))?;
        } else {
            file.seek(SeekFrom::Current(2 * count as i64))?;
        }
    }
    let end = file.stream_position()?;
    file.set_len(end)
}

/// The same as [`write_safetensors`] in `count` files of about the same size and their index, whose path is returned.
///
/// # Errors
/// A file cannot be written.
pub fn write_shards(spec: &ModelSpec, dir: &Path, count: usize) -> Result<PathBuf> {
    let weights = Weight::distinct(spec);
    let bytes = |weight: &Weight| 2 * weight.shape(spec).iter().product::<usize>();
    let total: usize = weights.iter().map(bytes).sum();
    let mut shards = vec![Vec::new(); count];
    let mut before = 0;
    for weight in weights {
        shards[before * count / total].push(weight);
        before += bytes(&weight);
    }
    let mut map = serde_json::Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        map.extend(
            shard
                .iter()
                .map(|weight| (weight.name(), file.clone().into())),
        );
        write_weights(spec, shard, &dir.join(file))?;
    }
    let index = dir.join("model.safetensors.index.json");
    let json = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
    std::fs::write(&index, json.to_string())?;
    Ok(index)
}

fn write_header(spec: &ModelSpec, weights: &[Weight], out: &mut impl Write) -> Result<()> {
    let mut header = serde_json::Map::new();
    if spec.tie_embedding {
        // As safetensors' own tool writes a model with a shared tensor.
        let [dropped, kept] = [Weight::LmHead, Weight::Embedding].map(Weight::name);
        let metadata = serde_json::json!({"format": "pt", dropped: kept});
        header.insert("__metadata__".into(), metadata);
    }
    let mut offset = 0usize;
    for weight in weights {
        let shape = weight.shape(spec);
        let end = offset + 2 * shape.iter().product::<usize>();
        let entry =
            serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]});
        header.insert(weight.name(), entry);
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)
}

fn write_weights(spec: &ModelSpec, weights: &[Weight], path: &Path) -> Result<()> {
    let mut out = BufWriter::with_capacity(4 << 20, File::create(path)?);
    write_header(spec, weights, &mut out)?;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    for weight in weights {
        let shape = weight.shape(spec);
        let columns = shape.last().copied().unwrap_or(1);
        // A table of values keeps the generator out of the way of the disk.
        let table: Vec<[u8; 2]> = if shape.len() == 1 {
            vec![bf16::ONE.to_le_bytes(); 4096]
        } else {
            let width = (3.0 / columns as f32).sqrt();
            (0..4096)
                .map(|_| bf16::from_f32(rng.random_range(-width..width)).to_le_bytes())
                .collect()
        };
        let mut left = shape.iter().product::<usize>();
        let mut chunk = Vec::with_capacity(1 << 20);
        while left > 0 {
            chunk.clear();
            let count = left.min(1 << 18);
            for _ in 0..count.div_ceil(4) {
                let bits: u64 = rng.random();
                for lane in 0..4 {
                    chunk.extend_from_slice(&table[(bits >> (16 * lane)) as usize & 4095]);
                }
            }
            out.write_all(&chunk[..2 * count])?;
            left -= count;
        }
    }
    out.into_inner()
        .map_err(|error| error.into_error())?
        .sync_all()
}
