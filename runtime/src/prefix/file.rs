//! Checkpoints in a file, from one run of a server to the next.
//!
//! | bytes | what |
//! |---|---|
//! | 16 | [`MAGIC`] |
//! | 8 | length of the head |
//! | | the head, JSON: package, backend, sizes of every checkpoint, parents first |
//! | | of every checkpoint its tokens (u32), logits (f32), and what they left |
//! | 32 | BLAKE3 of all before |
//!
//! Numbers are little-endian.

use super::{Checkpoint, PrefixCache};
use crate::backend::StateDelta;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 16] = b"ratplus prefix 1";

/// Bytes that a head may have.
const MAX_HEAD: u64 = 64 << 20;

/// A file of checkpoints that was not read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", .path.display())]
pub struct PrefixFileError {
    path: PathBuf,
    why: String,
}

/// What checkpoints belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The package's.
    pub fingerprint: String,
    /// Name of the backend.
    pub backend: String,
    /// Static lengths of the engines: they decide where chunks end.
    pub lengths: Vec<usize>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    #[serde(flatten)]
    owner: Owner,
    checkpoints: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    parent: Option<usize>,
    from: usize,
    to: usize,
    logits: usize,
    bytes: usize,
}

/// Sizes that checkpoints of a session have.
pub struct Sizes<'a> {
    /// Tokens of a sequence.
    pub max_seq_len: usize,
    /// Logits.
    pub vocab_size: usize,
    /// Bytes of what tokens leave.
    pub delta: &'a dyn Fn(std::ops::Range<usize>) -> usize,
}

/// Hashes what goes through it.
struct Hashed<T> {
    inner: T,
    hasher: blake3::Hasher,
    count: u64,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            hasher: blake3::Hasher::new(),
            count: 0,
        }
    }

    fn saw(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.count += bytes.len() as u64;
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.saw(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(bytes)?;
        self.saw(&bytes[..count]);
        Ok(count)
    }
}

