//! Shared libraries.

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::error::Error;
use std::ffi::{CStr, OsStr, c_void};
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The loader maps segments that a file cut short does not have, and touching them kills the process.
/// The table of sections, which linkers write last, has to lie within the file; what is no 64-bit
/// little-endian ELF is left to the loader.
fn whole(path: &Path) -> Result<(), String> {
    let Ok(file) = File::open(path) else {
        return Ok(());
    };
    let mut header = [0; 64];
    let (Ok(metadata), Ok(())) = (file.metadata(), file.read_exact_at(&mut header, 0)) else {
        return Ok(());
    };
    if header[..6] != *b"\x7fELF\x02\x01" {
        return Ok(());
    }
    let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
    let u16_at = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
    // e_shoff, e_shentsize, e_shnum
    let end = u64_at(0x28).saturating_add(u16_at(0x3a) * u16_at(0x3c));
    if end > metadata.len() {
        return Err(format!(
            "{}: expected {end} bytes or more, as its ELF header says, found {}: it was cut short; install it again",
            path.display(),
            metadata.len()
        ));
    }
    Ok(())
}

/// Loads the library at `path`; a bare file name is looked up as the system's loader does. It is never
/// unloaded: what it registered may outlive any owner. The error is the loader's words.
pub(crate) fn open(path: &Path) -> Result<ManuallyDrop<Library>, String> {
    whole(path)?;
    // SAFETY: running the library's initializers is what loading means, and the caller or the user
    // chose the library.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    library.map(ManuallyDrop::new).map_err(|error| {
        let words = error.source().map(ToString::to_string);
        words.unwrap_or_else(|| format!("{}: {error}", path.display()))
    })
}

/// The file that `address` was loaded from.
pub(super) fn file_of(address: *const c_void) -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: `info` is valid for writes; `dladdr` only compares `address` with the loaded
    // libraries, and `dli_fname` is a C string where it returns non-zero.
    unsafe {
        if libc::dladdr(address, info.as_mut_ptr()) == 0 {
            return None;
        }
        let name = info.assume_init().dli_fname;
        (!name.is_null()).then(|| PathBuf::from(OsStr::from_bytes(CStr::from_ptr(name).to_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_was_cut_short_is_not_loaded() {
        // This program is an ELF file like any library.
        let whole = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let cut = dir.path().join("libcut.so");
        for len in [64, 100_000, whole.len() - 1] {
            std::fs::write(&cut, &whole[..len]).unwrap();
            let error = open(&cut).err().unwrap();
            assert!(error.contains("cut short"), "{len}: {error}");
        }
    }
}
