//! A package that is removed file by file before the new one gets its name.

use super::replaceable::strange_file;
use crate::ExportError;
use ratplus_graphs::package::{MANIFEST_FILE, Manifest};
use ratplus_graphs::staging::{READY_FOLDER, REPLACED_FILE};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

/// Whether the export of `folder` has begun to remove the package at `target`, and not ended.
///
/// # Errors
/// One of the names cannot be looked at: nothing is known then.
pub(super) fn has_begun(folder: &Path, target: &Path) -> Result<bool, ExportError> {
    let there = |path: &Path| match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(ExportError::io("look at", path, error)),
    };
    Ok(there(&folder.join(READY_FOLDER))?
        && there(&folder.join(REPLACED_FILE))?
        && !there(&target.join(MANIFEST_FILE))?)
}

/// Removes what is left of the old package at `target`, and gives the new one its name.
///
/// # Errors
/// [`ExportError::HalfReplaced`].
pub(super) fn finish(folder: &Path, target: &Path) -> Result<(), ExportError> {
    let finished =
        empty(folder, target).and_then(|()| fs::rename(folder.join(READY_FOLDER), target));
    finished.map_err(|source| half(folder, target, source))
}

pub(super) fn half(folder: &Path, target: &Path, source: io::Error) -> ExportError {
    ExportError::HalfReplaced {
        target: target.into(),
        ready: folder.join(READY_FOLDER),
        source,
    }
}

/// Removes files of the old package, and nothing else.
fn empty(folder: &Path, target: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(target) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort();
    let manifest: Manifest = serde_json::from_slice(&fs::read(folder.join(REPLACED_FILE))?)?;
    let strange = strange_file(target, &manifest).map_err(io::Error::other)?;
    if let Some(name) = strange {
        let problem = format!("it holds `{name}`, which the package of before did not list");
        return Err(io::Error::other(problem));
    }
    for name in names {
        let path = target.join(name);
        match fs::symlink_metadata(&path)?.is_dir() {
            true => fs::remove_dir_all(&path)?,
            false => fs::remove_file(&path)?,
        }
    }
    Ok(())
}
