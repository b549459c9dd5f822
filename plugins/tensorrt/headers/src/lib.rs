//! Where TensorRT's headers are, for the build scripts of the plugin library and of the driver.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders with `NvInfer.h`, separated as in PATH, instead of those that `cargo xtask setup`
/// installs; `none` turns TensorRT off.
pub const INCLUDE: &str = "RATPLUS_TENSORRT_INCLUDE";

/// `none` has nothing compiled by a C++ compiler: for checks, which link nothing.
pub const CXX: &str = "RATPLUS_CXX";

/// Whether [`CXX`] says so. Tells cargo to watch it.
#[must_use]
pub fn without_cxx() -> bool {
    println!("cargo:rerun-if-env-changed={CXX}");
    env::var_os(CXX).is_some_and(|value| value == "none")
}

/// One release's headers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Headers {
    /// Whether they are TensorRT for RTX's.
    pub rtx: bool,
    /// Major and minor version.
    pub version: (u32, u32),
    /// Folder with `NvInfer.h`.
    pub folder: PathBuf,
    /// Folder with CUDA's types: the one that `cargo xtask setup` makes. Else CUDA's own headers
    /// have to be where the compiler looks.
    pub cuda: PathBuf,
}

/// Every release that is there, TensorRT before TensorRT for RTX and old before new. Tells cargo
/// what to watch.
///
/// # Errors
/// A folder is named that holds no such headers.
pub fn find(out: &Path) -> Result<Vec<Headers>, String> {
    println!("cargo:rerun-if-env-changed={INCLUDE}");
    let named = env::var_os(INCLUDE).unwrap_or_default();
    if named == "none" {
        return Ok(Vec::new());
    }
    // What is not there is not watched: `cargo xtask setup`, which makes it, has the crates that
    // look for it built again.
    let installed = target(out)?.join("tensorrt").join("headers");
    let mut folders: Vec<PathBuf> = env::split_paths(&named)
        .filter(|path| path != Path::new(""))
        .collect();
    if installed.is_dir() {
        println!("cargo:rerun-if-changed={}", installed.display());
        if folders.is_empty() {
            let entries = fs::read_dir(&installed).map_err(|error| failed(&installed, &error))?;
            folders = entries.flatten().map(|entry| entry.path()).collect();
            folders.retain(|path| path.is_dir());
        }
    }
    let mut found = Vec::new();
    for folder in folders {
        let (rtx, version) = version(&folder)?;
        let beside = folder.parent().map(Path::to_owned).unwrap_or_default();
        let cuda = if beside.join("cuda_runtime_api.h").is_file() {
            beside
        } else {
            installed.clone()
        };
        found.push(Headers {
            rtx,
            version,
            folder,
            cuda,
        });
    }
    found.sort();
    Ok(found)
}

/// Cargo's target directory, from a folder below it.
fn target(out: &Path) -> Result<&Path, String> {
    // <target>/<profile>/build/<package>/out
    out.ancestors()
        .nth(4)
        .ok_or_else(|| format!("{}: not in a target directory", out.display()))
}

fn version(folder: &Path) -> Result<(bool, (u32, u32)), String> {
    let path = folder.join("NvInferVersion.h");
    let text = fs::read_to_string(&path).map_err(|error| {
        format!(
            "{}; {INCLUDE} names folders with TensorRT's headers",
            failed(&path, &error)
        )
    })?;
    let number = |name: &str| {
        let defined = text
            .lines()
            .filter_map(|line| line.strip_prefix("#define "));
        let mut values =
            defined.filter_map(|line| line.split_whitespace().collect::<Vec<_>>().try_into().ok());
        values.find_map(|[key, value]: [&str; 2]| {
            (key == name).then(|| value.parse::<u32>().ok()).flatten()
        })
    };
    for (rtx, suffix) in [(true, "_RTX"), (false, "_ENTERPRISE"), (false, "")] {
        let of = |part: &str| {
            number(&format!(
                "{}_{part}{suffix}",
                if suffix.is_empty() {
                    "NV_TENSORRT"
                } else {
                    "TRT"
                }
            ))
        };
        if let (Some(major), Some(minor)) = (of("MAJOR"), of("MINOR")) {
            return Ok((rtx, (major, minor)));
        }
    }
    Err(format!(
        "{}: expected TensorRT's version, found none",
        path.display()
    ))
}

fn failed(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
