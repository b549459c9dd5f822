//! Checkpoints on disk: opened by their metadata, streamed tensor by tensor.
//!
//! Opening reads headers only. Tensors are then read with positional reads into buffers of the
//! caller's, so memory does not grow with the model and a file that shrinks is an error.
//!
//! | file | read by |
//! |---|---|
//! | `torch.save`'s zip archive | a strict zip reader and a pickle interpreter that has nothing to call |
//! | safetensors | the header alone |
//! | `*.safetensors.index.json` | the same, shard by shard |
//! | a directory | the one of those it holds |
//!
//! A file is what its first bytes say, whatever its name.
//!
//! Checksums of archives: the pickle is checked when the checkpoint is opened, tensors while
//! they are streamed (see [`Reader`]); 0 means that the writer computed none. safetensors files
//! have none.

mod cast;
mod directory;
mod error;
mod pickle;
mod reader;
mod safetensors;
mod sniff;
mod source;
mod state;
mod tensor;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;
mod torch;
mod zip;

pub use error::CheckpointError;
pub use reader::{ReadOptions, Reader};
pub use tensor::{StoredType, Tensor};

use error::{Fail, show};
use sniff::Kind;
use source::Source;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// How a checkpoint is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// `torch.save`'s zip archive.
    Torch,
    /// One safetensors file.
    Safetensors,
    /// Several safetensors files and their index.
    ShardedSafetensors,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Torch => "PyTorch checkpoint",
            Self::Safetensors => "safetensors",
            Self::ShardedSafetensors => "sharded safetensors",
        })
    }
}

/// A file that holds tensors.
struct DataFile {
    path: PathBuf,
    source: Box<dyn Source>,
}

/// A checksummed run of a file.
#[derive(Debug)]
struct Record {
    name: String,
    file: usize,
    offset: u64,
    len: u64,
    /// 0 where the writer computed none.
    crc: u32,
    verified: AtomicBool,
}

/// What the files hold.
#[derive(Default)]
struct Contents {
    tensors: BTreeMap<String, Tensor>,
    records: Vec<Record>,
    config: Option<serde_json::Value>,
    metadata: BTreeMap<String, String>,
    notes: Vec<String>,
}

