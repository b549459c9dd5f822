//! Runs the engines of a package.

mod buffers;
mod builder;
mod delta;
mod driver;
mod error;
mod implementation;
#[doc(hidden)]
pub mod inspection;
mod layout;
mod logits;
mod options;
mod ort;
#[cfg(feature = "tensorrt")]
mod plan;
mod profile;
mod profile_file;
mod session;
mod state;
mod step;
#[cfg(feature = "tensorrt")]
mod tensorrt;
#[cfg(feature = "tract")]
mod tract;

pub use builder::SessionBuilder;
pub use delta::StateDelta;
pub use error::BackendError;
pub use implementation::{EngineImplementations, Implementation, NodeImplementation};
pub(crate) use logits::finite;
pub use logits::{NonFinite, NonFiniteLogits};
pub use options::{CudaOptions, OrtOptions, TensorRtOptions};
#[cfg(feature = "tensorrt")]
#[doc(hidden)]
pub use plan::{PlanRequirements, check_in_place, check_tensors, input_shapes};
pub use profile::OperatorTime;
pub use session::{Session, StateBuffer};
pub use state::SlotState;
pub use step::Step;
#[cfg(feature = "tensorrt")]
#[doc(hidden)]
pub use tensorrt::inspect_plan;

use std::fmt;
use std::str::FromStr;

/// What runs a package.
///
/// ```
/// use ratplus_runtime::BackendKind;
/// assert_eq!("ort-cpu".parse::<BackendKind>()?, BackendKind::OrtCpu);
/// // The error lists those there are.
/// assert!("gpu".parse::<BackendKind>().is_err());
/// # Ok::<(), ratplus_runtime::BackendError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
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
    /// Every backend, those that this build lacks among them.
    pub const ALL: [Self; 6] = [
        Self::OrtCpu,
        Self::OrtCuda,
        Self::OrtFallback,
        Self::TensorRt,
        Self::TensorRtRtx,
        Self::Tract,
    ];

    /// Its name.
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

    /// Whether its runs can be profiled operator by operator ([`inspection::end_profile`]). What is
    /// launched on a GPU has not run yet when ONNX Runtime looks at the clock.
    pub fn has_profiles(self) -> bool {
        matches!(self, Self::OrtCpu | Self::OrtFallback)
    }

    /// Whether it runs engine plans, and not the ONNX files themselves.
    pub fn runs_plans(self) -> bool {
        matches!(self, Self::TensorRt | Self::TensorRtRtx)
    }

    /// The feature of this crate that a build without this backend lacks.
    pub fn missing_feature(self) -> Option<&'static str> {
        match self {
            Self::OrtCuda if !cfg!(feature = "cuda") => Some("cuda"),
            Self::TensorRt | Self::TensorRtRtx if !cfg!(feature = "tensorrt") => Some("tensorrt"),
            Self::Tract if !cfg!(feature = "tract") => Some("tract"),
            _ => None,
        }
    }
}

/// Its name.
impl serde::Serialize for BackendKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
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
