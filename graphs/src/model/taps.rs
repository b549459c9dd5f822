//! Intermediate tensors that can be made outputs.

use super::Weight;
use crate::ops::{ElementType, TensorType};
use crate::package::{LogitsMode, PackageShape};
use crate::precision::Precision;
use crate::spec::ModelSpec;

/// Name of an intermediate tensor of `layer` that `verify` can compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tap {
    /// Key after the recurrence, before rotary embedding, `[B, L, d]`.
    GatedKey,
    /// Value after the recurrence, `[B, L, d]`.
    GatedValue,
    /// Output of the attention, `[B, L, d]`.
    Attention,
    /// Residual stream after the sequence layer, `[B * L, d]`.
    Mixed,
    /// Residual stream after the feed-forward layer, `[B * L, d]`.
    Hidden,
}

impl Tap {
    /// All taps of a layer in the order they are computed.
    pub const ALL: [Self; 5] = [
        Self::GatedKey,
        Self::GatedValue,
        Self::Attention,
        Self::Mixed,
        Self::Hidden,
    ];

    /// Name of the value in the graph.
    pub fn name(self, layer: usize) -> String {
        let name = match self {
            Self::GatedKey => "gated_key",
            Self::GatedValue => "gated_value",
            Self::Attention => "attention",
            Self::Mixed => "mixed",
            Self::Hidden => "hidden",
        };
        format!("layers.{layer}.{name}")
    }
}

/// Name of the embedded tokens, `[B * L, d]`.
pub const EMBEDDED: &str = "embedded";
/// Name of the final norm's output: `[B * L, d]`, or `[B, d]` with [`LogitsMode::Last`].
pub const FINAL_NORM: &str = "final_norm";

/// Every tensor that can be tapped, in the order the graph computes them.
pub fn taps(
    spec: &ModelSpec,
    shape: &PackageShape,
    precision: &Precision,
    seq_len: usize,
) -> Vec<(String, TensorType)> {
    let (batch, d) = (shape.batch, spec.d_model);
    let rows = TensorType::new(shape.dtype, [batch * seq_len, d]);
    let chunk = TensorType::new(shape.dtype, [batch, seq_len, d]);
    let mut list = vec![(EMBEDDED.to_owned(), rows.clone())];
    for layer in 0..spec.num_layers {
        for tap in Tap::ALL {
            let tensor = match tap {
                Tap::Mixed | Tap::Hidden => &rows,
                _ => &chunk,
            };
            list.push((tap.name(layer), tensor.clone()));
        }
    }
    let kept = precision.keep_f32.keeps(Weight::FinalNorm);
    let dtype = if kept { ElementType::F32 } else { shape.dtype };
    let last = match shape.logits {
        LogitsMode::All => TensorType::new(dtype, [batch * seq_len, d]),
        LogitsMode::Last => TensorType::new(dtype, [batch, d]),
    };
    list.push((FINAL_NORM.to_owned(), last));
    list
}
