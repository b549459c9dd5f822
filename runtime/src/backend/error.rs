use super::BackendKind;
use std::fmt::Display;
use std::path::PathBuf;

/// Why a session was not opened, or a step not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The backend cannot be used here, for want of a library among other reasons.
    #[error("backend `{backend}`: {reason}")]
    Unavailable {
        /// Its name.
        backend: String,
        /// Why, and what to do.
        reason: String,
    },
    /// An option names something the package does not have.
    #[error("`{option}`: expected {expected}, found `{found}`")]
    Option {
        /// The method of [`SessionBuilder`](super::SessionBuilder), or the field of what it takes.
        option: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The step was refused before anything ran; no sequence has changed.
    #[error("the step was refused before the run:\n  {}", .0.join("\n  "))]
    Input(Vec<String>),
    /// A slot's state was refused; the slot is as it was.
    #[error("the state was refused:\n  {}", .0.join("\n  "))]
    State(Vec<String>),
    /// What runs an engine failed: ONNX Runtime, TensorRT, tract, the GPU, or a kernel on it.
    #[error("{file}: {message}")]
    Run {
        /// The engine, or what else was in work.
        file: String,
        /// What failed, in its own words.
        message: String,
    },
    /// The implementation asked for is not the one that ran.
    #[error("backend `{backend}`: {file}: {}", .problems.join("\n  "))]
    Implementation {
        /// The backend.
        backend: BackendKind,
        /// The engine.
        file: String,
        /// One per node.
        problems: Vec<String>,
    },
    /// The library of RAT+ operators cannot say what it ran.
    #[error("the RAT+ operator library `{}`: {reason}; build it again (`cargo build --release -p \
             ratplus-onnxruntime`)", .path.display())]
    Operators {
        /// The library.
        path: PathBuf,
        /// What it lacks.
        reason: String,
    },
    /// The profile of a session could not be written or read.
    #[error("{file}: its profile: {message}")]
    Profile {
        /// The engine.
        file: String,
        /// What failed.
        message: String,
    },
}

/// What became of a run, or of what has to be there for one, of `file`.
pub(super) fn run_error<E: Display>(file: &str) -> impl Fn(E) -> BackendError + use<'_, E> {
    move |error| BackendError::Run {
        file: file.into(),
        message: error.to_string(),
    }
}

/// The same, where the words of what failed do not say what was in work.
pub(super) fn failed<'a, E: Display>(
    file: &'a str,
    what: &'a str,
) -> impl Fn(E) -> BackendError + use<'a, E> {
    move |error| run_error(file)(format!("{what}: {error}"))
}
