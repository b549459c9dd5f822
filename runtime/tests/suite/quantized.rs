//! Packages of block-wise integers.

use crate::common::{
    Options, backends, file, fixture, info, open, portable, tokens, verified, write_manifest,
    write_package,
};
use prost::Message;
use ratplus_graphs::onnx::{AttributeProto, ModelProto, NodeProto};
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{Fallback, LogitsMode, Target};
use ratplus_graphs::precision::{Activations, MATMUL_NBITS, Quantization};
use ratplus_graphs::tolerance::F32_LOGIT;
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::package::Package;
use ratplus_tools::plans::{self, BuildOptions};
use ratplus_tools::verify::STORED_WEIGHTS;

fn quantized(bits: u32, block_size: usize, symmetric: bool) -> Options {
    Options {
        quantization: Some(Quantization {
            bits,
            block_size,
            symmetric,
            layout: Default::default(),
            activations: Default::default(),
        }),
        logits: LogitsMode::All,
        ..Options::default()
    }
}

/// Rows of 24 and 96 weights: blocks that end within a row's last one, or at its end.
#[test]
fn backends_agree_as_closely_as_on_the_values() {
    let (product, dequantized) = (Fallback::Function, Fallback::Inline);
    for (bits, block_size, symmetric, fallback) in [
        (4, 16, true, product),
        (4, 32, false, product),
        (4, 256, true, product),
        (8, 16, false, product),
        (8, 32, true, product),
        (4, 16, true, dequantized),
        (4, 32, true, dequantized),
        (8, 64, true, dequantized),
    ] {
        for dtype in [ElementType::F32, ElementType::BF16] {
            let mut options = quantized(bits, block_size, symmetric);
            (options.dtype, options.fallback) = (dtype, fallback);
            let quantization = options.quantization.as_mut().unwrap();
            quantization.layout = fallback.integer_layout();
            let fixture = fixture(options);
            let report = verified(&fixture, backends(fallback));
            assert!(report.passed, "{}: {:?}", report.types, report.rows);
            assert!(
                report.types.contains(&format!("int{bits}")),
                "{}",
                report.types
            );
            // Without a golden file nothing says what the weights were.
            assert!(report.rows.iter().all(|row| row.tensor != STORED_WEIGHTS));
            if dtype == ElementType::F32 {
                let held = F32_LOGIT * report.largest_logit;
                assert!(
                    report
                        .rows
                        .iter()
                        .all(|row| row.tolerance.is_some_and(|most| most <= held))
                );
            }
        }
    }
}

/// Rows of 24 and 96 activations, in blocks that are whole or not; the reference rounds them as the
/// operator does, and what that costs is the tolerance.
#[test]
fn rows_that_are_rounded_to_bytes_agree() {
    for (bits, block_size, symmetric) in [(4, 32, true), (8, 16, false), (4, 16, false)] {
        for dtype in [ElementType::F32, ElementType::BF16] {
            let mut options = quantized(bits, block_size, symmetric);
            options.dtype = dtype;
            options.quantization.as_mut().unwrap().activations = Activations::Int8;
            let report = verified(&fixture(options), backends(Fallback::Function));
            assert!(
                report.types.contains("activations int8"),
                "{}",
                report.types
            );
            let naive = report.rows[0].mean_error;
            for row in &report.rows {
                assert!(row.mean_error <= 1.5 * naive, "{}: {row:?}", report.types);
            }
            // Of so small a model in bf16 one rounding that goes the other way may move a row far.
            if dtype == ElementType::F32 {
                assert!(report.passed, "{}: {:?}", report.types, report.rows);
                // tract rounds too: it is off by far more than f32 is.
                assert!(naive > F32_LOGIT * report.largest_logit);
            }
        }
    }
}

#[test]
fn integers_are_not_ignored() {
    let [a, b] = [4, 8].map(|bits| fixture(quantized(bits, 32, true)));
    let prompt: Vec<i64> = tokens(3, 4).into_iter().map(i64::from).collect();
    let logits = |fixture| {
        let mut session = open(fixture, BackendKind::Tract);
        let ids: Vec<_> = prompt.iter().chain(&[0; 4]).copied().collect();
        let step = session.run(4, &ids, &[4, 0]).unwrap();
        step.last_logits(0).unwrap().to_vec()
    };
    assert_ne!(logits(&a), logits(&b));
}

#[test]
fn engine_plans_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    write_package(dir.path(), quantized(4, 32, true), 1);
    let package = Package::open(dir.path()).unwrap();
    for (backend, remedy) in [
        (
            BackendKind::TensorRt,
            "export it with `fallback: trt-plugins`",
        ),
        (
            BackendKind::TensorRtRtx,
            "export it with `fallback: inline`",
        ),
    ] {
        let built = plans::build(&package, backend, &BuildOptions::default(), &mut |_| {});
        let error = built.err().unwrap().to_string();
        assert!(error.ends_with(remedy), "{error}");
    }
}

