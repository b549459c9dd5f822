//! Finds ONNX Runtime and the library of RAT+ operators, and loads the runtime once.

use crate::raw::{Api, Dylib};
use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Names the file of ONNX Runtime to load.
pub const ORT_VARIABLE: &str = "ORT_DYLIB_PATH";
/// Names the file of the RAT+ operator library to load.
pub const OPERATORS_VARIABLE: &str = "RATPLUS_ORT_LIBRARY";
/// The oldest release that works.
pub const OLDEST_VERSION: (u32, u32) = (1, 17);

const ORT_FILE: &str = "libonnxruntime.so";
const OPERATORS_FILE: &str = "libratplus_ort.so";
const ORT_ADVICE: &str = "install it (`pip install onnxruntime`, or onnxruntime-gpu for ort-cuda) and set ORT_DYLIB_PATH to the \
                          libonnxruntime.so in its onnxruntime/capi folder";
const OPERATORS_ADVICE: &str = "build it (`cargo build --release -p ratplus-onnxruntime`) and put it \
                                next to the executable, or set RATPLUS_ORT_LIBRARY to its path";

/// A library that is not there, or that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// No place had it.
    #[error("{what} was not found; looked at:{places}\n  {advice}")]
    Missing {
        /// The library.
        what: &'static str,
        /// Where it was looked for and why it was not taken, one line each.
        places: String,
        /// What to do.
        advice: &'static str,
    },
    /// The one that was found, or named, does not work.
    #[error("{what} `{}`: {reason}; {advice}", .path.display())]
    Unusable {
        /// The library.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Expected and found.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// The process already uses another file.
    #[error(
        "ONNX Runtime is already loaded from `{}`; one process cannot use `{}` as well",
        .loaded.display(), .asked.display()
    )]
    AlreadyLoaded {
        /// In use.
        loaded: PathBuf,
        /// Asked for.
        asked: PathBuf,
    },
}

/// ONNX Runtime as this process has loaded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnnxRuntime {
    /// The file.
    pub path: PathBuf,
    /// Its release, such as `1.31.1`.
    pub version: String,
    /// Execution providers it was built with.
    pub providers: Vec<String>,
}

struct Loaded {
    info: Arc<OnnxRuntime>,
    api: &'static Api,
}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

/// Loads ONNX Runtime from `explicit`, or from the first place that has it: the file that
/// [`ORT_VARIABLE`] names, the executable's folder, a Python environment `venv` beside that
/// folder, the system's loader. The first call decides for the process.
///
/// # Errors
/// Nothing found, a file that cannot be loaded, a release older than [`OLDEST_VERSION`].
pub fn onnxruntime(explicit: Option<&Path>) -> Result<Arc<OnnxRuntime>, LibraryError> {
    load(explicit).map(|(info, _)| info)
}

/// What [`onnxruntime`] has loaded so far.
pub fn found() -> Option<Arc<OnnxRuntime>> {
    let loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    loaded.as_ref().map(|loaded| loaded.info.clone())
}

pub(crate) fn load(
    explicit: Option<&Path>,
) -> Result<(Arc<OnnxRuntime>, &'static Api), LibraryError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = &*loaded {
        if let Some(asked) = explicit
            && same_file(asked, &loaded.info.path) == Some(false)
        {
            return Err(LibraryError::AlreadyLoaded {
                loaded: loaded.info.path.clone(),
                asked: asked.into(),
            });
        }
        return Ok((loaded.info.clone(), loaded.api));
    }
    let (library, path) = open_runtime(explicit)?;
    let unusable = |reason: String| LibraryError::Unusable {
        what: "ONNX Runtime",
        path: path.clone(),
        reason,
        advice: ORT_ADVICE,
    };
    let (version, file) = Api::version_of(&library).map_err(|error| unusable(error.to_string()))?;
    let minor = supported_minor(&version).ok_or_else(|| {
        let (major, minor) = OLDEST_VERSION;
        unusable(format!(
            "expected version {major}.{minor} or later, found {version}"
        ))
    })?;
    let api = Api::new(&library, minor).map_err(|error| unusable(error.to_string()))?;
    let providers = api
        .providers()
        .map_err(|error| unusable(error.to_string()))?;
    let api: &'static Api = Box::leak(Box::new(api));
    let info = Arc::new(OnnxRuntime {
        path: file.unwrap_or(path),
        version,
        providers,
    });
    *loaded = Some(Loaded {
        info: info.clone(),
        api,
    });
    Ok((info, api))
}

fn same_file(left: &Path, right: &Path) -> Option<bool> {
    Some(left.canonicalize().ok()? == right.canonicalize().ok()?)
}

/// The minor number of a release that is new enough.
fn supported_minor(version: &str) -> Option<u32> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    let (major, minor) = (parts.next()??, parts.next()??);
    (major == OLDEST_VERSION.0 && minor >= OLDEST_VERSION.1).then_some(minor)
}

