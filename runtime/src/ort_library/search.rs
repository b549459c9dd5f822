//! Where ONNX Runtime may lie.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// What says where to look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// VIRTUAL_ENV.
    pub virtual_env: Option<PathBuf>,
    /// CONDA_PREFIX.
    pub conda_prefix: Option<PathBuf>,
    /// The program's folder.
    pub program: Option<PathBuf>,
    /// Of LD_LIBRARY_PATH.
    pub library_path: Vec<PathBuf>,
    /// Of PATH.
    pub path: Vec<PathBuf>,
    /// HOME.
    pub home: Option<PathBuf>,
}

/// One place, and what it has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its name for messages.
    pub name: String,
    /// Files to try, the newest first.
    pub files: Vec<PathBuf>,
    /// What to say where there are none.
    pub missing: String,
}

const FILE: &str = "libonnxruntime.so";
/// In a wheel's folder of packages.
const WHEEL: &str = "onnxruntime/capi";

impl Surroundings {
    /// This process's.
    pub fn of_process() -> Self {
        let folder = |name: &str| {
            let value = env::var_os(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from)
        };
        let list = |name: &str| {
            let value = env::var_os(name).unwrap_or_default();
            let folders = env::split_paths(&value);
            folders.filter(|folder| folder.is_absolute()).collect()
        };
        Self {
            virtual_env: folder("VIRTUAL_ENV"),
            conda_prefix: folder("CONDA_PREFIX"),
            program: super::executable_folder(),
            library_path: list("LD_LIBRARY_PATH"),
            path: list("PATH"),
            home: folder("HOME"),
        }
    }

    /// In the order they are tried: the active environment, the program's folder, what the
    /// loader is told, what it knows, other Pythons.
    pub(super) fn places(&self) -> Vec<Place> {
        let active = |variable: &str, prefix: &Option<PathBuf>, own: &[&str]| match prefix {
            None => Place::of(variable, [], "not set".into()),
            Some(prefix) => {
                let own = own.iter().map(|folder| prefix.join(folder));
                let folders = own.chain(wheels(prefix)).collect();
                let missing = format!("no onnxruntime in {}", prefix.display());
                Place::of(variable, [folders], missing)
            }
        };
        let program = match &self.program {
            Some(folder) => format!("no {FILE}* in {}", folder.display()),
            None => "unknown".into(),
        };
        let path = match self.library_path.is_empty() {
            true => "not set".into(),
            false => format!("no {FILE}* in its folders"),
        };
        let pythons = self.other_pythons();
        let prefixes: Vec<_> = pythons.iter().map(|p| p.display().to_string()).collect();
        let loader = Place {
            name: "the system's loader".into(),
            files: [FILE.into(), format!("{FILE}.1").into()].into(),
            missing: String::new(),
        };
        vec![
            active("VIRTUAL_ENV", &self.virtual_env, &[]),
            active("CONDA_PREFIX", &self.conda_prefix, &["lib"]),
            Place::of("the program's folder", each(&self.program), program),
            Place::of(
                "the program's Python environment",
                self.own().iter().map(|prefix| wheels(prefix)),
                "no onnxruntime in it".into(),
            ),
            Place::of(
                "`venv` beside the program",
                self.beside().iter().map(|prefix| wheels(prefix)),
                "no onnxruntime in it".into(),
            ),
            Place::of("LD_LIBRARY_PATH", each(&self.library_path), path),
            loader,
            Place::of(
                "Pythons in PATH and HOME",
                pythons.iter().map(|prefix| wheels(prefix)),
                format!("no onnxruntime in {}", prefixes.join(", ")),
            ),
        ]
    }

    /// Python's folders of packages, in the same order.
    pub fn site_packages(&self) -> Vec<PathBuf> {
        let active = [&self.virtual_env, &self.conda_prefix]
            .into_iter()
            .flatten();
        let prefixes = active.cloned().chain(self.own()).chain(self.beside());
        let prefixes = prefixes.chain(self.other_pythons());
        prefixes.flat_map(|prefix| packages(&prefix)).collect()
    }

    /// The environment that the program was installed into.
    fn own(&self) -> Option<PathBuf> {
        let folder = self
            .program
            .as_ref()
            .filter(|folder| folder.ends_with("bin"));
        folder.map(|folder| folder.join(".."))
    }

    /// `file` in the wheel that the program was installed from.
    pub(super) fn in_own_wheel(&self, file: &str) -> Option<PathBuf> {
        let packages = self.own().into_iter().flat_map(|prefix| packages(&prefix));
        let mut files = packages.map(|folder| folder.join("ratplus").join(file));
        files.find(|file| file.is_file())
    }

    /// Environments named `venv` beside the program. Test executables lie one folder deeper than
    /// what they test.
    fn beside(&self) -> Vec<PathBuf> {
        let program = self.program.iter();
        program
            .flat_map(|folder| [folder.join("../venv"), folder.join("../../venv")])
            .collect()
    }

