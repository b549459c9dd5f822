use super::*;
use crate::onnx::{IR_VERSION, NodeProto, OPSET};
use crate::ops::{ElementType, TensorType};
use crate::package::PackageShape;
use crate::package::{LOGITS, LogitsMode, Products};
use crate::pattern::Pattern;
use crate::precision::Precision;
use crate::precision::Quantization;
use crate::spec::LayerPatterns;
use crate::spec::ModelSpec;
use std::collections::HashSet;

fn spec() -> ModelSpec {
    ModelSpec {
        vocab_size: 11,
        d_model: 8,
        num_layers: 2,
        d_head: 4,
        d_ffn: 32,
        patterns: vec![LayerPatterns::Uniform(Pattern::new(4, 2, 1).unwrap()); 2],
        ..ModelSpec::default()
    }
}

fn shape(dtype: ElementType, logits: LogitsMode) -> PackageShape {
    PackageShape {
        batch: 2,
        max_seq_len: 16,
        dtype,
        cache_dtype: dtype,
        logits,
    }
}

fn model_of(
    spec: &ModelSpec,
    shape: PackageShape,
    precision: &Precision,
    target: Target,
    fallback: Fallback,
) -> ModelProto {
    build(&GraphOptions {
        sizes: Sizes {
            spec,
            precision,
            shape,
            seq_len: 3,
        },
        target,
        fallback,
        opset: OPSET,
        ir_version: IR_VERSION,
    })
}

fn model(dtype: ElementType, target: Target, fallback: Fallback) -> ModelProto {
    let shape = shape(dtype, LogitsMode::Last);
    model_of(&spec(), shape, &Precision::default(), target, fallback)
}

fn nodes<'a>(model: &'a ModelProto, op_type: &str) -> Vec<&'a NodeProto> {
    let nodes = &model.graph.as_ref().unwrap().node;
    nodes.iter().filter(|n| n.op_type == op_type).collect()
}

fn producer<'a>(model: &'a ModelProto, name: &str) -> &'a NodeProto {
    let made_by = |node: &&NodeProto| node.output.iter().any(|output| output == name);
    let mut nodes = model.graph.as_ref().unwrap().node.iter();
    nodes.find(made_by).unwrap()
}

/// Every value is made once, before it is used, and no two nodes have one name.
fn assert_ordered(model: &ModelProto) {
    let graph = model.graph.as_ref().unwrap();
    let (mut made, mut named) = (HashSet::<&str>::new(), HashSet::<&str>::new());
    made.extend(graph.initializer.iter().map(|t| t.name.as_str()));
    made.extend(graph.input.iter().map(|i| i.name.as_str()));
    for node in &graph.node {
        assert!(named.insert(&node.name), "two nodes {}", node.name);
        for input in &node.input {
            assert!(made.contains(input.as_str()), "{}: {input}", node.name);
        }
        for output in &node.output {
            assert!(made.insert(output), "{output} is made twice");
        }
    }
    for output in &graph.output {
        assert!(made.contains(output.name.as_str()), "{}", output.name);
    }
}

#[test]
fn every_graph_makes_its_values_before_it_uses_them() {
    let quantization = Quantization {
        bits: 8,
        block_size: 16,
        symmetric: true,
        layout: Default::default(),
        activations: Default::default(),
    };
    let quantized = Precision {
        quantization: Some(quantization),
        ..Precision::default()
    };
    let kept = Precision {
        keep_f32: "0,head".parse().unwrap(),
        ..Precision::default()
    };
    let without = ModelSpec {
        recurrence: false,
        tie_embedding: true,
        ..spec()
    };
    for precision in [Precision::default(), quantized, kept] {
        for spec in [spec(), without.clone()] {
            for dtype in ElementType::ACTIVATIONS {
                for logits in [LogitsMode::Last, LogitsMode::All] {
                    let shape = shape(dtype, logits);
                    for fallback in [Fallback::Function, Fallback::Inline, Fallback::TrtPlugins] {
                        let mut precision = precision.clone();
                        if let Some(integers) = &mut precision.quantization {
                            integers.layout = fallback.integer_layout();
                        }
                        for target in fallback.targets(&shape, &precision) {
                            let model = model_of(&spec, shape, &precision, target, fallback);
                            assert_ordered(&model);
                        }
                    }
                    for (rounding, inline) in [
                        (Rounding::AsStored, false),
                        (Rounding::AsStored, true),
                        (Rounding::None, false),
                    ] {
                        let tapped: Vec<_> = taps(&spec, &shape, &precision, 3, Products::Floats)
                            .into_iter()
                            .map(|(name, _)| name)
                            .collect();
                        let graph = reference(&ReferenceOptions {
                            sizes: Sizes {
                                spec: &spec,
                                shape,
                                seq_len: 3,
                                precision: &precision,
                            },
                            rounding,
                            inline,
                            taps: &tapped,
                        });
                        assert_ordered(&graph.model);
                    }
                }
            }
        }
    }
}

