//! What tests/faults recorded of an export.

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A call that succeeded; paths from the root on.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    MakeFolder(PathBuf),
    /// Made where it was missing and `makes`; emptied where it was there and `empties`.
    Open {
        path: PathBuf,
        makes: bool,
        empties: bool,
    },
    Write {
        path: PathBuf,
        offset: usize,
        bytes: Arc<Vec<u8>>,
    },
    Truncate(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    Unlink(PathBuf),
    RemoveFolder(PathBuf),
    /// Of a file or a folder.
    Sync(PathBuf),
    /// As [`Event::Sync`], of a file alone.
    SyncData(PathBuf),
}

/// For messages: without the bytes.
pub fn describe(event: &Event) -> String {
    match event {
        Event::Write {
            path,
            offset,
            bytes,
        } => format!("Write({path:?}, {} bytes at {offset})", bytes.len()),
        other => format!("{other:?}"),
    }
}

/// Reads records of calls below `root`; a call that it does not know is an error.
pub fn parse(mut records: &[u8], root: &Path) -> Result<Vec<Event>, String> {
    let (mut events, mut threads) = (Vec::new(), Vec::new());
    while !records.is_empty() {
        let end = records.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or("a record is cut off")?;
        let line = std::str::from_utf8(&records[..end]).map_err(|error| error.to_string())?;
        records = &records[end + 1..];
        let words: Vec<_> = line.split('\t').collect();
        let [thread, call, path, rest @ ..] = &words[..] else {
            return Err(format!("`{line}` is no record"));
        };
        threads.push(thread.to_string());
        let below = |path: &str| {
            let below = Path::new(path).strip_prefix(root);
            below.map(Path::to_path_buf).map_err(|_| line.to_owned())
        };
        let number = |text: &str| text.parse::<usize>().map_err(|_| line.to_owned());
        let path = below(path)?;
        events.push(match (*call, rest) {
            ("mkdir", []) => Event::MakeFolder(path),
            ("open", [makes, empties]) => Event::Open {
                path,
                makes: number(makes)? > 0,
                empties: number(empties)? > 0,
            },
            ("write", [offset, count]) => {
                let count = number(count)?;
                let bytes = records.get(..count).ok_or("bytes are cut off")?;
                let after = records
                    .get(count..)
                    .and_then(|rest| rest.strip_prefix(b"\n"));
                records = after.ok_or("bytes without an end")?;
                Event::Write {
                    path,
                    offset: number(offset)?,
                    bytes: Arc::new(bytes.to_vec()),
                }
            }
            ("truncate", [size]) => Event::Truncate(path, number(size)?),
            ("rename", [to]) => Event::Rename(path, below(to)?),
            ("exchange", [to]) => Event::Exchange(path, below(to)?),
            ("unlink", []) => Event::Unlink(path),
            ("rmdir", []) => Event::RemoveFolder(path),
            ("fsync", []) => Event::Sync(path),
            ("fdatasync", []) => Event::SyncData(path),
            _ => return Err(format!("the model has no `{line}`")),
        });
    }
    threads.dedup();
    match threads.len() > 1 {
        // Records are made after the calls: two threads' may be in another order.
        true => Err(format!("threads {threads:?} changed files")),
        false => Ok(events),
    }
}
