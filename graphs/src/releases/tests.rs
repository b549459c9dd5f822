use super::table::{
    ONNX_RUNTIME_READS, TENSORRT_READS, TENSORRT_RTX_READS, TRITON_ONNX_RUNTIME, at, known, reads,
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
            "ort=1.21",
            "graphs",
            "`fallback: function`",
        ),
        (
            Fallback::Inline,
            OPSET,
            Some(8),
            "ort=1.18",
            "integers",
            "`fallback: function`",
        ),
        (
            Fallback::None,
            OPSET,
            Some(4),
            "tensorrt-rtx=1.7",
            "graphs",
            "export it with `fallback: inline`",
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
            "tensorrt=10.15",
            "graphs",
            "`fallback: trt-plugins`",
        ),
        (
            Fallback::Function,
            OPSET,
            Some(4),
            "tensorrt=10.8",
            "integers",
            "without `quantization`",
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
    for (fallback, why) in [
        (Fallback::Function, "libratplus_ort.so"),
        (Fallback::Inline, "not been looked at"),
    ] {
        let old = misfits(&manifest(fallback, F32, OPSET, None), "ort=1.16");
        let text = &old[0].text;
        assert!(
            text.starts_with("expected 1.17 or later: ") && text.contains(why),
            "{text}"
        );
    }
}

/// The exports that a misfit's text offers: (fallback, opset, bits).
fn offered(
    text: &str,
    (fallback, opset, bits): (Fallback, i64, Option<u32>),
) -> Vec<(Fallback, i64, Option<u32>)> {
    let named = |field: &str| {
        let parts = text
            .split('`')
            .filter_map(move |part| part.strip_prefix(field));
        parts.map(str::to_owned).collect::<Vec<_>>()
    };
    let fallbacks = named("fallback: ").into_iter();
    let fallbacks = fallbacks.map(|name| serde_json::from_value(name.into()).unwrap());
    let opsets = named("opset: ")
        .into_iter()
        .map(|value| value.parse().unwrap());
    let plain = text.contains("without `quantization`");
    fallbacks
        .map(|other| (other, opset, bits))
        .chain(opsets.map(|other| (fallback, other, bits)))
        .chain(plain.then_some((fallback, opset, None)))
        .collect()
}

/// Whoever does what a misfit says, again and again, has a package that fits, whatever is chosen.
#[test]
fn remedies_end() {
    fn follow(export: (Fallback, i64, Option<u32>), release: &str, path: &mut Vec<String>) {
        let (fallback, opset, bits) = export;
        let found = misfits(&manifest(fallback, ElementType::F16, opset, bits), release);
        assert!(path.len() <= 3, "{release}: {path:#?}");
        for misfit in &found {
            let offered = offered(&misfit.text, export);
            assert!(!offered.is_empty(), "{release}: {misfit:?} of {export:?}");
            for next in offered {
                assert_ne!(next, export, "{release}: {misfit:?}");
                path.push(format!("{export:?}: {}", misfit.text));
                follow(next, release, path);
                path.pop();
            }
        }
    }
    let releases = "ort=1.17 ort=1.18 ort=1.19 ort=1.22 ort=1.32 tensorrt=10.0 tensorrt=10.3 tensorrt=10.15 \
                    tensorrt=11.4 tensorrt-rtx=1.7 triton=24.04 triton=24.05 triton=26.08";
    for release in releases.split_whitespace() {
        for fallback in [
            Fallback::Function,
            Fallback::Inline,
            Fallback::None,
            Fallback::TrtPlugins,
        ] {
            for opset in [OPSET, 23, 28] {
                for bits in [None, Some(4), Some(8)] {
                    follow((fallback, opset, bits), release, &mut Vec::new());
                }
            }
        }
    }
}

#[test]
fn what_a_provider_or_a_backend_needs_is_said() {
    let of = |manifest: &Manifest, release: &str, subject: &str| {
        let found = findings(manifest, release.parse().unwrap()).unwrap();
        let found = found.into_iter().find(|found| found.subject == subject);
        found.map(|found| (found.verdict, found.text))
    };
    let int8 = manifest(Fallback::Function, ElementType::F16, OPSET, Some(8));
    for (release, verdict) in [("ort=1.20", Verdict::Note), ("ort=1.22", Verdict::Fits)] {
        let (found, text) = of(&int8, release, "CUDA").unwrap();
        assert_eq!(found, verdict, "{release}");
        assert_eq!(
            text.contains("MatMulNBits of 8 bits from 1.22 on"),
            verdict == Verdict::Note
        );
        assert_eq!(misfits(&int8, release), []);
    }
    let plugins = manifest(Fallback::TrtPlugins, ElementType::F16, OPSET, None);
    let provider = of(&plugins, "ort=1.22", "TensorRT provider").unwrap();
    assert_eq!(provider.0, Verdict::Fits);
    assert_eq!(of(&plugins, "ort=1.22", "graphs").unwrap().0, Verdict::Note);
    let plain = manifest(Fallback::Function, ElementType::F16, OPSET, None);
    for (release, verdict) in [
        ("triton=24.09", Verdict::Note),
        ("triton=24.10", Verdict::Fits),
    ] {
        let (found, text) = of(&plain, release, "ratplus backend").unwrap();
        assert_eq!(found, verdict, "{release}: {text}");
    }
}

#[test]
fn nothing_is_said_of_releases_that_nothing_is_known_of() {
    let plain = manifest(Fallback::Function, ElementType::F32, OPSET, None);
    for release in [
        "ort=1.33",
        "ort=2.0",
        "tensorrt=9.3",
        "tensorrt=10.17",
        "tensorrt=12.0",
        "tensorrt-rtx=1.6",
        "tensorrt-rtx=2.0",
        "triton=24.03",
        "triton=24.13",
        "triton=26.09",
    ] {
        let error = findings(&plain, release.parse().unwrap()).unwrap_err();
        assert!(
            error.contains("nothing is known of that release"),
            "{error}"
        );
    }
    let error = known("tensorrt=12.0".parse().unwrap()).unwrap_err();
    assert!(
        error.ends_with("expected one of 10.0 to 10.16, 11.0 to 11.4"),
        "{error}"
    );
    // What is known of has its numbers.
    for minor in 17..=32 {
        assert!(reads(ONNX_RUNTIME_READS, (1, minor)).is_some());
    }
    for month in [(24, 4), (25, 1), (26, 8)] {
        assert!(at(TRITON_ONNX_RUNTIME, month).is_some());
    }
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
