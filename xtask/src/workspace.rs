//! Where things are.

use crate::step::Error;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX, EXE_SUFFIX};
use std::path::{Path, PathBuf};

/// Paths of this checkout; those below its root are relative to it.
pub struct Workspace {
    /// Absolute path of the checkout.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
    /// Where the release profile's binaries lie.
    pub release: PathBuf,
}

impl Workspace {
    /// Finds the checkout and makes its root the working directory, so that every command line
    /// that is printed can be repeated from there.
    pub fn enter() -> Result<Self, Error> {
        let bad = |message: &str| {
            Error::new(
                format!("xtask: {message}"),
                "run it as `cargo xtask <command>`",
            )
        };
        let package = std::env::var_os("CARGO_MANIFEST_DIR")
            .ok_or_else(|| bad("CARGO_MANIFEST_DIR is not set"))?;
        let root = Path::new(&package)
            .parent()
            .ok_or_else(|| bad("its package has no parent directory"))?
            .to_owned();
        // Cargo put this program into the target directory, wherever that was configured to be.
        let program = std::env::current_exe()
            .map_err(|error| bad(&format!("own path is unknown: {error}")))?;
        let target = program
            .ancestors()
            .nth(2)
            .ok_or_else(|| bad("not in a target directory"))?;
        std::env::set_current_dir(&root)
            .map_err(|error| bad(&format!("{}: {error}", root.display())))?;
        let target = target.strip_prefix(&root).unwrap_or(target).to_owned();
        Ok(Self {
            release: target.join("release"),
            root,
            target,
        })
    }

    /// An absolute path, for processes that run elsewhere.
    pub fn absolute(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }

    /// The `ratplus` program.
    pub fn program(&self) -> PathBuf {
        self.release.join(format!("ratplus{EXE_SUFFIX}"))
    }

    /// What tells the Python tests of the operators.
    pub fn operator_tool(&self) -> PathBuf {
        self.release.join(format!("operator_tool{EXE_SUFFIX}"))
    }

    /// The custom-op library.
    pub fn ort_plugin(&self) -> PathBuf {
        self.release
            .join(format!("{DLL_PREFIX}ratplus_ort{DLL_SUFFIX}"))
    }

    /// The TensorRT plugin library.
    pub fn trt_plugin(&self) -> PathBuf {
        self.release
            .join(format!("{DLL_PREFIX}ratplus_trt{DLL_SUFFIX}"))
    }

    /// The backend of Triton Inference Server.
    pub fn triton_backend(&self) -> PathBuf {
        self.release
            .join(format!("{DLL_PREFIX}triton_ratplus{DLL_SUFFIX}"))
    }

    /// The Python environment.
    pub fn venv(&self) -> PathBuf {
        self.target.join("venv")
    }

    /// The Python environment's interpreter.
    pub fn python(&self) -> PathBuf {
        python_of(&self.venv())
    }
}

/// The interpreter of a Python environment.
pub fn python_of(venv: &Path) -> PathBuf {
    venv.join(if cfg!(windows) {
        "Scripts/python.exe"
    } else {
        "bin/python"
    })
}
