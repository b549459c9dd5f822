//! Files that become visible together, or not at all.

mod hashing;
mod left_over;
mod replaceable;
mod replacing;

pub use hashing::HashingWriter;
pub(crate) use left_over::clear_left_over;
pub(crate) use replaceable::check_replaceable;

use crate::ExportError;
use ratplus_graphs::package::FileInfo;
use ratplus_graphs::package::MANIFEST_FILE;
use ratplus_graphs::staging::{
    LOCK_FILE, NEW_FOLDER, OLD_FOLDER, READY_FOLDER, REPLACED_FILE, folder_name,
};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::cell::Cell;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A package on its way to its target; see [`ratplus_graphs::staging`].
pub struct Staging {
    folder: PathBuf,
    target: PathBuf,
    /// The folder is gone, and its name may be another process's.
    cleared: bool,
    /// A sync of the folder failed, which is not tried again.
    unsynced: Cell<bool>,
    /// Holds the lock, which lasts as long as the process at most.
    _lock: File,
}

/// Exports to one target that can meet each other before one of them gives up.
const ATTEMPTS: usize = 1000;

impl Staging {
    /// Makes an empty folder beside `target`.
    ///
    /// # Errors
    /// `target` is something other than a missing path, an empty directory or a package; or the
    /// folder cannot be created.
    pub fn beside(target: &Path) -> Result<Self, ExportError> {
        let target = absolute(target)?;
        check_replaceable(&target)?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(ExportError::target(
                &target,
                "expected a directory's name, found a root",
            ));
        };
        create_synced(parent)?;
        for attempt in 0..ATTEMPTS {
            let number = match attempt {
                0 => std::process::id().to_string(),
                _ => format!("{}-{attempt}", std::process::id()),
            };
            let folder = parent.join(folder_name(name, &number));
            let Some(lock) = claim(&folder)? else {
                continue;
            };
            // From here on, dropping it removes the folder.
            let staging = Self {
                folder,
                target,
                cleared: false,
                unsynced: Cell::new(false),
                _lock: lock,
            };
            // A power loss must not keep the package and lose the lock: nobody would clear it.
            sync_dir(&staging.folder)?;
            let new = staging.new_folder();
            fs::create_dir(&new).map_err(|error| ExportError::io("create", &new, error))?;
            return Ok(staging);
        }
        let busy = std::io::Error::from(ErrorKind::AlreadyExists);
        Err(ExportError::io("create a folder beside", &target, busy))
    }

    fn new_folder(&self) -> PathBuf {
        self.folder.join(NEW_FOLDER)
    }

    /// The path of `file` until it is published.
    pub fn path(&self, file: &str) -> PathBuf {
        self.new_folder().join(file)
    }

    /// Writes and syncs a whole file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, file: &str, bytes: &[u8]) -> Result<FileInfo, ExportError> {
        let path = self.path(file);
        let failed = |error| ExportError::io("write", &path, error);
        let mut out = File::create_new(&path).map_err(failed)?;
        out.write_all(bytes).map_err(failed)?;
        out.sync_all().map_err(failed)?;
        Ok(FileInfo::of(bytes))
    }

    /// Puts the package in the target's place, and removes the one that was there.
    ///
    /// # Errors
    /// The target became something that must not be replaced, or a rename failed; then the
    /// target is as it was. Or, as [`ExportError::Published`], [`ExportError::SetAside`] and
    /// [`ExportError::HalfReplaced`] say.
    pub fn publish(mut self) -> Result<(), ExportError> {
        sync_dir(&self.new_folder())?;
        check_replaceable(&self.target)?;
        let swapped = self.swap();
        // The next export finishes what this one could not, from what is in the folder.
        self.cleared = matches!(swapped, Err(ExportError::HalfReplaced { .. }));
        swapped?;
        let published = |error| match error {
            ExportError::Io {
                action,
                path,
                source,
            } => ExportError::Published {
                target: self.target.clone(),
                action,
                path,
                source,
            },
            other => other,
        };
        if let Some(parent) = self.target.parent() {
            sync_dir(parent).map_err(published)?;
        }
        left_over::clear(&self.folder, &self.target, true).map_err(published)?;
        self.cleared = true;
        Ok(())
    }

    /// Gives the package its name; what had the name stays in the folder.
    fn swap(&self) -> Result<(), ExportError> {
        let (new, target) = (&self.new_folder(), &self.target);
        let failed = |error: Errno| ExportError::io("rename into place", target, error.into());
        // Another export may come or go between two of these.
        for _ in 0..ATTEMPTS {
            match renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE) {
                Ok(()) => return Ok(()),
                Err(Errno::NOENT) => (),
                Err(Errno::INVAL | Errno::NOSYS) => return self.swap_in_two_steps(),
                Err(Errno::XDEV) => return self.replace_in_place(),
                Err(error) => return Err(failed(error)),
            }
            match renameat_with(CWD, new, CWD, target, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => (),
                Err(Errno::INVAL | Errno::NOSYS) => return self.swap_in_two_steps(),
                Err(error) => return Err(failed(error)),
            }
        }
        Err(failed(Errno::EXIST))
    }

    /// For file systems that cannot swap two folders: between two renames nothing has the
    /// target's name, and a process that dies there leaves the old package to
    /// [`clear_left_over`].
    fn swap_in_two_steps(&self) -> Result<(), ExportError> {
        let (new, target, old) = (
            &self.new_folder(),
            &self.target,
            &self.folder.join(OLD_FOLDER),
        );
        let failed = |error| ExportError::io("rename into place", target, error);
        // A power loss must not take the folder that the old package is moved to.
        target.parent().map_or(Ok(()), sync_dir)?;
        let moved = match fs::rename(target, old) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) if error.kind() == ErrorKind::CrossesDevices => {
                return self.replace_in_place();
            }
            Err(error) => return Err(failed(error)),
        };
        let Err(source) = fs::rename(new, target) else {
            return Ok(());
        };
        // Unless the target is there for certain, the caller has to hear of the old package.
        if moved && fs::rename(old, target).is_err() && fs::symlink_metadata(target).is_err() {
            return Err(ExportError::SetAside {
                target: target.clone(),
                old: old.clone(),
                source,
            });
        }
        Err(failed(source))
    }

    /// For a folder that cannot be renamed, as one of a lower layer of an overlay file system. An
    /// empty one can be renamed over: the old package is removed first, file by file, while the new
    /// one waits whole under its other name. It is the new one that a process that dies there leaves
    /// to [`clear_left_over`].
    fn replace_in_place(&self) -> Result<(), ExportError> {
        let (new, target) = (&self.new_folder(), &self.target);
        let failed = |error| ExportError::io("rename into place", target, error);
        match fs::rename(new, target) {
            Ok(()) => return Ok(()),
            Err(error)
                if [ErrorKind::DirectoryNotEmpty, ErrorKind::AlreadyExists]
                    .contains(&error.kind()) => {}
            Err(error) => return Err(failed(error)),
        }
        let (ready, replaced) = (
            self.folder.join(READY_FOLDER),
            self.folder.join(REPLACED_FILE),
        );
        let sync_folder = || {
            let synced = sync_dir(&self.folder);
            self.unsynced.set(synced.is_err());
            synced
        };
        fs::rename(new, &ready).map_err(failed)?;
        // A power loss must not take the new package, or its folder, and leave half of the old one.
        sync_folder()?;
        target.parent().map_or(Ok(()), sync_dir)?;
        let manifest = target.join(MANIFEST_FILE);
        fs::rename(&manifest, &replaced)
            .map_err(|error| ExportError::io("move aside", &manifest, error))?;
        // Nor must it keep the manifest where other files are gone.
        if let Err(error) = sync_folder().and_then(|()| sync_dir(target)) {
            return match fs::rename(&replaced, &manifest) {
                Ok(()) => Err(error),
                Err(source) => Err(replacing::half(&self.folder, target, source)),
            };
        }
        replacing::finish(&self.folder, target)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.cleared {
            // What fails here was said, or is cleared by the next export to this target.
            let _ = left_over::clear(&self.folder, &self.target, !self.unsynced.get());
        }
    }
}

