//! `ratplus doctor`: what this machine has, what is missing, how to get it.

use crate::args::DoctorArgs;
use crate::output::{OrInput, Outcome};
use ratplus_runtime::ort_library;
use serde::Serialize;

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
        println!("{}", serde_json::to_string_pretty(&findings).or_input()?);
        return Ok(());
    }
    for Finding {
        name,
        found,
        detail,
    } in &findings
    {
        let mark = if *found { "ok     " } else { "missing" };
        println!(
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
            format!(
                "{version} at {path}; providers {}",
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
    for (name, file, advice) in EXTERNAL {
        findings.push(match loader_has(file) {
            true => Finding {
                name,
                found: true,
                detail: format!("{file} loads; {advice}"),
            },
            false => Finding {
                name,
                found: false,
                detail: format!("no {file} in the loader's path; {advice}"),
            },
        });
    }
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

/// Libraries of backends that this build does not drive yet.
const EXTERNAL: [(&str, &str, &str); 2] = [
    (
        "CUDA driver",
        "libcuda.so.1",
        "this build has no CUDA kernels: ort-cuda is not available",
    ),
    (
        "TensorRT",
        "libnvinfer.so.10",
        "this build does not drive TensorRT: export with --fallback inline for it",
    ),
];

/// Whether a folder of the loader's usual places holds `file`. Nothing is loaded: a driver may
/// change the process.
fn loader_has(file: &str) -> bool {
    let variable = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let fixed = [
        "/lib/x86_64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib64",
        "/lib64",
        "/usr/local/cuda/lib64",
    ];
    std::env::split_paths(&variable)
        .chain(fixed.map(Into::into))
        .any(|dir| !dir.as_os_str().is_empty() && dir.join(file).exists())
}
