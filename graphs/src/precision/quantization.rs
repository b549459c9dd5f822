//! Block-wise integers in place of the matrices of linear layers.

use crate::onnx::{AttributeProto, IR_VERSION, OPSET};
use crate::ops::{ElementType, TensorType};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Domain of [`MATMUL_NBITS`].
pub const MICROSOFT_DOMAIN: &str = "com.microsoft";
/// Version of [`MICROSOFT_DOMAIN`].
pub const MICROSOFT_VERSION: i64 = 1;
/// The operator that multiplies rows by a matrix of block-wise integers.
pub const MATMUL_NBITS: &str = "MatMulNBits";
/// Value of `accuracy_level` that keeps rows in f32.
const F32_ACCURACY: i64 = 1;
/// Block sizes that the operator takes.
pub const BLOCK_SIZES: [usize; 5] = [16, 32, 64, 128, 256];
/// [`Quantization::block_size`] where nothing is said.
pub const DEFAULT_BLOCK_SIZE: usize = 32;

/// A field that has no such value, and what was expected and found.
pub type Problem = (&'static str, String);

/// Block-wise integers in place of the matrices of linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    /// Bits of one weight: 4 or 8.
    pub bits: u32,
    /// Weights that share a scale: one of [`BLOCK_SIZES`].
    pub block_size: usize,
    /// Whether 0 is in the middle of every block's range.
    pub symmetric: bool,
    /// Which operator reads them.
    #[serde(default)]
    pub layout: IntegerLayout,
    /// What the rows are rounded to that are multiplied with them.
    #[serde(default, skip_serializing_if = "Activations::is_float")]
    pub activations: Activations,
}

/// What a linear layer's rows are rounded to before they are multiplied with integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// Nothing beyond the layer's type.
    #[default]
    Float,
    /// Blocks of as many elements as the weights' have, of 8 bits and an f32 scale: `x` becomes
    /// `s round(x / s)` with `s = max |x| / 127`, ties to even. On CPUs: other targets' products keep
    /// the layer's type.
    Int8,
}

impl Activations {
    /// Every one.
    pub const ALL: [Self; 2] = [Self::Float, Self::Int8];

    /// `"float"` or `"int8"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Int8 => "int8",
        }
    }

    fn is_float(&self) -> bool {
        *self == Self::Float
    }
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which operator's layout block-wise integers have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntegerLayout {
    /// That of [`MATMUL_NBITS`]: unsigned, with zero points.
    #[default]
    Product,
    /// That of `DequantizeLinear`, for runtimes without the product: signed, without zero points,
    /// `[N, K]`.
    Dequantized,
}

impl IntegerLayout {
    /// The least opset and IR version that have it.
    pub fn onnx_versions(self) -> (i64, i64) {
        match self {
            Self::Product => (OPSET, IR_VERSION),
            Self::Dequantized => (21, 10),
        }
    }
}

impl Quantization {
    /// The largest integer.
    pub fn largest(self) -> u32 {
        (1 << self.bits) - 1
    }

    /// The zero point of symmetric blocks.
    pub fn middle(self) -> u32 {
        1 << (self.bits - 1)
    }

    /// Blocks in a row of `inputs` weights.
    pub fn blocks(self, inputs: usize) -> usize {
        inputs.div_ceil(self.block_size)
    }

    /// Name, type and shape of the constants of a matrix `name` of `[outputs, inputs]`, in the order of a
    /// node's inputs.
    ///
    /// [`IntegerLayout::Product`]: `blocks [N, K / block_size, bytes of a block]`, of four bits two a byte,
    /// the lower bits first; `scales [N * K / block_size]`; `zero_points` unless symmetric, in as many bits
    /// as an integer, every row starting a byte.
    ///
    /// [`IntegerLayout::Dequantized`]: `integers [N, K]`, `scales [N, K / block_size]`.
    pub fn tensors(self, name: &str, [outputs, inputs]: [usize; 2]) -> Vec<(String, TensorType)> {
        let blocks = self.blocks(inputs);
        let named = |what: &str, dtype, shape: Vec<usize>| {
            (format!("{name}.{what}"), TensorType::new(dtype, shape))
        };
        if self.layout == IntegerLayout::Dequantized {
            let dtype = match self.bits {
                4 => ElementType::I4,
                _ => ElementType::I8,
            };
            return vec![
                named("integers", dtype, vec![outputs, inputs]),
                named("scales", ElementType::F32, vec![outputs, blocks]),
            ];
        }
        let bytes = |elements: usize| (elements * self.bits as usize).div_ceil(8);
        let block = vec![outputs, blocks, bytes(self.block_size)];
        let mut tensors = vec![
            named("blocks", ElementType::U8, block),
            named("scales", ElementType::F32, vec![outputs * blocks]),
        ];
        if !self.symmetric {
            let points = vec![outputs * bytes(blocks)];
            tensors.push(named("zero_points", ElementType::U8, points));
        }
        tensors
    }

    /// The attributes of a node of [`MATMUL_NBITS`], beside the sizes of its matrix.
    pub fn node_attributes(self) -> Vec<AttributeProto> {
        [
            ("accuracy_level", F32_ACCURACY),
            ("bits", i64::from(self.bits)),
            ("block_size", self.block_size as i64),
        ]
        .map(|(name, value)| AttributeProto::int(name, value))
        .into()
    }

    pub(super) fn problems(self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if ![4, 8].contains(&self.bits) {
            problems.push(("bits", format!("expected 4 or 8, found {}", self.bits)));
        }
        if !BLOCK_SIZES.contains(&self.block_size) {
            let problem = format!("expected one of {BLOCK_SIZES:?}, found {}", self.block_size);
            problems.push(("block_size", problem));
        }
        if self.layout == IntegerLayout::Dequantized && !self.symmetric {
            let problem = "expected symmetric blocks: TensorRT has no zero points".to_owned();
            problems.push(("symmetric", problem));
        }
        if self.layout == IntegerLayout::Dequantized && self.activations != Activations::Float {
            let problem = "expected float with this `fallback`, whose graphs have no operator that rounds rows, \
                 found int8; `function` and `none` have one";
            problems.push(("activations", problem.to_owned()));
        }
        problems
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.symmetric { "" } else { "asymmetric " };
        write!(f, "int{}, {kind}blocks of {}", self.bits, self.block_size)?;
        match self.activations {
            Activations::Float => Ok(()),
            activations => write!(f, ", activations {activations}"),
        }
    }
}