    /// Prefixes of Pythons that are not the active one.
    fn other_pythons(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = Vec::new();
        let with_python = |folder: &&PathBuf| folder.join("python3").is_file();
        let path = self.path.iter().filter(with_python);
        let prefixes = path.filter_map(|folder| folder.parent().map(Path::to_path_buf));
        for prefix in prefixes.chain(self.home.iter().map(|home| home.join(".local"))) {
            if !found.contains(&prefix) {
                found.push(prefix);
            }
        }
        found
    }
}

impl Place {
    /// Of groups of folders: what the first one has comes first.
    fn of(name: &str, groups: impl IntoIterator<Item = Vec<PathBuf>>, missing: String) -> Self {
        let groups = groups.into_iter();
        Self {
            name: name.into(),
            files: groups.flat_map(newest_first).collect(),
            missing,
        }
    }
}

/// Groups of one folder.
fn each<'a>(folders: impl IntoIterator<Item = &'a PathBuf>) -> impl Iterator<Item = Vec<PathBuf>> {
    let folders = folders.into_iter();
    folders.map(|folder| vec![folder.clone()])
}

/// What a caller or user named: a file, a folder that holds it, or one that is that of a wheel, of
/// a release's archive or of a Python environment.
///
/// # Errors
/// There is none.
pub(super) fn named(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !path.is_dir() {
        let is_name = path.components().count() == 1 && !path.exists();
        // A name alone is the loader's to find.
        return match path.is_file() || is_name {
            true => Ok(vec![path.into()]),
            false => Err("expected the file, or a folder that holds it, found none".into()),
        };
    }
    let own = ["", "capi", WHEEL, "lib"].map(|folder| path.join(folder));
    let found = newest_first(own.into_iter().chain(wheels(path)));
    match found.is_empty() {
        true => Err(format!(
            "expected {FILE} or {FILE}.* in this folder, found none"
        )),
        false => Ok(found),
    }
}

/// `onnxruntime/capi` folders of the Python environment at `prefix`.
fn wheels(prefix: &Path) -> Vec<PathBuf> {
    let packages = packages(prefix).into_iter();
    packages.map(|folder| folder.join(WHEEL)).collect()
}

/// Folders of Python packages below `prefix`.
fn packages(prefix: &Path) -> Vec<PathBuf> {
    let libraries = ["lib", "lib64"].map(|name| prefix.join(name));
    let mut pythons: Vec<_> = libraries
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
        .map(|entry| entry.path())
        .collect();
    pythons.sort();
    let kinds = ["site-packages", "dist-packages"];
    pythons
        .iter()
        .flat_map(|python| kinds.map(|kind| python.join(kind)))
        .filter(|folder| folder.is_dir())
        .collect()
}

/// `libonnxruntime.so` and `libonnxruntime.so.X.Y.Z` in folders, each once, by version.
fn newest_first(folders: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut found: Vec<(Vec<u32>, PathBuf)> = Vec::new();
    for folder in folders {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
        files.sort();
        let versions = files
            .into_iter()
            .filter_map(|file| Some((version(&file)?, file)));
        found.extend(versions);
    }
    // A name without a version is a link to one that has it.
    found.sort_by(|a, b| b.0.cmp(&a.0));
    let mut seen = Vec::new();
    found.retain(|(_, file)| {
        let real = file.canonicalize().unwrap_or_else(|_| file.clone());
        let new = !seen.contains(&real);
        seen.push(real);
        new
    });
    found.into_iter().map(|(_, file)| file).collect()
}

