//! The graph that the reference runs: f32 throughout, with the package's roundings as nodes of
//! their own.

use super::layers::{self, Sizes};
use super::lowering::Lowering;
use super::storage::{Content, StoredTensor, stored_contents};
use super::{opset_of, taps};
use crate::onnx::{
    AttributeProto, GraphProto, IR_VERSION, LowCasts, ModelProto, NodeProto, OPSET, ValueInfoProto,
};
use crate::ops::{DOMAIN, DOMAIN_VERSION, ElementType, Op, PortType, TensorType};
use crate::package::{CustomNodes, PackageShape, TensorInfo};
use crate::precision::{Precision, Quantization, Stored};
use crate::spec::ModelSpec;

pub use crate::onnx::ROUND_TO;

/// Attribute of custom nodes: the type that their `T` is rounded to, as ONNX numbers it; f32 without
/// it.
pub const ELEMENT_TYPE: &str = "element_type";
/// Attribute of custom nodes: the type that their `C` is rounded to, as [`ELEMENT_TYPE`].
pub const CACHE_TYPE: &str = "cache_type";

/// The attributes of a custom node of `op` with this `T` and `C`.
pub fn rounding_attributes(op: Op, [t, c]: [ElementType; 2]) -> Vec<AttributeProto> {
    let has_cache = op.inputs().iter().any(|port| port.dtype == PortType::C);
    let cache = has_cache.then_some((CACHE_TYPE, c));
    let types = [(ELEMENT_TYPE, t)].into_iter().chain(cache);
    types
        .map(|(name, dtype)| AttributeProto::int(name, dtype.onnx().into()))
        .collect()
}

/// What becomes of roundings to f16 and bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// Values are rounded where the package rounds them.
    #[default]
    AsStored,
    /// Everything is f32; only the weights are what the package stores. What is left out shows
    /// what the package's roundings cost.
    None,
}

impl Rounding {
    /// What stands for a cast.
    pub fn casts(self) -> LowCasts {
        match self {
            Self::AsStored => LowCasts::Round,
            Self::None => LowCasts::None,
        }
    }
}

/// What determines the reference's graph.
#[derive(Clone, Debug)]
pub struct ReferenceOptions<'a> {
    /// Model, shape and chunk length.
    pub sizes: Sizes<'a>,
    /// Which roundings there are.
    pub rounding: Rounding,
    /// Whether the operators' bodies stand for the custom nodes: to judge the bodies.
    pub inline: bool,
    /// What else of [`taps`] is an output.
    pub taps: &'a [String],
}

/// A graph for the reference, and what its names mean.
#[derive(Clone, Debug)]
pub struct ReferenceGraph {
    /// In f32 where the package has f16 and bf16. Its inputs are `inputs`, then `weights`.
    pub model: ModelProto,
    /// Types as in the package.
    pub inputs: Vec<TensorInfo>,
    /// Types as in the package.
    pub outputs: Vec<TensorInfo>,
    /// Types as in the package; block-wise integers are f32 matrices.
    pub weights: Vec<TensorInfo>,
}

/// The type that holds values of `dtype` in the reference's graphs.
pub fn carrier(dtype: ElementType) -> ElementType {
    match dtype {
        ElementType::F16 | ElementType::BF16 => ElementType::F32,
        other => other,
    }
}

impl ReferenceGraph {
    /// A graph of `nodes`, which are written for it.
    pub fn new(
        nodes: Vec<NodeProto>,
        inputs: Vec<TensorInfo>,
        outputs: Vec<TensorInfo>,
        weights: Vec<TensorInfo>,
    ) -> Self {
        let in_carriers = |list: &[TensorInfo]| {
            let declared = list.iter().map(|TensorInfo { name, tensor }| {
                let tensor = TensorType::new(carrier(tensor.dtype), &*tensor.shape);
                ValueInfoProto::new(name, &tensor)
            });
            declared.collect()
        };
        let graph = GraphProto {
            name: "reference".into(),
            node: nodes,
            input: [in_carriers(&inputs), in_carriers(&weights)].concat(),
            output: in_carriers(&outputs),
            ..GraphProto::default()
        };
        let model = ModelProto {
            ir_version: IR_VERSION,
            graph: Some(graph),
            opset_import: vec![opset_of("", OPSET), opset_of(DOMAIN, DOMAIN_VERSION)],
            ..ModelProto::default()
        };
        Self {
            model,
            inputs,
            outputs,
            weights,
        }
    }
}

/// Builds the reference's graph of a package, which is read from no file.
pub fn reference(options: &ReferenceOptions<'_>) -> ReferenceGraph {
    let sizes = options.sizes;
    let (spec, shape, seq_len) = (sizes.spec, sizes.shape, sizes.seq_len);
    let custom = match options.inline {
        true => CustomNodes::Inline,
        false => CustomNodes::Bare,
    };
    let lowering = Lowering::reference(custom, options.rounding.casts());
    let (nodes, _) = layers::write(&sizes, lowering);
    let (inputs, mut outputs) = shape.tensors(spec, seq_len);
    let tapped = taps(spec, &shape, sizes.precision, seq_len, lowering.products).into_iter();
    outputs.extend(
        tapped
            .filter(|(name, _)| options.taps.contains(name))
            .map(|(name, tensor)| TensorInfo { name, tensor }),
    );
    let weights = reference_weights(spec, &shape, sizes.precision).into_iter();
    let weights = weights.map(|weight| weight.info).collect();
    ReferenceGraph::new(nodes, inputs, outputs, weights)
}

/// A weight of the reference's graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceWeight {
    /// Its name, type and shape as the package has them; an f32 matrix for block-wise integers.
    pub info: TensorInfo,
    /// Where it lies in the weights file.
    pub parts: WeightParts,
}

/// What a weight of the reference's graph is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightParts {
    /// Its values.
    Values(StoredTensor),
    /// Its integers.
    Blocks {
        /// How they were made.
        quantization: Quantization,
        /// The constants of [`Quantization::tensors`], in their order.
        constants: Vec<StoredTensor>,
    },
}

/// The weights of the reference's graph, in file order.
pub fn reference_weights(
    spec: &ModelSpec,
    shape: &PackageShape,
    precision: &Precision,
) -> Vec<ReferenceWeight> {
    let (contents, _) = stored_contents(spec, shape, precision);
    let mut weights = Vec::new();
    for stored in contents {
        let tensors = stored.tensors.into_iter();
        let Content::Weight(weight, Stored::Blocks(quantization)) = stored.content else {
            weights.extend(tensors.map(|tensor| ReferenceWeight {
                info: TensorInfo {
                    name: tensor.name.clone(),
                    tensor: tensor.tensor.clone(),
                },
                parts: WeightParts::Values(tensor),
            }));
            continue;
        };
        let constants: Vec<_> = tensors.collect();
        let Some(first) = constants.first() else {
            continue;
        };
        let matrix = TensorType::new(ElementType::F32, weight.shape(spec));
        weights.push(ReferenceWeight {
            info: TensorInfo {
                name: first.name.clone(),
                tensor: matrix,
            },
            parts: WeightParts::Blocks {
                quantization,
                constants,
            },
        });
    }
    weights
}
