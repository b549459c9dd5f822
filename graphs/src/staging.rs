//! Folders beside a package while an export writes it, and what one that was cut off leaves.
//!
//! An export to `DIR` works in `DIR.tmp-N`. There, [`LOCK_FILE`] is locked as long as the export
//! lives, and [`NEW_FOLDER`] becomes the package. Where the file system cannot swap two folders in
//! one step, the package of before passes through [`OLD_FOLDER`], which is whole whenever it is there.
//! Where it cannot rename the package of before at all, that is removed file by file, its manifest
//! first, which becomes [`REPLACED_FILE`]; meanwhile the new package is [`READY_FOLDER`], which is
//! whole whenever it is there.

use crate::package::MANIFEST_FILE;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

/// Locked by the export that a folder belongs to.
pub const LOCK_FILE: &str = "ratplus-export.lock";
/// The package that is being written, or one that was replaced and is being removed.
pub const NEW_FOLDER: &str = "new";
/// The package of before, until the new one has its name.
pub const OLD_FOLDER: &str = "old";
/// The new package, once the one of before is being removed from its place.
pub const READY_FOLDER: &str = "ready";
/// Manifest of the package of before, once that is being removed.
pub const REPLACED_FILE: &str = "replaced.json";

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

/// A whole package beside a target that has none, left there by an export that is at work or was
/// cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aside {
    /// The package of before; there is nothing at the target.
    Old(PathBuf),
    /// The new package; at the target is what is left of the one of before, if anything.
    New(PathBuf),
}

impl Aside {
    /// Where the package lies.
    pub fn path(&self) -> &Path {
        match self {
            Self::Old(path) | Self::New(path) => path,
        }
    }
}

/// The package that an export did not live to give `target`'s name, where nothing of that name is
/// a package.
pub fn set_aside(target: &Path) -> Option<Aside> {
    let there = std::fs::symlink_metadata(target).ok();
    let is_package = |dir: &std::fs::Metadata| {
        !dir.is_dir() || std::fs::symlink_metadata(target.join(MANIFEST_FILE)).is_ok()
    };
    if there.as_ref().is_some_and(is_package) {
        return None;
    }
    let target = std::path::absolute(target).ok()?;
    let folders = folders(&target).ok()?.into_iter();
    let mut folders = folders.filter(|folder| folder.join(LOCK_FILE).is_file());
    folders.find_map(|folder| {
        let (old, ready) = (folder.join(OLD_FOLDER), folder.join(READY_FOLDER));
        if old.is_dir() && there.is_none() {
            return Some(Aside::Old(old));
        }
        let replacing = ready.is_dir() && folder.join(REPLACED_FILE).is_file();
        replacing.then_some(Aside::New(ready))
    })
}
