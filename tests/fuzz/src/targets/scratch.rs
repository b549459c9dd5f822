//! A folder for readers that open files, one a thread and process.

use std::path::Path;

/// Calls `act` with this thread's folder.
pub fn folder<T>(act: impl FnOnce(&Path) -> T) -> T {
    thread_local! {
        // In memory where that can be had: a disk would be most of what is measured.
        static FOLDER: tempfile::TempDir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .expect("a temporary folder");
    }
    FOLDER.with(|folder| act(folder.path()))
}
