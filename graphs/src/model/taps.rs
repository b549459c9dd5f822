//! Intermediate tensors that can be made outputs.

use super::Weight;
use crate::ops::{ElementType, TensorType};
use crate::package::{LogitsMode, PackageShape, Products};
use crate::precision::Precision;
use crate::spec::ModelSpec;

/// Name of an intermediate tensor of `layer` that `verify` can compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tap {
    /// Query before rotary embedding, `[B, L, d]`.
    Query,
    /// Key after the recurrence, before rotary embedding, `[B, L, d_kv]`.
    GatedKey,
    /// Value after the recurrence, `[B, L, d_kv]`.
    GatedValue,
    /// Output of the attention, `[B, L, d]`.
    Attention,
    /// Residual stream after the sequence layer; of the shape of [`taps`].
    Mixed,
    /// Residual stream after the feed-forward layer; of the shape of [`taps`].
    Hidden,
}

impl Tap {
    /// Channels of one token.
    pub fn width(self, spec: &ModelSpec) -> usize {
        match self {
            Self::GatedKey | Self::GatedValue => spec.d_kv(),
            Self::Query | Self::Attention | Self::Mixed | Self::Hidden => spec.d_model,
        }
    }

    /// All taps of a layer in the order they are computed.
    pub const ALL: [Self; 6] = [
        Self::Query,
        Self::GatedKey,
        Self::GatedValue,
        Self::Attention,
        Self::Mixed,
        Self::Hidden,
    ];

    /// Name of the value in the graph.
    pub fn name(self, layer: usize) -> String {
        let name = match self {
            Self::Query => "query",
            Self::GatedKey => "gated_key",
            Self::GatedValue => "gated_value",
            Self::Attention => "attention",
            Self::Mixed => "mixed",
            Self::Hidden => "hidden",
        };
        format!("layers.{layer}.{name}")
    }
}

/// Name of the embedded tokens; of the shape of [`taps`].
pub const EMBEDDED: &str = "embedded";
/// Name of the final norm's output; of the shape of [`taps`], and with [`LogitsMode::Last`] of one token
/// a sequence.
pub const FINAL_NORM: &str = "final_norm";

/// Every tensor that can be tapped, in the order the graph computes them. Activations are
/// `[B * L, d]`, or `[B, L, d]` where `products` [keep the batch's dimension](Products::keeps_batch).
pub fn taps(
    spec: &ModelSpec,
    shape: &PackageShape,
    precision: &Precision,
    seq_len: usize,
    products: Products,
) -> Vec<(String, TensorType)> {
    let (batch, d) = (shape.batch, spec.d_model);
    let activations = |dtype, seq_len| match products.keeps_batch() {
        true => TensorType::new(dtype, [batch, seq_len, d]),
        false => TensorType::new(dtype, [batch * seq_len, d]),
    };
    let rows = activations(shape.dtype, seq_len);
    let chunk = |width| TensorType::new(shape.dtype, [batch, seq_len, width]);
    let mut list = vec![(EMBEDDED.to_owned(), rows.clone())];
    for layer in 0..spec.num_layers {
        for tap in Tap::ALL {
            let tensor = match tap {
                Tap::Mixed | Tap::Hidden => rows.clone(),
                _ => chunk(tap.width(spec)),
            };
            list.push((tap.name(layer), tensor));
        }
    }
    let kept = precision.keep_f32.keeps(Weight::FinalNorm);
    let dtype = if kept { ElementType::F32 } else { shape.dtype };
    let last = match shape.logits {
        LogitsMode::All => activations(dtype, seq_len),
        LogitsMode::Last => activations(dtype, 1),
    };
    list.push((FINAL_NORM.to_owned(), last));
    list
}
