/// Why TensorRT cannot be used, or what it refused: one message, which says whose library it is
/// about, what was expected and found, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NvinferError(pub(crate) String);
