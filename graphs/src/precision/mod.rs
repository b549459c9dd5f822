//! How the weights of linear layers are stored: in the package's type, as block-wise integers, or
//! in f32 in layers that keep it.
//!
//! Integers are what `com.microsoft.MatMulNBits` of ONNX Runtime reads. A matrix `[N, K]` is cut
//! along its rows into blocks of `block_size` elements, the last one padded; a block's elements are
//! `scale * (q - zero_point)` with a scale of its own, and a zero point of its own unless all of
//! them are in the middle of the range. Products are summed in f32.
//!
//! Packages for runtimes without that operator have the same integers as `DequantizeLinear` reads
//! them: TensorRT keeps them so in a plan, and takes signed ones without zero points alone.

mod keep;
mod quantization;

pub use keep::KeepF32;
pub use quantization::{
    Activations, BLOCK_SIZES, DEFAULT_BLOCK_SIZE, IntegerLayout, MATMUL_NBITS, MICROSOFT_DOMAIN,
    MICROSOFT_VERSION, Problem, Quantization,
};

use crate::model::Weight;
use crate::none_wrong;
use crate::ops::{ElementType, TensorType};
use crate::spec::ModelSpec;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How one weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// As its own values in this type.
    As(ElementType),
    /// As block-wise integers.
    Blocks(Quantization),
}

impl Stored {
    /// What the rows are rounded to that are multiplied with it.
    pub fn activations(self) -> Activations {
        match self {
            Self::As(_) => Activations::Float,
            Self::Blocks(quantization) => quantization.activations,
        }
    }
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
            (Stored::Blocks(quantization), &[outputs, inputs]) => {
                quantization.tensors(&name, [outputs, inputs])
            }
            (Stored::As(dtype), _) => vec![(name, TensorType::new(dtype, shape))],
            // Every linear layer's weight is a matrix.
            (Stored::Blocks(_), _) => Vec::new(),
        }
    }

    /// The layout of integers, where there are some.
    pub fn layout(&self) -> Option<IntegerLayout> {
        self.quantization.map(|quantization| quantization.layout)
    }

    /// Whether rows are rounded further than to the layer's type.
    pub fn rounds_rows(&self) -> bool {
        { self.quantization }.is_some_and(|of| of.activations != Activations::Float)
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
        none_wrong(problems)
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
            layout: Default::default(),
            activations: Default::default(),
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
            layout: Default::default(),
            activations: Default::default(),
        };
        let shapes = |quantization: Quantization| -> Vec<_> {
            let tensors = quantization.tensors("w", [5, 70]).into_iter();
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
            ["w.blocks u8[5, 3, 32]", "w.scales f32[15]"]
        );
        assert_eq!(shapes(quantization(8, false))[2], "w.zero_points u8[15]");
        let dequantized = |bits| Quantization {
            layout: IntegerLayout::Dequantized,
            activations: Default::default(),
            ..quantization(bits, true)
        };
        assert_eq!(
            shapes(dequantized(4)),
            ["w.integers i4[5, 70]", "w.scales f32[5, 3]"]
        );
        assert_eq!(
            shapes(dequantized(8)),
            ["w.integers i8[5, 70]", "w.scales f32[5, 3]"]
        );
        assert_eq!(TensorType::new(ElementType::I4, [3, 5]).bytes(), 8);
    }

    #[test]
    fn wrong_values_are_named() {
        let precision = Precision {
            quantization: Some(Quantization {
                bits: 5,
                block_size: 24,
                symmetric: true,
                layout: Default::default(),
                activations: Default::default(),
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
