//! Where TensorRT's libraries may lie.

use crate::Product;
use std::env;
use std::path::PathBuf;

/// Names the folder with TensorRT's libraries.
pub const VARIABLE: &str = "RATPLUS_TENSORRT";
/// Names the folder with the libraries of TensorRT for RTX.
pub const RTX_VARIABLE: &str = "RATPLUS_TENSORRT_RTX";

/// File names, newest first.
pub(crate) struct Names {
    pub engine: &'static [&'static str],
    pub parser: &'static [&'static str],
    /// Folder of NVIDIA's Python package, in site-packages.
    pub package: &'static str,
    pub variable: &'static str,
    pub advice: &'static str,
}

impl Product {
    pub(crate) fn names(self) -> &'static Names {
        match self {
            Self::TensorRt => &Names {
                engine: &["libnvinfer.so.11", "libnvinfer.so.10"],
                parser: &["libnvonnxparser.so.11", "libnvonnxparser.so.10"],
                package: "tensorrt_libs",
                variable: VARIABLE,
                advice: "install it (`pip install tensorrt`, or NVIDIA's packages) and set \
                         RATPLUS_TENSORRT to the folder with libnvinfer.so.11",
            },
            Self::Rtx => &Names {
                engine: &["libtensorrt_rtx.so.1"],
                parser: &["libtensorrt_onnxparser_rtx.so.1"],
                package: "tensorrt_rtx_libs",
                variable: RTX_VARIABLE,
                advice: "install it (`pip install tensorrt-rtx-cu13-libs`) and set \
                         RATPLUS_TENSORRT_RTX to its folder tensorrt_rtx_libs",
            },
        }
    }
}

/// A folder to look into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Folder {
    /// This one and no other.
    Named(PathBuf),
    /// The variable's; else NVIDIA's Python packages in these site-packages folders; else where
    /// the system's loader looks.
    Usual(Vec<PathBuf>),
}

impl Default for Folder {
    fn default() -> Self {
        Self::Usual(Vec::new())
    }
}

impl Folder {
    /// Where to look, in order; `None` is the system's loader.
    pub(crate) fn places(&self, names: &Names) -> Vec<Option<PathBuf>> {
        let named = match self {
            Self::Named(folder) => Some(folder.clone()),
            Self::Usual(_) => env::var_os(names.variable)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from),
        };
        if let Some(folder) = named {
            return vec![Some(folder)];
        }
        let Self::Usual(packages) = self else {
            return Vec::new();
        };
        let packages = packages.iter().map(|folder| folder.join(names.package));
        let there = packages.filter(|folder| folder.is_dir()).map(Some);
        there.chain([None]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_packages_come_before_the_loader_and_a_named_folder_is_the_only_one() {
        let root = tempfile::tempdir().unwrap();
        let names = Names {
            variable: "RATPLUS_TENSORRT_OF_NO_MACHINE",
            ..*Product::Rtx.names()
        };
        let usual = Folder::Usual(vec![root.path().join("none"), root.path().into()]);
        assert_eq!(usual.places(&names), [None]);
        let libraries = root.path().join("tensorrt_rtx_libs");
        std::fs::create_dir(&libraries).unwrap();
        assert_eq!(usual.places(&names), [Some(libraries), None]);
        let named = Folder::Named("here".into());
        assert_eq!(named.places(&names), [Some("here".into())]);
    }
}
