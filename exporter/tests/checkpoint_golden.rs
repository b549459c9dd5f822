//! The real checkpoints of `tests/golden`, byte for byte.

use ratplus_exporter::checkpoint::{Checkpoint, CheckpointError, Format, ReadOptions};
use ratplus_exporter::resolve::{ResolveOptions, Resolved, resolve};
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::pattern::Pattern;
use ratplus_graphs::spec::ModelSpec;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

const CASES: [&str; 19] = [
    "attention_only",
    "d16_w20_i4",
    "dense",
    "fsdp_saved",
    "fsdp_saved_relu",
    "gqa",
    "gqa_head_hybrid",
    "head_dim_128",
    "head_hybrid",
    "kjv_d16w64i4",
    "kjv_hybrid",
    "layer_hybrid",
    "legacy_fgate",
    "mqa_attention_only",
    "streaming",
    "tied",
    "topk_bounds",
    "topk_dilated",
    "topk_mean",
];

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")).join(name)
}

fn resolved(name: &str) -> (Checkpoint, Resolved) {
    let checkpoint = Checkpoint::open(golden(name)).unwrap();
    let options = ResolveOptions {
        config_file: Some(golden(name).join("config.json")),
        ..ResolveOptions::default()
    };
    let resolved = resolve(&checkpoint, &options).unwrap();
    (checkpoint, resolved)
}

fn stream(
    checkpoint: &Checkpoint,
    resolved: &Resolved,
    dtype: ElementType,
    buffer: usize,
) -> Vec<Vec<u8>> {
    let mut reader = checkpoint.reader(ReadOptions::default());
    let mut buffer = vec![0; buffer];
    resolved
        .sources
        .iter()
        .map(|source| {
            let mut bytes = Vec::new();
            source
                .stream(&mut reader, dtype, &mut buffer, |piece| {
                    bytes.extend_from_slice(piece);
                    Ok::<_, CheckpointError>(())
                })
                .unwrap();
            bytes
        })
        .collect()
}