/// An opened checkpoint.
pub struct Checkpoint {
    path: PathBuf,
    format: Format,
    files: Vec<DataFile>,
    contents: Contents,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("format", &self.format)
            .field("tensors", &self.contents.tensors.len())
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens a file, a shard index, or a directory that holds one of them.
    ///
    /// # Errors
    /// The path cannot be read, or its metadata is not whole, consistent and harmless.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let given = path.as_ref();
        let file = if given.is_dir() {
            directory::find(given).map_err(|fail| fail.at(given))?
        } else {
            given.to_owned()
        };
        let source = source::open(&file).map_err(|fail| fail.at(&file))?;
        let mut checkpoint = Self::from_source(&file, source)?;
        checkpoint.path = given.to_owned();
        Ok(checkpoint)
    }

    /// Reads a checkpoint from memory; `name` counts where the bytes do not say what it is.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; a shard index cannot be read from memory.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self, CheckpointError> {
        let path = Path::new(name);
        if name.ends_with(".json") {
            return Err(Fail::File("shards are files beside their index".into()).at(path));
        }
        Self::from_source(path, Box::new(bytes))
    }

    fn from_source(path: &Path, source: Box<dyn Source>) -> Result<Self, CheckpointError> {
        match sniff::kind(path, source.as_ref()).map_err(|fail| fail.at(path))? {
            Kind::Safetensors => {
                let contents =
                    safetensors::open(source.as_ref(), 0).map_err(|fail| fail.at(path))?;
                Ok(Self::single(path, source, Format::Safetensors, contents))
            }
            Kind::Torch => {
                let contents = torch::open(source.as_ref(), 0).map_err(|fail| fail.at(path))?;
                Ok(Self::single(path, source, Format::Torch, contents))
            }
            Kind::ShardIndex => Self::sharded(path, source.as_ref()),
        }
    }

    fn single(path: &Path, source: Box<dyn Source>, format: Format, contents: Contents) -> Self {
        Self {
            path: path.to_owned(),
            format,
            files: vec![DataFile {
                path: path.to_owned(),
                source,
            }],
            contents,
        }
    }

    fn sharded(path: &Path, source: &dyn Source) -> Result<Self, CheckpointError> {
        let map = safetensors::index(source).map_err(|fail| fail.at(path))?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut names: Vec<&str> = map.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let mut files = Vec::new();
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        let mut metadata = BTreeMap::new();
        let mut problems = Vec::new();
        for name in &names {
            let shard = directory.join(name);
            let missing = |error: std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
            if std::fs::metadata(&shard).is_err_and(missing) {
                problems.push(format!("shard `{}` is missing", show(name.as_bytes())));
                continue;
            }
            let source = source::open(&shard).map_err(|fail| fail.at(&shard))?;
            sniff::kind(&shard, source.as_ref()).map_err(|fail| fail.at(&shard))?;
            let found =
                safetensors::open(source.as_ref(), files.len()).map_err(|fail| fail.at(&shard))?;
            files.push(DataFile {
                path: shard,
                source,
            });
            for (key, value) in found.metadata {
                metadata.entry(key).or_insert(value);
            }
            for (tensor, info) in found.tensors {
                let shown = show(tensor.as_bytes());
                match map.get(&tensor) {
                    Some(expected) if expected == name => {}
                    Some(expected) => problems.push(format!(
                        "tensor `{shown}`: expected in `{}`, found in `{}`",
                        show(expected.as_bytes()),
                        show(name.as_bytes())
                    )),
                    None => problems.push(format!(
                        "tensor `{shown}` in `{}` is not listed",
                        show(name.as_bytes())
                    )),
                }
                tensors.insert(tensor, info);
            }
        }
        if problems.is_empty() {
            let missing = map
                .iter()
                .filter(|(tensor, _)| !tensors.contains_key(*tensor));
            problems.extend(missing.map(|(tensor, file)| {
                format!(
                    "tensor `{}`: expected in `{}`, found nowhere",
                    show(tensor.as_bytes()),
                    show(file.as_bytes())
                )
            }));
        }
        if !problems.is_empty() {
            return Err(Fail::malformed("shard index", list(&problems)).at(path));
        }
        Ok(Self {
            path: path.to_owned(),
            format: Format::ShardedSafetensors,
            files,
            contents: Contents {
                tensors,
                metadata,
                ..Contents::default()
            },
        })
    }

    /// The path given to [`Checkpoint::open`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How the checkpoint is stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Every tensor, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.contents.tensors.values()
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.contents.tensors.get(name)
    }

    /// The `config` a training run saved beside its weights, as plain data.
    pub fn saved_config(&self) -> Option<&serde_json::Value> {
        self.contents.config.as_ref()
    }

    /// Which of several state dicts was taken, and what in it is no weight; one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.contents.notes
    }

    /// The `__metadata__` of safetensors files, the first shard's where two differ; empty for
    /// other formats.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.contents.metadata
    }

    /// The file that holds `tensor`.
    pub fn file_of(&self, tensor: &Tensor) -> &Path {
        &self.files[tensor.file].path
    }

    /// The folder of the file that holds the weights; `None` for what was read from memory.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        let file = &self.files.first()?.path;
        file.exists()
            .then(|| file.parent().unwrap_or(Path::new("")).to_owned())
    }

    /// Reads tensors.
    pub fn reader(&self, options: ReadOptions) -> Reader<'_> {
        Reader::new(self, options)
    }
}

/// Several problems as the lines of one message, the first hundred of them.
pub(crate) fn list(problems: &[String]) -> String {
    const MOST: usize = 100;
    let mut text = String::new();
    for problem in problems.iter().take(MOST) {
        text.push_str("\n  ");
        text.push_str(problem);
    }
    if problems.len() > MOST {
        text.push_str(&format!("\n  and {} more", problems.len() - MOST));
    }
    text
}
