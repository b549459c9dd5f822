//! Weights: names and shapes.

use crate::spec::ModelSpec;

/// A weight, by its place in the model. [`Weight::name`] is its name in released checkpoints and
/// in packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Weight {
    /// `[vocab, d]`.
    Embedding,
    /// `[d]`.
    InputNorm(usize),
    /// Output gate `[d, d]`, query `[d, d]`, key `[d_kv, d]`, value `[d_kv, d]`, forget gate `[d_kv, d]` if recurrent, one
    /// below the other.
    InProj(usize),
    /// `[d, d]`.
    OutProj(usize),
    /// `[d]`.
    FfnNorm(usize),
    /// `[d_ffn, d]`.
    Fc1(usize),
    /// `[d, d_ffn]`.
    Fc2(usize),
    /// `[d]`.
    FinalNorm,
    /// `[vocab, d]`.
    LmHead,
}

impl Weight {
    /// Every place of a weight in a model, in the order packages store them. In a model with
    /// [`tie_embedding`](ModelSpec::tie_embedding) the first and the last hold one matrix.
    pub fn all(spec: &ModelSpec) -> Vec<Self> {
        let layers = (0..spec.num_layers).flat_map(|layer| {
            [
                Self::InputNorm(layer),
                Self::InProj(layer),
                Self::OutProj(layer),
                Self::FfnNorm(layer),
                Self::Fc1(layer),
                Self::Fc2(layer),
            ]
        });
        [Self::Embedding]
            .into_iter()
            .chain(layers)
            .chain([Self::FinalNorm, Self::LmHead])
            .collect()
    }

    /// Every weight that is a parameter of its own: [`all`](Self::all) without a tied head.
    pub fn distinct(spec: &ModelSpec) -> Vec<Self> {
        let mut weights = Self::all(spec);
        weights.retain(|&weight| !(spec.tie_embedding && weight == Self::LmHead));
        weights
    }

    /// Its layer; none for the embedding, the final norm and the head.
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::InputNorm(layer)
            | Self::InProj(layer)
            | Self::OutProj(layer)
            | Self::FfnNorm(layer)
            | Self::Fc1(layer)
            | Self::Fc2(layer) => Some(layer),
            Self::Embedding | Self::FinalNorm | Self::LmHead => None,
        }
    }

    /// Whether it is the matrix of a linear layer.
    pub fn is_linear(self) -> bool {
        matches!(
            self,
            Self::InProj(_) | Self::OutProj(_) | Self::Fc1(_) | Self::Fc2(_) | Self::LmHead
        )
    }

    /// Name in released checkpoints and in packages.
    pub fn name(self) -> String {
        match self {
            Self::Embedding => "embedding.wte.weight".into(),
            Self::InputNorm(layer) => {
                format!("backbone.layers.{layer}.seq_layer.input_norm.weight")
            }
            Self::InProj(layer) => format!("backbone.layers.{layer}.seq_layer.in_proj.weight"),
            Self::OutProj(layer) => format!("backbone.layers.{layer}.seq_layer.out_proj.weight"),
            Self::FfnNorm(layer) => format!("backbone.layers.{layer}.hidden_layer.ln.weight"),
            Self::Fc1(layer) => format!("backbone.layers.{layer}.hidden_layer.fc1.weight"),
            Self::Fc2(layer) => format!("backbone.layers.{layer}.hidden_layer.fc2.weight"),
            Self::FinalNorm => "backbone.ln.weight".into(),
            Self::LmHead => "head.lm_head.weight".into(),
        }
    }

    /// Shape, as stored.
    pub fn shape(self, spec: &ModelSpec) -> Vec<usize> {
        let (d, ffn) = (spec.d_model, spec.d_ffn);
        match self {
            Self::Embedding | Self::LmHead => vec![spec.vocab_size, d],
            Self::InputNorm(_) | Self::FfnNorm(_) | Self::FinalNorm => vec![d],
            Self::InProj(_) => vec![spec.in_proj_rows(), d],
            Self::OutProj(_) => vec![d, d],
            Self::Fc1(_) => vec![ffn, d],
            Self::Fc2(_) => vec![d, ffn],
        }
    }
}

/// Names of the rotary tables, `[max_seq_len, d_head / 2]` f32, stored after the weights.
pub const ROTARY_TABLES: [&str; 2] = ["rope.cos", "rope.sin"];

/// One row of the rotary tables: the cosines, or the sines, of `position / base^(2 c / d_head)`
/// for each channel `c` below `d_head / 2`. Of a model without rotary embedding, those of angle 0:
/// the rotation that changes no bit.
pub fn rotary_row(spec: &ModelSpec, table: &str, position: usize) -> impl Iterator<Item = f32> {
    let cosine = table == ROTARY_TABLES[0];
    let (half, base, rope) = (spec.d_head / 2, spec.rope_base, spec.rope);
    (0..half).map(move |channel| {
        let angle = match rope {
            true => position as f64 / base.powf(channel as f64 / half as f64),
            false => 0.0,
        };
        (if cosine { angle.cos() } else { angle.sin() }) as f32
    })
}
