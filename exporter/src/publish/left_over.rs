//! What exports that were cut off have left beside their target.

use super::{absolute, replacing, sync_dir};
use crate::ExportError;
use ratplus_graphs::staging::{
    LOCK_FILE, NEW_FOLDER, OLD_FOLDER, READY_FOLDER, REPLACED_FILE, folders,
};
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Whether a lock is this process's.
pub(super) enum Held {
    Yes,
    /// A living process has it, or the file has gone from its path.
    No,
    /// The file system has no locks.
    Unsupported,
}

/// Locks `file`, which was opened at `path`.
pub(super) fn hold(file: &File, path: &Path) -> io::Result<Held> {
    match file.try_lock() {
        Ok(()) => (),
        Err(TryLockError::WouldBlock) => return Ok(Held::No),
        Err(TryLockError::Error(error)) => {
            let number = error
                .raw_os_error()
                .map(rustix::io::Errno::from_raw_os_error);
            let none = number == Some(rustix::io::Errno::NOLCK);
            return match none || error.kind() == ErrorKind::Unsupported {
                true => Ok(Held::Unsupported),
                false => Err(error),
            };
        }
    }
    // Who clears a folder removes the file while it has the lock.
    let identity = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    match fs::symlink_metadata(path) {
        Ok(found) if identity(&found) == identity(&file.metadata()?) => Ok(Held::Yes),
        Ok(_) => Ok(Held::No),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Held::No),
        Err(error) => Err(error),
    }
}

/// Whether nothing has that name, for certain.
pub(super) fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Clears the folders of exports to `target` whose processes are no more. Where one of them died
/// between two renames, it gives the old package its name back; where one died while it removed the
/// old package, it finishes that and gives the new one the name. Those of living
/// exports, of other users, and folders that only look like one are left alone.
///
/// # Errors
/// A folder of a dead export cannot be cleared.
pub(crate) fn clear_left_over(target: &Path) -> Result<(), ExportError> {
    let target = absolute(target)?;
    let found = match folders(&target) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|error| {
            let parent = target.parent().unwrap_or(&target);
            ExportError::io("list", parent, error)
        })?,
    };
    for folder in found {
        let path = folder.join(LOCK_FILE);
        let lock = match File::options().read(true).write(true).open(&path) {
            Ok(lock) => lock,
            Err(error) => match error.kind() {
                // Cut off before the lock was made or after it was removed: then it is empty.
                ErrorKind::NotFound => {
                    let _ = fs::remove_dir(&folder);
                    continue;
                }
                ErrorKind::PermissionDenied => continue,
                _ => return Err(ExportError::io("open", &path, error)),
            },
        };
        let held = hold(&lock, &path).map_err(|error| ExportError::io("lock", &path, error))?;
        if matches!(held, Held::Yes) && holds_only_ours(&folder)? {
            clear(&folder, &target, true)?;
        }
    }
    Ok(())
}

fn holds_only_ours(folder: &Path) -> Result<bool, ExportError> {
    let failed = |error| ExportError::io("list", folder, error);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let own = [
            LOCK_FILE,
            NEW_FOLDER,
            OLD_FOLDER,
            READY_FOLDER,
            REPLACED_FILE,
        ];
        if !own.iter().any(|own| name == *own) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes an export's folder, whose lock the caller has. A package in it that others would look
/// for at `target` is given that name. Syncs the folder where it has to be `durable`.
pub(super) fn clear(folder: &Path, target: &Path, durable: bool) -> Result<(), ExportError> {
    let (new, old) = (folder.join(NEW_FOLDER), folder.join(OLD_FOLDER));
    let removing = |path: &Path, result: io::Result<()>| match result {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(ExportError::io("remove", path, error))
        }
        _ => Ok(()),
    };
    let stuck = |source| ExportError::SetAside {
        target: target.into(),
        old: old.clone(),
        source,
    };
    if replacing::has_begun(folder, target)? {
        replacing::finish(folder, target)?;
        target.parent().map_or(Ok(()), sync_dir)?;
    }
    match fs::symlink_metadata(&old) {
        Ok(_) if is_missing(target) => {
            fs::rename(&old, target).map_err(stuck)?;
            target.parent().map_or(Ok(()), sync_dir)?;
        }
        // A package that is removed piece by piece must not look like one to give a name back to.
        Ok(_) => {
            removing(&new, fs::remove_dir_all(&new))?;
            fs::rename(&old, &new).map_err(|error| ExportError::io("remove", &old, error))?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => (),
        Err(error) => return Err(ExportError::io("look at", &old, error)),
    }
    // Without the old manifest, a package that waits is none to finish with.
    let (replaced, ready) = (folder.join(REPLACED_FILE), folder.join(READY_FOLDER));
    let mut left = false;
    let tree: fn(&Path) -> io::Result<()> = |path| fs::remove_dir_all(path);
    let file: fn(&Path) -> io::Result<()> = |path| fs::remove_file(path);
    for (path, remove) in [(&replaced, file), (&ready, tree), (&new, tree)] {
        let removed = remove(path);
        left |= removed.is_ok();
        removing(path, removed)?;
    }
    // A power loss must not keep some of it and lose the lock: nobody would clear it.
    if left && durable {
        sync_dir(folder)?;
    }
    let lock = folder.join(LOCK_FILE);
    removing(&lock, fs::remove_file(&lock))?;
    removing(folder, fs::remove_dir(folder))
}
