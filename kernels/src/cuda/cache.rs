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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_and_damage_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new/folder");
        let name = key([&b"source"[..], b"options"]);
        assert_eq!(read(&folder, &name), None);
        write(&folder, &name, b"code").unwrap();
        assert_eq!(read(&folder, &name).as_deref(), Some(&b"code"[..]));

        let whole = fs::read(file(&folder, &name)).unwrap();
        for length in 0..whole.len() {
            fs::write(file(&folder, &name), &whole[..length]).unwrap();
            assert_eq!(read(&folder, &name), None, "{length} bytes");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(file(&folder, &name), &damaged).unwrap();
            assert_eq!(read(&folder, &name), None, "byte {at}");
        }
        write(&folder, &name, b"code").unwrap();
        assert_eq!(read(&folder, &name).as_deref(), Some(&b"code"[..]));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn names_tell_neighbours_apart() {
        assert_ne!(key([&b"ab"[..], b"c"]), key([&b"a"[..], b"bc"]));
        assert_ne!(key([&b"ab"[..]]), key([&b"ab"[..], b""]));
        assert_eq!(key([&b"ab"[..]]).len(), 64);
    }

    #[test]
    fn a_folder_that_cannot_be_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let below = file.path().join("folder");
        assert_eq!(read(&below, "0"), None);
        assert!(write(&below, "0", b"code").is_err());
    }

    #[test]
    fn the_folder_follows_the_environment() {
        let folder = |set: &[(&str, &str)]| {
            let set = set.to_vec();
            folder_from(|name| {
                let found = set.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| OsString::from(value))
            })
        };
        let home = ("HOME", "/home/x");
        assert_eq!(folder(&[]), None);
        assert_eq!(folder(&[home]), Some("/home/x/.cache/ratplus".into()));
        let xdg = ("XDG_CACHE_HOME", "/caches");
        assert_eq!(folder(&[home, xdg]), Some("/caches/ratplus".into()));
        let own = ("RATPLUS_CACHE_DIR", "here");
        assert_eq!(folder(&[home, xdg, own]), Some("here".into()));
        // The XDG specification has relative paths ignored.
        let relative = ("XDG_CACHE_HOME", "caches");
        let empty = ("RATPLUS_CACHE_DIR", "");
        let expected = Some("/home/x/.cache/ratplus".into());
        assert_eq!(folder(&[home, relative, empty]), expected);
    }
}
