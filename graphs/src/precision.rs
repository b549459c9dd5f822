//! How the weights of linear layers are stored: in the package's type, as block-wise integers, or
//! in f32 in layers that keep it.
//!
//! Integers are what `com.microsoft.MatMulNBits` of ONNX Runtime reads. A matrix `[N, K]` is cut
//! along its rows into blocks of `block_size` elements, the last one padded; a block's elements are
//! `scale * (q - zero_point)` with a scale of its own, and a zero point of its own unless all of
//! them are in the middle of the range. Products are summed in f32.
//!
//! Eight bits are written as two nodes of four bits, the upper and the lower half of every
//! integer: with f32 sums, ONNX Runtime 1.31 on a CPU runs a node of eight bits some 60 times as
//! long as one of four, because it widens the whole matrix at every run. The sum of the two is the
//! same number, and any runtime that has the operator has four bits.

use crate::model::Weight;
use crate::onnx::AttributeProto;
use crate::ops::{ElementType, TensorType};
use crate::spec::ModelSpec;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Domain of [`MATMUL_NBITS`].
pub const MICROSOFT_DOMAIN: &str = "com.microsoft";
/// Version of [`MICROSOFT_DOMAIN`].
pub const MICROSOFT_VERSION: i64 = 1;
/// The operator that multiplies rows by a matrix of block-wise integers.
pub const MATMUL_NBITS: &str = "MatMulNBits";
/// Bits of one element in the operator.
pub const NODE_BITS: u32 = 4;
/// Value of `accuracy_level` that keeps rows in f32.
const F32_ACCURACY: i64 = 1;
/// Block sizes that the operator takes.
pub const BLOCK_SIZES: [usize; 5] = [16, 32, 64, 128, 256];

/// A field that has no such value, and what was expected and found.
pub type Problem = (&'static str, String);

/// [`Quantization::block_size`] where nothing is said.
pub const DEFAULT_BLOCK_SIZE: usize = 32;

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
        match self.bits {
            4 => &[Plane { half: "", shift: 0 }],
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

    fn problems(self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if ![4, 8].contains(&self.bits) {
            problems.push(("bits", format!("expected 4 or 8, found {}", self.bits)));
        }
        if !BLOCK_SIZES.contains(&self.block_size) {
            let problem = format!("expected one of {BLOCK_SIZES:?}, found {}", self.block_size);
            problems.push(("block_size", problem));
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

/// Whether a node whose first constant is `blocks` has the lowest bits of its matrix, those that
/// rounding decided.
pub fn has_lowest_bits(blocks: &str) -> bool {
    !blocks.ends_with(&format!("{UPPER_HALF}.{BLOCKS}"))
}

/// What the name of a node's first constant ends with.
const BLOCKS: &str = "blocks";

/// Four bits of every integer of a matrix: one node and its constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    half: &'static str,
    /// Bits of the integer below these four; the scale is that of the integer times `2^shift`.
    pub shift: u32,
}

impl Plane {
    /// Whether the node has zero points of its own: without them it takes 8.
    pub fn has_zero_points(self, quantization: Quantization) -> bool {
        // The lower half of a symmetric block's zero point is 0, the upper half 8.
        !quantization.symmetric || quantization.bits == 8 && self.shift == 0
    }

    /// Name, type and shape of the node's constants in the order of its inputs, for the matrix
    /// `name` of `[outputs, inputs]`: `blocks [N, K / block_size, block_size / 2]`, two elements a
    /// byte, the lower bits first; `scales [N * K / block_size]`; `zero_points`, two a byte, every
    /// row starting a byte.
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
        let bytes = quantization.block_size / 2;
        let mut tensors = vec![
            named(BLOCKS, ElementType::U8, vec![outputs, blocks, bytes]),
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

/// Layers that stay f32: their weights are stored in f32 and nothing between their linear layers is
/// rounded. The operators, the cache and the residual stream keep the package's type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepF32 {
    /// Layers, ascending.
    pub layers: Vec<usize>,
    /// The final norm and the head.
    pub head: bool,
}

impl KeepF32 {
    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty() && !self.head
    }

    /// Whether `weight` stays f32.
    pub fn keeps(&self, weight: Weight) -> bool {
        match weight.layer() {
            Some(layer) => self.keeps_layer(layer),
            None => self.head && weight != Weight::Embedding,
        }
    }

    /// Whether `layer` stays f32.
    pub fn keeps_layer(&self, layer: usize) -> bool {
        self.layers.binary_search(&layer).is_ok()
    }
}

impl fmt::Display for KeepF32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for run in self.layers.chunk_by(|a, b| a + 1 == *b) {
            parts.push(match *run {
                [one] => one.to_string(),
                [first, .., last] => format!("{first}-{last}"),
                [] => continue,
            });
        }
        if self.head {
            parts.push("head".into());
        }
        f.write_str(&parts.join(","))
    }
}

impl FromStr for KeepF32 {
    type Err = String;

    /// Numbers of layers, ranges of them, and `head`, with commas between: `0,30-31,head`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut kept = Self::default();
        for part in text.split(',') {
            let number = |text: &str| text.parse::<usize>().ok().filter(|&n| n < 1 << 24);
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (part, number(first), number(last)) {
                ("head", ..) => kept.head = true,
                (_, Some(first), Some(last)) if first <= last => kept.layers.extend(first..=last),
                _ => {
                    return Err(format!(
                        "expected numbers of layers, ranges such as 2-5, or head, with commas between, \
                         found `{part}`"
                    ));
                }
            }
        }
        kept.layers.sort_unstable();
        kept.layers.dedup();
        Ok(kept)
    }
}

