//! Finds ONNX Runtime and the library of RAT+ operators, and loads the runtime once.

mod search;

use crate::raw::{self, open_library};
use libloading::os::unix::Library;
use ort::environment::Environment;
/// The oldest release that works.
pub use ratplus_graphs::releases::OLDEST_ONNX_RUNTIME as OLDEST_VERSION;
use search::{Place, Surroundings};
use std::env;
use std::fmt::Write as _;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Names the file of ONNX Runtime to load, or a folder that holds it.
pub const ORT_VARIABLE: &str = "ORT_DYLIB_PATH";
/// Names the file of the RAT+ operator library to load.
pub const OPERATORS_VARIABLE: &str = "RATPLUS_ORT_LIBRARY";

const ORT: Wanted = Wanted {
    what: "ONNX Runtime",
    advice: "install it (`pip install onnxruntime`, or onnxruntime-gpu for ort-cuda) and activate its \
             environment, or set ORT_DYLIB_PATH to the folder that holds it (such as \
             .../site-packages/onnxruntime/capi, with libonnxruntime.so.1.31.1): `export \
             ORT_DYLIB_PATH=$(python3 -c \"import onnxruntime; \
             print(onnxruntime.__path__[0])\")/capi`",
};
const OPERATORS: Wanted = Wanted {
    what: "the RAT+ operator library",
    advice: "build it (`cargo build --release -p ratplus-onnxruntime`) and put it \
             next to the executable, or set RATPLUS_ORT_LIBRARY to its path",
};

/// A library that is not there, or that cannot be used: where it was looked for, or what was expected
/// and found, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LibraryError(String);

/// What is looked for, and what to do where it is not found.
pub(crate) struct Wanted {
    pub what: &'static str,
    pub advice: &'static str,
}

impl Wanted {
    /// `places` are those where it was looked for, and why it was not taken, one line each.
    fn missing(&self, places: &str) -> LibraryError {
        let Self { what, advice } = self;
        LibraryError(format!(
            "{what} was not found; looked at:{places}\n  {advice}"
        ))
    }

    /// The one that was found, or named, does not work.
    fn unusable(&self, path: &Path, reason: &str) -> LibraryError {
        let (Self { what, advice }, path) = (self, path.display());
        LibraryError(format!("{what} `{path}`: {reason}; {advice}"))
    }
}

/// ONNX Runtime as this process has loaded it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OnnxRuntime {
    /// The file.
    pub path: PathBuf,
    /// Its release, such as `1.31.1`.
    pub version: String,
    /// Why this one: the place that had it.
    pub origin: String,
    /// What else was found, and why it was not taken, one each.
    pub others: Vec<String>,
    /// Execution providers it was built with.
    pub providers: Vec<String>,
}

impl OnnxRuntime {
    /// Whether a model in memory may have external data. Release 1.20 has the option too, but
    /// its constant folding looks into the current folder.
    pub(crate) fn memory_models_have_external_data(&self) -> bool {
        is_supported(&self.version, (1, 21))
    }
}

struct Loaded {
    info: Arc<OnnxRuntime>,
    environment: Environment,
}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

/// Loads ONNX Runtime from `explicit`, a file or a folder that holds it, or from what
/// [`ORT_VARIABLE`] names; else from the first place that has one that works: the active Python or
/// conda environment, the executable's folder and the environment it lies in, one named `venv` beside it, the folders of
/// LD_LIBRARY_PATH, the system's loader, Pythons in PATH and HOME. Of several in one folder the newest
/// is taken. The first call decides for the process.
///
/// # Errors
/// Nothing found, a file that cannot be loaded, a release older than [`OLDEST_VERSION`].
pub fn onnxruntime(explicit: Option<&Path>) -> Result<Arc<OnnxRuntime>, LibraryError> {
    load(explicit).map(|(info, _)| info)
}

/// The same, for sessions that a host drives by itself through `ort`, which allows one environment a
/// process: it asks for this one and makes none.
///
/// # Errors
/// Those of [`onnxruntime`].
pub fn environment(explicit: Option<&Path>) -> Result<Environment, LibraryError> {
    load(explicit).map(|(_, environment)| environment)
}

