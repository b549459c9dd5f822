use super::table::{
    ONNX_RUNTIME_READS, TENSORRT_READS, TENSORRT_RTX_READS, TRITON_ONNX_RUNTIME, reads,
};
use super::{Finding, Release, Verdict, findings, plan_graphs};
use crate::onnx::OPSET;
use crate::ops::ElementType;
use crate::package::{Fallback, LogitsMode, Manifest, PackageShape, Target};
use crate::pattern::Pattern;
use crate::precision::{Activations, KeepF32, Precision, Quantization};
use crate::spec::{LayerPatterns, ModelSpec};

fn manifest(fallback: Fallback, dtype: ElementType, opset: i64, bits: Option<u32>) -> Manifest {
    // More layers than digits: names sort otherwise than numbers.
    let num_layers = 12;
    let spec = ModelSpec {
        vocab_size: 32,
        d_model: 64,
        num_layers,
        d_head: 32,
        d_ffn: 256,
        patterns: vec![LayerPatterns::Uniform(Pattern::DENSE); num_layers],
        ..ModelSpec::default()
    };
    let shape = PackageShape {
        batch: 1,
        max_seq_len: 16,
        dtype,
        cache_dtype: dtype,
        logits: LogitsMode::Last,
    };
    let precision = Precision {
        quantization: bits.map(|bits| Quantization {
            bits,
            block_size: 32,
            symmetric: true,
            layout: fallback.integer_layout(),
            activations: Activations::default(),
        }),
        keep_f32: KeepF32::default(),
    };
    Manifest::new(spec, shape, precision, fallback, opset, &[1, 8])
}

fn misfits(manifest: &Manifest, release: &str) -> Vec<Finding> {
    let mut found = findings(manifest, release.parse().unwrap()).unwrap();
    found.retain(|finding| finding.verdict == Verdict::Misfit);
    found
}

#[test]
fn the_default_export_runs_everywhere() {
    let manifest = manifest(Fallback::Function, ElementType::BF16, OPSET, None);
    for release in [
        "ort=1.17",
        "ort=1.20.1",
        "ort=1.31",
        "tensorrt=10.3",
        "tensorrt=10.8",
        "tensorrt=11.4",
        "tensorrt-rtx=1.7",
        "triton=24.10",
        "triton=26.08",
    ] {
        assert_eq!(misfits(&manifest, release), [], "{release}");
    }
}

#[test]
fn a_misfit_names_the_option_that_changes_it() {
    use ElementType::F32;
    for (fallback, opset, bits, release, subject, option) in [
        (
            Fallback::Function,
            23,
            None,
            "ort=1.17",
            "opset",
            "`opset: 20`",
        ),
        (
            Fallback::Inline,
            OPSET,
            Some(4),
            "ort=1.17",
            "opset",
            "`fallback: function`",
        ),
        (
            Fallback::TrtPlugins,
            OPSET,
            None,
            "ort=1.31",
            "graphs",
            "`fallback: function`",
        ),
        (
            Fallback::None,
            OPSET,
            None,
            "tensorrt-rtx=1.7",
            "graphs",
            "`fallback: inline`",
        ),
        (
            Fallback::Function,
            OPSET,
            Some(4),
            "tensorrt=10.8",
            "graphs",
            "`fallback: trt-plugins`",
        ),
        (
            Fallback::Function,
            OPSET,
            None,
            "tensorrt=10.2",
            "release",
            "`fallback: inline`",
        ),
        (
            Fallback::Function,
            25,
            None,
            "tensorrt=10.8",
            "opset",
            "`opset: 20`",
        ),
    ] {
        let manifest = manifest(fallback, F32, opset, bits);
        let found = misfits(&manifest, release);
        let named = found.iter().find(|finding| finding.subject == subject);
        let text = named.map_or("", |finding| &finding.text);
        assert!(text.contains(option), "{fallback} {release}: {found:?}");
    }
    let old = misfits(&manifest(Fallback::Function, F32, OPSET, None), "ort=1.16");
    assert_eq!(old[0].text, "expected 1.17 or later");
}

#[test]
fn plans_are_built_from_the_graphs_that_their_library_takes() {
    let of = |fallback, rtx| plan_graphs(&manifest(fallback, ElementType::F16, OPSET, None), rtx);
    assert_eq!(of(Fallback::Function, false), Ok(Target::TensorRt));
    assert_eq!(of(Fallback::Function, true), Ok(Target::Cuda));
    assert_eq!(of(Fallback::Inline, false), Ok(Target::Cuda));
    assert!(of(Fallback::TrtPlugins, true).is_err());
}

#[test]
fn tables_ascend_and_the_default_is_read_by_the_oldest() {
    for table in [ONNX_RUNTIME_READS, TENSORRT_READS, TENSORRT_RTX_READS] {
        assert!(table.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1 && a.2 <= b.2));
        let (opset, ir) = reads(table, table[0].0).unwrap();
        assert!(opset >= OPSET && ir >= crate::onnx::IR_VERSION);
        assert_eq!(reads(table, (0, 9)), None);
    }
    assert!(TRITON_ONNX_RUNTIME.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1));
}

#[test]
fn releases_are_named_as_they_are_typed() {
    for (text, shown) in [
        ("ort=1.20", "ONNX Runtime 1.20"),
        ("ort=1.20.1", "ONNX Runtime 1.20"),
        ("tensorrt-rtx=1.7.1.116", "TensorRT for RTX 1.7"),
        ("triton=25.02", "Triton 25.02"),
    ] {
        assert_eq!(text.parse::<Release>().unwrap().to_string(), shown);
    }
    for text in [
        "",
        "ort",
        "ort=",
        "ort=1",
        "ort=1.x",
        "ort=1.2.x",
        "cuda=1.2",
        "ort 1.20",
    ] {
        assert!(text.parse::<Release>().is_err(), "{text}");
    }
}