#[test]
fn products_for_gpus_take_weights_as_stored() {
    for dtype in [ElementType::F16, ElementType::BF16] {
        for target in [Target::Cuda, Target::TensorRt] {
            let model = model(dtype, target, Fallback::Function);
            let products = nodes(&model, "Gemm");
            let weights: Vec<_> = products.iter().map(|gemm| gemm.input[1].clone()).collect();
            let linear = Weight::all(&spec()).into_iter().filter(|w| w.is_linear());
            let expected: Vec<_> = linear.map(Weight::name).collect();
            assert_eq!(weights, expected);
            // What follows in f32 widens the product, which was rounded once.
            let logits = producer(&model, LOGITS);
            assert_eq!(logits.op_type, "Cast");
            let product = producer(&model, &logits.input[0]);
            assert_eq!(
                (&*product.op_type, &*product.input[0]),
                ("Gemm", FINAL_NORM)
            );
            for tap in [Tap::Mixed, Tap::Hidden] {
                let sum = producer(&model, &producer(&model, &tap.name(1)).input[0]);
                assert_eq!(sum.op_type, "Add");
                assert_eq!(producer(&model, &sum.input[1]).op_type, "Cast");
            }
        }
    }
}

#[test]
fn one_graph_for_tensorrt_is_every_engines() {
    let (spec, precision) = (spec(), Precision::default());
    for logits in [LogitsMode::Last, LogitsMode::All] {
        let of = |batch, seq_len, target| {
            build(&GraphOptions {
                sizes: Sizes {
                    spec: &spec,
                    precision: &precision,
                    shape: shape(ElementType::BF16, logits).with_batch(batch),
                    seq_len,
                },
                target,
                fallback: Fallback::Function,
                opset: OPSET,
                ir_version: IR_VERSION,
            })
        };
        let model = of(1, 1, Target::TensorRt);
        assert_ordered(&model);
        for (batch, seq_len) in [(2, 1), (1, 5)] {
            assert_eq!(of(batch, seq_len, Target::TensorRt), model);
            assert_ne!(of(batch, seq_len, Target::Cuda), of(1, 1, Target::Cuda));
        }
        let graph = model.graph.unwrap();
        for info in graph
            .input
            .iter()
            .chain(&graph.output)
            .chain(&graph.value_info)
        {
            let tensor = info.r#type.as_ref().unwrap().tensor_type.as_ref().unwrap();
            let dims = &tensor.shape.as_ref().unwrap().dim;
            let named: Vec<_> = dims
                .iter()
                .filter_map(|dim| dim.dim_param.as_deref())
                .collect();
            let open = match named.len() {
                1 => 1,
                _ => 2,
            };
            assert_eq!(named, OPEN_SIZES[..open], "{}", info.name);
            assert!(
                dims[open..].iter().all(|dim| dim.dim_value > Some(1)),
                "{}",
                info.name
            );
        }
    }
}

