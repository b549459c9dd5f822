//! Files that flags name.

use crate::output::Failure;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::Builder;

/// What takes minutes to measure has to have a place to go.
pub fn check_folder(flag: &str, path: Option<&Path>) -> Result<(), Failure> {
    let Some(folder) = path.and_then(Path::parent) else {
        return Ok(());
    };
    if folder == Path::new("") || folder.is_dir() {
        return Ok(());
    }
    Err(Failure::input(format!(
        "{flag}: expected a file in a folder that is there, found no folder {}; make it, or name \
         another file",
        folder.display()
    )))
}

/// Writes the file that `flag` names. A file that is there is replaced when the new one is whole;
/// what is no file, such as `/dev/stdout`, is written to.
///
/// # Errors
/// It cannot be written; then a file that was there is as it was.
pub fn write(flag: &str, path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    replace(path, bytes).map_err(|error| {
        Failure::input(format!("{flag}: cannot write {}: {error}", path.display()))
    })
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Of a link, what it leads to is replaced.
    let path = match path.canonicalize() {
        Ok(real) => real,
        Err(error) if error.kind() == ErrorKind::NotFound => path.to_owned(),
        Err(error) => return Err(error),
    };
    let found = fs::metadata(&path).ok();
    if found.as_ref().is_some_and(|found| !found.is_file()) {
        return fs::OpenOptions::new()
            .write(true)
            .open(&path)?
            .write_all(bytes);
    }
    let mode = found.map_or(0o666, |found| found.permissions().mode());
    let mut beside = Builder::new()
        .prefix(".ratplus-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder(&path))?;
    beside.write_all(bytes)?;
    beside.as_file().sync_all()?;
    beside.persist(&path)?;
    Ok(())
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.into(),
        _ => ".".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("report.json");
        write("--report", &file, b"first").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"first");
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write("--report", &link, b"second").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"second");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_no_file_is_written_to() {
        let Failure::BadInput(message) = write("--json", Path::new("/dev/full"), b"x").unwrap_err()
        else {
            panic!("exit 2 was expected");
        };
        assert!(
            message.starts_with("--json: cannot write /dev/full: No space left"),
            "{message}"
        );
        write("--json", Path::new("/dev/null"), b"x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        assert!(write("--json", dir.path(), b"x").is_err());
        assert!(write("--json", &dir.path().join("none/a"), b"x").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
