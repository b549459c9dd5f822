//! TensorRT and TensorRT for RTX.

use super::{Finding, finding};
use ratplus_kernels::cuda::Device;
use ratplus_runtime::nvinfer::{self, Product};

/// What this build has code for, the libraries, the plugins and what can be done with them.
pub fn findings() -> Vec<Finding> {
    let flavours = nvinfer::flavours();
    let names: Vec<_> = flavours.iter().map(ToString::to_string).collect();
    let code = match flavours.is_empty() {
        true => Err(
            "none in this build: run `cargo xtask setup`, which installs headers, and build again",
        ),
        false => Ok(names.join(", ")),
    };
    let plugins = nvinfer::plugins(None);
    let gpu = Device::describe(0);
    let mut findings = vec![
        finding("TensorRT code", &code, |names| format!("for {names}")),
        finding("RAT+ plugins", &plugins, |path| path.display().to_string()),
    ];
    for (product, name, backend) in [
        (Product::TensorRt, "TensorRT", "tensorrt"),
        (Product::Rtx, "TensorRT-RTX", "tensorrt-rtx"),
    ] {
        let library = nvinfer::open(product, None);
        findings.push(finding(name, &library, |library| {
            let (version, path) = (library.version(), library.path().display());
            let builder = match library.can_build() {
                Ok(()) => "builder and ONNX parser".into(),
                Err(error) => format!("runs plans only: {error}"),
            };
            format!(
                "{version} at {path}; {builder}; driven as {}",
                library.flavour()
            )
        }));
        let builder = library.as_ref().map(|library| library.can_build());
        let mut missing = Vec::new();
        if library.is_err() {
            missing.push(format!("the library {product}"));
        } else if let Ok(Err(_)) = builder {
            missing.push(format!("the builder of {product}, to build plans"));
        }
        if product == Product::TensorRt && plugins.is_err() {
            missing
                .push("the RAT+ plugins (not for packages exported with --fallback inline)".into());
        }
        let can_build = missing.is_empty() && (product == Product::Rtx || gpu.is_ok());
        if gpu.is_err() {
            missing.push("a CUDA device".into());
        }
        let needs = missing.join("; ");
        let detail = match (missing.is_empty(), can_build) {
            (true, _) => "ready".into(),
            (false, true) => format!("`ratplus build` works here; to run plans it needs {needs}"),
            (false, false) => format!("needs {needs}"),
        };
        findings.push(Finding::new(backend, missing.is_empty(), detail));
    }
    findings
}
