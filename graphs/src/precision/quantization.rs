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
/// Bits of one element in the operator.
const NODE_BITS: u32 = 4;
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
}

/// Which operator's layout block-wise integers have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntegerLayout {
    /// That of [`MATMUL_NBITS`]: unsigned, with zero points, four bits a node.
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

    /// The nodes whose sum is the product, the upper half of the bits first.
    pub fn planes(self) -> &'static [Plane] {
        match (self.layout, self.bits) {
            (IntegerLayout::Dequantized, _) | (_, 4) => &[Plane { half: "", shift: 0 }],
            _ => &[
                Plane {
                    half: UPPER_HALF,
                    shift: 4,
                },
                Plane {
                    half: ".low",
                    shift: 0,
                },
            ],
        }
    }

    /// Bits of one element of a node's first constant.
    pub fn node_bits(self) -> u32 {
        match self.layout {
            IntegerLayout::Product => NODE_BITS,
            IntegerLayout::Dequantized => self.bits,
        }
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
        problems
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.symmetric { "" } else { "asymmetric " };
        write!(f, "int{}, {kind}blocks of {}", self.bits, self.block_size)
    }
}

/// What the names of the upper half's constants have after the matrix's.
const UPPER_HALF: &str = ".high";

/// Bits of every integer of a matrix: one node and its constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    half: &'static str,
    /// Bits of the integer below these; the scale is that of the integer times `2^shift`.
    pub shift: u32,
}

impl Plane {
    /// Whether the node has zero points of its own: without them it takes 8.
    pub fn has_zero_points(self, quantization: Quantization) -> bool {
        // The lower half of a symmetric block's zero point is 0, the upper half 8.
        !quantization.symmetric || quantization.bits == 8 && self.shift == 0
    }

    /// How many constants the node has.
    pub fn constants(self, quantization: Quantization) -> usize {
        2 + usize::from(self.has_zero_points(quantization))
    }

    /// Name, type and shape of the node's constants in the order of its inputs, for the matrix
    /// `name` of `[outputs, inputs]`.
    ///
    /// [`IntegerLayout::Product`]: `blocks [N, K / block_size, block_size / 2]`, two elements a
    /// byte, the lower bits first; `scales [N * K / block_size]`; `zero_points`, two a byte, every
    /// row starting a byte.
    ///
    /// [`IntegerLayout::Dequantized`]: `integers [N, K]`, `scales [N, K / block_size]`.
    pub fn tensors(
        self,
        quantization: Quantization,
        name: &str,
        [outputs, inputs]: [usize; 2],
    ) -> Vec<(String, TensorType)> {
        let blocks = quantization.blocks(inputs);
        let named = |what: &str, dtype, shape: Vec<usize>| {
            (
                format!("{name}{}.{what}", self.half),
                TensorType::new(dtype, shape),
            )
        };
        if quantization.layout == IntegerLayout::Dequantized {
            let dtype = match quantization.bits {
                4 => ElementType::I4,
                _ => ElementType::I8,
            };
            return vec![
                named("integers", dtype, vec![outputs, inputs]),
                named("scales", ElementType::F32, vec![outputs, blocks]),
            ];
        }
        let bytes = quantization.block_size / 2;
        let mut tensors = vec![
            named("blocks", ElementType::U8, vec![outputs, blocks, bytes]),
            named("scales", ElementType::F32, vec![outputs * blocks]),
        ];
        if self.has_zero_points(quantization) {
            let bytes = outputs * blocks.div_ceil(2);
            tensors.push(named("zero_points", ElementType::U8, vec![bytes]));
        }
        tensors
    }
}

/// The attributes of a node for a matrix of `[outputs, inputs]`.
pub fn node_attributes(
    quantization: Quantization,
    [outputs, inputs]: [usize; 2],
) -> Vec<AttributeProto> {
    [
        ("K", inputs as i64),
        ("N", outputs as i64),
        ("accuracy_level", F32_ACCURACY),
        ("bits", i64::from(NODE_BITS)),
        ("block_size", quantization.block_size as i64),
    ]
    .map(|(name, value)| AttributeProto::int(name, value))
    .into()
}
