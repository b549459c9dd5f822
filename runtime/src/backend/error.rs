use super::BackendKind;
#[cfg(feature = "tensorrt")]
use crate::nvinfer::NvinferError;
use crate::ort_library::LibraryError;
use crate::raw::CudaError;
use ratplus_graphs::ops::LengthError;
use std::path::PathBuf;

/// Why a session was not opened, or a step not run.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The backend cannot be used here.
    #[error("backend `{backend}`: {reason}")]
    Unavailable {
        /// Its name.
        backend: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A library is missing.
    #[error("backend `{backend}`: {source}")]
    Library {
        /// The backend that needs it.
        backend: BackendKind,
        /// Which, and what to do.
        source: LibraryError,
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
    #[error("the step was refused before the run:\n  {}", list(.0))]
    Input(Vec<InputProblem>),
    /// A slot's state was refused; the slot is as it was.
    #[error("the state was refused:\n  {}", .0.join("\n  "))]
    State(Vec<String>),
    /// ONNX Runtime failed.
    #[error("{file}: ONNX Runtime: {source}")]
    Ort {
        /// The engine.
        file: String,
        /// Its code and words.
        source: ort::Error,
    },
    /// The GPU failed.
    #[error("{file}: {what}: {source}")]
    Cuda {
        /// The engine, or what else was in work.
        file: String,
        /// What failed.
        what: &'static str,
        /// The driver's words.
        source: Box<CudaError>,
    },
    /// TensorRT failed.
    #[cfg(feature = "tensorrt")]
    #[error("{file}: {source}")]
    Nvinfer {
        /// The plan, or what else was in work.
        file: String,
        /// Its words.
        source: Box<NvinferError>,
    },
    /// A kernel on the GPU found lengths that do not fit.
    #[error("{file}: {message}")]
    Device {
        /// The engine.
        file: String,
        /// The node, the slot, and what was expected.
        message: String,
    },
    /// tract failed.
    #[cfg(feature = "tract")]
    #[error("{file}: {source}")]
    Tract {
        /// The engine.
        file: String,
        /// Its words.
        source: Box<ratplus_tract::TractError>,
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

fn list(problems: &[InputProblem]) -> String {
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n  ")
}

/// One reason to refuse a step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputProblem {
    /// No engine has this length, or it was not opened.
    #[error("engine length: expected one of {lengths:?}, found {found}")]
    EngineLength {
        /// Lengths of the session.
        lengths: Vec<usize>,
        /// What was given.
        found: usize,
    },
    /// A slice of the wrong length.
    #[error("{name}: expected {expected} values, found {found}")]
    Count {
        /// `input_ids` or `seq_length`.
        name: &'static str,
        /// `B * L` or `B`.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// A number that is too large.
    #[error("{name}: expected at most {expected}, found {found}")]
    AtMost {
        /// `slot` or `tokens`.
        name: &'static str,
        /// The last slot, or the engine's length.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// A token outside the vocabulary.
    #[error("slot {slot}: token {index} of the chunk is {token}, expected 0 to {}", .vocab_size - 1)]
    Token {
        /// Index in the batch.
        slot: usize,
        /// Index in the chunk.
        index: usize,
        /// What was given.
        token: i64,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// Lengths that do not fit.
    #[error("{0}")]
    Length(LengthError),
    /// Every slot is idle.
    #[error("seq_length: expected at least one slot with 1 token or more, found none")]
    AllIdle,
}