pub(crate) fn absolute(path: &Path) -> Result<PathBuf, ExportError> {
    std::path::absolute(path).map_err(|error| ExportError::io("resolve", path, error))
}

/// Makes a folder and locks it; `None` where another process has the name, or took it away.
fn claim(folder: &Path) -> Result<Option<File>, ExportError> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(None),
        made => made.map_err(|error| ExportError::io("create", folder, error))?,
    }
    let path = folder.join(LOCK_FILE);
    let lock = match File::create_new(&path) {
        Ok(lock) => lock,
        Err(error) => {
            let _ = fs::remove_dir(folder);
            return match error.kind() {
                ErrorKind::NotFound => Ok(None),
                _ => Err(ExportError::io("create", &path, error)),
            };
        }
    };
    match left_over::hold(&lock, &path) {
        // Without locks nobody clears the folder but this process.
        Ok(left_over::Held::Yes | left_over::Held::Unsupported) => Ok(Some(lock)),
        Ok(left_over::Held::No) => Ok(None),
        Err(error) => {
            let _ = fs::remove_file(&path).and_then(|()| fs::remove_dir(folder));
            Err(ExportError::io("lock", &path, error))
        }
    }
}

/// Creates a folder and those above it, each made durable.
fn create_synced(folder: &Path) -> Result<(), ExportError> {
    let missing = |folder: &&Path| left_over::is_missing(folder);
    let made: Vec<_> = folder.ancestors().take_while(missing).collect();
    if made.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(folder).map_err(|error| ExportError::io("create", folder, error))?;
    let above = made.iter().rev().filter_map(|folder| folder.parent());
    above.into_iter().try_for_each(sync_dir)
}

fn sync_dir(dir: &Path) -> Result<(), ExportError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| ExportError::io("sync", dir, error))
}

#[cfg(test)]
mod tests;
