//! Files that become visible together, or not at all.

use crate::ExportError;
use ratplus_graphs::manifest::{FileInfo, MANIFEST_FILE, Manifest};
use ratplus_graphs::plans::{BUILDING_PREFIX, PLAN_BACKENDS, PLANS_FOLDER, is_plan_file};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// A directory beside the target that is removed unless it is published.
pub struct Staging {
    dir: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Staging {
    /// Creates an empty directory beside `target`.
    ///
    /// # Errors
    /// `target` is something other than a missing path, an empty directory or a package; or the
    /// directory cannot be created.
    pub fn beside(target: &Path) -> Result<Self, ExportError> {
        let target = std::path::absolute(target)
            .map_err(|error| ExportError::io("resolve", target, error))?;
        check_replaceable(&target)?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(ExportError::target(
                &target,
                "expected a directory's name, found a root",
            ));
        };
        fs::create_dir_all(parent).map_err(|error| ExportError::io("create", parent, error))?;
        let mut name = name.to_owned();
        name.push(format!(".tmp-{}", std::process::id()));
        let dir = parent.join(name);
        // A directory of this name belongs to a dead process of the same number.
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(|error| ExportError::io("remove", &dir, error))?;
        }
        fs::create_dir(&dir).map_err(|error| ExportError::io("create", &dir, error))?;
        Ok(Self {
            dir,
            target,
            published: false,
        })
    }

    /// The path of `file` until it is published.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
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
        Ok(FileInfo {
            bytes: bytes.len() as u64,
            sha256: hex(&Sha256::digest(bytes)),
        })
    }

    /// Puts the directory in the target's place.
    ///
    /// # Errors
    /// The target became something that must not be replaced, or a rename failed; then the
    /// target is as it was.
    pub fn publish(mut self) -> Result<(), ExportError> {
        sync_dir(&self.dir)?;
        check_replaceable(&self.target)?;
        if self.target.exists() {
            exchange(&self.dir, &self.target)?;
        } else {
            fs::rename(&self.dir, &self.target)
                .map_err(|error| ExportError::io("rename into place", &self.target, error))?;
            self.published = true;
        }
        if let Some(parent) = self.target.parent() {
            sync_dir(parent)?;
        }
        Ok(())
        // After an exchange the old package lies in `dir`, and goes with it.
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Refuses to replace anything but a package: every file in it has to be the package's own, or a
/// plan that was built from it.
pub(crate) fn check_replaceable(target: &Path) -> Result<(), ExportError> {
    let metadata = match fs::symlink_metadata(target) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ExportError::io("look at", target, error)),
        Ok(metadata) => metadata,
    };
    if !metadata.is_dir() {
        return Err(ExportError::target(
            target,
            "expected a directory or nothing, found a file or link",
        ));
    }
    let failed = |error| ExportError::io("list", target, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(target).map_err(failed)? {
        names.push(
            entry
                .map_err(failed)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    if names.is_empty() {
        return Ok(());
    }
    let known = fs::read(target.join(MANIFEST_FILE))
        .ok()
        .and_then(|json| serde_json::from_slice::<Manifest>(&json).ok());
    let Some(known) = known else {
        return Err(ExportError::target(
            target,
            "expected a package or nothing, found other files",
        ));
    };
    let own = |name: &String| {
        [MANIFEST_FILE, PLANS_FOLDER].contains(&name.as_str()) || known.files.contains_key(name)
    };
    let strange = names.iter().find(|name| !own(name)).cloned();
    match strange.map_or_else(|| strange_plan(target), |name| Ok(Some(name)))? {
        Some(name) => Err(ExportError::target(
            target,
            &format!("holds `{name}`, which the package there does not list"),
        )),
        None => Ok(()),
    }
}

/// A file below the folder of plans that `ratplus build` does not write.
fn strange_plan(target: &Path) -> Result<Option<String>, ExportError> {
    let plans = target.join(PLANS_FOLDER);
    let list = |dir: &Path| -> Result<Vec<String>, ExportError> {
        let failed = |error| ExportError::io("list", dir, error);
        let entries = fs::read_dir(dir).map_err(failed)?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect::<std::io::Result<_>>().map_err(failed)
    };
    let is_folder = |path: &Path| {
        fs::symlink_metadata(path)
            .map(|metadata| metadata.is_dir())
            .ok()
    };
    match is_folder(&plans) {
        None => return Ok(None),
        Some(false) => return Ok(Some(PLANS_FOLDER.into())),
        Some(true) => (),
    }
    for backend in list(&plans)? {
        let folder = plans.join(&backend);
        if is_folder(&folder) != Some(true) {
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

fn sync_dir(dir: &Path) -> Result<(), ExportError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| ExportError::io("sync", dir, error))
}

/// Swaps two directories in one step, so that the target always names a whole package.
fn exchange(new: &Path, target: &Path) -> Result<(), ExportError> {
    let failed = |error| ExportError::io("rename into place", target, error);
    match renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE) {
        Ok(()) => return Ok(()),
        Err(Errno::INVAL | Errno::NOSYS) => (),
        Err(error) => return Err(failed(error.into())),
    }
    // A file system without exchange: the old package stands aside for two renames.
    let mut aside = new.as_os_str().to_owned();
    aside.push("-old");
    let aside = PathBuf::from(aside);
    fs::rename(target, &aside).map_err(failed)?;
    if let Err(error) = fs::rename(new, target) {
        let _ = fs::rename(&aside, target);
        return Err(failed(error));
    }
    fs::remove_dir_all(&aside).map_err(|error| ExportError::io("remove", &aside, error))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of one buffer on its way to the file and the hash.
const BUFFER: usize = 4 << 20;

/// Writes a file and hashes it on a second thread, in a bounded number of buffers.
pub struct HashingWriter {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    position: u64,
    full: Option<SyncSender<Vec<u8>>>,
    empty: Receiver<Vec<u8>>,
    hasher: Option<JoinHandle<Sha256>>,
}

impl HashingWriter {
    /// Creates the file.
    ///
    /// # Errors
    /// The file exists or cannot be created.
    pub fn create(path: PathBuf) -> Result<Self, ExportError> {
        let file =
            File::create_new(&path).map_err(|error| ExportError::io("create", &path, error))?;
        let (full, to_hash) = sync_channel::<Vec<u8>>(2);
        let (hashed, empty) = sync_channel(4);
        for _ in 0..3 {
            let _ = hashed.send(Vec::with_capacity(BUFFER));
        }
        let hasher = std::thread::spawn(move || {
            let mut hasher = Sha256::new();
            for mut buffer in to_hash {
                hasher.update(&buffer);
                buffer.clear();
                let _ = hashed.send(buffer);
            }
            hasher
        });
        Ok(Self {
            file,
            path,
            buffer: Vec::with_capacity(BUFFER),
            position: 0,
            full: Some(full),
            empty,
            hasher: Some(hasher),
        })
    }

    /// Bytes taken so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), ExportError> {
        self.position += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Appends zeros up to `offset`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn pad_to(&mut self, offset: u64) -> Result<(), ExportError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.position < offset {
            let count = (offset - self.position).min(ZEROS.len() as u64) as usize;
            self.write(&ZEROS[..count])?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ExportError> {
        self.file
            .write_all(&self.buffer)
            .map_err(|error| ExportError::io("write", &self.path, error))?;
        let next = self.empty.recv().unwrap_or_default();
        let full = std::mem::replace(&mut self.buffer, next);
        if let Some(sender) = &self.full {
            let _ = sender.send(full);
        }
        Ok(())
    }

    /// Writes what is left and syncs.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(mut self) -> Result<FileInfo, ExportError> {
        self.flush()?;
        self.file
            .sync_all()
            .map_err(|error| ExportError::io("sync", &self.path, error))?;
        drop(self.full.take());
        let hasher = self.hasher.take().and_then(|hasher| hasher.join().ok());
        let Some(hasher) = hasher else {
            let stopped = std::io::Error::other("the checksum thread stopped");
            return Err(ExportError::io("hash", &self.path, stopped));
        };
        Ok(FileInfo {
            bytes: self.position,
            sha256: hex(&hasher.finalize()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hashing_writer_hashes_what_it_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        let mut writer = HashingWriter::create(path.clone()).unwrap();
        let piece: Vec<_> = (0..BUFFER / 3 * 2).map(|index| index as u8).collect();
        for _ in 0..9 {
            writer.write(&piece).unwrap();
        }
        writer
            .pad_to(writer.position().next_multiple_of(4096))
            .unwrap();
        let info = writer.finish().unwrap();
        let written = fs::read(&path).unwrap();
        assert_eq!(info.bytes, written.len() as u64);
        assert_eq!(info.sha256, hex(&Sha256::digest(&written)));
    }

    #[test]
    fn a_target_that_is_no_package_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("thesis");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("chapter1.txt"), "long work").unwrap();
        assert!(Staging::beside(&target).is_err());
        fs::write(dir.path().join("file"), "x").unwrap();
        assert!(Staging::beside(&dir.path().join("file")).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn plans_go_with_their_package_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("package");
        let folder = target.join("plans/tensorrt-rtx");
        fs::create_dir_all(folder.join(".building-1")).unwrap();
        assert_eq!(strange_plan(&dir.path().join("none")).unwrap(), None);
        fs::write(folder.join("decode-0123456789abcdef.plan"), "").unwrap();
        assert_eq!(strange_plan(&target).unwrap(), None);
        for other in [
            "plans/tensorrt-rtx/notes.txt",
            "plans/notes.txt",
            "plans/mine/a",
        ] {
            let file = target.join(other);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            assert_eq!(strange_plan(&target).unwrap().as_deref(), Some(other));
            fs::remove_file(file).unwrap();
            let _ = fs::remove_dir(target.join("plans/mine"));
        }
    }

    #[test]
    fn an_unpublished_directory_disappears() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::beside(&dir.path().join("out")).unwrap();
        staging.write("a", b"1").unwrap();
        drop(staging);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
