//! Plans become a package's own with one rename, that of its manifest.

use super::BuildError;
use ratplus_graphs::package::{FileInfo, MANIFEST_FILE, Manifest};
use ratplus_graphs::plans::{BUILDING_PREFIX, PLANS_FOLDER, PlanSet, is_plan_file, plans_folder};
use ratplus_runtime::package::Package;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A folder beside the plans that are there; removed with what is in it when dropped.
pub(super) struct Stage<'a> {
    package: &'a Package,
    backend: &'static str,
    /// Of the backend's plans.
    folder: PathBuf,
    dir: PathBuf,
    names: Vec<String>,
}

impl<'a> Stage<'a> {
    pub fn new(package: &'a Package, backend: &'static str) -> Result<Self, BuildError> {
        let root = package.dir();
        let manifest = root.join(MANIFEST_FILE);
        let plans = root.join(PLANS_FOLDER);
        let folder = root.join(plans_folder(backend));
        for path in [&manifest, &plans, &folder] {
            if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
                let reason = format!(
                    "expected no link at `{}`: its target is not the package's to change; copy \
                     the package (`cp -rL`) and build there",
                    path.display()
                );
                return Err(BuildError::package(root, reason));
            }
        }
        fs::create_dir_all(&folder).map_err(BuildError::io("creating", &folder))?;
        remove_left_over(&folder);
        let dir = folder.join(format!("{BUILDING_PREFIX}{}", std::process::id()));
        fs::create_dir(&dir).map_err(|source| {
            remove_if_empty(&folder);
            BuildError::io("creating", &dir)(source)
        })?;
        Ok(Self {
            package,
            backend,
            folder,
            dir,
            names: Vec::new(),
        })
    }

    /// A plan's file, from the package's folder on.
    pub fn name_of(&self, file: &str) -> String {
        format!("{}/{file}", plans_folder(self.backend))
    }

    /// Writes a plan that will have the name that `name` gives to its size and checksum.
    pub fn write(
        &mut self,
        bytes: &[u8],
        name: impl FnOnce(&FileInfo) -> String,
    ) -> Result<FileInfo, BuildError> {
        let info = FileInfo::of(bytes);
        let name = name(&info);
        write_synced(&self.dir.join(&name), bytes)?;
        self.names.push(name);
        Ok(info)
    }

    /// Moves the plans beside those that are there, replaces the manifest, then removes what it
    /// no longer names.
    pub fn publish(mut self, set: PlanSet) -> Result<(), BuildError> {
        let root = self.package.dir();
        let path = root.join(MANIFEST_FILE);
        let mut manifest: Manifest = self.package.manifest().clone();
        let before = manifest.to_json();
        manifest.plans.insert(self.backend.into(), set);
        let staged = self.dir.join(MANIFEST_FILE);
        write_synced(&staged, &manifest.to_json())?;
        let found = fs::read(&path).map_err(BuildError::io("reading", &path))?;
        if found != before {
            let reason = format!(
                "{MANIFEST_FILE} was changed while the plans were built; run `ratplus build` again"
            );
            return Err(BuildError::package(root, reason));
        }
        for name in &self.names {
            let to = self.folder.join(name);
            fs::rename(self.dir.join(name), &to).map_err(BuildError::io("renaming to", &to))?;
        }
        sync(&self.folder)?;
        fs::rename(&staged, &path).map_err(BuildError::io("replacing", &path))?;
        // What it names stays; before this line, what the manifest of before names did.
        let kept = std::mem::take(&mut self.names);
        sync(root)?;
        for name in names_in(&self.folder) {
            if is_plan_file(&name) && !kept.contains(&name) {
                let _ = fs::remove_file(self.folder.join(&name));
            }
        }
        Ok(())
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
        // Moved, but no manifest names them, unless it is that of before.
        let before = self.package.manifest().plans.get(self.backend);
        for name in &self.names {
            let listed = |set: &PlanSet| {
                let timing = set.timing_cache.iter().map(|cache| &cache.file);
                let mut files = set.plans.iter().map(|plan| &plan.file).chain(timing);
                files.any(|file| file == name)
            };
            if !before.is_some_and(listed) {
                let _ = fs::remove_file(self.folder.join(name));
            }
        }
        remove_if_empty(&self.folder);
    }
}

/// Removes a backend's folder and the one of all plans, each where nothing is in it.
fn remove_if_empty(folder: &Path) {
    let _ = fs::remove_dir(folder);
    if let Some(plans) = folder.parent() {
        let _ = fs::remove_dir(plans);
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.collect()
}

/// Removes what builds of processes that are no more have left.
fn remove_left_over(folder: &Path) {
    for name in names_in(folder) {
        let process = name.strip_prefix(BUILDING_PREFIX);
        let process = process.and_then(|number| number.parse::<u32>().ok());
        let over = process.is_some_and(|process| {
            process == std::process::id() || !Path::new(&format!("/proc/{process}")).exists()
        });
        if over {
            let _ = fs::remove_dir_all(folder.join(name));
        }
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(BuildError::io("writing", path))
}

fn sync(folder: &Path) -> Result<(), BuildError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(BuildError::io("syncing", folder))
}

/// Replaces what was measured on this GPU.
pub(super) fn write_cache(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(BuildError::io("creating", folder))?;
    }
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    write_synced(&beside, bytes)?;
    fs::rename(&beside, path).map_err(BuildError::io("renaming to", path))
}