fn open_runtime(explicit: Option<&Path>) -> Result<(Dylib, PathBuf), LibraryError> {
    let open = |path: PathBuf| match Dylib::open(&path) {
        Ok(library) => Ok((library, path)),
        Err(reason) => Err(LibraryError::Unusable {
            what: "ONNX Runtime",
            path,
            reason,
            advice: ORT_ADVICE,
        }),
    };
    let mut places = String::new();
    if let Some(path) = named(explicit, ORT_VARIABLE, &mut places) {
        return open(path);
    }
    if let Some(folder) = executable_folder() {
        // Test executables lie one folder deeper than what they test.
        let folders = [folder.clone(), folder.join("..")];
        for folder in [folder.clone()].into_iter().chain(python_folders(&folders)) {
            match runtime_in(&folder) {
                Some(path) => return open(path),
                None => note(
                    &mut places,
                    &format!("{}/{ORT_FILE}*", folder.display()),
                    "none",
                ),
            }
        }
        let pattern = folder.join("../venv/lib/python3*/site-packages/onnxruntime/capi");
        note(&mut places, &pattern.display().to_string(), "nothing else");
    }
    match Dylib::open(Path::new(ORT_FILE)) {
        Ok(library) => Ok((library, ORT_FILE.into())),
        Err(reason) => {
            note(&mut places, "the system's loader", &reason);
            Err(LibraryError::Missing {
                what: "ONNX Runtime",
                places,
                advice: ORT_ADVICE,
            })
        }
    }
}

/// The library of RAT+ operators for ONNX Runtime: `explicit`, the file that
/// [`OPERATORS_VARIABLE`] names, or the one in the executable's folder.
///
/// # Errors
/// Nothing found, or the named file does not exist.
pub fn operators(explicit: Option<&Path>) -> Result<PathBuf, LibraryError> {
    let mut places = String::new();
    if let Some(path) = named(explicit, OPERATORS_VARIABLE, &mut places) {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(LibraryError::Unusable {
                what: "the RAT+ operator library",
                path,
                reason: "no such file".into(),
                advice: OPERATORS_ADVICE,
            })
        };
    }
    if let Some(folder) = executable_folder() {
        // Test executables lie one folder deeper than what they test.
        for folder in [folder.clone(), folder.join("..")] {
            let path = folder.join(OPERATORS_FILE);
            if path.is_file() {
                return Ok(path);
            }
            note(&mut places, &path.display().to_string(), "no such file");
        }
    }
    Err(LibraryError::Missing {
        what: "the RAT+ operator library",
        places,
        advice: OPERATORS_ADVICE,
    })
}

pub(crate) fn note(places: &mut String, place: &str, why: &str) {
    // Writing to a string cannot fail.
    let _ = write!(places, "\n    {place}: {why}");
}

/// A file that the caller or the user named.
pub(crate) fn named(
    explicit: Option<&Path>,
    variable: &str,
    places: &mut String,
) -> Option<PathBuf> {
    if let Some(path) = explicit {
        return Some(path.into());
    }
    match env::var_os(variable) {
        Some(value) if !value.is_empty() => Some(value.into()),
        _ => {
            note(places, variable, "not set");
            None
        }
    }
}

pub(crate) fn executable_folder() -> Option<PathBuf> {
    let executable = env::current_exe().ok()?;
    Some(
        executable
            .canonicalize()
            .unwrap_or(executable)
            .parent()?
            .into(),
    )
}

/// `onnxruntime/capi` folders of a Python environment named `venv` beside one of `folders`.
pub(crate) fn python_folders(folders: &[PathBuf]) -> Vec<PathBuf> {
    let mut found: Vec<_> = folders
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder.join("../venv/lib")).ok())
        .flat_map(|entries| entries.flatten())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
        .map(|entry| entry.path().join("site-packages/onnxruntime/capi"))
        .filter(|folder| folder.is_dir())
        .collect();
    found.sort();
    found
}

/// `libonnxruntime.so` or `libonnxruntime.so.*` in a folder.
fn runtime_in(folder: &Path) -> Option<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name == ORT_FILE
                || name
                    .strip_prefix(ORT_FILE)
                    .is_some_and(|end| end.starts_with('.'))
        })
        .collect();
    files.sort();
    files.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_strange_versions_are_refused() {
        assert_eq!(supported_minor("1.31.1"), Some(31));
        assert_eq!(supported_minor("1.17.0"), Some(17));
        for version in ["1.16.3", "2.0.0", "", "1", "one.two"] {
            assert_eq!(supported_minor(version), None, "{version}");
        }
    }

    #[test]
    fn a_named_library_that_is_not_there_is_an_error() {
        let nowhere = Path::new("/nowhere/libratplus_ort.so");
        let error = operators(Some(nowhere)).unwrap_err();
        assert!(matches!(&error, LibraryError::Unusable { path, .. } if path == nowhere));
        assert!(error.to_string().contains("RATPLUS_ORT_LIBRARY"), "{error}");
        let error = open_runtime(Some(Path::new("/nowhere/libonnxruntime.so")))
            .err()
            .unwrap();
        assert!(
            error.to_string().contains("pip install onnxruntime"),
            "{error}"
        );
    }

    #[test]
    fn versioned_files_count_as_the_runtime() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libonnxruntime_providers_shared.so"), "").unwrap();
        assert_eq!(runtime_in(folder.path()), None);
        let file = folder.path().join("libonnxruntime.so.1.31.1");
        std::fs::write(&file, "").unwrap();
        assert_eq!(runtime_in(folder.path()), Some(file));
    }
}