/// What [`onnxruntime`] has loaded so far.
pub fn found() -> Option<Arc<OnnxRuntime>> {
    let loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    loaded.as_ref().map(|loaded| loaded.info.clone())
}

pub(crate) fn load(
    explicit: Option<&Path>,
) -> Result<(Arc<OnnxRuntime>, Environment), LibraryError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = &*loaded {
        if let Some(asked) = explicit {
            let files = search::named(asked).unwrap_or_default();
            let other = |file: &PathBuf| same_file(file, &loaded.info.path) == Some(false);
            if !files.is_empty() && files.iter().all(other) {
                return Err(LibraryError(format!(
                    "ONNX Runtime is already loaded from `{}`; one process cannot use `{}` as well",
                    loaded.info.path.display(),
                    asked.display()
                )));
            }
        }
        return Ok((loaded.info.clone(), loaded.environment.clone()));
    }
    let (library, mut info) = open_runtime(explicit, &Surroundings::of_process())?;
    let unusable = |reason: String| ORT.unusable(&info.path, &reason);
    let environment = raw::environment(&library).map_err(unusable)?;
    let providers = raw::providers().map_err(|error| unusable(error.to_string()))?;
    info.providers = providers;
    let info = Arc::new(info);
    *loaded = Some(Loaded {
        info: info.clone(),
        environment: environment.clone(),
    });
    Ok((info, environment))
}

fn same_file(left: &Path, right: &Path) -> Option<bool> {
    Some(left.canonicalize().ok()? == right.canonicalize().ok()?)
}

/// Whether a release is `oldest` or a later one of the same major number.
fn is_supported(version: &str, oldest: (u32, u32)) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>());
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => major == oldest.0 && minor >= oldest.1,
        _ => false,
    }
}

/// A release that works, whose providers nobody has asked for yet.
type Opened = (ManuallyDrop<Library>, OnnxRuntime);

/// Opens one file; why it is not taken otherwise.
fn open_file(file: &Path, origin: &str) -> Result<Opened, String> {
    let (oldest, least) = OLDEST_VERSION;
    let old =
        |version: &str| format!("expected version {oldest}.{least} or later, found {version}");
    let numbers = search::version(file).unwrap_or_default();
    // Two releases in one process are better avoided.
    if let [major, minor, ..] = numbers[..]
        && (major, minor) < OLDEST_VERSION
    {
        return Err(old(&format!("{major}.{minor}")));
    }
    let library = open_library(file).map_err(|error| {
        // The loader's words repeat the path.
        let reason = error.strip_prefix(&format!("{}: ", file.display()));
        let reason = reason.unwrap_or(&error);
        if file.parent() == Some(Path::new("")) {
            return reason.to_owned();
        }
        format!("expected a library for this machine, but the loader says: {reason}")
    })?;
    let (version, real) = raw::version_of(&library)
        .map_err(|error| format!("expected ONNX Runtime, found another library: {error}"))?;
    if !is_supported(&version, OLDEST_VERSION) {
        return Err(old(&version));
    }
    let info = OnnxRuntime {
        path: real.unwrap_or_else(|| file.into()),
        version,
        origin: origin.into(),
        others: Vec::new(),
        providers: Vec::new(),
    };
    Ok((library, info))
}

fn open_runtime(
    explicit: Option<&Path>,
    surroundings: &Surroundings,
) -> Result<Opened, LibraryError> {
    let mut places = String::new();
    if let Some(path) = named(explicit, ORT_VARIABLE, &mut places) {
        let unusable = |reason: String| ORT.unusable(&path, &reason);
        let origin = match explicit {
            Some(_) => "the one that was named",
            None => ORT_VARIABLE,
        };
        let files = search::named(&path).map_err(unusable)?;
        let mut reasons = Vec::new();
        for file in files {
            match open_file(&file, origin) {
                Ok(opened) => return Ok(opened),
                Err(reason) if file == path => reasons.push(reason),
                Err(reason) => reasons.push(format!("{}: {reason}", file.display())),
            }
        }
        return Err(unusable(reasons.join("; ")));
    }
    first_that_works(surroundings.places(), &mut places)
}