/// The numbers after `libonnxruntime.so`; none of another file.
pub(super) fn version(file: &Path) -> Option<Vec<u32>> {
    let name = file.file_name()?.to_str()?;
    let numbers = name.strip_prefix(FILE)?;
    if numbers.is_empty() {
        return Some(Vec::new());
    }
    let numbers = numbers.strip_prefix('.')?.split('.');
    numbers.map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn with(files: &[&str]) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for file in files {
                let path = tree.path(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            tree
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// Place and file of everything that is found, without the loader's.
        fn found(&self, surroundings: &Surroundings) -> Vec<(String, String)> {
            let places = surroundings.places().into_iter();
            let places = places.filter(|place| place.name != "the system's loader");
            let files = places.flat_map(|place| {
                let files = place.files.into_iter();
                files.map(move |file| (place.name.clone(), file))
            });
            let short = |file: PathBuf| {
                let text = file.display().to_string();
                text.replace(&format!("{}/", self.0.path().display()), "")
            };
            files.map(|(place, file)| (place, short(file))).collect()
        }
    }

    fn are(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        let pairs = expected.iter();
        pairs.map(|(a, b)| (a.to_string(), b.to_string())).collect()
    }

    #[test]
    fn every_place_is_looked_at_in_its_order() {
        let python = "lib/python3.12/site-packages/onnxruntime/capi/libonnxruntime.so.1.31.1";
        let of = |prefix: &str| format!("{prefix}/{python}");
        let tree = Tree::with(&[
            &of("env"),
            &of("conda"),
            "conda/lib/libonnxruntime.so.1.30.0",
            "app/bin/libonnxruntime.so.1",
            &of("app"),
            &of("app/venv"),
            "app/lib/python3.12/site-packages/ratplus/libratplus_ort.so",
            "libs/libonnxruntime.so.1",
            "other/bin/python3",
            &of("other"),
            "nothing/bin/ls",
            &of("nothing"),
            &of("home/.local"),
        ]);
        let all = Surroundings {
            virtual_env: Some(tree.path("env")),
            conda_prefix: Some(tree.path("conda")),
            program: Some(tree.path("app/bin")),
            library_path: vec![tree.path("missing"), tree.path("libs")],
            path: ["nothing/bin", "other/bin", "other/bin"]
                .map(|f| tree.path(f))
                .into(),
            home: Some(tree.path("home")),
        };
        let expected = [
            ("VIRTUAL_ENV", &*of("env")),
            ("CONDA_PREFIX", &of("conda")),
            ("CONDA_PREFIX", "conda/lib/libonnxruntime.so.1.30.0"),
            ("the program's folder", "app/bin/libonnxruntime.so.1"),
            ("the program's Python environment", &of("app/bin/..")),
            ("`venv` beside the program", &of("app/bin/../venv")),
            ("LD_LIBRARY_PATH", "libs/libonnxruntime.so.1"),
            ("Pythons in PATH and HOME", &of("other")),
            ("Pythons in PATH and HOME", &of("home/.local")),
        ];
        assert_eq!(tree.found(&all), are(&expected));
        let nothing = Surroundings::default();
        assert_eq!(tree.found(&nothing), []);
        assert!(
            nothing
                .places()
                .iter()
                .any(|place| place.missing == "not set")
        );
        let packages = all.site_packages();
        assert_eq!(packages.len(), 6);
        assert_eq!(packages[0], tree.path("env/lib/python3.12/site-packages"));
        let own = all.in_own_wheel("libratplus_ort.so");
        let wheel = "app/bin/../lib/python3.12/site-packages/ratplus/libratplus_ort.so";
        assert_eq!(own, Some(tree.path(wheel)));
        assert_eq!(all.in_own_wheel("libratplus_trt.so"), None);
    }

    #[test]
    fn the_newest_comes_first_and_other_files_are_none() {
        let tree = Tree::with(&[
            "l/libonnxruntime.so.1.9.0",
            "l/libonnxruntime.so.1.31.1",
            "l/libonnxruntime.so.1.31.1.debug",
            "l/libonnxruntime.so.old",
            "l/libonnxruntime_providers_shared.so",
            "l/libonnxruntime.a",
            "k/lib64/python3.9/site-packages/onnxruntime/capi/libonnxruntime.so.1.20.1",
            "k/lib/python3/dist-packages/onnxruntime/capi/libonnxruntime.so",
        ]);
        std::os::unix::fs::symlink("libonnxruntime.so.1.31.1", tree.path("l/libonnxruntime.so"))
            .unwrap();
        let surroundings = Surroundings {
            virtual_env: Some(tree.path("k")),
            library_path: vec![tree.path("l")],
            ..Surroundings::default()
        };
        let wheel = "k/lib64/python3.9/site-packages/onnxruntime/capi/libonnxruntime.so.1.20.1";
        let debian = "k/lib/python3/dist-packages/onnxruntime/capi/libonnxruntime.so";
        let expected = [
            ("VIRTUAL_ENV", wheel),
            ("VIRTUAL_ENV", debian),
            ("LD_LIBRARY_PATH", "l/libonnxruntime.so.1.31.1"),
            ("LD_LIBRARY_PATH", "l/libonnxruntime.so.1.9.0"),
        ];
        assert_eq!(tree.found(&surroundings), are(&expected));
    }

    #[test]
    fn a_name_may_be_a_file_or_a_folder_around_it() {
        let wheel = "v/lib/python3.12/site-packages/onnxruntime/capi/libonnxruntime.so.1.31.1";
        let archive = "onnxruntime-linux-x64/lib/libonnxruntime.so.1";
        let tree = Tree::with(&[wheel, archive, "empty/libonnxruntime_extensions.so"]);
        let file = tree.path(wheel);
        let folders = file.ancestors().take(7).filter(|folder| {
            // Neither `lib` nor `python3.12` alone says what it is.
            !folder.ends_with("lib") && !folder.ends_with("python3.12")
        });
        let mut count = 0;
        for folder in folders {
            assert_eq!(
                named(folder),
                Ok(vec![file.clone()]),
                "{}",
                folder.display()
            );
            count += 1;
        }
        assert_eq!(count, 5);
        let folder = tree.path("onnxruntime-linux-x64");
        assert_eq!(named(&folder), Ok(vec![tree.path(archive)]));
        assert!(
            named(&tree.path("empty"))
                .unwrap_err()
                .contains("in this folder, found none")
        );
        assert!(
            named(&tree.path("nowhere"))
                .unwrap_err()
                .contains("found none")
        );
        let name = PathBuf::from("libonnxruntime.so.1");
        assert_eq!(named(&name), Ok(vec![name]));
    }
}
