//! `ratplus doctor`: what this machine has, what is missing, how to get it.

mod tensorrt;

use crate::args::DoctorArgs;
use crate::output::{OrInput, Outcome};
use crate::streams::outln;
use ratplus_kernels::cuda::{self, CudaError, Device};
use ratplus_runtime::ort_library;
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;

/// One thing that is there or not.
#[derive(Serialize)]
struct Finding {
    name: &'static str,
    found: bool,
    detail: String,
}

/// Looks and prints. A missing thing is no failure: it is what was asked for.
pub fn run(args: DoctorArgs) -> Outcome {
    let findings = findings(&args);
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&findings).or_input()?);
        return Ok(());
    }
    for Finding {
        name,
        found,
        detail,
    } in &findings
    {
        let mark = if *found { "ok     " } else { "missing" };
        outln!(
            "{mark}  {name:14}  {}",
            detail.replace('\n', "\n                         ")
        );
    }
    Ok(())
}

fn findings(args: &DoctorArgs) -> Vec<Finding> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = ort_library::onnxruntime(args.libraries.onnxruntime.as_deref());
    let operators = ort_library::operators(args.libraries.custom_ops.as_deref());
    let mut findings = vec![
        Finding {
            name: "processor",
            found: true,
            detail: format!(
                "{cores} threads; CPU kernels use {}",
                ratplus_kernels::isa()
            ),
        },
        finding("ONNX Runtime", &runtime, |runtime| {
            let (path, version) = (runtime.path.display(), &runtime.version);
            let others = runtime.others.iter();
            let others: String = others.map(|other| format!("\nnot {other}")).collect();
            format!(
                "{version} at {path} ({}); providers {}{others}",
                runtime.origin,
                runtime.providers.join(", ")
            )
        }),
        finding("custom ops", &operators, |path| path.display().to_string()),
    ];
    let both = runtime.is_ok() && operators.is_ok();
    let backend = |name, found: bool, needs: &str| Finding {
        name,
        found,
        detail: if found {
            "ready".into()
        } else {
            format!("needs {needs}")
        },
    };
    findings.push(backend("ort-cpu", both, "ONNX Runtime and the custom ops"));
    findings.push(backend("ort-fallback", runtime.is_ok(), "ONNX Runtime"));
    findings.push(backend("tract", true, ""));
    let provider = runtime.as_ref().is_ok_and(|runtime| {
        let mut providers = runtime.providers.iter();
        providers.any(|name| name == "CUDAExecutionProvider")
    });
    findings.push(backend(
        "ort-cuda",
        both && provider && Device::describe(0).is_ok(),
        "the custom ops, ONNX Runtime with CUDAExecutionProvider (`pip install \
         \"onnxruntime-gpu[cuda,cudnn]\"`) and a CUDA device",
    ));
    findings.extend(cuda_findings(
        runtime.as_ref().ok().map(|found| &*found.path),
    ));
    findings.extend(tensorrt::findings());
    findings
}

fn finding<T, E: std::fmt::Display>(
    name: &'static str,
    result: &Result<T, E>,
    detail: impl Fn(&T) -> String,
) -> Finding {
    match result {
        Ok(value) => Finding {
            name,
            found: true,
            detail: detail(value),
        },
        Err(error) => Finding {
            name,
            found: false,
            detail: error.to_string(),
        },
    }
}

/// The CUDA driver with its devices, and where their kernels come from.
fn cuda_findings(onnxruntime: Option<&Path>) -> [Finding; 3] {
    if let Some(library) = onnxruntime {
        cuda::add_search_folders_around(library);
    }
    let devices = cuda_devices();
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
    let kernels = Finding {
        name: "CUDA kernels",
        found: embedded.is_some() || nvrtc.is_ok(),
        detail,
    };

    let folder = cuda::cache_folder();
    let cache = Finding {
        name: "kernel cache",
        found: folder.is_some(),
        detail: match folder {
            Some(folder) => format!("{} (what NVRTC compiles)", folder.display()),
            None => "NVRTC compiles anew in every process; set RATPLUS_CACHE_DIR or HOME".into(),
        },
    };
    [driver, kernels, cache]
}

/// One line for each device.
fn cuda_devices() -> Result<Vec<String>, CudaError> {
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
