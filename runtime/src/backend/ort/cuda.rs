//! What ONNX Runtime on a GPU needs beside the CPU's.

use crate::backend::error::failed;
use crate::backend::{BackendError, BackendKind};
use crate::ort_library::OnnxRuntime;
use crate::package::Package;
use crate::raw::{Device, EMULATED, KernelWatch, OwnedStream, Stream, Weights, open_library};
use ort::environment::Environment;
use ort::ep::{
    ArbitrarilyConfigurableExecutionProvider, ArenaExtendStrategy, CUDA, ExecutionProvider,
};
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ratplus_graphs::package::WEIGHTS_FILE;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Provider that has to run every node.
pub(in crate::backend) const PROVIDER: &str = if EMULATED {
    "CPUExecutionProvider"
} else {
    "CUDAExecutionProvider"
};

/// A GPU and the stream that sessions run on.
pub(super) struct Gpu {
    pub device: &'static Device,
    pub ordinal: i32,
    pub stream: Arc<OwnedStream>,
}

impl Gpu {
    /// The GPU with this number.
    ///
    /// # Errors
    /// Everything that this machine lacks for it.
    pub fn open(
        ordinal: i32,
        runtime: &OnnxRuntime,
        environment: &Environment,
        operators: &Path,
    ) -> Result<Self, BackendError> {
        let unavailable = |reason| BackendError::Unavailable {
            backend: BackendKind::OrtCuda.to_string(),
            reason,
        };
        #[cfg(feature = "cuda-emulation")]
        ratplus_cuda_emulator::load()
            .map_err(&unavailable)?
            .set_pageable_memory(true);
        let mut problems = Vec::new();
        let (path, version) = (runtime.path.display(), &runtime.version);
        if !runtime.providers.iter().any(|name| name == PROVIDER) {
            problems.push(format!(
                "ONNX Runtime {version} at `{path}`: expected the provider {PROVIDER}, found {}; \
                 install the build for CUDA in a Python environment without the other \
                 (`pip install \"onnxruntime-gpu[cuda,cudnn]\"`) and activate it, or set \
                 ORT_DYLIB_PATH to its folder site-packages/onnxruntime/capi",
                runtime.providers.join(", ")
            ));
        } else if !runtime.memory_models_have_external_data() {
            problems.push(format!(
                "ONNX Runtime at `{path}`: expected version 1.21 or later, found {version}; upgrade \
                 it (`pip install --upgrade onnxruntime-gpu`)"
            ));
        }
        if let Err(reason) = KernelWatch::of(operators) {
            let operators = operators.display();
            problems.push(format!("the RAT+ operator library `{operators}`: {reason}"));
        }
        let opened = Device::open(ordinal).map_err(|error| error.to_string());
        let opened = opened.and_then(|device| {
            let stream = device.stream().map_err(|error| error.to_string())?;
            Ok((device, stream))
        });
        let opened = opened.map_err(|error| problems.push(error));
        let (Ok((device, stream)), true) = (opened, problems.is_empty()) else {
            return Err(unavailable(problems.join("\n  ")));
        };
        if !EMULATED {
            load_cuda_libraries(&runtime.path);
        }
        let gpu = Self {
            device,
            ordinal,
            stream: Arc::new(stream),
        };
        // Loads the provider, and the libraries that it is linked with.
        let used =
            Session::builder(environment).and_then(|builder| gpu.run_sessions(builder, false));
        if let Err(error) = used {
            return Err(unavailable(format!(
                "ONNX Runtime {version} at `{path}` has the provider {PROVIDER} but cannot use it: \
                 {error}; install the CUDA libraries that it was built for (`pip install \
                 \"onnxruntime-gpu[cuda,cudnn]\"`)"
            )));
        }
        Ok(gpu)
    }

    /// Every stored tensor in the GPU's memory, in one copy that all engines use.
    pub fn upload_weights(&self, package: &Package) -> Result<Arc<Weights>, BackendError> {
        let bytes = package.weights();
        let copied = failed(WEIGHTS_FILE, "copying the weights to the GPU");
        let memory = self.device.allocate(bytes.len()).map_err(&copied)?;
        memory.upload(bytes).map_err(&copied)?;
        Weights::of_device(memory, self.ordinal, package.stored_tensors())
            .map(Arc::new)
            .map_err(failed(WEIGHTS_FILE, super::ORT))
    }

    /// Waits for the run, and for no work of others.
    pub fn finish(&self, file: &str) -> Result<(), BackendError> {
        let waited = self.stream.synchronize();
        waited.map_err(failed(file, "waiting for the run"))
    }

