//! Runs the engines of a package.

mod error;
mod implementation;
mod ort;
mod session;
mod tract;

pub use error::{BackendError, InputProblem};
pub use implementation::{EngineImplementations, Implementation, NodeImplementation};
pub use session::{Session, SessionOptions, StateBuffer, Step};

use std::fmt;
use std::str::FromStr;

/// What runs a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendKind {
    /// `ort-cpu`: ONNX Runtime with the library of RAT+ operators.
    OrtCpu,
    /// `ort-cuda`: ONNX Runtime with the library of RAT+ operators, on an NVIDIA GPU.
    OrtCuda,
    /// `ort-fallback`: ONNX Runtime without it; the model's own functions run.
    OrtFallback,
    /// `tract`: the reference.
    Tract,
}

impl BackendKind {
    /// Every backend of this build.
    pub const ALL: [Self; 4] = [Self::OrtCpu, Self::OrtCuda, Self::OrtFallback, Self::Tract];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::OrtCpu => "ort-cpu",
            Self::OrtCuda => "ort-cuda",
            Self::OrtFallback => "ort-fallback",
            Self::Tract => "tract",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Backends that `ratplus` has names for, and why this crate cannot open a session with them.
const OTHER: [(&str, &str); 2] = [
    (
        "tensorrt",
        "this build does not drive TensorRT engines; use `ort-cpu`",
    ),
    (
        "tensorrt-rtx",
        "this build does not drive TensorRT-RTX engines; use `ort-cpu`",
    ),
];

impl FromStr for BackendKind {
    type Err = BackendError;

    fn from_str(name: &str) -> Result<Self, BackendError> {
        if let Some(kind) = Self::ALL.into_iter().find(|kind| kind.name() == name) {
            return Ok(kind);
        }
        let reason = match OTHER.iter().find(|(other, _)| *other == name) {
            Some((_, reason)) => (*reason).to_owned(),
            None => format!(
                "unknown; expected one of {}",
                Self::ALL.map(Self::name).join(", ")
            ),
        };
        Err(BackendError::Unavailable {
            backend: name.into(),
            reason,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for kind in BackendKind::ALL {
            assert_eq!(kind.to_string().parse::<BackendKind>().unwrap(), kind);
        }
        for (name, part) in [("tensorrt", "TensorRT"), ("cpu", "ort-cpu, ")] {
            let error = name.parse::<BackendKind>().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(part), "{error}");
        }
    }
}