/// How one weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// As its own values in this type.
    As(ElementType),
    /// As block-wise integers.
    Blocks(Quantization),
}

/// What a package stores otherwise than in its own type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Precision {
    /// Of the matrices of linear layers, the head's among them; the embedding keeps the package's
    /// type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// Layers that are neither quantised nor rounded.
    #[serde(default, skip_serializing_if = "KeepF32::is_empty")]
    pub keep_f32: KeepF32,
}

impl Precision {
    /// Whether every weight is stored in the package's type.
    pub fn is_plain(&self) -> bool {
        self.quantization.is_none() && self.keep_f32.is_empty()
    }

    /// How `weight` of a package of type `dtype` is stored.
    pub fn stored(&self, weight: Weight, dtype: ElementType) -> Stored {
        match self.quantization {
            _ if self.keep_f32.keeps(weight) => Stored::As(ElementType::F32),
            Some(quantization) if weight.is_linear() => Stored::Blocks(quantization),
            _ => Stored::As(dtype),
        }
    }

    /// The place whose stored tensors `weight` is read from: the embedding's for a tied head that is
    /// stored as the embedding is, and its own for all else.
    pub fn place(&self, weight: Weight, spec: &ModelSpec, dtype: ElementType) -> Weight {
        let shared = weight == Weight::LmHead
            && spec.tie_embedding
            && self.stored(Weight::LmHead, dtype) == self.stored(Weight::Embedding, dtype);
        if shared { Weight::Embedding } else { weight }
    }

    /// Every weight that has tensors of its own, in file order.
    pub fn stored_weights(&self, spec: &ModelSpec, dtype: ElementType) -> Vec<Weight> {
        let mut weights = Weight::all(spec);
        weights.retain(|&weight| self.place(weight, spec, dtype) == weight);
        weights
    }

    /// The tensors that hold `weight` in file order.
    pub fn tensors(
        &self,
        weight: Weight,
        spec: &ModelSpec,
        dtype: ElementType,
    ) -> Vec<(String, TensorType)> {
        let (name, shape) = (weight.name(), weight.shape(spec));
        match (self.stored(weight, dtype), &*shape) {
            (Stored::Blocks(quantization), &[outputs, inputs]) => quantization
                .planes()
                .iter()
                .flat_map(|plane| plane.tensors(quantization, &name, [outputs, inputs]))
                .collect(),
            (Stored::As(dtype), _) => vec![(name, TensorType::new(dtype, shape))],
            // Every linear layer's weight is a matrix.
            (Stored::Blocks(_), _) => Vec::new(),
        }
    }

    /// Without what changes nothing in a package of type `dtype`.
    pub fn normalized(&self, dtype: ElementType) -> Self {
        match (dtype, self.quantization) {
            (ElementType::F32, None) => Self::default(),
            _ => self.clone(),
        }
    }

