//! Matrix products in the package's own type, for runtimes that have them.

use crate::onnx::{AttributeProto, GraphProto, ModelProto, NodeProto};
use crate::ops::ElementType;
use std::collections::{HashMap, HashSet};

/// Rewrites every product of two f16 or bf16 values that are widened for it into one in their own
/// type, and returns how many there were.
///
/// `Gemm(Cast(a), Cast(b))` becomes `Gemm(a, b)`, which sums in f32 and rounds once. A cast of the
/// result back to the type is that rounding and goes; a cast to f32 serves every other consumer.
/// Weights then stay as they are stored. Graph inputs, outputs and the names of everything that
/// [`taps`](super::taps) lists are as before; f32 models do not change.
pub fn native_products(model: &mut ModelProto) -> usize {
    let Some(graph) = &mut model.graph else {
        return 0;
    };
    let casts = narrow_casts(graph);
    let mut rewrite = Rewrite::new(graph);
    let mut products = 0;
    let mut nodes = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        let first = node.output.first();
        if first.is_some_and(|output| rewrite.absorbed.contains(output)) {
            continue;
        }
        let operands = match node.input.as_slice() {
            [a, b] if is_standard(&node, "Gemm") => casts.get(a).zip(casts.get(b)),
            _ => None,
        };
        let Some(((a, dtype), (b, _))) = operands.filter(|(a, b)| a.1 == b.1) else {
            nodes.push(node);
            continue;
        };
        products += 1;
        node.input = vec![a.clone(), b.clone()];
        let wide = node.output[0].clone();
        let (narrow, widen) = rewrite.result(&wide, *dtype);
        // Nodes are named after their first output.
        node.name = narrow.clone();
        node.output = vec![narrow.clone()];
        nodes.push(node);
        if widen {
            nodes.push(cast(&narrow, &wide, ElementType::F32));
        }
    }
    graph.node = nodes;
    remove_unused_casts(graph);
    products
}

fn is_standard(node: &NodeProto, op_type: &str) -> bool {
    node.domain.is_empty() && node.op_type == op_type
}

/// The type a node casts to.
fn cast_type(node: &NodeProto) -> Option<ElementType> {
    let to = is_standard(node, "Cast").then(|| node.find_attribute("to"))??;
    ElementType::from_onnx(i32::try_from(to.i?).ok()?)
}

fn cast(from: &str, to: &str, dtype: ElementType) -> NodeProto {
    NodeProto {
        input: vec![from.into()],
        output: vec![to.into()],
        name: to.into(),
        op_type: "Cast".into(),
        attribute: vec![AttributeProto::int("to", dtype.onnx().into())],
        domain: String::new(),
    }
}

/// Values that are a cast to f32, each with what it is a cast of and that value's type, f16 or
/// bf16.
fn narrow_casts(graph: &GraphProto) -> HashMap<String, (String, ElementType)> {
    let mut types: HashMap<&str, ElementType> = graph
        .initializer
        .iter()
        .filter_map(|tensor| Some((tensor.name.as_str(), tensor.tensor_type()?.dtype)))
        .chain(
            graph
                .input
                .iter()
                .filter_map(|input| Some((input.name.as_str(), input.tensor()?.dtype))),
        )
        .collect();
    let mut casts = HashMap::new();
    for node in &graph.node {
        let Some(from) = node.input.first() else {
            continue;
        };
        let known = types.get(from.as_str()).copied();
        let to = cast_type(node);
        let moves = ["Gather", "Identity", "Reshape", "Split"];
        let dtype = match to {
            None if moves.iter().any(|op| is_standard(node, op)) => known,
            to => to,
        };
        if let Some(dtype) = dtype {
            types.extend(node.output.iter().map(|name| (name.as_str(), dtype)));
        }
        if let (Some(ElementType::F32), Some(ElementType::F16 | ElementType::BF16)) = (to, known)
            && let (Some(known), [output]) = (known, node.output.as_slice())
        {
            casts.insert(output.clone(), (from.clone(), known));
        }
    }
    casts
}

/// Who uses which value.
struct Rewrite {
    /// Outputs of casts per input and type.
    casts: HashMap<(String, ElementType), String>,
    /// Inputs of every node, graph outputs included, with how often they occur.
    uses: HashMap<String, usize>,
    names: HashSet<String>,
    /// Outputs of casts that a product has taken over.
    absorbed: HashSet<String>,
}

impl Rewrite {
    fn new(graph: &GraphProto) -> Self {
        let mut casts = HashMap::new();
        let mut uses = HashMap::<String, usize>::new();
        let outputs = graph.output.iter().map(|output| &output.name);
        for name in graph
            .node
            .iter()
            .flat_map(|node| &node.input)
            .chain(outputs)
        {
            *uses.entry(name.clone()).or_default() += 1;
        }
        for node in &graph.node {
            if let (Some(to), [from], [output]) =
                (cast_type(node), &node.input[..], &node.output[..])
            {
                casts
                    .entry((from.clone(), to))
                    .or_insert_with(|| output.clone());
            }
        }
        let made = graph.node.iter().flat_map(|node| &node.output);
        Self {
            casts,
            names: uses.keys().chain(made).cloned().collect(),
            uses,
            absorbed: HashSet::new(),
        }
    }

