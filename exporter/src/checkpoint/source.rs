//! Positional reads: no memory map, so a file that shrinks is an error instead of a signal.

use super::error::Fail;
use std::fs::File;
use std::io;
use std::path::Path;

/// Bytes that can be read at any offset, from any thread.
pub(super) trait Source: Send + Sync {
    /// Length when opened.
    fn len(&self) -> u64;
    /// Fills `out` from `offset`; an early end is an error.
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()>;
}

struct FileSource {
    file: File,
    len: u64,
}

impl Source for FileSource {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, out, offset)
    }
}

impl Source for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(out.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }
}

/// Opens a regular file, following symlinks (a model hub's cache is made of them).
pub(super) fn open(path: &Path) -> Result<Box<dyn Source>, Fail> {
    // Looking before opening: opening a named pipe would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(|error| Fail::io("open", error))?;
    if !metadata.is_file() {
        return Err(Fail::File("not a regular file".into()));
    }
    let file = File::open(path).map_err(|error| Fail::io("open", error))?;
    let metadata = file.metadata().map_err(|error| Fail::io("open", error))?;
    Ok(Box::new(FileSource {
        file,
        len: metadata.len(),
    }))
}

/// Reads `len` bytes that are known to lie inside the file.
pub(super) fn read_vec(source: &dyn Source, offset: u64, len: usize) -> Result<Vec<u8>, Fail> {
    let mut bytes = vec![0; len];
    source
        .read_exact_at(&mut bytes, offset)
        .map_err(|error| Fail::io("read", error))?;
    Ok(bytes)
}
