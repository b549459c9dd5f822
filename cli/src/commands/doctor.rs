//! `ratplus doctor`: what this machine has, what is missing, how to get it.

#[cfg(feature = "cuda")]
mod cuda;
mod library;
#[cfg(feature = "tensorrt")]
mod tensorrt;

use crate::args::DoctorArgs;
use crate::output::{OrInput, Outcome};
use crate::streams::outln;
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::ort_library;
use serde::Serialize;

/// What a backend needs that this build does not have.
const NONE: &str = "a build with it; this one has none";

/// One thing that is there or not.
#[derive(Serialize)]
struct Finding {
    name: &'static str,
    found: bool,
    detail: String,
}

impl Finding {
    fn new(name: &'static str, found: bool, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            name,
            found,
            detail,
        }
    }
}

/// Looks and prints. A missing thing is no failure: it is what was asked for.
pub fn run(args: DoctorArgs) -> Outcome {
    if let Some(file) = &args.library {
        return library::run(file, args.json);
    }
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
    let isa = ratplus_kernels::isa();
    let processor = format!("{cores} threads; CPU kernels use {isa}");
    let runtime = ort_library::onnxruntime(args.libraries.onnxruntime.as_deref());
    let operators = ort_library::operators(args.libraries.custom_ops.as_deref());
    let mut findings = vec![
        Finding::new("processor", true, processor),
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
    let backend = |name, found, needs: &str| match found {
        true => Finding::new(name, true, "ready"),
        false => Finding::new(name, false, format!("needs {needs}")),
    };
    findings.push(backend("ort-cpu", both, "ONNX Runtime and the custom ops"));
    findings.push(backend("ort-fallback", runtime.is_ok(), "ONNX Runtime"));
    findings.push(backend(
        "tract",
        BackendKind::Tract.missing_feature().is_none(),
        NONE,
    ));
    let provider = runtime.as_ref().is_ok_and(|runtime| {
        let mut providers = runtime.providers.iter();
        providers.any(|name| name == "CUDAExecutionProvider")
    });
    #[cfg(feature = "cuda")]
    let device = cuda::has_device();
    #[cfg(not(feature = "cuda"))]
    let device = false;
    findings.push(backend(
        "ort-cuda",
        both && provider && device,
        match BackendKind::OrtCuda.missing_feature() {
            Some(_) => NONE,
            None => {
                "the custom ops, ONNX Runtime with CUDAExecutionProvider (`pip install \
                 \"onnxruntime-gpu[cuda,cudnn]\"`) and a CUDA device"
            }
        },
    ));
    #[cfg(feature = "cuda")]
    findings.extend(cuda::findings(
        runtime.as_ref().ok().map(|found| &*found.path),
    ));
    #[cfg(feature = "tensorrt")]
    findings.extend(tensorrt::findings());
    findings
}

fn finding<T, E: std::fmt::Display>(
    name: &'static str,
    result: &Result<T, E>,
    detail: impl Fn(&T) -> String,
) -> Finding {
    match result {
        Ok(value) => Finding::new(name, true, detail(value)),
        Err(error) => Finding::new(name, false, error.to_string()),
    }
}
