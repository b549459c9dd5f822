//! What engine plans of a package require, and what they have to be.

use super::BackendKind;
use crate::nvinfer::{self, Product};
use ratplus_graphs::none_wrong;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{Engine as EngineInfo, Manifest, Target, TensorInfo, state_tensors};
use ratplus_graphs::releases::plan_graphs;
use ratplus_nvinfer::{ElementKind, InputShape, Tensor};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// What plans of a package require of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanRequirements {
    /// The library that builds and runs them.
    pub product: Product,
    /// Whether plugins stand for the custom nodes.
    pub plugins: bool,
    /// What the graphs are built for.
    pub graphs: Target,
}

impl PlanRequirements {
    /// # Errors
    /// The backend runs no plans, or not those of such a package: why, and what to do.
    pub fn of(backend: BackendKind, manifest: &Manifest) -> Result<Self, String> {
        let product = nvinfer::product(backend)
            .ok_or("it runs the ONNX files; expected tensorrt or tensorrt-rtx")?;
        let graphs = plan_graphs(manifest, product == Product::Rtx)?;
        Ok(Self {
            product,
            plugins: graphs == Target::TensorRt,
            graphs,
        })
    }
}

/// What TensorRT calls an element type of ours.
fn kind(dtype: ElementType) -> ElementKind {
    match dtype {
        ElementType::F32 => ElementKind::F32,
        ElementType::F16 => ElementKind::F16,
        ElementType::BF16 => ElementKind::BF16,
        ElementType::I64 => ElementKind::I64,
        // `nvinfer1::DataType`'s numbers.
        ElementType::U8 => ElementKind::Other(5),
        ElementType::I8 => ElementKind::Other(2),
        ElementType::I4 => ElementKind::Other(9),
    }
}

/// Whether inputs and outputs are the manifest's, in any order; `open` dimensions are of any size.
///
/// # Errors
/// A line for each tensor that is missing, other than expected, or unknown.
pub fn check_tensors(engine: &EngineInfo, found: &[Tensor], open: bool) -> Result<(), Vec<String>> {
    let show = |kind: ElementKind, shape: &[i64]| format!("{kind}{shape:?}");
    let mut problems = Vec::new();
    let sides = [(true, &engine.inputs), (false, &engine.outputs)];
    for (input, expected) in sides {
        let what = if input { "input" } else { "output" };
        for TensorInfo { name, tensor } in expected {
            let shape: Vec<_> = tensor.shape.iter().map(|&size| size as i64).collect();
            let wanted = show(kind(tensor.dtype), &shape);
            let same = |found: &&Tensor| found.name == *name && found.input == input;
            match found.iter().find(same) {
                None => problems.push(format!("{what} `{name}`: expected {wanted}, found none")),
                Some(found) => {
                    let sizes = found.shape.iter().zip(&shape);
                    let sizes =
                        sizes.map(|(&found, &size)| if open && found == -1 { size } else { found });
                    let same_rank = found.shape.len() == shape.len();
                    if !same_rank || show(found.kind, &sizes.collect::<Vec<_>>()) != wanted {
                        let found = show(found.kind, &found.shape);
                        problems.push(format!("{what} `{name}`: expected {wanted}, found {found}"));
                    }
                }
            }
        }
        let known = |name: &str| expected.iter().any(|expected| expected.name == name);
        let found = found.iter().filter(|found| found.input == input);
        problems.extend(
            found
                .filter(|found| !known(&found.name))
                .map(|found| format!("{what} `{}`: expected none of that name", found.name)),
        );
    }
    none_wrong(problems)
}

/// The shapes of an engine's inputs: an optimization profile.
pub fn input_shapes(engine: &EngineInfo) -> Vec<InputShape> {
    let shape = |info: &TensorInfo| {
        let sizes = info.tensor.shape.iter().map(|&size| size as i64);
        (info.name.clone(), sizes.collect())
    };
    engine.inputs.iter().map(shape).collect()
}

