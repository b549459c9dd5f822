//! Compiled code on disk, so that only the first run compiles.
//!
//! An entry is a file named after what it was made from: the checksum of the code, then the code.
//! Entries appear whole and never change, so processes share a folder without a lock.

use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

const CHECKSUM_BYTES: usize = 32;

/// Where compiled kernels are kept: `RATPLUS_CACHE_DIR`, else `ratplus` in `XDG_CACHE_HOME` or in
/// `.cache` of the home folder; `None` where none of these is set.
pub fn cache_folder() -> Option<PathBuf> {
    folder_from(|name| std::env::var_os(name))
}

fn folder_from(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| variable(name).map(PathBuf::from);
    let absolute = |name| path(name).filter(|path| path.is_absolute());
    path("RATPLUS_CACHE_DIR")
        .filter(|path| !path.as_os_str().is_empty())
        .or_else(|| Some(absolute("XDG_CACHE_HOME")?.join("ratplus")))
        .or_else(|| Some(absolute("HOME")?.join(".cache/ratplus")))
}

/// Name of what was made from `parts`.
pub(super) fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        // The lengths keep neighbours apart.
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut name = String::new();
    for byte in hasher.finalize() {
        write!(name, "{byte:02x}").expect("a string takes all text");
    }
    name
}

fn file(folder: &Path, key: &str) -> PathBuf {
    folder.join(format!("{key}.cubin"))
}

/// The code of an entry; `None` where there is none or it is damaged.
pub(super) fn read(folder: &Path, key: &str) -> Option<Vec<u8>> {
    let bytes = fs::read(file(folder, key)).ok()?;
    let (checksum, code) = bytes.split_at_checked(CHECKSUM_BYTES)?;
    (Sha256::digest(code)[..] == *checksum).then(|| code.to_vec())
}

/// Makes an entry, in place of a damaged one too.
pub(super) fn write(folder: &Path, key: &str, code: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(&Sha256::digest(code))?;
    temporary.write_all(code)?;
    temporary.persist(file(folder, key))?;
    Ok(())
}
