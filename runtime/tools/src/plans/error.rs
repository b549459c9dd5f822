use ratplus_runtime::nvinfer::NvinferError;
use std::io;
use std::path::{Path, PathBuf};

/// Why no plans were built. The package is as it was.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The backend cannot build here, or not from this package.
    #[error("backend `{backend}`: {reason}")]
    Refused {
        /// Its name.
        backend: String,
        /// Why, and what to do.
        reason: String,
    },
    /// TensorRT refused an engine.
    #[error("{file}: {source}")]
    Nvinfer {
        /// The engine.
        file: String,
        /// Its words.
        source: NvinferError,
    },
    /// TensorRT's inputs and outputs are not those of the manifest.
    #[error("{file}: TensorRT's tensors are not the manifest's:\n  {}", .problems.join("\n  "))]
    Tensors {
        /// The engine.
        file: String,
        /// One per tensor.
        problems: Vec<String>,
    },
    /// The package is not one that plans can be put into.
    #[error("package `{}`: {reason}", .dir.display())]
    Package {
        /// Its folder.
        dir: PathBuf,
        /// Expected, found, and what to do.
        reason: String,
    },
    /// A file could not be written.
    #[error("{action} `{}`: {source}", .path.display())]
    Io {
        /// What failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

impl BuildError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}
