//! `ratplus triton`: models for Triton Inference Server.

use crate::args::{TritonArgs, TritonBackend};
use crate::output::{Failure, OrInput, Outcome};
use crate::streams::outln;
use ratplus_graphs::package::Manifest;
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::ort_library;
use ratplus_runtime::package::Package;
use ratplus_triton_repository::{Model, Repository, ratplus, stock};
use std::path::{Path, PathBuf};

/// Adds the models and says how they are served.
pub fn run(args: TritonArgs) -> Outcome {
    let backend: BackendKind = args.engine.backend.parse().or_input()?;
    let package = Package::open(&args.dir).or_input()?;
    let manifest = package.manifest();
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
            let models = ratplus::models(&name, manifest, &options);
            let flag = "--backend-directory=FOLDER, which has ratplus/libtriton_ratplus.so";
            (models.into(), Some(flag.to_owned()))
        }
        TritonBackend::Onnxruntime => {
            let runtime = onnxruntime(&args, backend)?;
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

fn served(
    args: &TritonArgs,
    backend: BackendKind,
    manifest: &Manifest,
) -> Result<ratplus::Options, Failure> {
    let lengths = manifest.lengths();
    if let Some(found) = args
        .prefill_chunk
        .filter(|length| !lengths.contains(length))
    {
        return Err(Failure::input(format!(
            "--prefill-chunk: expected one of the package's lengths, {lengths:?}, found {found}"
        )));
    }
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

fn onnxruntime(args: &TritonArgs, backend: BackendKind) -> Result<stock::OnnxRuntime, Failure> {
    let (gpu, with_operators) = match backend {
        BackendKind::OrtCpu => (false, true),
        BackendKind::OrtCuda => (true, true),
        BackendKind::OrtFallback => (false, false),
        other => {
            return Err(Failure::input(format!(
                "--backend: expected ort-cpu, ort-cuda or ort-fallback with --triton-backend onnxruntime, found {other}"
            )));
        }
    };
    let operators = with_operators.then(|| {
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
