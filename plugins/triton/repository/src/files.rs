//! Models on disk.

use ratplus_graphs::package::plans::plans_folder;
use ratplus_graphs::package::{MANIFEST_FILE, Manifest};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Why a repository is not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// The package has not what the models need.
    #[error("{0}")]
    Package(String),
    /// A name is none.
    #[error("name: expected letters, digits, `.`, `-` and `_`, found `{0}`")]
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
        source: std::io::Error,
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
            .filter(|name| self.folder.join(name).exists())
            .collect();
        if !names.is_empty() {
            return Err(RepositoryError::Exists {
                repository: self.folder.clone(),
                names,
            });
        }
        // A server may look into the repository at any time: models become visible whole.
        at(&self.folder, fs::create_dir_all(&self.folder))?;
        let folder = at(&self.folder, self.folder.canonicalize())?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let staging = format!(".{name}.ratplus-{}", std::process::id());
        let staging = folder.with_file_name(staging);
        let written = models
            .iter()
            .try_for_each(|model| model.write(package, &staging.join(&model.name)))
            .and_then(|()| {
                models.iter().try_for_each(|model| {
                    let target = self.folder.join(&model.name);
                    at(&target, fs::rename(staging.join(&model.name), &target))
                })
            });
        let removed = match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != ErrorKind::NotFound => at(&staging, Err(error)),
            _ => Ok(()),
        };
        written.and(removed)
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

fn at<T>(path: &Path, done: std::io::Result<T>) -> Result<T, RepositoryError> {
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
        // Nothing is left beside it.
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 2);
    }
}
