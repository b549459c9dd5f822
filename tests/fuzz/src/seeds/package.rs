//! The manifest and graphs of a package of one layer.

use prost::Message;
use ratplus_graphs::manifest::{
    FORMAT, FORMAT_VERSION, Fallback, FileInfo, LayerCache, LogitsMode, Manifest, PackageShape,
    WEIGHTS_FILE, engine, state_tensors,
};
use ratplus_graphs::model::{GraphOptions, StoredTensor, build, storage};
use ratplus_graphs::onnx::{IR_VERSION, OPSET};
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::pattern::Pattern;
use ratplus_graphs::precision::{Precision, Quantization};
use ratplus_graphs::spec::{LayerPatterns, ModelSpec};

/// A package without its weights.
pub struct Package {
    pub manifest: Manifest,
    pub storage: Vec<StoredTensor>,
    /// Of the weights file.
    pub bytes: u64,
    /// The decode engine's file.
    pub model: Vec<u8>,
}

/// The smallest package whose custom nodes are written so, with these integers for weights.
pub fn package(fallback: Fallback, quantization: Option<Quantization>) -> Package {
    let pattern = |d, w, i| Pattern::new(d, w, i).expect("a pattern");
    let heads = vec![pattern(4, 3, 1), pattern(-1, 5, 2)];
    let spec = ModelSpec {
        vocab_size: 7,
        d_model: 8,
        num_layers: 1,
        d_head: 4,
        d_ffn: 16,
        patterns: vec![LayerPatterns::PerHead(heads)],
        ..ModelSpec::default()
    };
    let shape = PackageShape {
        batch: 1,
        max_seq_len: 16,
        dtype: ElementType::F32,
        cache_dtype: ElementType::F16,
        logits: LogitsMode::Last,
    };
    let precision = Precision {
        quantization,
        ..Precision::default()
    };
    let model = build(&GraphOptions {
        spec: &spec,
        precision: &precision,
        shape,
        seq_len: 1,
        fallback,
        opset: OPSET,
        ir_version: IR_VERSION,
    });
    let engine = engine(&spec, &shape, 1);
    let (storage, bytes) = storage(&spec, &shape, &precision);
    let info = |bytes| FileInfo {
        bytes,
        sha256: "0".repeat(64),
    };
    let model = model.encode_to_vec();
    let files = [
        (WEIGHTS_FILE.to_owned(), info(bytes)),
        (engine.file.clone(), info(model.len() as u64)),
    ];
    let manifest = Manifest {
        format: FORMAT.into(),
        format_version: FORMAT_VERSION,
        tool: "fuzz".into(),
        batch: shape.batch,
        max_seq_len: shape.max_seq_len,
        dtype: shape.dtype,
        cache_dtype: shape.own_cache_dtype(),
        precision,
        opset: OPSET,
        ir_version: IR_VERSION,
        fallback,
        logits: shape.logits,
        engines: vec![engine],
        cache: vec![LayerCache::from(&spec.cache_layout(0, shape.max_seq_len))],
        state_bytes: state_tensors(&spec, &shape)
            .iter()
            .map(|(_, _, tensor)| tensor.bytes() as u64)
            .sum(),
        tokenizer: None,
        special_tokens: Default::default(),
        files: files.into(),
        plans: Default::default(),
        model: spec,
    };
    Package {
        manifest,
        storage,
        bytes,
        model,
    }
}
