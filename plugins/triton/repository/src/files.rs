//! Models on disk.

use ratplus_graphs::package::plans::plans_folder;
use ratplus_graphs::package::{MANIFEST_FILE, Manifest};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};
use tempfile::TempDir;

/// Why a repository is not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// The package has not what the models need.
    #[error("{0}")]
    Package(String),
    /// A name is none.
    #[error("`model_name`: expected letters, digits, `.`, `-` and `_`, found {0:?}")]
    Name(String),
    /// Models are there.
    #[error("{}: expected no such models, found {}; remove them first", .repository.display(), .names.join(", "))]
    Exists {
        /// Where.
        repository: PathBuf,
        /// Which.
        names: Vec<String>,
    },
    /// A file or folder.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// A model that is to be written, with one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// What requests call it.
    pub name: String,
    /// config.pbtxt.
    pub config: String,
    /// Files of the package that it needs.
    pub files: Vec<File>,
}

/// A file of a package, and what the model's version has it as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// In the package.
    pub from: String,
    /// In the version's folder.
    pub to: String,
}

impl File {
    /// Where it is in the package.
    pub(crate) fn same(name: &str) -> Self {
        Self {
            from: name.into(),
            to: name.into(),
        }
    }
}

/// All files of a package.
pub(crate) fn package_files(manifest: &Manifest) -> Vec<File> {
    let mut files: BTreeSet<String> = manifest.files.keys().cloned().collect();
    files.insert(MANIFEST_FILE.into());
    for (backend, set) in &manifest.plans {
        let folder = plans_folder(backend);
        files.extend(
            set.plans
                .iter()
                .map(|plan| format!("{folder}/{}", plan.file)),
        );
    }
    files.iter().map(|name| File::same(name)).collect()
}

/// What names of folders in a repository start with that are models to be.
const STAGING_PREFIX: &str = ".ratplus-";

/// The version that is written.
pub(crate) const VERSION: &str = "1";

/// A model repository.
#[derive(Clone, Debug)]
pub struct Repository {
    folder: PathBuf,
}

impl Repository {
    /// At `folder`, which may not be there yet.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        Self { folder }
    }

    /// Adds models of the package in `package`, all or none. Its files are copied: ONNX's own readers take no weights
    /// that have other names too.
    ///
    /// # Errors
    /// A model of that name is there, or a file cannot be written.
    pub fn write(&self, package: &Path, models: &[Model]) -> Result<(), RepositoryError> {
        let valid = |name: &str| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            name.bytes().all(fits) && name.bytes().any(|byte| byte.is_ascii_alphanumeric())
        };
        if let Some(model) = models.iter().find(|model| !valid(&model.name)) {
            return Err(RepositoryError::Name(model.name.clone()));
        }
        let names = models.iter().map(|model| model.name.clone());
        let names: Vec<_> = names
            .filter(|name| self.folder.join(name).symlink_metadata().is_ok())
            .collect();
        if !names.is_empty() {
            return Err(RepositoryError::Exists {
                repository: self.folder.clone(),
                names,
            });
        }
        at(&self.folder, fs::create_dir_all(&self.folder))?;
        let staging = at(&self.folder, self.staging())?;
        models
            .iter()
            .try_for_each(|model| model.write(package, &staging.path().join(&model.name)))?;
        self.show(staging.path(), models)?;
        let path = staging.path().to_owned();
        at(&path, staging.close())
    }

    /// A folder where models are written before they are moved into the repository, whole, as a server may look into that
    /// at any time: beside it, or, where that is another file system or not to be written, in it.
    fn staging(&self) -> io::Result<TempDir> {
        let folder = self.folder.canonicalize()?;
        let made = |place: &Path| {
            let mut folder = tempfile::Builder::new();
            folder.prefix(STAGING_PREFIX).tempdir_in(place)
        };
        let beside = folder.parent().and_then(|parent| made(parent).ok());
        // No folder is moved to `.`; that it is of another file system is said before.
        let across = |beside: &TempDir| {
            let moved = fs::rename(beside.path(), folder.join("."));
            moved.is_err_and(|error| error.kind() == io::ErrorKind::CrossesDevices)
        };
        match beside.filter(|beside| !across(beside)) {
            Some(beside) => Ok(beside),
            None => made(&folder),
        }
    }

    /// Moves models into the repository, all or none.
    fn show(&self, staging: &Path, models: &[Model]) -> Result<(), RepositoryError> {
        for (index, Model { name, .. }) in models.iter().enumerate() {
            let target = self.folder.join(name);
            if let Err(source) = fs::rename(staging.join(name), &target) {
                for Model { name, .. } in &models[..index] {
                    let shown = self.folder.join(name);
                    at(&shown, fs::rename(&shown, staging.join(name)))?;
                }
                let path = target;
                return Err(RepositoryError::Io { path, source });
            }
        }
        Ok(())
    }
}

