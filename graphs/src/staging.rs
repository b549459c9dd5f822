//! Folders beside a package while an export writes it, and what one that was cut off leaves.
//!
//! An export to `DIR` works in `DIR.tmp-N`. There, [`LOCK_FILE`] is locked as long as the export
//! lives, and [`NEW_FOLDER`] becomes the package. Where the file system cannot swap two folders in
//! one step, the package of before passes through [`OLD_FOLDER`], which is whole whenever it is there.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

/// Locked by the export that a folder belongs to.
pub const LOCK_FILE: &str = "ratplus-export.lock";
/// The package that is being written, or one that was replaced and is being removed.
pub const NEW_FOLDER: &str = "new";
/// The package of before, until the new one has its name.
pub const OLD_FOLDER: &str = "old";

/// Name of the folder of the export `number` to `target`.
pub fn folder_name(target: &OsStr, number: &str) -> std::ffi::OsString {
    let mut name = target.to_owned();
    name.push(format!(".tmp-{number}"));
    name
}

/// Folders beside `target` that have the name of an export's to it.
///
/// # Errors
/// The folder that `target` is in cannot be listed.
pub fn folders(target: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Ok(Vec::new());
    };
    let prefix = folder_name(name, "");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .as_encoded_bytes()
            .strip_prefix(prefix.as_encoded_bytes());
        let digits = |byte: &u8| byte.is_ascii_digit() || *byte == b'-';
        if number.is_some_and(|number| number.iter().all(digits)) && entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The package that an export took from `target`, where nothing is now, and did not live to replace.
pub fn set_aside(target: &Path) -> Option<PathBuf> {
    if std::fs::symlink_metadata(target).is_ok() {
        return None;
    }
    let target = std::path::absolute(target).ok()?;
    let folders = folders(&target).ok()?.into_iter();
    let mut old = folders.filter(|folder| folder.join(LOCK_FILE).is_file());
    old.find_map(|folder| Some(folder.join(OLD_FOLDER)).filter(|old| old.is_dir()))
}
