//! The CUDA driver and its kernels.

use super::{Finding, finding};
use ratplus_kernels::cuda::{self, CudaError, Device};
use std::fmt::Write;
use std::path::Path;

/// The CUDA driver with its devices, and where their kernels come from.
pub fn findings(onnxruntime: Option<&Path>) -> [Finding; 3] {
    if let Some(library) = onnxruntime {
        cuda::add_search_folders_around(library);
    }
    let devices = devices();
    let driver = finding("CUDA driver", &devices, |devices| {
        let version = Device::driver_version().unwrap_or_default();
        format!("for CUDA {version}\n{}", devices.join("\n"))
    });

    let nvrtc = cuda::nvrtc();
    let embedded = cuda::toolkit().map(|toolkit| {
        let architectures: Vec<_> = toolkit
            .architectures
            .iter()
            .map(|name| format!("sm_{name}"))
            .collect();
        format!(
            "embedded for {} and, through the driver, later ones (nvcc {})",
            architectures.join(", "),
            toolkit.version
        )
    });
    let mut detail = embedded
        .clone()
        .unwrap_or_else(|| "none embedded in this build".into());
    match &nvrtc {
        Ok(library) => write!(
            detail,
            "\nfor other devices: NVRTC {} at {}",
            library.version,
            library.path.display()
        ),
        Err(error) => write!(detail, "\nfor other devices: {error}"),
    }
    .expect("a string takes all text");
    let kernels = Finding::new("CUDA kernels", embedded.is_some() || nvrtc.is_ok(), detail);

    let folder = cuda::cache_folder();
    let none = "NVRTC compiles anew in every process; set RATPLUS_CACHE_DIR or HOME";
    let cache = finding("kernel cache", &folder.ok_or(none), |folder| {
        format!("{} (what NVRTC compiles)", folder.display())
    });
    [driver, kernels, cache]
}

/// Whether there is a GPU.
pub fn has_device() -> bool {
    Device::describe(0).is_ok()
}

/// One line for each device.
fn devices() -> Result<Vec<String>, CudaError> {
    let describe = |ordinal| {
        let limits = Device::describe(ordinal)?;
        let (major, minor) = limits.compute_capability;
        let gibibytes = limits.total_memory as f64 / f64::from(1 << 30);
        let origin = match cuda::embedded_covers(limits.compute_capability) {
            true => "embedded kernels",
            false => "kernels by NVRTC",
        };
        Ok(format!(
            "{ordinal}: {}, compute capability {major}.{minor}, {gibibytes:.0} GiB, {origin}",
            limits.name
        ))
    };
    (0..Device::count()?).map(describe).collect()
}
