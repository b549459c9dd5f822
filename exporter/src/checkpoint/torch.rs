//! `torch.save` files: a zip archive of one pickle and the storages it names.

use super::error::{Fail, show};
use super::pickle::{self, Pickle, TensorRef};
use super::reader::hash_range;
use super::source::{Source, read_vec};
use super::state;
use super::tensor::Tensor;
use super::zip::{self, Entry};
use super::{Contents, Record};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicBool;

/// Most elements a view may have beyond those its storage holds.
const MAX_EXPANDED: u64 = 1 << 24;

/// The number that the files of `torch.save` before PyTorch 1.6 start with, pickled.
const OLDER: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

fn bad<T>(part: &'static str, problem: impl std::fmt::Display) -> Result<T, Fail> {
    Err(Fail::malformed(part, problem))
}

struct Archive {
    entries: HashMap<String, Entry>,
    prefix: String,
}

impl Archive {
    fn open(source: &dyn Source) -> Result<Self, Fail> {
        let entries = zip::entries(source)?;
        let mut prefixes = entries
            .iter()
            .filter_map(|entry| entry.name.strip_suffix("/data.pkl"))
            .filter(|prefix| !prefix.contains('/'));
        let prefix = match (prefixes.next(), prefixes.next()) {
            (Some(prefix), None) => prefix.to_owned(),
            (None, _) => {
                return bad(
                    "zip archive",
                    "no record `NAME/data.pkl`; torch.save did not write this",
                );
            }
            (Some(first), Some(second)) => {
                return bad(
                    "zip archive",
                    format!(
                        "two pickles, `{}/data.pkl` and `{}/data.pkl`",
                        show(first.as_bytes()),
                        show(second.as_bytes())
                    ),
                );
            }
        };
        let entries = entries
            .into_iter()
            .map(|entry| (entry.name.clone(), entry))
            .collect();
        Ok(Self { entries, prefix })
    }

    fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(&format!("{}/{name}", self.prefix))
    }
}

/// Reads a small record and checks it.
fn small(source: &dyn Source, entry: &Entry, longest: u64) -> Result<Vec<u8>, Fail> {
    if entry.len > longest {
        return bad(
            "zip archive",
            format!(
                "record `{}` has {} bytes, expected at most {longest}",
                show(entry.name.as_bytes()),
                entry.len
            ),
        );
    }
    if entry.crc != 0 {
        let found = hash_range(source, entry.offset, entry.len, &mut Vec::new())?.finalize();
        if found != entry.crc {
            return Err(Fail::Checksum {
                record: entry.name.clone(),
                expected: entry.crc,
                found,
            });
        }
    }
    read_vec(source, entry.offset, entry.len as usize)
}

/// Reads everything but the tensors' elements.
pub(super) fn open(source: &dyn Source, file: usize) -> Result<Contents, Fail> {
    let head = read_vec(source, 0, source.len().min(32) as usize)?;
    if head.first() == Some(&0x80) {
        let older = head.windows(OLDER.len()).any(|window| window == OLDER);
        return Err(Fail::File(if older {
            "the format of torch.save before PyTorch 1.6; load it and save it again with a current PyTorch".into()
        } else {
            "a pickle that torch.save did not write; load it where it is trusted and save the state dict with torch.save".into()
        }));
    }
    let archive = Archive::open(source)?;
    if archive.get("constants.pkl").is_some() {
        return Err(Fail::File(
            "a TorchScript program; save the state dict of the model instead".into(),
        ));
    }
    if let Some(entry) = archive.get("byteorder") {
        let order = small(source, entry, 16)?;
        if order != b"little" {
            return bad(
                "zip archive",
                format!("expected byteorder `little`, found `{}`", show(&order)),
            );
        }
    }
    let Some(entry) = archive.get("data.pkl") else {
        return bad("zip archive", "no record `data.pkl`");
    };
    let bytes = small(source, entry, pickle::MAX_LEN)?;
    let pickle = pickle::parse(&bytes)?;
    let records = storages(&pickle, &archive, file)?;
    if entry.crc != 0 {
        check_data(source, &records)?;
    }
    for tensor in &pickle.tensors {
        check_view(&pickle, tensor)?;
    }
    let found = state::find(&pickle)?;
    let mut tensors = BTreeMap::new();
    for (name, tensor) in found.tensors {
        let view = &pickle.tensors[tensor];
        let tensor = Tensor {
            name: name.to_owned(),
            dtype: view.dtype,
            shape: view.shape.iter().map(|&dim| dim as usize).collect(),
            strides: view.strides.clone(),
            file,
            offset: records[view.storage].offset + view.offset * view.dtype.size() as u64,
            record: Some(view.storage),
        };
        if tensors.insert(name.to_owned(), tensor).is_some() {
            return bad(
                "pickle",
                format!("`{}` is in the state dict twice", show(name.as_bytes())),
            );
        }
    }
    Ok(Contents {
        tensors,
        records,
        config: found.config,
        notes: found.notes,
        metadata: BTreeMap::new(),
    })
}

