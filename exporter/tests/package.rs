//! Packages as `package::write` leaves them on disk.

use ratplus_exporter::ExportError;
use ratplus_exporter::package::{self, PackageOptions, WeightSource};
use ratplus_exporter::plan::ExportPlan;
use ratplus_graphs::model::{self, Weight};
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{
    CHAT_TEMPLATE_FILE, Fallback, FileInfo, LogitsMode, MANIFEST_FILE, Manifest, PackageShape,
    SpecialTokens, WEIGHTS_FILE,
};
use ratplus_graphs::pattern::Pattern;
use ratplus_graphs::precision::{Precision, Quantization};
use ratplus_graphs::spec::{LayerPatterns, ModelSpec};
use std::collections::BTreeMap;
use std::path::Path;

/// Bytes that depend on the weight and the index alone; fails at a given weight.
struct Made {
    spec: ModelSpec,
    fail_at: Option<Weight>,
}

impl WeightSource for Made {
    fn stream(
        &mut self,
        weight: Weight,
        dtype: ElementType,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        if self.fail_at == Some(weight) {
            return Err(ExportError::Weight {
                name: weight.name(),
                problem: "planted".into(),
            });
        }
        let count: usize = weight.shape(&self.spec).iter().product();
        let salt = weight.name().len() as u8;
        for index in 0..count {
            sink(&vec![salt ^ index as u8; dtype.size()])?;
        }
        Ok(())
    }
}

fn spec() -> ModelSpec {
    let pattern = |d, w, i| Pattern::new(d, w, i).unwrap();
    ModelSpec {
        vocab_size: 13,
        d_model: 8,
        num_layers: 2,
        d_head: 4,
        d_ffn: 16,
        patterns: vec![
            LayerPatterns::Uniform(pattern(1, 3, 2)),
            LayerPatterns::PerHead(vec![pattern(4, 2, 1), pattern(-1, 100, 3)]),
        ],
        ..ModelSpec::default()
    }
}

fn options() -> PackageOptions {
    PackageOptions {
        spec: spec(),
        shape: PackageShape {
            batch: 2,
            max_seq_len: 40,
            dtype: ElementType::F32,
            cache_dtype: ElementType::F32,
            logits: LogitsMode::Last,
        },
        prefill_lengths: vec![16, 8, 16],
        precision: Precision::default(),
        fallback: Fallback::Function,
        opset: 18,
        tokenizer: None,
        special_tokens: Default::default(),
        chat_template: None,
    }
}

fn write(target: &Path, options: &PackageOptions) -> Result<Manifest, ExportError> {
    let mut source = Made {
        spec: options.spec.clone(),
        fail_at: None,
    };
    package::write(target, options, &mut source, &mut |_| {}).map(|written| written.manifest)
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        (
            entry.file_name().to_string_lossy().into_owned(),
            std::fs::read(entry.path()).unwrap(),
        )
    };
    std::fs::read_dir(dir).unwrap().map(read).collect()
}

#[test]
fn a_package_holds_what_its_manifest_lists() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("package");
    let written = write(&target, &options()).unwrap();
    let files = files(&target);
    let manifest = Manifest::parse(&files[MANIFEST_FILE]).unwrap();
    assert_eq!(manifest, written);
    assert_eq!(manifest.lengths(), [1, 8, 16]);
    assert_eq!(files.len(), manifest.files.len() + 1);
    for (name, info) in &manifest.files {
        assert_eq!(files[name].len() as u64, info.bytes, "{name}");
    }
    // Dense attention keeps no window; windows longer than a sequence are cut to it.
    assert_eq!(manifest.model.kept_patterns(0)[0], Pattern::DENSE);
    assert_eq!(manifest.model.kept_patterns(1)[1].local_window, 40);
    let (tensors, total) = model::storage(&manifest.model, &manifest.shape(), &manifest.precision);
    assert_eq!(files[WEIGHTS_FILE].len() as u64, total);
    let last = tensors.last().unwrap();
    let table = &files[WEIGHTS_FILE][last.offset as usize..];
    let sine = f32::from_le_bytes(table[8..12].try_into().unwrap());
    assert_eq!((last.name.as_str(), sine), ("rope.sin", 1f32.sin()));
}

