//! `dlopen`.

use std::ffi::{CStr, CString, OsStr, c_void};
use std::fs::File;
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

/// A loaded library. It is never unloaded: what it registered may outlive any owner.
#[derive(Clone, Copy)]
pub(crate) struct Dylib(*mut c_void);

// SAFETY: the handle is only passed to `dlsym` and `dlinfo`-like calls, which are thread-safe.
unsafe impl Send for Dylib {}
// SAFETY: as above.
unsafe impl Sync for Dylib {}

impl Dylib {
    /// Loads the library at `path`; a bare file name is looked up as the system's loader does.
    pub fn open(path: &Path) -> Result<Self, String> {
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| "the path holds a NUL byte".to_owned())?;
        whole(path)?;
        // SAFETY: `name` is a C string; running the library's initializers is what loading means,
        // and the caller or the user chose the library.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if !handle.is_null() {
            return Ok(Self(handle));
        }
        // SAFETY: `dlerror` returns null or a string that lives until this thread's next call.
        let message = unsafe {
            let error = libc::dlerror();
            if error.is_null() {
                None
            } else {
                Some(CStr::from_ptr(error).to_string_lossy().into_owned())
            }
        };
        Err(message.unwrap_or_else(|| "unknown loader error".into()))
    }

    /// Address of `name`, null where the library has none.
    pub fn symbol(&self, name: &CStr) -> *mut c_void {
        // SAFETY: the handle came from `dlopen` and is never closed.
        unsafe { libc::dlsym(self.0, name.as_ptr()) }
    }

    /// The file that `address` was loaded from.
    pub fn file_of(address: *const c_void) -> Option<PathBuf> {
        let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: `info` is valid for writes; `dladdr` only compares `address` with the loaded
        // libraries, and `dli_fname` is a C string where it returns non-zero.
        unsafe {
            if libc::dladdr(address, info.as_mut_ptr()) == 0 {
                return None;
            }
            let name = info.assume_init().dli_fname;
            (!name.is_null())
                .then(|| PathBuf::from(OsStr::from_bytes(CStr::from_ptr(name).to_bytes())))
        }
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
            let error = Dylib::open(&cut).err().unwrap();
            assert!(error.contains("cut short"), "{len}: {error}");
        }
    }
}