/// Sorted names and bytes as an independent reader (Python's zipfile and pickle) sees them.
#[test]
fn pth_files_hold_the_bytes_an_independent_reader_finds() {
    for (name, tensors, expected) in [
        (
            "fsdp_saved",
            14,
            "bd4cde9ee9f7ead4d2b829edfe6f45c0103eeeef8a175fc7f2cba716c8a7dfc8",
        ),
        (
            "fsdp_saved_relu",
            15,
            "7ddc670ceb99ea337bf078998cbf7e5a2a13ffa70ad2154ef8a73389d02dfeab",
        ),
        (
            "kjv_d16w64i4",
            27,
            "f787bd796aa9bd857fa2b8762a73bab1fe1a6617df07b98515d4830663147fb6",
        ),
        (
            "layer_hybrid",
            15,
            "9afa620fa6c10ffd6b3f82987e5875d6b27bc7bcaf12b1f9d35943a85dbb71e3",
        ),
        (
            "legacy_fgate",
            17,
            "2a89d7a43246369cd73fd902e52f23e6e6cb99e060dfb06941727b4eca01aec6",
        ),
    ] {
        let checkpoint = Checkpoint::open(golden(name).join("model.pth")).unwrap();
        assert_eq!(checkpoint.format(), Format::Torch);
        assert_eq!(checkpoint.tensors().len(), tensors);
        let mut reader = checkpoint.reader(ReadOptions::default());
        let mut hash = Sha256::new();
        for tensor in checkpoint.tensors() {
            let dtype = tensor.dtype().element_type().unwrap();
            let mut bytes = vec![0; tensor.numel() * dtype.size()];
            reader
                .read_rows(tensor, 0..tensor.rows(), dtype, &mut bytes)
                .unwrap();
            hash.update(tensor.name());
            hash.update(&bytes);
        }
        let found: String = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn safetensors_files_hold_the_bytes_the_safetensors_crate_finds() {
    for name in CASES {
        let path = golden(name).join("model.safetensors");
        let Ok(bytes) = std::fs::read(&path) else {
            assert!(golden(name).join("model.pth").exists());
            continue;
        };
        let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.tensors().len(), expected.len());
        let mut reader = checkpoint.reader(ReadOptions::default());
        for tensor in checkpoint.tensors() {
            let view = expected.tensor(tensor.name()).unwrap();
            assert_eq!(tensor.shape(), view.shape());
            let mut bytes = vec![0; view.data().len()];
            let dtype = tensor.dtype().element_type().unwrap();
            reader
                .read_rows(tensor, 0..tensor.rows(), dtype, &mut bytes)
                .unwrap();
            assert_eq!(bytes, view.data(), "{name} {}", tensor.name());
        }
    }
}

#[test]
fn every_case_resolves_and_streams_alike_through_any_buffer() {
    for name in CASES {
        let (checkpoint, resolved) = resolved(name);
        let config = std::fs::read(golden(name).join("config.json")).unwrap();
        let config: ModelSpec = serde_json::from_slice(&config).unwrap();
        assert_eq!(resolved.spec, config, "{name}");
        for dtype in ElementType::ACTIVATIONS {
            let whole = stream(&checkpoint, &resolved, dtype, 8 << 20);
            for (bytes, source) in whole.iter().zip(&resolved.sources) {
                let numel: usize = source.shape.iter().product();
                assert_eq!(
                    bytes.len(),
                    numel * dtype.size(),
                    "{name} {:?}",
                    source.weight
                );
            }
            let pieces = stream(&checkpoint, &resolved, dtype, 4096 + 3);
            assert!(whole == pieces, "{name} {dtype}");
        }
    }
}

#[test]
fn the_older_layout_stacks_its_gate_below_in_proj() {
    let (checkpoint, resolved) = resolved("legacy_fgate");
    assert_eq!(
        resolved.notes,
        [
            "`_orig_mod.` (torch.compile) removed from the tensors' names",
            "the forget gate is stored apart: stacked below in_proj"
        ]
    );
    let mut reader = checkpoint.reader(ReadOptions::default());
    let mut read = |name: &str| {
        let tensor = checkpoint.tensor(name).unwrap();
        let mut bytes = vec![0; tensor.numel() * 4];
        reader
            .read_rows(tensor, 0..tensor.rows(), ElementType::F32, &mut bytes)
            .unwrap();
        bytes
    };
    let upper = read("_orig_mod.backbone.layers.1.seq_layer.in_proj.weight");
    let gate = read("_orig_mod.backbone.layers.1.seq_layer.fgate_proj.weight");
    let source = resolved
        .sources
        .iter()
        .find(|source| source.weight.name().contains("layers.1.seq_layer.in_proj"));
    let source = source.unwrap();
    assert_eq!(
        (source.shape.as_slice(), source.rows()),
        ([320, 64].as_slice(), 320)
    );
    let expected = [upper, gate].concat();
    // A range across the seam.
    let mut rows = vec![0; 10 * 64 * 4];
    source
        .read_rows(&mut reader, 250..260, ElementType::F32, &mut rows)
        .unwrap();
    assert_eq!(rows, expected[250 * 64 * 4..260 * 64 * 4]);
}

#[test]
fn a_pattern_in_the_directory_name_is_enough_with_the_head_size() {
    let directory = tempfile::tempdir().unwrap();
    let alone = directory.path().join("kjv_d16w64i4");
    std::fs::create_dir(&alone).unwrap();
    std::fs::copy(
        golden("kjv_d16w64i4").join("model.pth"),
        alone.join("model.pth"),
    )
    .unwrap();
    let checkpoint = Checkpoint::open(alone.join("model.pth")).unwrap();
    let options = ResolveOptions {
        d_head: Some(64),
        ..ResolveOptions::default()
    };
    let resolved = resolve(&checkpoint, &options).unwrap();
    assert_eq!(
        resolved.spec.kept_patterns(3),
        vec![Pattern::new(16, 64, 4).unwrap(); 4]
    );
    assert_eq!(
        resolved.notes,
        [
            "sizes from the weights: 4 layers, d_model 256, d_ffn 1024, vocabulary 2048, with recurrence",
            "pattern D=16 W=64 I=4 from the name `kjv_d16w64i4`"
        ]
    );
    let config = std::fs::read(golden("kjv_d16w64i4").join("config.json")).unwrap();
    assert_eq!(
        resolved.spec,
        serde_json::from_slice::<ModelSpec>(&config).unwrap()
    );
}

#[test]
fn attention_only_weights_are_recognized() {
    let checkpoint = Checkpoint::open(golden("attention_only")).unwrap();
    let options = ResolveOptions {
        d_head: Some(16),
        dilation: vec![8],
        ..ResolveOptions::default()
    };
    assert!(!resolve(&checkpoint, &options).unwrap().spec.recurrence);
}

#[test]
fn grouped_heads_that_nobody_told_of_are_named() {
    for (name, hint) in [
        ("gqa", "(as of `num_kv_heads: 2` in a `config_file`)"),
        (
            "mqa_attention_only",
            "(as of `num_kv_heads: 1` and `recurrence: false` in a `config_file`)",
        ),
    ] {
        // Without the configuration that lies beside it.
        let dir = tempfile::tempdir().unwrap();
        let file = ["model.safetensors", "model.pth"].map(|file| golden(name).join(file));
        let file = file.into_iter().find(|file| file.exists()).unwrap();
        let copy = dir.path().join(file.file_name().unwrap());
        std::fs::copy(&file, &copy).unwrap();
        let checkpoint = Checkpoint::open(&copy).unwrap();
        let options = ResolveOptions {
            d_head: Some(16),
            dilation: vec![1],
            ..ResolveOptions::default()
        };
        let error = resolve(&checkpoint, &options).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    }
}
