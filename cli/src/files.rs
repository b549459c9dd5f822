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

/// What a package is called in [`Targets::of`].
pub const PACKAGE: &str = "the package";

/// Whether what flags name can be written without loss: each into a folder that is there, none over what the
/// command reads, and no two to one place.
pub struct Targets<'a> {
    problems: Vec<String>,
    seen: Vec<(&'a str, PathBuf)>,
    read: Vec<(&'a str, PathBuf)>,
}

impl<'a> Targets<'a> {
    /// Of a command that reads these folders and files, each with what the user calls it.
    pub fn of(read: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Self {
        let read = read.into_iter().map(|(name, path)| (name, real(path)));
        Self {
            problems: Vec::new(),
            seen: Vec::new(),
            read: read.collect(),
        }
    }

    /// Adds the file that `flag` names.
    pub fn add(&mut self, flag: &'a str, path: Option<&'a Path>) {
        let Some(path) = path else {
            return;
        };
        if let Err(Failure::BadInput(problem)) = check_folder(flag, Some(path)) {
            self.problems.push(problem);
            return;
        }
        let place = real(path);
        // What is no file is written to, and loses nothing.
        if fs::metadata(&place).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            return;
        }
        let mut read = self.read.iter();
        if let Some((name, found)) = read.find(|(_, read)| place.starts_with(read)) {
            let relation = match place == *found {
                true => "is",
                false => "is in",
            };
            // New files disturb a checkpoint's folder no more than they do the user's.
            if *name == PACKAGE || place.is_file() {
                self.problems.push(format!(
                    "{flag}: {} {relation} {name}, which stays as it is; name a file elsewhere",
                    path.display()
                ));
            }
        }
        if let Some((other, _)) = self.seen.iter().find(|(_, seen)| *seen == place) {
            self.problems.push(format!(
                "{flag}: {} is what {other} names too; name another file",
                path.display()
            ));
        }
        if place.is_dir() {
            self.problems.push(format!(
                "{flag}: expected a file, found the folder {}",
                path.display()
            ));
        }
        self.seen.push((flag, place));
    }

    /// Everything that is wrong.
    ///
    /// # Errors
    /// [`Failure::BadInput`].
    pub fn check(self) -> Result<(), Failure> {
        match self.problems.is_empty() {
            true => Ok(()),
            false => Err(Failure::input(self.problems.join("\n  "))),
        }
    }
}

/// Where a path leads, whether or not there is something.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| {
        let folder = folder(path);
        let folder = folder.canonicalize().unwrap_or(folder);
        folder.join(path.file_name().unwrap_or_default())
    })
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
    fn what_a_command_reads_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("package")).unwrap();
        for file in ["package/weights.bin", "golden"] {
            fs::write(at(file), "kept").unwrap();
        }
        std::os::unix::fs::symlink(at("package/weights.bin"), at("link")).unwrap();
        let problems = |flags: &[(&str, &str)]| {
            let (package, golden) = (at("package"), at("golden"));
            let read = [(PACKAGE, &*package), ("--golden", &*golden)];
            let paths: Vec<_> = flags.iter().map(|(flag, name)| (*flag, at(name))).collect();
            let mut targets = Targets::of(read);
            for (flag, path) in &paths {
                targets.add(flag, Some(path.as_path()));
            }
            match targets.check() {
                Err(Failure::BadInput(message)) => message,
                other => format!("{other:?}"),
            }
        };
        for name in [
            "package/weights.bin",
            "package/new",
            "link",
            "none/../package/new",
        ] {
            let text = problems(&[("--plot", name)]);
            assert!(
                text.contains("is in the package, which stays as it is")
                    || text.contains("no folder"),
                "{name}: {text}"
            );
        }
        assert!(problems(&[("--plot", "golden")]).contains("is --golden, which stays"));
        assert!(problems(&[("--plot", ".")]).contains("expected a file, found the folder"));
        let both = problems(&[("--plot", "new"), ("--report", "new"), ("--json", "none/a")]);
        assert!(
            both.contains("--report: ") && both.contains("is what --plot names too"),
            "{both}"
        );
        assert!(
            both.contains("--json: expected a file in a folder"),
            "{both}"
        );
        assert_eq!(
            problems(&[("--plot", "new"), ("--report", "other")]),
            "Ok(())"
        );
        let mut targets = Targets::of([]);
        for flag in ["--plot", "--report"] {
            targets.add(flag, Some(Path::new("/dev/null")));
        }
        assert!(targets.check().is_ok());
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