    /// Runs every node on this GPU: what that cannot run is an error, not the CPU's. With `graph`, a run
    /// is recorded and replayed from then on; until then, and in the first run of every other thread, the
    /// model runs more than once.
    pub fn run_sessions(
        &self,
        mut builder: SessionBuilder,
        graph: bool,
    ) -> ort::Result<SessionBuilder> {
        if EMULATED {
            return Ok(builder);
        }
        let stream = self.stream.stream();
        provider(self.ordinal, stream, graph).register(&mut builder)?;
        let builder = builder.with_disable_cpu_fallback()?;
        Ok(builder.with_device_allocated_initializers()?)
    }
}

/// Flags are numbers, as ONNX Runtime documents them; `ort`'s own setters write `true`.
fn provider(ordinal: i32, stream: Stream, graph: bool) -> CUDA {
    CUDA::default()
        .with_device_id(ordinal)
        // Sessions are dropped before it.
        .with_arbitrary_config("has_user_compute_stream", 1)
        .with_arbitrary_config("user_compute_stream", stream.0.addr())
        .with_arbitrary_config("enable_cuda_graph", u8::from(graph))
        // Products of f32 values keep f32's precision.
        .with_arbitrary_config("use_tf32", 0)
        // The arena grows by what is asked for, not by powers of two.
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
        // Copies wait for the work before them.
        .with_arbitrary_config("do_copy_in_default_stream", 1)
}

/// Libraries that ONNX Runtime's CUDA provider is linked with or loads, each after those it needs.
const LIBRARIES: [&str; 9] = [
    "libcudart.so.",
    "libnvrtc.so.",
    "libnvJitLink.so.",
    "libcublasLt.so.",
    "libcublas.so.",
    "libcurand.so.",
    "libcufft.so.",
    "libcudnn.so.",
    "libcudnn_graph.so.",
];

/// Loads the CUDA libraries of NVIDIA's Python packages beside the one of ONNX Runtime, which the
/// system's loader knows nothing of. Libraries that it does know come first. Where one is
/// missing, ONNX Runtime says so.
fn load_cuda_libraries(onnxruntime: &Path) {
    for file in cuda_libraries(onnxruntime) {
        let name = file.file_name().map(Path::new).unwrap_or(&file);
        if open_library(name).is_err() {
            let _ = open_library(&file);
        }
    }
}

/// Files of [`LIBRARIES`] in `nvidia/*/lib` of the site-packages folder that holds
/// `onnxruntime/capi/libonnxruntime.so`.
fn cuda_libraries(onnxruntime: &Path) -> Vec<PathBuf> {
    let Some(packages) = onnxruntime.ancestors().nth(3) else {
        return Vec::new();
    };
    let list = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let files: Vec<_> = list(&packages.join("nvidia"))
        .iter()
        .flat_map(|package| list(&package.join("lib")))
        .collect();
    let of = |start: &&str| {
        let start = *start;
        let files = files.iter().filter(move |file| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let version = name.strip_prefix(start);
            version.is_some_and(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit()))
        });
        files.cloned().collect::<Vec<_>>()
    };
    LIBRARIES.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_cuda_provider() {
        assert_eq!(
            format!(
                "{:?}",
                provider(3, Stream(std::ptr::without_provenance_mut(77)), true)
            ),
            "CUDA(ExecutionProviderOptions({\"device_id\": \"3\", \"has_user_compute_stream\": \"1\", \
             \"user_compute_stream\": \"77\", \"enable_cuda_graph\": \"1\", \
             \"use_tf32\": \"0\", \"arena_extend_strategy\": \"kSameAsRequested\", \
             \"do_copy_in_default_stream\": \"1\"}))"
        );
        let without = format!("{:?}", provider(0, Stream::DEFAULT, false));
        assert!(
            without.contains("\"enable_cuda_graph\": \"0\""),
            "{without}"
        );
    }

    #[test]
    fn cuda_libraries_are_found_beside_onnxruntime_in_the_order_they_need() {
        let root = tempfile::tempdir().unwrap();
        let touch = |name: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            path
        };
        let ort = touch("onnxruntime/capi/libonnxruntime.so.1.31.1");
        let blas = touch("nvidia/cu13/lib/libcublas.so.13");
        let blas_lt = touch("nvidia/cu13/lib/libcublasLt.so.13");
        let runtime = touch("nvidia/cu13/lib/libcudart.so.13");
        let dnn = touch("nvidia/cudnn/lib/libcudnn.so.9");
        touch("nvidia/cudnn/lib/libcudnn.so.9.1.0-notes");
        touch("nvidia/cu13/lib/libnvblas.so.13");
        touch("nvidia/cu13/include/cuda.h");
        assert_eq!(cuda_libraries(&ort), [runtime, blas_lt, blas, dnn]);
        assert_eq!(
            cuda_libraries(Path::new("libonnxruntime.so")),
            [""; 0].map(PathBuf::from)
        );
    }
}
