//! Runs the engines of a package.

mod error;
mod implementation;
mod layout;
mod logits;
mod ort;
mod profile;
mod profile_file;
mod session;
mod tensorrt;
#[cfg_attr(not(feature = "tract"), path = "without_tract.rs")]
mod tract;

pub use error::{BackendError, InputProblem};
pub use implementation::{EngineImplementations, Implementation, NodeImplementation};
pub(crate) use logits::finite;
pub use logits::{NonFinite, NonFiniteLogits};
pub use profile::OperatorTime;
pub use session::{Session, SessionOptions, StateBuffer, Step};

use ratplus_nvinfer::Product;
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
    /// `tensorrt`: engine plans with the library of RAT+ plugins, on an NVIDIA GPU.
    TensorRt,
    /// `tensorrt-rtx`: engine plans of TensorRT for RTX; the model's own functions run.
    TensorRtRtx,
    /// `tract`: the reference.
    Tract,
}

impl BackendKind {
    /// Every backend of this build.
    pub const ALL: [Self; 6] = [
        Self::OrtCpu,
        Self::OrtCuda,
        Self::OrtFallback,
        Self::TensorRt,
        Self::TensorRtRtx,
        Self::Tract,
    ];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::OrtCpu => "ort-cpu",
            Self::OrtCuda => "ort-cuda",
            Self::OrtFallback => "ort-fallback",
            Self::TensorRt => "tensorrt",
            Self::TensorRtRtx => "tensorrt-rtx",
            Self::Tract => "tract",
        }
    }

    /// Whether its runs can be profiled operator by operator ([`Session::end_profile`]). What is
    /// launched on a GPU has not run yet when ONNX Runtime looks at the clock.
    pub fn has_profiles(self) -> bool {
        matches!(self, Self::OrtCpu | Self::OrtFallback)
    }

    /// What runs its plans; `None` where it runs the ONNX files themselves.
    pub fn product(self) -> Option<Product> {
        match self {
            Self::TensorRt => Some(Product::TensorRt),
            Self::TensorRtRtx => Some(Product::Rtx),
            _ => None,
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BackendKind {
    type Err = BackendError;

    fn from_str(name: &str) -> Result<Self, BackendError> {
        if let Some(kind) = Self::ALL.into_iter().find(|kind| kind.name() == name) {
            return Ok(kind);
        }
        let reason = format!(
            "unknown; expected one of {}",
            Self::ALL.map(Self::name).join(", ")
        );
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
        let error = "cpu".parse::<BackendKind>().unwrap_err().to_string();
        assert!(
            error.contains("`cpu`") && error.contains("ort-cpu, "),
            "{error}"
        );
    }
}
