use ratplus_runtime::backend::BackendKind;
use std::fmt;
use std::io;
use std::path::Path;

/// Why no plans were built, and what to do. The package is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(String);

impl BuildError {
    /// The backend cannot build here, or not from this package.
    pub(super) fn refused(backend: BackendKind, reason: impl fmt::Display) -> Self {
        Self(format!("backend `{backend}`: {reason}"))
    }

    /// TensorRT refused the engine of `file`.
    pub(super) fn engine(file: &str, reason: impl fmt::Display) -> Self {
        Self(format!("{file}: {reason}"))
    }

    /// The package is not one that plans can be put into.
    pub(super) fn package(dir: &Path, reason: impl fmt::Display) -> Self {
        Self(format!("package `{}`: {reason}", dir.display()))
    }

    /// A file could not be written.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self(format!("{action} `{}`: {error}", path.display()))
    }
}
