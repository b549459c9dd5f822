//! Finds TensorRT, TensorRT for RTX and the library of RAT+ plugins.

use crate::backend::BackendKind;
use crate::ort_library::{LibraryError, executable_folder, named, note, site_packages};
use ratplus_nvinfer::Folder;
pub use ratplus_nvinfer::{Flavour, Library, NvinferError, Product, flavours};
use std::path::{Path, PathBuf};

/// Names the file of the RAT+ plugin library to load.
pub const PLUGINS_VARIABLE: &str = "RATPLUS_TRT_LIBRARY";

const PLUGINS_FILE: &str = "libratplus_trt.so";
const PLUGINS_ADVICE: &str = "build it (`cargo build --release -p ratplus-tensorrt`) and put it next \
                              to the executable, or set RATPLUS_TRT_LIBRARY to its path";

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
    const WHAT: &str = "the RAT+ plugin library";
    let mut places = String::new();
    if let Some(path) = named(explicit, PLUGINS_VARIABLE, &mut places) {
        return match path.canonicalize() {
            Ok(real) if real.is_file() => Ok(real),
            _ => Err(LibraryError::Unusable {
                what: WHAT,
                path,
                reason: "no such file".into(),
                advice: PLUGINS_ADVICE,
            }),
        };
    }
    if let Some(folder) = executable_folder() {
        // Test executables lie one folder deeper than what they test.
        for folder in [folder.clone(), folder.join("..")] {
            let path = folder.join(PLUGINS_FILE);
            if path.is_file() {
                return Ok(path);
            }
            note(&mut places, &path.display().to_string(), "no such file");
        }
    }
    Err(LibraryError::Missing {
        what: WHAT,
        places,
        advice: PLUGINS_ADVICE,
    })
}
