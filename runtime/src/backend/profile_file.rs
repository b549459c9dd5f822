//! Where ONNX Runtime writes a profile: it knows files only.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::PathBuf;
use tempfile::{Builder, TempDir};

/// A folder for the profile of a session that is to be built.
pub(super) struct ProfileFolder(TempDir);

/// The profile of a session, in a file without a name: nothing is left of it, however the process
/// ends.
pub(super) struct ProfileFile(File);

impl ProfileFolder {
    /// In the folder of temporary files, in memory, or where the user's session keeps its own.
    ///
    /// # Errors
    /// Why none of them takes files.
    pub fn make() -> Result<Self, String> {
        let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let folders = [env::temp_dir(), "/dev/shm".into()];
        Self::in_one_of(folders.into_iter().chain(runtime))
    }

    fn in_one_of(folders: impl Iterator<Item = PathBuf>) -> Result<Self, String> {
        let mut tried = Vec::new();
        for folder in folders.filter(|folder| folder.is_absolute()) {
            let made = Builder::new()
                .prefix("ratplus-profile-")
                .tempdir_in(&folder);
            match made {
                Ok(folder) => return Ok(Self(folder)),
                Err(error) => tried.push(error.to_string()),
            }
        }
        Err(format!(
            "ONNX Runtime writes profiles to files, and no folder takes one: {}; set TMPDIR to one \
             that does",
            tried.join("; ")
        ))
    }

    /// What the file's path starts with.
    pub fn prefix(&self) -> PathBuf {
        self.0.path().join("run")
    }

    /// Opens the file of the session that was built, and removes its name.
    ///
    /// # Errors
    /// The session opened none, or it cannot be read.
    pub fn into_file(self) -> io::Result<ProfileFile> {
        let entry = fs::read_dir(self.0.path())?.next();
        let entry = entry.unwrap_or_else(|| {
            let missing = "ONNX Runtime could not open its file";
            Err(io::Error::other(missing))
        })?;
        let file = File::open(entry.path())?;
        self.0.close()?;
        Ok(ProfileFile(file))
    }
}

impl ProfileFile {
    /// All of it, once the session has ended it.
    pub fn read(mut self) -> io::Result<Vec<u8>> {
        let mut profile = Vec::new();
        self.0.rewind()?;
        self.0.read_to_end(&mut profile)?;
        Ok(profile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::path::Path;

    fn among(folders: &[&Path]) -> Result<ProfileFolder, String> {
        ProfileFolder::in_one_of(folders.iter().map(|folder| folder.to_path_buf()))
    }

    #[test]
    fn the_first_folder_that_takes_files_is_used_and_nothing_stays() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let missing = root.path().join("missing");
        let folders = [&missing, &file, root.path(), Path::new("relative")];
        let folder = among(&folders).unwrap();
        assert!(folder.prefix().starts_with(root.path()));
        let mut profile = File::create(folder.prefix().with_extension("json")).unwrap();
        let opened = folder.into_file().unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        profile.write_all(b"[]").unwrap();
        drop(profile);
        assert_eq!(opened.read().unwrap(), b"[]");
        // A session that wrote none.
        assert!(among(&[root.path()]).unwrap().into_file().is_err());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn where_no_folder_takes_files_each_is_named_with_its_reason() {
        let error = among(&[Path::new("/nowhere"), Path::new("/proc")])
            .err()
            .unwrap();
        for folder in ["/nowhere", "/proc"] {
            let reason = format!("No such file or directory (os error 2) at path \"{folder}/");
            assert!(error.contains(&reason), "{error}");
        }
        assert!(error.contains("set TMPDIR"), "{error}");
    }
}
