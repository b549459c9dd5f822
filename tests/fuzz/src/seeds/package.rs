//! The manifest and graphs of a package of one layer.

use prost::Message;
use ratplus_graphs::model::{StoredTensor, build, storage};
use ratplus_graphs::onnx::OPSET;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{
    Fallback, FileInfo, LogitsMode, Manifest, PackageShape, Target, WEIGHTS_FILE,
};
use ratplus_graphs::pattern::Pattern;
use ratplus_graphs::precision::{Precision, Quantization};
use ratplus_graphs::spec::{LayerPatterns, ModelSpec};
use std::collections::BTreeMap;

/// A package without its weights.
pub struct Package {
    pub manifest: Manifest,
    pub storage: Vec<StoredTensor>,
    /// Of the weights file.
    pub bytes: u64,
    /// The decode engine's files.
    pub models: Vec<(Target, Vec<u8>)>,
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
    let mut manifest = Manifest::new(spec, shape, precision, fallback, OPSET, &[1]);
    let (storage, bytes) = storage(&manifest.model, &shape, &manifest.precision);
    let info = |bytes| FileInfo {
        bytes,
        blake3: "0".repeat(64),
    };
    let mut files = BTreeMap::from([(WEIGHTS_FILE.to_owned(), info(bytes))]);
    let mut models = Vec::new();
    for engine in &manifest.engines {
        for (&target, file) in &engine.files {
            let model = build(&manifest.graph(engine, target)).encode_to_vec();
            files.insert(file.clone(), info(model.len() as u64));
            models.push((target, model));
        }
    }
    manifest.files = files;
    Package {
        manifest,
        storage,
        bytes,
        models,
    }
}