/// Whether a plan updates every state in place, as TensorRT's inspector tells: one layer, the plugin,
/// reads what is given for it and writes what is returned. Two addresses alone do not say so: TensorRT
/// may put copies between them and the layer.
///
/// # Errors
/// A line for each state that is copied or reformatted, or that the plan tells nothing of.
pub fn check_in_place(json: &str, manifest: &Manifest) -> Result<(), Vec<String>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Plan {
        layers: Vec<Layer>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Layer {
        #[serde(rename_all = "PascalCase")]
        Detailed {
            name: String,
            #[serde(default)]
            layer_type: String,
            #[serde(default)]
            inputs: Vec<Named>,
            #[serde(default)]
            outputs: Vec<Named>,
        },
        Name(IgnoredAny),
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Named {
        name: String,
    }
    let plan: Plan = serde_json::from_str(json).map_err(|error| {
        vec![format!(
            "TensorRT's inspector wrote no list of layers: {error}"
        )]
    })?;
    // Of a plan's second profile on, names end with it.
    let has = |list: &[Named], wanted: &str| {
        let own = |named: &Named| named.name.split(" [profile ").next() == Some(wanted);
        list.iter().any(own)
    };
    let mut problems = Vec::new();
    for (past, present, _) in state_tensors(&manifest.model, &manifest.shape()) {
        let (mut direct, mut others) = (false, Vec::new());
        for layer in &plan.layers {
            let Layer::Detailed {
                name,
                layer_type,
                inputs,
                outputs,
            } = layer
            else {
                continue;
            };
            match (has(inputs, &past), has(outputs, &present)) {
                (true, true) => direct = true,
                (false, false) => (),
                _ => others.push(format!("`{name}` ({layer_type})")),
            }
        }
        if !others.is_empty() {
            problems.push(format!(
                "`{past}`: expected one layer that makes `{present}` of it in place, found it copied by {}",
                others.join(", ")
            ));
        } else if !direct {
            problems.push(format!(
                "`{past}`: expected a layer that makes `{present}` of it, found none that tells of it in detail"
            ));
        }
    }
    none_wrong(problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratplus_graphs::onnx::OPSET;
    use ratplus_graphs::package::{Fallback, LogitsMode, PackageShape};
    use ratplus_graphs::pattern::Pattern;
    use ratplus_graphs::spec::{LayerPatterns, ModelSpec};

    fn manifest() -> Manifest {
        let model = ModelSpec {
            vocab_size: 100,
            d_model: 128,
            num_layers: 1,
            d_head: 64,
            d_ffn: 512,
            patterns: vec![LayerPatterns::Uniform(Pattern::DENSE)],
            ..ModelSpec::default()
        };
        let dtype = ElementType::BF16;
        let shape = PackageShape {
            batch: 1,
            max_seq_len: 64,
            dtype,
            cache_dtype: dtype,
            logits: LogitsMode::Last,
        };
        Manifest::new(
            model,
            shape,
            Default::default(),
            Fallback::Function,
            OPSET,
            &[1, 16],
        )
    }

    /// A layer as TensorRT's inspector writes it.
    fn layer(name: &str, kind: &str, from: &str, to: &str) -> String {
        let tensor = |name: &str| {
            format!(
                r#"{{"Name": "{name}", "Location": "Device", "Dimensions": [1,64,128],
                "Format/Datatype": "Row major linear BFloat16 format"}}"#
            )
        };
        format!(
            r#"{{"Name": "{name}", "LayerType": "{kind}", "Inputs": [{}, {}], "Outputs": [{}],
            "ParameterType": "PluginV3", "TacticValue": "0x0000000000000000", "StreamId": 0, "Metadata": "[ONNX]"}}"#,
            tensor("seq_length"),
            tensor(from),
            tensor(to)
        )
    }

    /// What it says of a plan of these layers beside the plugins of all states but `without`, for
    /// each of two profiles.
    fn plan(without: &str, more: &[String]) -> String {
        let manifest = manifest();
        let mut layers = more.to_vec();
        for profile in ["", " [profile 1]"] {
            for (past, present, _) in state_tensors(&manifest.model, &manifest.shape()) {
                if past != without {
                    let [past, present] = [past, present].map(|name| format!("{name}{profile}"));
                    layers.push(layer(
                        &format!("layers.0{profile}"),
                        "PluginV3",
                        &past,
                        &present,
                    ));
                }
            }
        }
        let layers = layers.join(", ");
        format!(r#"{{"Layers": [{layers}], "Bindings": ["input_ids", "input_ids [profile 1]"]}}"#)
    }

    #[test]
    fn plans_whose_plugins_take_the_states_themselves_are_in_place() {
        assert_eq!(check_in_place(&plan("", &[]), &manifest()), Ok(()));
    }

    #[test]
    fn copies_and_reformats_of_a_state_are_named() {
        let (past, present) = ("past_key_values.0.key", "present.0.key");
        let inner = "Reformatted Input Tensor 3 to layers.0";
        let before = layer("Reformatting CopyNode for Input", "Reformat", past, inner);
        let plugin = layer("layers.0", "PluginV3", inner, present);
        let after = layer(
            "CopyNode",
            "NoOp",
            "Reformatted Output Tensor 1",
            &format!("{present} [profile 1]"),
        );
        for (without, more, parts) in [
            (
                past,
                vec![before.clone(), plugin],
                &[
                    "`Reformatting CopyNode for Input` (Reformat)",
                    "`layers.0` (PluginV3)",
                ][..],
            ),
            // One profile copies, the other does not.
            ("", vec![after], &["`CopyNode` (NoOp)"]),
            (
                "",
                vec![before],
                &["`Reformatting CopyNode for Input` (Reformat)"],
            ),
        ] {
            let problems = check_in_place(&plan(without, &more), &manifest()).unwrap_err();
            let [problem] = &problems[..] else {
                panic!("{problems:?}");
            };
            assert!(
                problem.starts_with("`past_key_values.0.key`: expected"),
                "{problem}"
            );
            assert!(parts.iter().all(|part| problem.contains(part)), "{problem}");
        }
    }

    #[test]
    fn plans_that_tell_too_little_are_refused() {
        let states = state_tensors(&manifest().model, &manifest().shape()).len();
        for json in [
            r#"{"Layers": ["layers.0", "layers.1"]}"#,
            r#"{"Layers": []}"#,
        ] {
            let problems = check_in_place(json, &manifest()).unwrap_err();
            assert_eq!(problems.len(), states, "{problems:?}");
            assert!(problems[0].contains("in detail"), "{problems:?}");
        }
        let problems = check_in_place("no JSON", &manifest()).unwrap_err();
        assert!(problems[0].contains("no list of layers"), "{problems:?}");
    }
}