fn first_that_works(places: Vec<Place>, looked: &mut String) -> Result<Opened, LibraryError> {
    let mut opened: Option<Opened> = None;
    let mut others = Vec::new();
    for Place {
        name,
        files,
        missing,
    } in places
    {
        if files.is_empty() {
            note(looked, &name, &missing);
        }
        for file in files {
            let shown = file.display().to_string();
            if let Some((_, opened)) = &opened {
                // What the loader would find was not looked for.
                if same_file(&file, &opened.path) == Some(false) {
                    others.push(format!("{shown} ({name}): comes later"));
                }
                continue;
            }
            match open_file(&file, &name) {
                Ok(found) => opened = Some(found),
                Err(reason) => {
                    note(looked, &format!("{name}: {shown}"), &reason);
                    if file.is_absolute() {
                        others.push(format!("{shown} ({name}): {reason}"));
                    }
                }
            }
        }
    }
    let (library, info) = opened.ok_or_else(|| ORT.missing(looked))?;
    Ok((library, OnnxRuntime { others, ..info }))
}

/// What a library of RAT+ operators, for ONNX Runtime or TensorRT, says of itself: a JSON object. It is loaded
/// for that, and stays.
///
/// # Errors
/// In words that name the file: it cannot be loaded, or is no such library.
pub fn describe(library: &Path) -> Result<String, String> {
    raw::describe(library)
}

/// The library of RAT+ operators for ONNX Runtime: `explicit`, the file that
/// [`OPERATORS_VARIABLE`] names, the one in the executable's folder, or that of the wheel that it came with.
///
/// # Errors
/// Nothing found, or the named file does not exist.
pub fn operators(explicit: Option<&Path>) -> Result<PathBuf, LibraryError> {
    OPERATORS.of_ours("libratplus_ort.so", explicit, OPERATORS_VARIABLE)
}

impl Wanted {
    /// A library of this project: `explicit`, what `variable` names, or `file` in the executable's
    /// folder or in the wheel that it came with.
    pub(crate) fn of_ours(
        &self,
        file: &str,
        explicit: Option<&Path>,
        variable: &str,
    ) -> Result<PathBuf, LibraryError> {
        let mut places = String::new();
        if let Some(path) = named(explicit, variable, &mut places) {
            return match path.is_file() {
                true => Ok(path),
                false => Err(self.unusable(&path, "no such file")),
            };
        }
        if let Some(folder) = executable_folder() {
            // Test executables lie one folder deeper than what they test.
            for folder in [folder.clone(), folder.join("..")] {
                let path = folder.join(file);
                if path.is_file() {
                    return Ok(path);
                }
                note(&mut places, &path.display().to_string(), "no such file");
            }
        }
        if let Some(path) = Surroundings::of_process().in_own_wheel(file) {
            return Ok(path);
        }
        Err(self.missing(&places))
    }
}

fn note(places: &mut String, place: &str, why: &str) {
    // Writing to a string cannot fail.
    let _ = write!(places, "\n    {place}: {why}");
}