/// The record of every storage, in the pickle's order.
fn storages(pickle: &Pickle<'_>, archive: &Archive, file: usize) -> Result<Vec<Record>, Fail> {
    let record = |storage: &pickle::StorageRef| {
        let key = pickle.text(storage.key);
        let shown = show(key.as_bytes());
        let Some(entry) = archive.get(&format!("data/{key}")) else {
            return bad(
                "zip archive",
                format!("no record `data/{shown}`, which the pickle names as a storage"),
            );
        };
        if storage.numel.checked_mul(storage.dtype.size() as u64) != Some(entry.len) {
            return bad(
                "zip archive",
                format!(
                    "storage `{shown}`: expected {} elements of {}, found {} bytes",
                    storage.numel, storage.dtype, entry.len
                ),
            );
        }
        Ok(Record {
            name: entry.name.clone(),
            file,
            offset: entry.offset,
            len: entry.len,
            crc: entry.crc,
            verified: AtomicBool::new(false),
        })
    };
    pickle.storages.iter().map(record).collect()
}

/// Refuses an archive whose writer computed checksums and whose storages have none and are zeros:
/// inside `torch.serialization.skip_data`, `torch.save` leaves room for data and writes none.
fn check_data(source: &dyn Source, records: &[Record]) -> Result<(), Fail> {
    const LOOK: u64 = 4096;
    let mut holding = records.iter().filter(|record| record.len > 0).peekable();
    if holding.peek().is_none() {
        return Ok(());
    }
    for record in holding {
        if record.crc != 0 {
            return Ok(());
        }
        let start = read_vec(source, record.offset, record.len.min(LOOK) as usize)?;
        if start.iter().any(|&byte| byte != 0) {
            return Ok(());
        }
    }
    Err(Fail::File(
        "its tensors have no data: torch.save wrote it inside torch.serialization.skip_data; save it again without".into(),
    ))
}

/// A view has to lie inside its storage.
fn check_view(pickle: &Pickle<'_>, tensor: &TensorRef) -> Result<(), Fail> {
    let storage = &pickle.storages[tensor.storage];
    let bytes = storage.numel * storage.dtype.size() as u64;
    let held = bytes / tensor.dtype.size() as u64;
    let key = show(pickle.text(storage.key).as_bytes());
    let describe = || {
        format!(
            "a tensor of size {:?}, stride {:?} and offset {} in storage `{key}` of {held} {} elements",
            tensor.shape, tensor.strides, tensor.offset, tensor.dtype
        )
    };
    let numel = if tensor.shape.contains(&0) {
        Some(0)
    } else {
        tensor
            .shape
            .iter()
            .copied()
            .try_fold(1u64, u64::checked_mul)
    };
    let last = tensor
        .shape
        .iter()
        .zip(&tensor.strides)
        .try_fold(tensor.offset, |at, (&dim, &stride)| {
            at.checked_add(dim.saturating_sub(1).checked_mul(stride)?)
        });
    let fits = match numel {
        Some(0) => tensor.offset <= held,
        _ => last.is_some_and(|last| last < held),
    };
    if !fits {
        return bad("pickle", format!("{}: it does not fit", describe()));
    }
    if numel.is_none_or(|numel| numel > held && numel > MAX_EXPANDED) {
        return bad(
            "pickle",
            format!("{}: an expanded view; save a contiguous copy", describe()),
        );
    }
    Ok(())
}
