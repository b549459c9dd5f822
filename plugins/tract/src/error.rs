use ratplus_graphs::ops::TensorType;
use std::path::PathBuf;

/// Why a package file was not loaded or not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TractError {
    /// tract computes another type or shape than an output of the graph has.
    #[error("output `{name}`: declared {expected}, but computed as {found}")]
    Output {
        /// The output.
        name: String,
        /// As the graph declares it.
        expected: TensorType,
        /// As computed.
        found: String,
    },
    /// A weight was not read.
    #[error("{}: tensor `{tensor}`: {what}", .file.display())]
    Weight {
        /// The external data file.
        file: PathBuf,
        /// The initializer.
        tensor: String,
        /// What failed, expected, found.
        what: String,
    },
    /// The weights given are those of another package.
    #[error(
        "weight `{name}`: expected {expected} as the graph declares, found {}; load the weights of this package",
        .found.as_ref().map_or("none".to_owned(), ToString::to_string)
    )]
    OtherWeights {
        /// The initializer.
        name: String,
        /// As the graph declares it.
        expected: TensorType,
        /// As loaded.
        found: Option<TensorType>,
    },
    /// Inputs or outputs do not match the graph; all mismatches.
    #[error("the tensors given do not match the graph:\n  {}", .0.join("\n  "))]
    Tensors(Vec<String>),
    /// tract refused.
    #[error("tract: {stage}: {}", chain(.source))]
    Tract {
        /// `parsing`, `typing`, `optimizing`, `planning` or `running`.
        stage: &'static str,
        /// tract's error.
        source: tract_onnx::prelude::TractError,
    },
}

/// An error and its causes, outermost first.
fn chain(error: &tract_onnx::prelude::TractError) -> String {
    format!("{error:#}")
}

impl TractError {
    pub(crate) fn stage(
        stage: &'static str,
    ) -> impl FnOnce(tract_onnx::prelude::TractError) -> Self {
        move |source| Self::Tract { stage, source }
    }
}
