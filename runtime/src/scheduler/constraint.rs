//! What a text has to be.

use crate::sampler::TokenSet;

/// A constraint that failed; its request fails alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConstraintError(pub String);

/// Says token by token what may come next; see `grammar`, with the feature of that name.
pub trait Constraint: Send {
    /// Tokens that may come next.
    ///
    /// # Errors
    /// The grammar is too large to go on with.
    fn allowed(&mut self) -> Result<TokenSet, ConstraintError>;

    /// Goes past a token that was allowed.
    ///
    /// # Errors
    /// It was not, or the grammar is too large to go on with.
    fn accept(&mut self, token: u32) -> Result<(), ConstraintError>;

    /// Whether nothing but the end may come next.
    fn must_end(&mut self) -> bool;
}
