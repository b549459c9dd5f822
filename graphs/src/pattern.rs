//! Which keys a query sees.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU32;

/// The attention pattern of one head: every `dilation`-th key, a local window, initial tokens.
///
/// ```
/// use ratplus_graphs::pattern::Pattern;
/// let pattern = Pattern::new(4, 2, 1)?;
/// // Query 10 sees key 0 (initial), 3 and 7 (dilated), 8 and 9 (window) and itself.
/// let keys: Vec<_> = (0..16).filter(|&key| pattern.visible(10, key)).collect();
/// assert_eq!(keys, [0, 3, 7, 8, 9, 10]);
/// # Ok::<(), ratplus_graphs::pattern::PatternError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "RawPattern", into = "RawPattern")]
pub struct Pattern {
    /// Keys at positions `j` with `(j + 1) % dilation == 0` are always visible; `None` (written
    /// -1) when there are none.
    pub dilation: Option<NonZeroU32>,
    /// How many tokens before the current one are visible.
    pub local_window: u32,
    /// How many tokens at the start of the sequence are visible.
    pub initial: u32,
}

/// A pattern as configuration files and ONNX attributes write it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPattern {
    dilation: i64,
    #[serde(default)]
    local_window: i64,
    #[serde(default)]
    initial: i64,
}

/// A value that no pattern can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, expected {expected}")]
pub struct PatternError {
    /// `dilation`, `local_window` or `initial`; of blocks, `block_size` or `top_k`.
    pub field: &'static str,
    /// What was given.
    pub value: i64,
    /// What would be accepted.
    pub expected: &'static str,
}

impl Pattern {
    /// Dense causal attention.
    pub const DENSE: Self = Self {
        dilation: NonZeroU32::new(1),
        local_window: 0,
        initial: 0,
    };

    /// The token itself alone.
    pub const NONE: Self = Self {
        dilation: None,
        local_window: 0,
        initial: 0,
    };

    /// Checks the integers of a configuration file or ONNX attribute.
    ///
    /// # Errors
    /// `dilation` is neither -1 nor in `1..2^31`, or another value is outside `0..2^31`.
    pub fn new(dilation: i64, local_window: i64, initial: i64) -> Result<Self, PatternError> {
        let small = |field, value: i64| {
            u32::try_from(value)
                .ok()
                .filter(|&value| value <= i32::MAX as u32)
                .ok_or(PatternError {
                    field,
                    value,
                    expected: "0 or more and less than 2^31",
                })
        };
        let dilation = match dilation {
            -1 => None,
            value => Some(
                u32::try_from(value)
                    .ok()
                    .filter(|&value| value <= i32::MAX as u32)
                    .and_then(NonZeroU32::new)
                    .ok_or(PatternError {
                        field: "dilation",
                        value,
                        expected: "-1 (none) or 1 or more and less than 2^31",
                    })?,
            ),
        };
        Ok(Self {
            dilation,
            local_window: small("local_window", local_window)?,
            initial: small("initial", initial)?,
        })
    }

    /// The dilation as attributes write it: -1 for none.
    pub fn dilation_or_minus_one(&self) -> i64 {
        self.dilation
            .map_or(-1, |dilation| i64::from(dilation.get()))
    }

    /// Whether the key at `position` is one of the dilated keys.
    pub fn is_dilated(&self, position: usize) -> bool {
        self.dilation
            .is_some_and(|dilation| (position + 1).is_multiple_of(dilation.get() as usize))
    }

    /// Whether the query at position `query` sees the key at position `key`, both counted from 0.
    pub fn visible(&self, query: usize, key: usize) -> bool {
        key <= query
            && (self.is_dilated(key)
                || query - key <= self.local_window as usize
                || key < self.initial as usize)
    }

    /// How many keys the query at position `query` sees, itself included.
    pub fn visible_count(&self, query: usize) -> usize {
        let window_start = query.saturating_sub(self.local_window as usize);
        let initial = (self.initial as usize).min(window_start);
        let dilated = match self.dilation {
            Some(dilation) => {
                let dilation = dilation.get() as usize;
                window_start / dilation - initial / dilation
            }
            None => 0,
        };
        initial + dilated + (query + 1 - window_start)
    }

    /// The same pattern for sequences of at most `max_seq_len` tokens without rows that cannot
    /// matter: dense attention keeps no window and no initial tokens, longer ones are cut.
    pub fn normalized(&self, max_seq_len: usize) -> Self {
        if self.dilation == Self::DENSE.dilation {
            return Self::DENSE;
        }
        let cut = |value: u32| value.min(u32::try_from(max_seq_len).unwrap_or(u32::MAX));
        Self {
            local_window: cut(self.local_window),
            initial: cut(self.initial),
            ..*self
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            local_window,
            initial,
            ..
        } = self;
        write!(
            f,
            "D={} W={local_window} I={initial}",
            self.dilation_or_minus_one()
        )
    }
}

impl TryFrom<RawPattern> for Pattern {
    type Error = PatternError;

    fn try_from(raw: RawPattern) -> Result<Self, PatternError> {
        Self::new(raw.dilation, raw.local_window, raw.initial)
    }
}

impl From<Pattern> for RawPattern {
    fn from(pattern: Pattern) -> Self {
        Self {
            dilation: pattern.dilation_or_minus_one(),
            local_window: pattern.local_window.into(),
            initial: pattern.initial.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_count_counts_visible_keys() {
        for dilation in (-1..=9).filter(|&d| d != 0) {
            for window in 0..6 {
                for initial in 0..6 {
                    let pattern = Pattern::new(dilation, window, initial).unwrap();
                    for query in 0..40 {
                        let counted = (0..40).filter(|&key| pattern.visible(query, key)).count();
                        assert_eq!(
                            pattern.visible_count(query),
                            counted,
                            "{pattern} at {query}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        assert_eq!(Pattern::new(0, 0, 0).unwrap_err().field, "dilation");
        assert_eq!(Pattern::new(-2, 0, 0).unwrap_err().field, "dilation");
        assert_eq!(Pattern::new(1 << 31, 0, 0).unwrap_err().field, "dilation");
        assert_eq!(Pattern::new(1, -1, 0).unwrap_err().field, "local_window");
        assert_eq!(Pattern::new(1, 0, i64::MAX).unwrap_err().field, "initial");
    }

    #[test]
    fn normalizing_changes_no_visible_key() {
        for raw in [(1, 5, 3), (4, 100, 2), (-1, 3, 100), (7, 0, 0)] {
            let pattern = Pattern::new(raw.0, raw.1, raw.2).unwrap();
            let normalized = pattern.normalized(20);
            for query in 0..20 {
                for key in 0..20 {
                    assert_eq!(pattern.visible(query, key), normalized.visible(query, key));
                }
            }
        }
        assert_eq!(
            Pattern::new(1, 5, 3).unwrap().normalized(20),
            Pattern::DENSE
        );
    }
}
