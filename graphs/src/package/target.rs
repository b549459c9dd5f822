//! What graphs are built for.

use super::PackageShape;
use crate::ops::{DOMAIN, TRT_PLUGINS_DOMAIN};
use crate::precision::{IntegerLayout, Precision};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A runtime that a graph is built for. All of an engine's graphs compute the same function of the
/// same tensors over the same weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Target {
    /// Any ONNX runtime: f32 arithmetic between roundings, which CPUs without f16 and bf16 have.
    Portable,
    /// ONNX Runtime on the CPU with the RAT+ operators.
    Cpu,
    /// ONNX Runtime on a GPU with the RAT+ operators, and TensorRT for RTX: products of f16 and
    /// bf16 in their own type.
    Cuda,
    /// TensorRT with the RAT+ plugins, by itself or in ONNX Runtime: one graph for every engine, whose
    /// batch and length are open; custom nodes in [`TRT_PLUGINS_DOMAIN`] with the types of their
    /// outputs, and products as for [`Target::Cuda`].
    TensorRt,
}

/// What files are called that stand for every engine of a package.
pub const EVERY_ENGINE: &str = "model";

impl Target {
    /// Every target.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Cpu, Self::Cuda, Self::TensorRt];

    /// File of the engine `name`: the portable one has no target in its name, a graph of
    /// [open sizes](Self::has_open_sizes) no engine.
    pub fn file(self, name: &str) -> String {
        match self {
            Self::Portable => format!("{name}.onnx"),
            Self::TensorRt => format!("{EVERY_ENGINE}.{self}.onnx"),
            target => format!("{name}.{target}.onnx"),
        }
    }

    /// How a package with `fallback` writes custom nodes for it.
    pub fn custom_nodes(self, fallback: Fallback) -> CustomNodes {
        match (self, fallback) {
            (Self::TensorRt, _) => CustomNodes::Plugins,
            (Self::Portable | Self::Cuda, Fallback::Function) => CustomNodes::WithFunctions,
            (Self::Portable | Self::Cuda, Fallback::Inline) => CustomNodes::Inline,
            _ => CustomNodes::Bare,
        }
    }

    /// Whether one graph, of open batch and length, is every engine's.
    pub fn has_open_sizes(self) -> bool {
        self == Self::TensorRt
    }

    /// How linear layers are written.
    pub fn products(self, fallback: Fallback) -> Products {
        match self {
            Self::Portable if self.custom_nodes(fallback) == CustomNodes::Inline => {
                Products::Floats
            }
            Self::Portable => Products::Plain,
            Self::Cpu => Products::Operator,
            Self::Cuda | Self::TensorRt => Products::Native,
        }
    }
}

/// How a graph writes linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Products {
    /// As standard products of f32.
    Floats,
    /// As standard products of the rows' type where the matrix has the same, summed in f32 and rounded
    /// once.
    Native,
    /// As [`Linear`](crate::ops::Linear) alone where its function has the types, else as
    /// [`Floats`](Self::Floats).
    Plain,
    /// As [`Linear`](crate::ops::Linear), with what surrounds them.
    Operator,
}

impl Products {
    /// Whether activations keep the batch's dimension, `[B, L, width]`; else they are `[B * L, width]`.
    pub fn keeps_batch(self) -> bool {
        matches!(self, Self::Plain | Self::Operator)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// How a graph writes custom nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CustomNodes {
    /// As nodes, with a model-local function of standard operators for each operator.
    WithFunctions,
    /// As nodes alone.
    Bare,
    /// As standard operators.
    Inline,
    /// As nodes in [`TRT_PLUGINS_DOMAIN`] with the types of their outputs.
    Plugins,
}

impl CustomNodes {
    /// Domain of the nodes; none where they are standard operators.
    pub fn domain(self) -> Option<&'static str> {
        match self {
            Self::WithFunctions | Self::Bare => Some(DOMAIN),
            Self::Inline => None,
            Self::Plugins => Some(TRT_PLUGINS_DOMAIN),
        }
    }
}

/// Which targets a package has graphs for, and how custom nodes are written where a runtime may be
/// without the RAT+ operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Fallback {
    /// Every target; with the custom nodes, a model-local function of standard operators for each
    /// operator.
    Function,
    /// Runtimes without the RAT+ operators: standard operators only.
    Inline,
    /// Every target; bare custom nodes.
    None,
    /// TensorRT with the RAT+ plugins alone.
    TrtPlugins,
}

impl Fallback {
    /// The layout of a package's integers.
    pub fn integer_layout(self) -> IntegerLayout {
        match self {
            Self::Function | Self::None => IntegerLayout::Product,
            Self::Inline | Self::TrtPlugins => IntegerLayout::Dequantized,
        }
    }

    /// Targets of a package, ascending. Plugins have no caches of another type than the
    /// activations', and TensorRT no products of [`IntegerLayout::Product`].
    pub fn targets(self, shape: &PackageShape, precision: &Precision) -> Vec<Target> {
        let integers = precision.layout() == Some(IntegerLayout::Product);
        let plugins = !integers && shape.own_cache_dtype().is_none();
        let mut targets = Target::ALL.to_vec();
        targets.retain(|&target| match self {
            Self::Function | Self::None => plugins || target != Target::TensorRt,
            Self::Inline => matches!(target, Target::Portable | Target::Cuda),
            Self::TrtPlugins => target == Target::TensorRt,
        });
        targets
    }
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}
