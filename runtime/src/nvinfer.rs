//! Finds TensorRT, TensorRT for RTX and the library of RAT+ plugins.

use crate::backend::BackendKind;
use crate::ort_library::{LibraryError, Wanted, site_packages};
use ratplus_nvinfer::Folder;
pub use ratplus_nvinfer::{Flavour, Library, NvinferError, Product, flavours};
use std::path::{Path, PathBuf};

/// Names the file of the RAT+ plugin library to load.
pub const PLUGINS_VARIABLE: &str = "RATPLUS_TRT_LIBRARY";

const PLUGINS: Wanted = Wanted {
    what: "the RAT+ plugin library",
    advice: "build it (`cargo build --release -p ratplus-tensorrt`) and put it next to the \
             executable, or set RATPLUS_TRT_LIBRARY to its path",
};

/// What runs a backend's plans; `None` where it runs the ONNX files themselves.
pub fn product(backend: BackendKind) -> Option<Product> {
    match backend {
        BackendKind::TensorRt => Some(Product::TensorRt),
        BackendKind::TensorRtRtx => Some(Product::Rtx),
        _ => None,
    }
}

/// Loads the product's library from `folder`, or from the first place that has it: the folder
/// that RATPLUS_TENSORRT or RATPLUS_TENSORRT_RTX names, NVIDIA's package in a Python where ONNX
/// Runtime is looked for, the system's loader.
///
/// # Errors
/// Nothing found, a file that cannot be loaded, a release that this build has no code for.
pub fn open(product: Product, folder: Option<&Path>) -> Result<Library, NvinferError> {
    let folder = match folder {
        Some(folder) => Folder::Named(folder.into()),
        None => Folder::Usual(site_packages()),
    };
    Library::open(product, &folder)
}

/// The library of RAT+ plugins for TensorRT: `explicit`, the file that [`PLUGINS_VARIABLE`]
/// names, or the one in the executable's folder.
///
/// # Errors
/// Nothing found, or the named file does not exist.
pub fn plugins(explicit: Option<&Path>) -> Result<PathBuf, LibraryError> {
    let path = PLUGINS.of_ours("libratplus_trt.so", explicit, PLUGINS_VARIABLE)?;
    Ok(path.canonicalize().unwrap_or(path))
}
