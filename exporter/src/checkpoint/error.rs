//! What can be wrong with a checkpoint.

use std::io;
use std::path::PathBuf;

/// A checkpoint that cannot be read. Messages name the file, the tensor or byte, what was
/// expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file or directory that cannot be read, is of no kind that this reads, or contradicts itself
    /// or its format.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Why not, expected and found, and what to do.
        problem: String,
    },
    /// A record's bytes are not those that were written.
    #[error(
        "{}: record `{record}` is damaged: expected CRC-32 {expected:08x}, found {found:08x}; fetch the file again",
        path.display()
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Name of the record in the archive.
        record: String,
        /// As the archive says.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// A stored NaN or infinity.
    #[error(
        "{}: tensor `{tensor}`: element {index:?} is {value}, expected a finite number; give `allow_nonfinite` \
         to export it as it is",
        path.display()
    )]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first such element.
        index: Vec<usize>,
        /// Its value.
        value: f64,
    },
    /// A finite value with no finite counterpart in the type asked for.
    #[error(
        "{}: tensor `{tensor}`: element {index:?} is {}, beyond the range of {dtype}; {}",
        path.display(), shortest(*value), wider(*value)
    )]
    Overflow {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first such element.
        index: Vec<usize>,
        /// Its value.
        value: f64,
        /// The type asked for.
        dtype: ratplus_graphs::ops::ElementType,
    },
    /// A read that does not fit the tensor: a mistake of the caller.
    #[error("tensor `{tensor}`: {problem}")]
    Request {
        /// The tensor.
        tensor: String,
        /// What was expected and what was given.
        problem: String,
    },
}

/// As short as tells it from its neighbours in the type it came from.
fn shortest(value: f64) -> String {
    let single = value as f32;
    if f64::from(single) == value {
        format!("{single:e}")
    } else {
        format!("{value:e}")
    }
}

fn wider(value: f64) -> &'static str {
    if (value as f32).is_finite() {
        "export with a wider type"
    } else {
        "no package holds f64: find what made the weight so large"
    }
}

/// What went wrong while parsing one file; the caller adds its path.
#[derive(Debug)]
pub(super) enum Fail {
    File(String),
    Checksum {
        record: String,
        expected: u32,
        found: u32,
    },
}

impl Fail {
    /// The operating system refused an action, or the file ends too early.
    pub(super) fn io(action: &str, error: io::Error) -> Self {
        Self::File(format!("cannot {action}: {error}"))
    }

    /// A `zip archive`, `pickle`, `safetensors header` or `shard index` with a problem.
    pub(super) fn malformed(part: &str, problem: impl std::fmt::Display) -> Self {
        Self::File(format!("{part}: {problem}"))
    }

    pub(super) fn at(self, path: &std::path::Path) -> CheckpointError {
        let path = path.to_owned();
        match self {
            Self::File(problem) => CheckpointError::File { path, problem },
            Self::Checksum {
                record,
                expected,
                found,
            } => CheckpointError::Checksum {
                path,
                record,
                expected,
                found,
            },
        }
    }
}

/// Foreign bytes for a message: printable, and never long.
pub(super) fn show(bytes: &[u8]) -> String {
    const LONGEST: usize = 120;
    let cut = &bytes[..bytes.len().min(LONGEST)];
    let mut text: String = String::from_utf8_lossy(cut).escape_debug().collect();
    if bytes.len() > LONGEST {
        text.push('…');
    }
    text
}