    /// # Errors
    /// Every field that has no such value in a model of `num_layers`.
    pub fn validate(&self, num_layers: usize) -> Result<(), Vec<Problem>> {
        let quantization = self.quantization.map(Quantization::problems);
        let mut problems = quantization.unwrap_or_default();
        let layers = &self.keep_f32.layers;
        if !layers.is_sorted_by(|a, b| a < b) {
            let problem = format!("expected ascending layers, found {layers:?}");
            problems.push(("keep_f32", problem));
        }
        if let Some(last) = layers.iter().max().filter(|&&layer| layer >= num_layers) {
            let most = num_layers.saturating_sub(1);
            let problem = format!("expected layers 0 to {most}, found {last}");
            problems.push(("keep_f32", problem));
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.quantization.map(|found| format!("weights {found}")));
        if !self.keep_f32.is_empty() {
            parts.push(format!("f32 in {}", self.keep_f32));
        }
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_layers_are_written_as_they_are_read() {
        for (text, shown, layers, head) in [
            ("0", "0", vec![0], false),
            ("head", "head", vec![], true),
            ("7,2-4,head,3", "2-4,7,head", vec![2, 3, 4, 7], true),
            ("5-5,1,2", "1-2,5", vec![1, 2, 5], false),
        ] {
            let kept: KeepF32 = text.parse().unwrap();
            assert_eq!((&kept.layers, kept.head), (&layers, head), "{text}");
            assert_eq!(kept.to_string(), shown);
            assert_eq!(shown.parse::<KeepF32>().unwrap(), kept);
        }
        for text in [
            "",
            "a",
            "3-1",
            "1,,2",
            "-1",
            "1-2-3",
            "99999999999",
            "0-99999999",
            "Head",
        ] {
            let error = text.parse::<KeepF32>().unwrap_err();
            assert!(error.contains("numbers of layers"), "{text}: {error}");
        }
    }

    #[test]
    fn what_changes_nothing_is_left_out() {
        let kept = Precision {
            keep_f32: "0,head".parse().unwrap(),
            ..Precision::default()
        };
        assert!(kept.normalized(ElementType::F32).is_plain());
        assert_eq!(kept.normalized(ElementType::BF16), kept);
        let weight = Weight::OutProj(0);
        assert_eq!(
            kept.stored(weight, ElementType::BF16),
            Stored::As(ElementType::F32)
        );
        assert_eq!(
            kept.stored(Weight::OutProj(1), ElementType::BF16),
            Stored::As(ElementType::BF16)
        );
        // The embedding is no part of the head.
        assert_eq!(
            kept.stored(Weight::Embedding, ElementType::F16),
            Stored::As(ElementType::F16)
        );
    }

    #[test]
    fn only_matrices_of_linear_layers_become_integers() {
        let quantization = Quantization {
            bits: 4,
            block_size: 32,
            symmetric: true,
        };
        let precision = Precision {
            quantization: Some(quantization),
            keep_f32: "1".parse().unwrap(),
        };
        for (weight, stored) in [
            (Weight::Embedding, Stored::As(ElementType::BF16)),
            (Weight::InputNorm(0), Stored::As(ElementType::BF16)),
            (Weight::InProj(0), Stored::Blocks(quantization)),
            (Weight::Fc2(0), Stored::Blocks(quantization)),
            (Weight::FfnNorm(1), Stored::As(ElementType::F32)),
            (Weight::Fc1(1), Stored::As(ElementType::F32)),
            (Weight::FinalNorm, Stored::As(ElementType::BF16)),
            (Weight::LmHead, Stored::Blocks(quantization)),
        ] {
            assert_eq!(
                precision.stored(weight, ElementType::BF16),
                stored,
                "{weight:?}"
            );
        }
    }

    #[test]
    fn blocks_cover_the_last_elements_of_a_row() {
        let quantization = |bits, symmetric| Quantization {
            bits,
            block_size: 32,
            symmetric,
        };
        let shapes = |quantization: Quantization| -> Vec<_> {
            let planes = quantization.planes().iter();
            let tensors = planes.flat_map(|plane| plane.tensors(quantization, "w", [5, 70]));
            tensors
                .map(|(name, tensor)| format!("{name} {tensor}"))
                .collect()
        };
        assert_eq!(
            shapes(quantization(4, true)),
            ["w.blocks u8[5, 3, 16]", "w.scales f32[15]"]
        );
        assert_eq!(
            shapes(quantization(4, false)),
            [
                "w.blocks u8[5, 3, 16]",
                "w.scales f32[15]",
                "w.zero_points u8[10]"
            ]
        );
        assert_eq!(
            shapes(quantization(8, true)),
            [
                "w.high.blocks u8[5, 3, 16]",
                "w.high.scales f32[15]",
                "w.low.blocks u8[5, 3, 16]",
                "w.low.scales f32[15]",
                "w.low.zero_points u8[10]"
            ]
        );
        assert_eq!(shapes(quantization(8, false)).len(), 6);
        let lowest = |bits| -> Vec<_> {
            let planes = quantization(bits, true).planes();
            let blocks = planes
                .iter()
                .map(|plane| plane.tensors(quantization(bits, true), "w", [5, 70]));
            blocks
                .map(|tensors| has_lowest_bits(&tensors[0].0))
                .collect()
        };
        assert_eq!((lowest(4), lowest(8)), (vec![true], vec![false, true]));
    }

    #[test]
    fn wrong_values_are_named() {
        let precision = Precision {
            quantization: Some(Quantization {
                bits: 5,
                block_size: 24,
                symmetric: true,
            }),
            keep_f32: "4".parse().unwrap(),
        };
        assert_eq!(
            precision.validate(4).unwrap_err(),
            [
                ("bits", "expected 4 or 8, found 5".to_owned()),
                (
                    "block_size",
                    "expected one of [16, 32, 64, 128, 256], found 24".to_owned()
                ),
                ("keep_f32", "expected layers 0 to 3, found 4".to_owned()),
            ]
        );
    }
}
