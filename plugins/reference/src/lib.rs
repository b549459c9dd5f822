//! Plain-loop RAT+ operators that judge every other implementation.
//!
//! - [`full`]: the operators over whole histories, f64 throughout, with the visibility rule
//!   spelled out. It knows no cache and no chunk: the independent witness.
//! - [`run`]: an operator with exactly the ports of [`ratplus_graphs::ops`], over f32 slices; sums
//!   are f64, and what the operators store in `T` or `C` goes through a rounding function
//!   ([`Round`]).
//!
//! Nothing here is fast, and nothing here shares code with the kernels.

mod block_top_k_attention;
mod choice;
mod dilated_attention;
mod error;
pub mod full;
mod linear;
mod operator;
mod recurrence_scan;

pub use choice::{Choices, with_choices};
pub use error::ReferenceError;
pub use operator::{Input, Reference, Values, run, run_operator};

/// Rounds an f32 to the operators' `T` or `C`, which are carried in f32.
pub type Round = fn(f32) -> f32;

/// How an operator rounds.
#[derive(Clone, Copy, Debug)]
pub struct Rounding {
    /// To `T`.
    pub activations: Round,
    /// To `C`.
    pub cache: Round,
}

impl Rounding {
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