/// Replaces an engine's graph, checksum included: only the guard can object.
fn refuse(target: Target, expected: &str, change: impl FnOnce(&mut ModelProto)) {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = write_package(dir.path(), quantized(8, 32, true), 1);
    let file = file(&manifest, 1, target);
    let path = dir.path().join(&file);
    let mut model = ModelProto::decode(&std::fs::read(&path).unwrap()[..]).unwrap();
    change(&mut model);
    let bytes = model.encode_to_vec();
    manifest.files.insert(file.clone(), info(&bytes));
    std::fs::write(path, bytes).unwrap();
    write_manifest(dir.path(), &manifest);
    let error = Package::open(dir.path()).err().unwrap();
    let problems: Vec<_> = error.problems.iter().map(String::as_str).collect();
    assert_eq!(problems, [format!("{file}: {expected}")]);
}

fn first<'a>(model: &'a mut ModelProto, op_type: &str) -> &'a mut NodeProto {
    let mut nodes = model.graph.iter_mut().flat_map(|graph| &mut graph.node);
    nodes.find(|node| node.op_type == op_type).unwrap()
}

fn set(node: &mut NodeProto, attribute: AttributeProto) {
    node.attribute.retain(|other| other.name != attribute.name);
    node.attribute.push(attribute);
}

/// An operator that reads as many bytes as its attributes say must not be told more than there are.
#[test]
fn sizes_that_are_not_the_matrix_s_are_refused() {
    let name = "backbone.layers.0.seq_layer.in_proj.weight";
    let node = "layers.0.seq.matmulnbits_12";
    let refuse = |expected: &str, change: &dyn Fn(&mut NodeProto)| {
        refuse(
            Target::Cuda,
            &format!("node `{node}`: {expected}"),
            |model| {
                change(first(model, MATMUL_NBITS));
            },
        );
    };
    let attributes = |found: &str| {
        format!(
            "expected the attributes K=24 N=120 accuracy_level=1 bits=8 block_size=32 for the model's \
             sizes, found {found}"
        )
    };
    let rest = "accuracy_level=1 bits=8 block_size=32";
    for (found, attribute, value) in [
        (format!("K=4096 N=120 {rest}"), "K", 4096),
        (format!("K=24 N=-1 {rest}"), "N", -1),
        (
            "K=24 N=120 accuracy_level=1 bits=4 block_size=32".into(),
            "bits",
            4,
        ),
        (format!("K=24 N=120 {rest} more=1"), "more", 1),
    ] {
        let attribute = AttributeProto::int(attribute, value);
        refuse(&attributes(&found), &|node| set(node, attribute.clone()));
    }
    let inputs = |found: &str| {
        format!(
            "expected one output and, after the rows, the inputs {name}.blocks, {name}.scales, found {found}"
        )
    };
    refuse(&inputs(&format!("{name}.blocks, rope.cos")), &|node| {
        node.input[2] = "rope.cos".into();
    });
    refuse(&inputs(&format!("{name}.blocks")), &|node| {
        node.input.truncate(2)
    });
    refuse(
        "its matrix `embedding.wte.weight` is not one that the manifest has as integers",
        &|node| node.input[1] = "embedding.wte.weight".into(),
    );
    refuse(
        "operator `com.microsoft.Other` is not one a package may use here",
        &|node| node.op_type = "Other".into(),
    );
}

/// So it is with the operator of this project, whose function has the other's node.
#[test]
fn sizes_of_linear_are_the_matrix_s_too() {
    let name = "backbone.layers.0.seq_layer.in_proj.weight.blocks";
    let found = |matrix: &str| {
        format!("expected a matrix of the package and its sizes, found others for `{matrix}`")
    };
    for target in [Target::Portable, Target::Cpu] {
        for attribute in [
            AttributeProto::int("in_features", 4096),
            AttributeProto::int("out_features", -1),
            AttributeProto::int("block_size", 16),
            AttributeProto::string("weight_type", "int4"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let manifest = write_package(dir.path(), quantized(8, 32, true), 1);
            let path = dir.path().join(file(&manifest, 1, target));
            let mut model = ModelProto::decode(&std::fs::read(path).unwrap()[..]).unwrap();
            let node = first(&mut model, "Linear").name.clone();
            refuse(
                target,
                &format!("node `{node}`: {}", found(name)),
                |model| {
                    set(first(model, "Linear"), attribute);
                },
            );
        }
    }
}

/// In a package without integers the operator is a stranger's.
#[test]
fn plain_packages_have_no_such_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = write_package(dir.path(), Options::default(), 1);
    let file = portable(&manifest, 1);
    let path = dir.path().join(&file);
    let mut model = ModelProto::decode(&std::fs::read(&path).unwrap()[..]).unwrap();
    let gemm = first(&mut model, "Linear");
    gemm.domain = "com.microsoft".into();
    gemm.op_type = MATMUL_NBITS.into();
    let bytes = model.encode_to_vec();
    manifest.files.insert(file, info(&bytes));
    std::fs::write(path, bytes).unwrap();
    write_manifest(dir.path(), &manifest);
    let error = Package::open(dir.path()).err().unwrap().to_string();
    assert!(
        error.contains("is not one that the manifest has as integers"),
        "{error}"
    );
}