#[test]
fn the_same_export_twice_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for fallback in [
        Fallback::Function,
        Fallback::Inline,
        Fallback::None,
        Fallback::TrtPlugins,
    ] {
        let options = PackageOptions {
            fallback,
            ..options()
        };
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        write(&first, &options).unwrap();
        write(&second, &options).unwrap();
        assert!(files(&first) == files(&second), "{fallback}");
    }
}

#[test]
fn a_failed_export_leaves_the_old_package_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("package");
    write(&target, &options()).unwrap();
    let before = files(&target);
    let mut source = Made {
        spec: spec(),
        fail_at: Some(Weight::Fc2(1)),
    };
    let error = package::write(&target, &options(), &mut source, &mut |_| {}).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor `backbone.layers.1.hidden_layer.fc2.weight`: planted"
    );
    assert!(files(&target) == before);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let shorter = PackageOptions {
        prefill_lengths: vec![8],
        ..options()
    };
    write(&target, &shorter).unwrap();
    assert!(!files(&target).contains_key("prefill_16.onnx"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_weight_of_the_wrong_length_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("package");
    let mut small = spec();
    small.vocab_size = 12;
    let mut source = Made {
        spec: small,
        fail_at: None,
    };
    let error = package::write(&target, &options(), &mut source, &mut |_| {}).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor `embedding.wte.weight`: expected 416 bytes, the checkpoint gave 384"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn options_are_checked_together() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = dir.path().join("tokenizer.json");
    std::fs::write(&tokenizer, "{}").unwrap();
    let mut options = options();
    options.shape.batch = 0;
    options.prefill_lengths = vec![0, 41];
    options.tokenizer = Some(tokenizer);
    options.spec.patterns.pop();
    options.fallback = Fallback::TrtPlugins;
    options.shape.cache_dtype = ElementType::BF16;
    options.precision = Precision {
        quantization: Some(Quantization {
            bits: 4,
            block_size: 24,
            symmetric: true,
            layout: Default::default(),
            activations: Default::default(),
        }),
        keep_f32: "0,7-9".parse().unwrap(),
    };
    let error = write(&dir.path().join("package"), &options)
        .unwrap_err()
        .to_string();
    for part in [
        "patterns: expected",
        "`batch`",
        "found 0",
        "found 41",
        "`tokenizer: ",
        "`block_size`: expected one of [16, 32, 64, 128, 256], found 24",
        "`keep_f32`: expected layers 0 to 1, found 9",
        "`quantization`: expected the layout Dequantized for `fallback: trt-plugins`, found Product",
        "`cache_dtype`: with `fallback: trt-plugins` expected f32, the type of `dtype`, found bf16",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn a_chat_template_is_stored_with_a_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options();
    options.chat_template = Some("{{ messages }}".into());
    let target = dir.path().join("package");
    let error = write(&target, &options).unwrap_err().to_string();
    assert!(
        error.contains("`chat_template`: expected none without"),
        "{error}"
    );
    let tokenizer = dir.path().join("tokenizer.json");
    std::fs::write(&tokenizer, r#"{"model": {}}"#).unwrap();
    options.tokenizer = Some(tokenizer);
    let written = write(&target, &options).unwrap();
    assert_eq!(written.chat_template.as_deref(), Some(CHAT_TEMPLATE_FILE));
    let stored = files(&target).remove(CHAT_TEMPLATE_FILE).unwrap();
    assert_eq!(FileInfo::of(&stored), written.files[CHAT_TEMPLATE_FILE]);
    assert_eq!(stored, b"{{ messages }}");
    let planned = ExportPlan::new(&target, &options).unwrap().manifest;
    assert_eq!(planned.files[CHAT_TEMPLATE_FILE].bytes, stored.len() as u64);
    let without = Manifest {
        tokenizer: None,
        ..written
    };
    let error = Manifest::parse(&without.to_json()).unwrap_err().to_string();
    assert_eq!(
        error,
        "chat_template: expected none without a tokenizer, found `chat_template.jinja`"
    );
    options.chat_template = Some("x".repeat(2 << 20));
    let error = write(&target, &options).unwrap_err().to_string();
    assert!(
        error.contains("`chat_template`: expected at most 1048576 bytes"),
        "{error}"
    );
}

#[test]
fn special_tokens_are_recorded_with_a_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options();
    options.special_tokens = SpecialTokens::Tokenizer;
    let target = dir.path().join("package");
    let error = write(&target, &options).unwrap_err().to_string();
    let expected = "`special_tokens`: expected none without `tokenizer`, found tokenizer";
    assert!(error.contains(expected), "{error}");
    let tokenizer = dir.path().join("tokenizer.json");
    std::fs::write(&tokenizer, r#"{"model": {}}"#).unwrap();
    options.tokenizer = Some(tokenizer);
    let written = write(&target, &options).unwrap();
    assert_eq!(written.special_tokens, SpecialTokens::Tokenizer);
    let json = std::fs::read(target.join(MANIFEST_FILE)).unwrap();
    assert_eq!(Manifest::parse(&json).unwrap(), written);
    // A manifest says so, or has nothing to say.
    let without = Manifest {
        tokenizer: None,
        ..written.clone()
    };
    let error = Manifest::parse(&without.to_json()).unwrap_err().to_string();
    assert_eq!(
        error,
        "special_tokens: expected none without a tokenizer, found tokenizer"
    );
    let silent = Manifest {
        special_tokens: SpecialTokens::None,
        ..written
    };
    let json = silent.to_json();
    assert!(!String::from_utf8_lossy(&json).contains("special_tokens"));
    assert_eq!(Manifest::parse(&json).unwrap(), silent);
}

#[test]
fn a_plan_tells_every_byte_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("deep/package");
    let options = options();
    let plan = ExportPlan::new(&target, &options).unwrap();
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    assert!(plan.free.unwrap() > 0);
    let written = write(&target, &options).unwrap();
    let sizes = |manifest: &Manifest| -> Vec<_> {
        let files = manifest.files.iter();
        files
            .map(|(name, file)| (name.clone(), file.bytes))
            .collect()
    };
    assert_eq!(sizes(&plan.manifest), sizes(&written));
    let found = std::fs::read_dir(&target).unwrap();
    let found: u64 = found
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!(plan.bytes, found);
    // What an export would refuse, a plan refuses.
    let bad = PackageOptions {
        opset: 3,
        ..options.clone()
    };
    assert!(matches!(
        ExportPlan::new(&target, &bad),
        Err(ExportError::Options(_))
    ));
    std::fs::write(target.join("mine.txt"), "mine").unwrap();
    let refused = ExportPlan::new(&target, &options).unwrap_err().to_string();
    assert!(refused.contains("mine.txt"), "{refused}");
}

#[test]
fn too_little_room_is_refused_with_both_sizes() {
    let target = Path::new("package");
    let mut plan = ExportPlan::new(target, &options()).unwrap();
    plan.free = Some(plan.bytes);
    plan.check_room(target).unwrap();
    plan.free = None;
    plan.check_room(target).unwrap();
    plan.free = Some(plan.bytes - 1);
    let message = plan.check_room(target).unwrap_err().to_string();
    for part in [
        "package",
        &plan.bytes.to_string(),
        &(plan.bytes - 1).to_string(),
    ] {
        assert!(message.contains(part), "{message}");
    }
}