    /// The name of a product in `dtype` that was `wide` in f32, and whether `wide` is needed
    /// beside it.
    fn result(&mut self, wide: &str, dtype: ElementType) -> (String, bool) {
        let uses = self.uses.get(wide).copied().unwrap_or(0);
        match self.casts.get(&(wide.to_owned(), dtype)) {
            Some(narrow) => {
                self.absorbed.insert(narrow.clone());
                (narrow.clone(), uses > 1)
            }
            None => {
                let mut narrow = format!("{wide}.{dtype}");
                while !self.names.insert(narrow.clone()) {
                    narrow.push('_');
                }
                (narrow, uses > 0)
            }
        }
    }
}

/// Casts nobody reads, and then those only they read.
fn remove_unused_casts(graph: &mut GraphProto) {
    let mut used: HashSet<String> = graph
        .output
        .iter()
        .map(|output| output.name.clone())
        .collect();
    // Nodes are in topological order: from the end, every consumer has been seen.
    let mut kept = Vec::with_capacity(graph.node.len());
    for node in std::mem::take(&mut graph.node).into_iter().rev() {
        let unused = !node.output.iter().any(|name| used.contains(name));
        if unused && is_standard(&node, "Cast") {
            continue;
        }
        used.extend(node.input.iter().cloned());
        kept.push(node);
    }
    kept.reverse();
    graph.node = kept;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Fallback, LOGITS, LogitsMode, PackageShape, Target};
    use crate::model::{FINAL_NORM, GraphOptions, Tap, Weight, build};
    use crate::onnx::{IR_VERSION, OPSET, TensorProto, ValueInfoProto};
    use crate::ops::TensorType;
    use crate::pattern::Pattern;
    use crate::precision::Precision;
    use crate::spec::{LayerPatterns, ModelSpec};

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

    fn model(dtype: ElementType, logits: LogitsMode, fallback: Fallback) -> ModelProto {
        model_of(&spec(), dtype, logits, fallback)
    }

    fn model_of(
        spec: &ModelSpec,
        dtype: ElementType,
        logits: LogitsMode,
        fallback: Fallback,
    ) -> ModelProto {
        build(&GraphOptions {
            spec,
            precision: &Precision::default(),
            shape: PackageShape {
                batch: 2,
                max_seq_len: 16,
                dtype,
                cache_dtype: dtype,
                logits,
            },
            seq_len: 3,
            target: Target::Portable,
            fallback,
            opset: OPSET,
            ir_version: IR_VERSION,
        })
    }

    fn nodes<'a>(model: &'a ModelProto, op_type: &str) -> Vec<&'a NodeProto> {
        let nodes = &model.graph.as_ref().unwrap().node;
        nodes.iter().filter(|n| is_standard(n, op_type)).collect()
    }

    /// Every input of a node is made before it, and nothing is made or named twice.
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
    fn every_product_of_a_low_precision_model_takes_its_weight_as_stored() {
        for dtype in [ElementType::F16, ElementType::BF16] {
            for logits in [LogitsMode::Last, LogitsMode::All] {
                for fallback in [Fallback::Function, Fallback::None, Fallback::Inline] {
                    let before = model(dtype, logits, fallback);
                    let mut after = before.clone();
                    // Four products a layer, and the head.
                    assert_eq!(native_products(&mut after), 9);
                    assert_ordered(&after);
                    let weights: Vec<_> = nodes(&after, "Gemm")
                        .iter()
                        .map(|gemm| gemm.input[1].as_str())
                        .collect();
                    let mut expected = Vec::new();
                    for layer in 0..2 {
                        expected.extend([
                            Weight::InProj(layer),
                            Weight::OutProj(layer),
                            Weight::Fc1(layer),
                            Weight::Fc2(layer),
                        ]);
                    }
                    expected.push(Weight::LmHead);
                    let expected: Vec<_> = expected.into_iter().map(Weight::name).collect();
                    assert_eq!(weights, expected);
                    // Two casts of operands and, for in_proj and fc1, one of the result go; one
                    // of the result comes for the other five.
                    let change = nodes(&before, "Cast").len() - nodes(&after, "Cast").len();
                    assert_eq!(change, 9 * 2 + 2 * 2 - 5, "{dtype} {fallback}");
                    let (before, after) = (before.graph.unwrap(), after.graph.unwrap());
                    assert_eq!(before.input, after.input);
                    assert_eq!(before.output, after.output);
                    assert_eq!(before.initializer, after.initializer);
                }
            }
        }
    }

    #[test]
    fn a_tied_head_multiplies_by_the_embedding_as_stored() {
        let tied = ModelSpec {
            tie_embedding: true,
            ..spec()
        };
        let mut found = model_of(&tied, ElementType::BF16, LogitsMode::Last, Fallback::None);
        assert_eq!(native_products(&mut found), 9);
        assert_ordered(&found);
        let head = nodes(&found, "Gemm")[8].input[1].clone();
        assert_eq!(head, Weight::Embedding.name());
        let graph = found.graph.as_ref().unwrap();
        assert!(
            graph
                .initializer
                .iter()
                .all(|t| t.name != Weight::LmHead.name())
        );
    }

    #[test]
    fn consumers_of_f32_get_f32() {
        let mut found = model(ElementType::BF16, LogitsMode::Last, Fallback::None);
        native_products(&mut found);
        let graph = found.graph.as_ref().unwrap();
        let producer = |name: &str| {
            let made_by = |node: &&NodeProto| node.output.iter().any(|output| output == name);
            graph.node.iter().find(made_by).unwrap()
        };
        let logits = producer(LOGITS);
        assert_eq!(cast_type(logits), Some(ElementType::F32));
        let product = producer(&logits.input[0]);
        assert_eq!(product.op_type, "Gemm");
        assert_eq!(product.input[0], FINAL_NORM);
        for tap in [Tap::Mixed, Tap::Hidden] {
            let rounded = producer(&tap.name(1));
            let sum = producer(&rounded.input[0]);
            assert_eq!(sum.op_type, "Add");
            assert_eq!(cast_type(producer(&sum.input[1])), Some(ElementType::F32));
        }
    }

    #[test]
    fn f32_models_do_not_change() {
        let before = model(ElementType::F32, LogitsMode::All, Fallback::Function);
        let mut after = before.clone();
        assert_eq!(native_products(&mut after), 0);
        assert_eq!(before, after);
    }

    #[test]
    fn a_second_rewrite_finds_nothing() {
        let mut once = model(ElementType::F16, LogitsMode::All, Fallback::Function);
        native_products(&mut once);
        let mut twice = once.clone();
        assert_eq!(native_products(&mut twice), 0);
        assert_eq!(once, twice);
    }

    /// A graph of these nodes on inputs `a`, `b` in f16, `c` in bf16 and `d` in f32.
    fn small(nodes: Vec<NodeProto>, outputs: &[(&str, ElementType)]) -> ModelProto {
        let square = |dtype| TensorType::new(dtype, [2, 2]);
        let input = |(name, dtype)| ValueInfoProto::new(name, &square(dtype));
        let graph = GraphProto {
            node: nodes,
            input: [
                ("a", ElementType::F16),
                ("b", ElementType::F16),
                ("c", ElementType::BF16),
                ("d", ElementType::F32),
            ]
            .map(input)
            .into(),
            output: outputs.iter().copied().map(input).collect(),
            initializer: vec![TensorProto::default()],
            ..GraphProto::default()
        };
        ModelProto {
            graph: Some(graph),
            ..ModelProto::default()
        }
    }

    fn gemm(inputs: &[&str], output: &str) -> NodeProto {
        NodeProto {
            input: inputs.iter().map(|&name| name.into()).collect(),
            op_type: "Gemm".into(),
            ..cast("", output, ElementType::F32)
        }
    }

    #[test]
    fn other_products_stay() {
        let wide = |from: &str| cast(from, &format!("{from}32"), ElementType::F32);
        let casts = || vec![wide("a"), wide("b"), wide("c")];
        for inputs in [
            &["a32", "c32"][..],
            &["a32", "d"],
            &["d", "d"],
            &["a32", "b32", "d"],
        ] {
            let mut nodes = casts();
            nodes.push(gemm(inputs, "y"));
            let mut model = small(nodes, &[("y", ElementType::F32)]);
            let before = model.graph.as_ref().unwrap().node.last().cloned();
            assert_eq!(native_products(&mut model), 0, "{inputs:?}");
            assert_eq!(model.graph.unwrap().node.last().cloned(), before);
        }
    }

    #[test]
    fn a_result_may_be_read_in_both_types_and_be_an_output() {
        let nodes = vec![
            cast("a", "a32", ElementType::F32),
            cast("b", "b32", ElementType::F32),
            gemm(&["a32", "b32"], "y"),
            cast("y", "rounded", ElementType::F16),
            cast("y", "again", ElementType::F16),
            cast("y", "other", ElementType::BF16),
        ];
        let outputs = [
            ("y", ElementType::F32),
            ("rounded", ElementType::F16),
            ("again", ElementType::F16),
            ("other", ElementType::BF16),
        ];
        let mut model = small(nodes, &outputs);
        assert_eq!(native_products(&mut model), 1);
        let found: Vec<_> = model
            .graph
            .unwrap()
            .node
            .into_iter()
            .map(|node| (node.op_type, node.input, node.output))
            .collect();
        let node = |op: &str, inputs: &[&str], output: &str| {
            let inputs = inputs.iter().map(|&name| name.to_owned()).collect();
            (op.to_owned(), inputs, vec![output.to_owned()])
        };
        let expected: Vec<(String, Vec<String>, Vec<String>)> = vec![
            node("Gemm", &["a", "b"], "rounded"),
            node("Cast", &["rounded"], "y"),
            node("Cast", &["y"], "again"),
            node("Cast", &["y"], "other"),
        ];
        assert_eq!(found, expected);
    }
}