impl Model {
    fn write(&self, package: &Path, folder: &Path) -> Result<(), RepositoryError> {
        let version = folder.join(VERSION);
        at(&version, fs::create_dir_all(&version))?;
        for File { from, to } in &self.files {
            let (from, to) = (package.join(from), version.join(to));
            if let Some(parent) = to.parent() {
                at(parent, fs::create_dir_all(parent))?;
            }
            at(&from, fs::copy(&from, &to))?;
        }
        let config = folder.join("config.pbtxt");
        at(&config, fs::write(&config, &self.config))
    }
}

fn at<T>(path: &Path, done: io::Result<T>) -> Result<T, RepositoryError> {
    done.map_err(|source| RepositoryError::Io {
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, file: &str) -> Model {
        Model {
            name: name.into(),
            config: "max_batch_size: 0\n".into(),
            files: vec![File::same(file)],
        }
    }

    #[test]
    fn models_appear_whole_or_not_at_all() {
        let temporary = tempfile::tempdir().unwrap();
        let package = temporary.path().join("package");
        fs::create_dir(&package).unwrap();
        fs::write(package.join("file"), "content").unwrap();
        let folder = temporary.path().join("repository");
        let repository = Repository::at(&folder);
        let lacking = [model("a", "file"), model("b", "none")];
        let error = repository.write(&package, &lacking).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        for name in ["", "..", "a/b", "a b"] {
            let error = repository.write(&package, &[model(name, "file")]);
            assert!(matches!(error, Err(RepositoryError::Name(_))), "{name}");
        }
        repository.write(&package, &[model("a", "file")]).unwrap();
        let content = |path: &str| fs::read_to_string(folder.join(path)).unwrap();
        assert_eq!(content("a/1/file"), "content");
        assert_eq!(content("a/config.pbtxt"), "max_batch_size: 0\n");
        let error = repository.write(&package, &[model("b", "file"), model("a", "file")]);
        assert!(matches!(error, Err(RepositoryError::Exists { names, .. }) if names == ["a"]));
        assert!(!folder.join("b").exists());
        // Nothing is left in it and beside it.
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_model_that_cannot_be_moved_in_takes_those_before_it_back() {
        let temporary = tempfile::tempdir().unwrap();
        fs::write(temporary.path().join("file"), "content").unwrap();
        let folder = temporary.path().join("repository");
        let repository = Repository::at(&folder);
        let models = [model("a", "file"), model("b", "file")];
        let staging = temporary.path().join("staging");
        for model in &models {
            model
                .write(temporary.path(), &staging.join(&model.name))
                .unwrap();
        }
        // One of that name has appeared meanwhile.
        let theirs = folder.join("b").join("theirs");
        fs::create_dir_all(&theirs).unwrap();
        let error = repository.show(&staging, &models).unwrap_err();
        assert!(matches!(error, RepositoryError::Io { path, .. } if path == folder.join("b")));
        assert!(theirs.exists() && !folder.join("a").exists());
        assert!(staging.join("a/1/file").exists());
    }

    #[test]
    fn a_mount_point_is_a_repository() {
        let temporary = tempfile::tempdir().unwrap();
        fs::write(temporary.path().join("file"), "content").unwrap();
        // A file system of its own.
        let folder = Path::new("/dev/shm");
        let name = format!("ratplus-mount-{}", std::process::id());
        let written = Repository::at(folder).write(temporary.path(), &[model(&name, "file")]);
        let content = fs::read_to_string(folder.join(&name).join("1/file"));
        let _ = fs::remove_dir_all(folder.join(&name));
        written.unwrap();
        assert_eq!(content.unwrap(), "content");
        // What it was made in was not beside it, and is gone.
        let is_left = |place: &Path| {
            let names = fs::read_dir(place)
                .unwrap()
                .map(|entry| entry.unwrap().file_name());
            names
                .into_iter()
                .any(|name| name.to_string_lossy().starts_with(STAGING_PREFIX))
        };
        assert!(!is_left(folder) && !is_left(Path::new("/dev")));
    }
}
