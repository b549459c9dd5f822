//! Plain-loop RAT+ operators that judge every other implementation.
//!
//! - [`full`]: both operators over whole histories, f64 throughout, with the visibility rule
//!   spelled out. It knows no cache and no chunk: the independent witness.
//! - [`recurrence_scan`] and [`dilated_attention`]: the operators with exactly the ports of
//!   [`ratplus_graphs::ops`], over f32 slices; sums are f64, and what the operators store in `T`
//!   or `C` goes through a rounding function ([`Round`]).
//!
//! Nothing here is fast, and nothing here shares code with the kernels.

mod attention;
mod error;
pub mod full;
mod scan;

pub use attention::{AttentionInputs, AttentionOutputs, AttentionShape, dilated_attention};
pub use error::ReferenceError;
pub use scan::{ScanInputs, ScanOutputs, ScanShape, recurrence_scan};

/// Rounds an f32 to the operators' `T` or `C`, which are carried in f32.
pub type Round = fn(f32) -> f32;

/// How the attention rounds.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRounding {
    /// To `T`.
    pub activations: Round,
    /// To `C`.
    pub cache: Round,
}

impl AttentionRounding {
    /// Where `C` is `T`.
    pub fn uniform(round: Round) -> Self {
        Self {
            activations: round,
            cache: round,
        }
    }
}

/// [`Round`] for f32.
pub fn exact(value: f32) -> f32 {
    value
}
