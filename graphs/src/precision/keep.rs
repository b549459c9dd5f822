//! Layers that stay f32.

use crate::model::Weight;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

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