/// Every matrix is in one product: a standard one, or `Linear`, with what surrounds it on CPUs.
#[test]
fn every_target_has_its_products() {
    let spec = spec();
    let linear = Weight::all(&spec).into_iter().filter(|w| w.is_linear());
    let linear = linear.count();
    for dtype in ElementType::ACTIVATIONS {
        for (target, fallback, operators) in [
            (Target::Cpu, Fallback::Function, linear),
            (Target::Cuda, Fallback::Function, 0),
            (Target::Portable, Fallback::Inline, 0),
            // All but the head.
            (Target::Portable, Fallback::Function, linear - 1),
        ] {
            let model = model(dtype, target, fallback);
            let counts = ["Linear", "Gemm"].map(|op| nodes(&model, op).len());
            assert_eq!(counts, [operators, linear - operators], "{dtype} {target}");
        }
        let cpu = model(dtype, Target::Cpu, Fallback::Function);
        assert_eq!(cpu.functions.len(), 0);
        assert_eq!(nodes(&cpu, "Gelu").len() + nodes(&cpu, "Erf").len(), 0);
        // The final norm's mean is the only one.
        assert_eq!(nodes(&cpu, "ReduceMean").len(), 1);
    }
}

#[test]
fn the_reference_rounds_where_the_portable_graph_casts() {
    let (spec, shape) = (spec(), shape(ElementType::BF16, LogitsMode::All));
    let precision = Precision::default();
    let inlined = model_of(&spec, shape, &precision, Target::Portable, Fallback::Inline);
    let of = |rounding, inline| {
        reference(&ReferenceOptions {
            sizes: Sizes {
                spec: &spec,
                shape,
                seq_len: 3,
                precision: &precision,
            },
            rounding,
            inline,
            taps: &[],
        })
    };
    let narrow = |node: &&&NodeProto| {
        let to = node.find_attribute("to").and_then(|to| to.i);
        to == Some(ElementType::BF16.onnx().into())
    };
    let casts = nodes(&inlined, "Cast").iter().filter(narrow).count();
    let rounded = of(Rounding::AsStored, true);
    assert_eq!(nodes(&rounded.model, ROUND_TO).len(), casts);
    let rounded = of(Rounding::AsStored, false);
    let exact = of(Rounding::None, false);
    for model in [&rounded.model, &exact.model] {
        assert_eq!(nodes(model, "Cast").len(), 0);
        for info in model.graph.iter().flat_map(|graph| &graph.input) {
            assert_ne!(
                info.tensor().unwrap().dtype,
                ElementType::BF16,
                "{}",
                info.name
            );
        }
    }
    assert_eq!(nodes(&exact.model, ROUND_TO).len(), 0);
    let node = nodes(&rounded.model, "DilatedAttention")[0];
    for name in [ELEMENT_TYPE, CACHE_TYPE] {
        let code = node.find_attribute(name).and_then(|found| found.i);
        assert_eq!(code, Some(ElementType::BF16.onnx().into()));
    }
    let key = rounded
        .inputs
        .iter()
        .find(|info| info.name.ends_with(".key"));
    assert_eq!(key.unwrap().tensor.dtype, ElementType::BF16);
}

#[test]
fn weights_of_the_reference_are_the_whole_file() {
    let (spec, shape) = (spec(), shape(ElementType::F16, LogitsMode::Last));
    let quantization = Quantization {
        bits: 8,
        block_size: 16,
        symmetric: true,
        layout: Default::default(),
        activations: Default::default(),
    };
    let precision = Precision {
        quantization: Some(quantization),
        ..Precision::default()
    };
    let (stored, _) = storage(&spec, &shape, &precision);
    let mut found = Vec::new();
    for weight in reference_weights(&spec, &shape, &precision) {
        match weight.parts {
            WeightParts::Values(tensor) => {
                assert_eq!(weight.info.tensor, tensor.tensor);
                found.push(tensor);
            }
            WeightParts::Blocks { constants, .. } => {
                assert_eq!(weight.info.name, constants[0].name);
                found.extend(constants);
            }
        }
    }
    assert_eq!(found, stored);
    let head = TensorType::new(ElementType::F32, [spec.vocab_size, spec.d_model]);
    let weights = reference_weights(&spec, &shape, &precision);
    let name = "head.lm_head.weight.blocks";
    let found = weights.iter().find(|weight| weight.info.name == name);
    assert_eq!(found.unwrap().info.tensor, head);
}
