//! What the kernels can count, and how tensors have to lie.

use super::{CudaError, DevicePtr};

/// Vectors of the kernels.
const ALIGNMENT: DevicePtr = 16;

/// A size as the kernels count it.
pub(super) fn fit_i32(what: &'static str, size: usize) -> Result<i32, CudaError> {
    i32::try_from(size).map_err(|_| too_large(what, i32::MAX as usize, size))
}

/// A size along the second or third axis of a grid.
pub(super) fn grid_axis(what: &'static str, size: usize) -> Result<u32, CudaError> {
    const MOST: usize = 65535;
    match u32::try_from(size) {
        Ok(axis) if size <= MOST => Ok(axis),
        _ => Err(too_large(what, MOST, size)),
    }
}

fn too_large(what: &'static str, most: usize, found: usize) -> CudaError {
    CudaError::Unsupported {
        what: what.into(),
        expected: format!("at most {most}"),
        found: found.to_string(),
    }
}

/// Every tensor that does not start where the kernels need it.
pub(super) fn check_alignment(tensors: &[(&'static str, DevicePtr)]) -> Result<(), CudaError> {
    let misaligned = |(_, address): &&(&str, DevicePtr)| !address.is_multiple_of(ALIGNMENT);
    if !tensors.iter().any(|tensor| misaligned(&tensor)) {
        return Ok(());
    }
    let names: Vec<_> = tensors
        .iter()
        .filter(misaligned)
        .map(|(name, _)| *name)
        .collect();
    Err(CudaError::Unsupported {
        what: format!("addresses of {}", names.join(", ")),
        expected: "multiples of 16 bytes; bind whole allocations, not views into them".into(),
        found: "others".into(),
    })
}

/// Name of the kernel for an element type: `ratplus_`, the given part, the type, the given end.
macro_rules! kernel_name {
    ($element:expr, $part:literal $(, $end:literal)?) => {
        match $element {
            ratplus_graphs::ops::ElementType::F16 => concat!("ratplus_", $part, "f16" $(, $end)?),
            ratplus_graphs::ops::ElementType::BF16 => concat!("ratplus_", $part, "bf16" $(, $end)?),
            _ => concat!("ratplus_", $part, "f32" $(, $end)?),
        }
    };
}
pub(super) use kernel_name;
