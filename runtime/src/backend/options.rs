//! What each backend can be told.

use std::path::PathBuf;

/// ort-cpu, ort-cuda and ort-fallback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OrtOptions {
    /// Where ONNX Runtime is; see [`crate::ort_library`].
    pub library: Option<PathBuf>,
    /// Where the library of RAT+ operators is; see [`crate::ort_library`].
    pub operators: Option<PathBuf>,
    /// Threads that wait sleep, instead of spinning for the next operator. Operators start later, and
    /// processors that others need as well are not held.
    pub passive_wait: bool,
}

/// ort-cuda, tensorrt and tensorrt-rtx.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CudaOptions {
    /// Number of the GPU.
    pub device: i32,
    /// ort-cuda and tensorrt: launch the decode engine's kernels one by one instead of replaying a CUDA
    /// graph. The numbers are the same.
    pub without_graph: bool,
}

/// tensorrt and tensorrt-rtx.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorRtOptions {
    /// Folder with the library, and where else it is looked for: [`crate::nvinfer`].
    pub library: Option<PathBuf>,
    /// Where the library of RAT+ plugins is.
    pub plugins: Option<PathBuf>,
}
