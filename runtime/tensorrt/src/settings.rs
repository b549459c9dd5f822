//! What users may choose about how plans are built.

use std::str::FromStr;

/// Other GPUs that run a plan of TensorRT's, at a cost in speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HardwareCompatibility {
    /// Every GPU of compute capability 8.0 or later.
    AmperePlus,
    /// Every GPU of the same compute capability, whatever its size.
    SameComputeCapability,
}

impl FromStr for HardwareCompatibility {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ampere+" => Ok(Self::AmperePlus),
            "same-compute-capability" => Ok(Self::SameComputeCapability),
            _ => Err(format!(
                "expected ampere+ or same-compute-capability, found `{text}`"
            )),
        }
    }
}

/// How plans are built; what is not set is TensorRT's own choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildSettings {
    /// Bytes of scratch memory that a layer may use at most.
    pub workspace: Option<u64>,
    /// 0, the quickest build, to 5, the longest search.
    pub optimization_level: Option<u8>,
    /// TensorRT only: whether later releases of the same major version run the plan.
    pub version_compatible: bool,
    /// TensorRT only: which other GPUs run the plan.
    pub hardware_compatibility: Option<HardwareCompatibility>,
    /// TensorRT only: whether the weights are left out that [`Refit`](crate::Refit) can put into the plan when it is opened.
    pub strip_weights: bool,
}
