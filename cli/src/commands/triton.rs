//! `ratplus triton`: models for Triton Inference Server.

use crate::args::{TritonArgs, TritonBackend};
use crate::output::{Failure, OrInput, Outcome};
use crate::streams::outln;
use clap::ValueEnum;
use ratplus_graphs::package::{Fallback, Manifest};
use ratplus_runtime::backend::{BackendKind, Session};
use ratplus_runtime::ort_library;
use ratplus_runtime::package::Package;
use ratplus_triton_repository::{Model, Repository, ratplus, stock};
use std::path::{Path, PathBuf};

/// Adds the models and says how they are served.
pub fn run(args: TritonArgs) -> Outcome {
    let backend: BackendKind = args.engine.backend.parse().or_input()?;
    let package = Package::open(&args.dir).or_input()?;
    let manifest = package.manifest();
    check_flags(&args, backend, manifest)?;
    let session = Session::builder(&package).threads(args.engine.libraries.threads);
    let name = match &args.model_name {
        Some(name) => name.clone(),
        None => super::folder_name(&args.dir),
    };
    let options = stock::Options {
        max_sequences: args.max_sequences,
    };
    let (models, flag): (Vec<Model>, _) = match args.triton_backend {
        TritonBackend::Ratplus => {
            let options = served(&args, backend, manifest)?;
            session.check(backend).or_input()?;
            let models = ratplus::models(&name, manifest, &options);
            let flag = "--backend-directory=FOLDER, which has ratplus/libtriton_ratplus.so";
            (models.into(), Some(flag.to_owned()))
        }
        TritonBackend::Onnxruntime => {
            let runtime = onnxruntime(&args, backend, manifest)?;
            session.check(backend).or_input()?;
            let model = stock::onnxruntime(&name, manifest, &runtime, &options);
            (vec![model.or_input()?], None)
        }
        TritonBackend::Tensorrt => {
            let model = stock::tensorrt(&name, manifest, &options);
            let flag = "--backend-config=tensorrt,plugins=FOLDER/libratplus_trt.so";
            (vec![model.or_input()?], Some(flag.to_owned()))
        }
    };
    let repository = Repository::at(&args.output);
    repository.write(package.dir(), &models).or_input()?;
    let folder = args.output.display();
    for model in &models {
        outln!("{folder}/{}", model.name);
    }
    let flag = flag.map(|flag| format!(" {flag}")).unwrap_or_default();
    outln!("serve with: tritonserver --model-repository={folder}{flag}");
    Ok(())
}

/// Refuses flags that would do nothing.
fn check_flags(args: &TritonArgs, backend: BackendKind, manifest: &Manifest) -> Outcome {
    let served = args.triton_backend == TritonBackend::Ratplus;
    let runs_graphs = args.triton_backend != TritonBackend::Tensorrt && !backend.runs_plans();
    let in_ort = runs_graphs && backend != BackendKind::Tract;
    let records = backend == BackendKind::OrtCuda || backend.runs_plans();
    let flags = [
        ("max_queued_requests", served),
        ("prefix_cache", served),
        ("prefill_chunk", served),
        ("decode_steps_per_chunk", served),
        ("threads", served && in_ort),
        ("onnxruntime", served && in_ort),
        ("no_cuda_graph", served && records),
        ("custom_ops", in_ort && uses_operators(backend, manifest)),
        ("backend", args.triton_backend != TritonBackend::Tensorrt),
        ("length", args.triton_backend == TritonBackend::Onnxruntime),
        ("max_sequences", !served),
    ];
    let idle = flags
        .iter()
        .filter(|(name, used)| !used && args.typed.has(name));
    let idle: Vec<_> = idle
        .map(|(name, _)| format!("--{}", name.replace('_', "-")))
        .collect();
    if idle.is_empty() {
        return Ok(());
    }
    let triton_backend = args.triton_backend.to_possible_value();
    let triton_backend = triton_backend.map_or_else(String::new, |value| value.get_name().into());
    let and = match args.triton_backend {
        TritonBackend::Tensorrt => String::new(),
        _ => format!(" and --backend {backend}"),
    };
    Err(Failure::input(format!(
        "{}: without effect for this package with --triton-backend {triton_backend}{and}; leave them out",
        idle.join(", ")
    )))
}

/// Whether a backend of ONNX Runtime runs a package with the library of RAT+ operators.
fn uses_operators(backend: BackendKind, manifest: &Manifest) -> bool {
    backend != BackendKind::OrtFallback && manifest.fallback != Fallback::Inline
}

fn served(
    args: &TritonArgs,
    backend: BackendKind,
    manifest: &Manifest,
) -> Result<ratplus::Options, Failure> {
    let lengths = manifest.lengths_up_to(args.prefill_chunk);
    lengths.map_err(|error| Failure::input(format!("--prefill-chunk: {error}")))?;
    let path = |path: &Option<PathBuf>| path.as_deref().map(absolute).transpose();
    let parameters = [
        ("backend", Some(backend.to_string())),
        (
            "threads",
            args.engine.libraries.threads.map(|count| count.to_string()),
        ),
        ("onnxruntime", path(&args.engine.libraries.onnxruntime)?),
        ("custom_ops", path(&args.engine.libraries.custom_ops)?),
        (
            "no_cuda_graph",
            args.engine
                .libraries
                .no_cuda_graph
                .then(|| true.to_string()),
        ),
        (
            "prefill_chunk",
            args.prefill_chunk.map(|length| length.to_string()),
        ),
        (
            "decode_steps_per_chunk",
            Some(args.decode_steps_per_chunk.to_string()),
        ),
        ("prefix_cache_bytes", Some(args.prefix_cache.to_string())),
    ];
    let given = parameters.into_iter();
    Ok(ratplus::Options {
        max_queued_requests: args.max_queued_requests,
        parameters: given
            .filter_map(|(name, value)| Some((name, value?)))
            .collect(),
    })
}

fn onnxruntime(
    args: &TritonArgs,
    backend: BackendKind,
    manifest: &Manifest,
) -> Result<stock::OnnxRuntime, Failure> {
    let gpu = match backend {
        BackendKind::OrtCpu | BackendKind::OrtFallback => false,
        BackendKind::OrtCuda => true,
        other => {
            return Err(Failure::input(format!(
                "--backend: expected ort-cpu, ort-cuda or ort-fallback with --triton-backend onnxruntime, found {other}"
            )));
        }
    };
    let operators = uses_operators(backend, manifest).then(|| {
        let found = ort_library::operators(args.engine.libraries.custom_ops.as_deref());
        absolute(&found.or_input()?)
    });
    Ok(stock::OnnxRuntime {
        seq_len: args.length,
        gpu,
        operators: operators.transpose()?,
    })
}

/// A path that does not depend on where the server is started.
fn absolute(path: &Path) -> Result<String, Failure> {
    let named = |error| Failure::input(format!("{}: {error}", path.display()));
    let path = std::path::absolute(path).map_err(named)?;
    let text = path.to_str();
    let wrong = || Failure::input(format!("{}: expected a path in UTF-8", path.display()));
    text.map(str::to_owned).ok_or_else(wrong)
}
