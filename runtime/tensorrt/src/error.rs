use crate::Product;
use std::path::PathBuf;

/// Why TensorRT cannot be used, or what it refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NvinferError {
    /// No place had the library.
    #[error("{product}: {file} was not found; looked at:{places}\n  {advice}")]
    Missing {
        /// What was asked for.
        product: Product,
        /// The first of its names.
        file: &'static str,
        /// Where it was looked for and why it was not taken, one line each.
        places: String,
        /// What to do.
        advice: String,
    },
    /// A library that cannot be used.
    #[error("{product}: `{}`: {reason}; {advice}", .path.display())]
    Unusable {
        /// What was asked for.
        product: Product,
        /// The file.
        path: PathBuf,
        /// Expected and found.
        reason: String,
        /// What to do.
        advice: String,
    },
    /// TensorRT failed.
    #[error("{product} {version}: {what}: {message}")]
    Call {
        /// Whose library.
        product: Product,
        /// Its version.
        version: String,
        /// What was in work.
        what: &'static str,
        /// Its words.
        message: String,
    },
}