fn bad(why: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

impl PrefixCache {
    /// Writes all checkpoints to a file, which is there when it is whole; one that was there is replaced.
    ///
    /// # Errors
    /// The folder cannot be written, or is full.
    pub fn save(&self, path: &Path, owner: &Owner) -> Result<(), PrefixFileError> {
        let failed = |error: io::Error| PrefixFileError {
            path: path.into(),
            why: format!("writing prefixes: {error}"),
        };
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")));
        let file = file.map_err(failed)?;
        self.write(file.as_file(), owner).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    fn write(&self, file: &File, owner: &Owner) -> io::Result<()> {
        let mut order: Vec<(usize, &Checkpoint)> = Vec::new();
        let nodes = self.nodes.iter().enumerate();
        order.extend(nodes.filter_map(|(index, node)| Some((index, node.as_ref()?))));
        // Parents first.
        order.sort_by_key(|(_, node)| node.delta.from);
        let places: HashMap<usize, usize> = order
            .iter()
            .enumerate()
            .map(|(place, (index, _))| (*index, place))
            .collect();
        let entries = order.iter().map(|(_, node)| Entry {
            parent: node.parent.and_then(|parent| places.get(&parent).copied()),
            from: node.delta.from,
            to: node.delta.to,
            logits: node.logits.len(),
            bytes: node.delta.bytes.len(),
        });
        let head = Head {
            owner: owner.clone(),
            checkpoints: entries.collect(),
        };
        let head = serde_json::to_vec(&head)?;
        let mut out = Hashed::new(BufWriter::new(file));
        out.write_all(MAGIC)?;
        out.write_all(&(head.len() as u64).to_le_bytes())?;
        out.write_all(&head)?;
        for (_, node) in order {
            for token in &node.tokens {
                out.write_all(&token.to_le_bytes())?;
            }
            for logit in &node.logits {
                out.write_all(&logit.to_le_bytes())?;
            }
            out.write_all(&node.delta.bytes)?;
        }
        let hash = out.hasher.finalize();
        out.inner.write_all(hash.as_bytes())?;
        out.inner.flush()
    }

    /// Reads a file of checkpoints into an empty cache, as many as fit; `None` where there is no such file.
    ///
    /// # Errors
    /// It is no such file, is of another package or backend, or damaged.
    pub fn load(
        budget: u64,
        path: &Path,
        owner: &Owner,
        sizes: &Sizes<'_>,
    ) -> Result<Option<Self>, PrefixFileError> {
        let failed = |error: io::Error| PrefixFileError {
            path: path.into(),
            why: format!(
                "reading prefixes: {error}; delete the file, or name another, to start without them"
            ),
        };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        let length = file.metadata().map_err(failed)?.len();
        let mut cache = Self::new(budget);
        cache.read(file, length, owner, sizes).map_err(failed)?;
        Ok(Some(cache))
    }

    fn read(
        &mut self,
        file: File,
        length: u64,
        owner: &Owner,
        sizes: &Sizes<'_>,
    ) -> io::Result<()> {
        let mut input = Hashed::new(BufReader::new(file));
        let mut magic = [0; 16];
        let mut head_len = [0; 8];
        let whole = input
            .read_exact(&mut magic)
            .and_then(|()| input.read_exact(&mut head_len));
        if whole.is_err() || &magic != MAGIC {
            return Err(bad("expected a file of prefixes, found something else"));
        }
        let head_len = u64::from_le_bytes(head_len);
        if head_len > MAX_HEAD.min(length) {
            return Err(bad(format!(
                "its head has {head_len} bytes, the file {length}"
            )));
        }
        let mut head = vec![0; head_len as usize];
        input.read_exact(&mut head)?;
        let head: Head = serde_json::from_slice(&head)?;
        if head.owner != *owner {
            let about =
                |owner: &Owner| format!("{} with chunks of {:?}", owner.backend, owner.lengths);
            let whose = match head.owner.fingerprint == owner.fingerprint {
                true => "its own",
                false => "another package's",
            };
            return Err(bad(format!(
                "expected those of this package on {}, found {whose} on {}",
                about(owner),
                about(&head.owner)
            )));
        }
        let mut places: Vec<Option<usize>> = Vec::new();
        for (place, entry) in head.checkpoints.iter().enumerate() {
            let node = read_one(&mut input, entry, length, sizes);
            let mut node = node.map_err(|error| bad(format!("checkpoint {place}: {error}")))?;
            let parent = entry.parent.map(|parent| places.get(parent).copied());
            let Some(parent) = parent.unwrap_or(Some(None)) else {
                return Err(bad(format!(
                    "checkpoint {place} comes before the one that it follows"
                )));
            };
            let follows = match (entry.parent, parent) {
                (None, _) => entry.from == 0,
                (Some(_), None) => true,
                (Some(_), Some(parent)) => self
                    .node(parent)
                    .is_some_and(|parent| parent.delta.to == entry.from),
            };
            if !follows {
                return Err(bad(format!("checkpoint {place} does not follow its own")));
            }
            // One that did not fit has none after it.
            let fits = entry.parent.is_none() == parent.is_none();
            node.parent = parent;
            let fits = fits && self.bytes + node.bytes() <= self.budget;
            if fits
                && self
                    .children(parent)
                    .is_some_and(|known| known.contains_key(&node.tokens))
            {
                return Err(bad(format!("checkpoint {place} is there twice")));
            }
            places.push(fits.then(|| self.place(node)));
        }
        let hash = input.hasher.finalize();
        let mut found = [0; 32];
        input.inner.read_exact(&mut found)?;
        match hash == blake3::Hash::from_bytes(found) && input.count + 32 == length {
            true => Ok(()),
            false => Err(bad(
                "its checksum is another than its bytes have: it is damaged",
            )),
        }
    }
}

/// Reads a checkpoint, once its sizes are those that it must have.
fn read_one(
    input: &mut Hashed<BufReader<File>>,
    entry: &Entry,
    length: u64,
    sizes: &Sizes<'_>,
) -> io::Result<Checkpoint> {
    let Entry { from, to, .. } = *entry;
    if from >= to || to > sizes.max_seq_len {
        return Err(bad(format!(
            "tokens {from} to {to} of {}",
            sizes.max_seq_len
        )));
    }
    let expected = (sizes.vocab_size, (sizes.delta)(from..to));
    if (entry.logits, entry.bytes) != expected {
        let found = (entry.logits, entry.bytes);
        return Err(bad(format!(
            "expected {expected:?} logits and bytes, found {found:?}"
        )));
    }
    let size = 4 * (to - from + entry.logits) as u64 + entry.bytes as u64;
    if size > length - input.count.min(length) {
        return Err(bad("the file ends early"));
    }
    let mut words = vec![0; 4 * (to - from + entry.logits)];
    input.read_exact(&mut words)?;
    let (tokens, logits) = words.split_at(4 * (to - from));
    let tokens: Box<[u32]> = tokens
        .as_chunks()
        .0
        .iter()
        .map(|b| u32::from_le_bytes(*b))
        .collect();
    let logits = logits
        .as_chunks()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    let mut bytes = vec![0; entry.bytes];
    input.read_exact(&mut bytes)?;
    Ok(Checkpoint {
        parent: None,
        tokens,
        children: HashMap::new(),
        delta: StateDelta { from, to, bytes },
        logits,
        used: 0,
    })
}
