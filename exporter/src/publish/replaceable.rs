//! What an export may take the place of.

use crate::ExportError;
use ratplus_graphs::package::{MANIFEST_FILE, Manifest};
use ratplus_graphs::plans::{BUILDING_PREFIX, PLAN_BACKENDS, PLANS_FOLDER, is_plan_file};
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Exports that may replace the target under our eyes.
const ATTEMPTS: usize = 100;

/// Refuses to replace anything but a package: every file in it has to be the package's own, or a
/// plan that was built from it.
pub(crate) fn check_replaceable(target: &Path) -> Result<(), ExportError> {
    let identity = || {
        let found = look_at(target).ok().flatten();
        found.map(|metadata| (metadata.dev(), metadata.ino()))
    };
    for _ in 1..ATTEMPTS {
        let before = identity();
        let checked = check(target);
        // Files of two packages, where another export replaced one by the other meanwhile.
        if checked.is_ok() || identity() == before {
            return checked;
        }
    }
    check(target)
}

/// What is there, if anything; of a link, the link.
fn look_at(path: &Path) -> Result<Option<Metadata>, ExportError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ExportError::io("look at", path, error)),
    }
}

/// Whether a file system is mounted there; false where the kernel does not say.
fn is_mount_point(dir: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    statx(CWD, dir, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn list(dir: &Path) -> Result<Vec<String>, ExportError> {
    let failed = |error| ExportError::io("list", dir, error);
    let entries = fs::read_dir(dir).map_err(failed)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<std::io::Result<_>>().map_err(failed)
}

fn check(target: &Path) -> Result<(), ExportError> {
    match look_at(target)? {
        None => return Ok(()),
        Some(metadata) if !metadata.is_dir() => {
            return Err(ExportError::target(
                target,
                "expected a directory or nothing, found a file or link",
            ));
        }
        Some(_) if is_mount_point(target) => {
            return Err(ExportError::target(
                target,
                "expected a directory that a package can take the place of, found a mount point (a \
                 directory inside it can be)",
            ));
        }
        Some(_) => (),
    }
    let names = list(target)?;
    if names.is_empty() {
        return Ok(());
    }
    let path = target.join(MANIFEST_FILE);
    let known = match fs::read(&path) {
        Ok(json) => serde_json::from_slice::<Manifest>(&json).ok(),
        Err(error) => match error.kind() {
            ErrorKind::NotFound | ErrorKind::IsADirectory => None,
            _ => return Err(ExportError::io("read", &path, error)),
        },
    };
    let Some(known) = known else {
        return Err(ExportError::target(
            target,
            "expected a package or nothing, found other files",
        ));
    };
    match strange_file(target, &known)? {
        Some(name) => Err(ExportError::target(
            target,
            &format!("holds `{name}`, which the package there does not list"),
        )),
        None => Ok(()),
    }
}

/// A file that the package `known` does not list, nor is a plan that was built from it.
pub(super) fn strange_file(target: &Path, known: &Manifest) -> Result<Option<String>, ExportError> {
    let own = |name: &String| {
        [MANIFEST_FILE, PLANS_FOLDER].contains(&name.as_str()) || known.files.contains_key(name)
    };
    let strange = list(target)?.into_iter().find(|name| !own(name));
    strange.map_or_else(|| strange_plan(target), |name| Ok(Some(name)))
}

/// A file below the folder of plans that `ratplus build` does not write.
pub(super) fn strange_plan(target: &Path) -> Result<Option<String>, ExportError> {
    let plans = target.join(PLANS_FOLDER);
    match look_at(&plans)? {
        None => return Ok(None),
        Some(metadata) if !metadata.is_dir() => return Ok(Some(PLANS_FOLDER.into())),
        Some(_) => (),
    }
    for backend in list(&plans)? {
        let folder = plans.join(&backend);
        if !look_at(&folder)?.is_some_and(|metadata| metadata.is_dir()) {
            return Ok(Some(format!("{PLANS_FOLDER}/{backend}")));
        }
        let known = PLAN_BACKENDS.contains(&backend.as_str());
        let own =
            |name: &String| known && (name.starts_with(BUILDING_PREFIX) || is_plan_file(name));
        if let Some(name) = list(&folder)?.into_iter().find(|name| !own(name)) {
            return Ok(Some(format!("{PLANS_FOLDER}/{backend}/{name}")));
        }
    }
    Ok(None)
}