/// A file that the caller or the user named.
fn named(explicit: Option<&Path>, variable: &str, places: &mut String) -> Option<PathBuf> {
    if let Some(path) = explicit.filter(|path| !path.as_os_str().is_empty()) {
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

fn executable_folder() -> Option<PathBuf> {
    let executable = env::current_exe().ok()?;
    Some(
        executable
            .canonicalize()
            .unwrap_or(executable)
            .parent()?
            .into(),
    )
}

/// Python's folders of packages: that of the ONNX Runtime that [`ORT_VARIABLE`] names, and those
/// of the Pythons that ONNX Runtime is looked for in.
pub(crate) fn site_packages() -> Vec<PathBuf> {
    let value = env::var_os(ORT_VARIABLE).filter(|value| !value.is_empty());
    let files = value.and_then(|value| search::named(Path::new(&value)).ok());
    let above = |file: PathBuf| file.ancestors().nth(3).map(Path::to_path_buf);
    let named = files.into_iter().flatten().filter_map(above);
    named
        .chain(Surroundings::of_process().site_packages())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_strange_versions_are_refused() {
        assert!(is_supported("1.31.1", OLDEST_VERSION));
        assert!(is_supported("1.17.0", OLDEST_VERSION));
        for version in ["1.16.3", "2.0.0", "", "1", "one.two"] {
            assert!(!is_supported(version, OLDEST_VERSION), "{version}");
        }
    }

    #[test]
    fn a_named_library_that_is_not_there_is_an_error() {
        let nowhere = Path::new("/nowhere/libratplus_ort.so");
        let error = operators(Some(nowhere)).unwrap_err();
        let text = error.to_string();
        let start = format!(
            "the RAT+ operator library `{}`: no such file",
            nowhere.display()
        );
        assert!(
            text.starts_with(&start) && text.contains("RATPLUS_ORT_LIBRARY"),
            "{text}"
        );
    }

    #[test]
    fn a_host_has_sessions_in_the_environment_of_the_process() {
        let Ok(environment) = environment(None) else {
            eprintln!("SKIPPED sessions of a host: no ONNX Runtime");
            return;
        };
        ort::session::Session::builder(&environment).unwrap();
        // What it is there for.
        assert!(ort::init().build().is_err());
    }

    fn refused(path: &Path) -> String {
        let opened = open_runtime(Some(path), &Surroundings::default());
        opened.err().unwrap().to_string()
    }

    #[test]
    fn a_named_runtime_that_is_none_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = refused(&dir.path().join("libonnxruntime.so"));
        for part in [
            "expected the file, or a folder that holds it, found none",
            "pip install onnxruntime",
            "libonnxruntime.so.1.31.1",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert!(refused(dir.path()).contains("in this folder, found none"));
        let text = dir.path().join("libonnxruntime.so.1.99.0");
        std::fs::write(&text, "not a library").unwrap();
        for path in [text.as_path(), dir.path()] {
            let error = refused(path);
            assert!(
                error.contains("expected a library for this machine"),
                "{error}"
            );
        }
        // The loader finds this one, which is no ONNX Runtime.
        let error = refused(Path::new("libc.so.6"));
        assert!(
            error.contains("expected ONNX Runtime, found another library"),
            "{error}"
        );
        let old = dir.path().join("libonnxruntime.so.1.16.3");
        std::fs::write(&old, "").unwrap();
        let error = refused(&old);
        assert!(
            error.contains("expected version 1.17 or later, found 1.16"),
            "{error}"
        );
    }

    #[test]
    fn where_nothing_works_every_place_is_named_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("libonnxruntime.so.1.99.0");
        std::fs::write(&text, "not a library").unwrap();
        let place = |name: &str, files: &[&Path], missing: &str| Place {
            name: name.into(),
            files: files.iter().map(|file| file.to_path_buf()).collect(),
            missing: missing.into(),
        };
        let places = || {
            vec![
                place("VIRTUAL_ENV", &[], "not set"),
                place("LD_LIBRARY_PATH", &[&text], ""),
            ]
        };
        let error = first_that_works(places(), &mut String::new())
            .err()
            .unwrap();
        let error = error.to_string();
        let file = format!("LD_LIBRARY_PATH: {}: expected a library", text.display());
        for part in ["VIRTUAL_ENV: not set", &file] {
            assert!(error.contains(part), "{error}");
        }
        // The first that works is taken, and what comes after it is told.
        let Ok(found) = onnxruntime(None) else {
            eprintln!("SKIPPED a choice among several: no ONNX Runtime");
            return;
        };
        let mut places = places();
        places.push(place("the program's folder", &[&found.path, &text], ""));
        let (_, opened) = first_that_works(places, &mut String::new()).ok().unwrap();
        assert_eq!(opened.origin, "the program's folder");
        assert_eq!(opened.others.len(), 2);
        assert!(opened.others[0].contains("LD_LIBRARY_PATH): expected a library"));
        assert!(opened.others[1].ends_with("comes later"));
    }
}
