//! Helpers of the end-to-end tests: the built command, golden folders, synthetic checkpoints.

pub mod http;
mod mounts;
#[allow(unsafe_code)]
pub mod mxcsr;
pub mod synthetic;
mod times;

pub use mounts::{CANNOT_MOUNT, with_own_mounts};
pub use times::times;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The built `ratplus`: `RATPLUS_BIN`, or the release build.
///
/// # Panics
/// It was not built; `cargo xtask test` builds it first.
pub fn ratplus() -> PathBuf {
    let path = std::env::var_os("RATPLUS_BIN")
        .map_or_else(|| root().join("target/release/ratplus"), PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo xtask test`, which builds it",
        path.display()
    );
    path
}

/// Runs `ratplus` and waits.
///
/// # Panics
/// It cannot be started.
pub fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Command::new(ratplus())
        .args(args)
        .output()
        .expect("ratplus starts")
}

/// Standard output and standard error as text.
pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// One golden folder.
pub struct GoldenCase {
    /// Folder's name.
    pub name: String,
    /// The folder.
    pub dir: PathBuf,
}

impl GoldenCase {
    /// The checkpoint.
    pub fn checkpoint(&self) -> PathBuf {
        let pth = self.dir.join("model.pth");
        if pth.is_file() {
            pth
        } else {
            self.dir.join("model.safetensors")
        }
    }

    /// A file of the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// All golden folders that the project adopted, and those under `RATPLUS_GOLDEN`.
///
/// # Panics
/// There are none.
pub fn golden_cases() -> Vec<GoldenCase> {
    let own = root().join("tests/golden");
    let extra = std::env::var_os("RATPLUS_GOLDEN").map(PathBuf::from);
    let mut cases = Vec::new();
    for parent in [own].into_iter().chain(extra) {
        for entry in std::fs::read_dir(&parent).expect("golden folders") {
            let dir = entry.expect("golden folder").path();
            if dir.join("golden.safetensors").is_file() {
                let name = dir
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                cases.push(GoldenCase { name, dir });
            }
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!cases.is_empty(), "no golden folder found");
    cases
}

/// The golden folder of that name.
///
/// # Panics
/// There is none.
pub fn golden_case(name: &str) -> GoldenCase {
    let mut cases = golden_cases().into_iter();
    cases
        .find(|case| case.name == name)
        .unwrap_or_else(|| panic!("no golden folder {name}"))
}
