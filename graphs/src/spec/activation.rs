use serde::{Deserialize, Serialize};
use std::fmt;

/// What a feed-forward layer applies to every channel between its two matrices; written as `act_fn` of
/// the released code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `x (1 + erf(x / sqrt 2)) / 2`.
    #[default]
    Gelu,
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`: GELU's tanh form (arXiv 1606.08415).
    FastGelu,
    /// `x sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    ReluSquared,
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Gelu,
        Self::FastGelu,
        Self::Silu,
        Self::Relu,
        Self::ReluSquared,
    ];

    pub(crate) fn is_gelu(&self) -> bool {
        *self == Self::Gelu
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_manifests() {
        let names = Activation::ALL.map(|activation| activation.to_string());
        assert_eq!(names, ["gelu", "fastgelu", "silu", "relu", "relusquared"]);
    }
}
