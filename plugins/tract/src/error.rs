use std::fmt;

/// Why a package file was not loaded or not run: the file or tensor, what was expected and found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TractError(pub(crate) String);

impl TractError {
    /// tract refused while `stage`: `parsing`, `typing`, `optimizing`, `planning` or `running`.
    pub(crate) fn stage(
        stage: &'static str,
    ) -> impl FnOnce(tract_onnx::prelude::TractError) -> Self {
        // With its causes, outermost first.
        move |error| Self(format!("tract: {stage}: {error:#}"))
    }

    /// A weight was not read from `file`.
    pub(crate) fn weight(file: &std::path::Path, tensor: &str, what: impl fmt::Display) -> Self {
        Self(format!("{}: tensor `{tensor}`: {what}", file.display()))
    }
}
