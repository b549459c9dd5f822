//! Writes and hashes at once.

use crate::ExportError;
use blake3::Hasher;
use ratplus_graphs::package::FileInfo;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

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
    hasher: Option<JoinHandle<Hasher>>,
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
            let mut hasher = Hasher::new();
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
            blake3: hasher.finalize().to_string(),
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
        let written = std::fs::read(&path).unwrap();
        assert_eq!(info.bytes, written.len() as u64);
        assert_eq!(info, FileInfo::of(&written));
    }
}
