//! A file system that keeps through a power loss what was synced, and of the rest anything.
//!
//! - Bytes of a file are certain once it was synced after they were written. Of what was written
//!   later, each block may be there or not, and the length may be any on the way.
//! - An entry of a folder (made, renamed, removed) is certain once the folder was synced after
//!   that; syncing a file says nothing about its entry. A renaming changes all its entries or none,
//!   and is certain once the folder of its second name was synced.
//! - Of the changes of entries that are not certain, a file system with a journal has the first few
//!   ([`History::in_order`]), another one any of them ([`History::in_any_order`]) where those of one
//!   entry keep their order.

use super::trace::Event;
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub type Bytes = Arc<Vec<u8>>;

/// What is below a root, by path from it on; a folder has no bytes.
pub type Disk = BTreeMap<PathBuf, Option<Bytes>>;

/// A file or folder, whatever its names.
type Id = usize;

const ROOT: Id = 0;

/// A name in a folder.
type Slot = (Id, String);

/// A change of one name, or of two at once: the last of them is whose sync counts.
#[derive(Debug)]
struct Change {
    /// What happened before counts one less.
    event: usize,
    edits: Vec<(Slot, Option<Id>)>,
    /// The first sync of its folder.
    synced: Option<usize>,
}

/// A file's bytes after each event that changed them, and when it was synced.
#[derive(Debug)]
struct Contents {
    versions: Vec<(usize, Bytes)>,
    synced: Vec<usize>,
}

/// What happened below a root. A point in it is a number of events: all up to there happened.
#[derive(Debug)]
pub struct History {
    first: BTreeMap<Slot, Id>,
    /// Names as programs see them, after the last event.
    last: BTreeMap<Slot, Id>,
    files: BTreeMap<Id, Contents>,
    changes: Vec<Change>,
    ids: usize,
    /// Number of events.
    pub end: usize,
}

impl History {
    /// Of `events` where `disk` was there for certain. An event that cannot have happened is an
    /// error.
    pub fn new(disk: &Disk, events: &[Event]) -> Result<Self, String> {
        let mut history = Self {
            first: BTreeMap::new(),
            last: BTreeMap::new(),
            files: BTreeMap::new(),
            changes: Vec::new(),
            ids: 1,
            end: 0,
        };
        for (path, bytes) in disk {
            let slot = history.slot(path)?;
            let id = history.new_id(bytes.as_ref());
            history.last.insert(slot, id);
        }
        history.first = history.last.clone();
        for event in events {
            history.end += 1;
            let done = history.replay(event);
            done.map_err(|problem| format!("event {}, {event:?}: {problem}", history.end))?;
        }
        Ok(history)
    }

    fn new_id(&mut self, bytes: Option<&Bytes>) -> Id {
        let id = self.ids;
        self.ids += 1;
        if let Some(bytes) = bytes {
            let contents = Contents {
                versions: vec![(self.end, bytes.clone())],
                synced: Vec::new(),
            };
            self.files.insert(id, contents);
        }
        id
    }

    fn find(&self, path: &Path) -> Result<Id, String> {
        path.components().try_fold(ROOT, |folder, name| {
            let name = name.as_os_str().to_str().ok_or("a strange name")?;
            let found = self.last.get(&(folder, name.to_owned()));
            found.copied().ok_or(format!("there is no {path:?}"))
        })
    }

    fn slot(&self, path: &Path) -> Result<Slot, String> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err("the root has no name".into());
        };
        let folder = self.find(parent)?;
        match self.files.contains_key(&folder) {
            true => Err(format!("{parent:?} is a file")),
            false => Ok((folder, name.to_str().ok_or("a strange name")?.to_owned())),
        }
    }

    fn change(&mut self, edits: Vec<(Slot, Option<Id>)>) {
        edit(&mut self.last, &edits);
        self.changes.push(Change {
            event: self.end,
            edits,
            synced: None,
        });
    }

    fn write(&mut self, id: Id, change: impl FnOnce(&mut Vec<u8>)) -> Result<(), String> {
        let versions = &mut self.files.get_mut(&id).ok_or("a folder")?.versions;
        let mut bytes = versions.last().ok_or("a file with no version")?.1.to_vec();
        change(&mut bytes);
        versions.push((self.end, Arc::new(bytes)));
        Ok(())
    }

    fn replay(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::MakeFolder(path) => {
                let slot = self.slot(path)?;
                if self.last.contains_key(&slot) {
                    return Err("it is there already".into());
                }
                let id = self.new_id(None);
                self.change(vec![(slot, Some(id))]);
            }
            Event::Open {
                path,
                makes,
                empties,
            } => {
                let slot = self.slot(path)?;
                match self.last.get(&slot).copied() {
                    Some(id) if *empties => self.write(id, Vec::clear)?,
                    Some(_) => (),
                    None if *makes => {
                        let id = self.new_id(Some(&Bytes::default()));
                        self.change(vec![(slot, Some(id))]);
                    }
                    None => return Err("it was opened, and is not there".into()),
                }
            }
            Event::Write {
                path,
                offset,
                bytes,
            } => self.write(self.find(path)?, |file| {
                let end = offset + bytes.len();
                file.resize(file.len().max(end), 0);
                file[*offset..end].copy_from_slice(bytes);
            })?,
            Event::Truncate(path, size) => {
                self.write(self.find(path)?, |file| file.resize(*size, 0))?;
            }
            Event::Rename(from, to) | Event::Exchange(from, to) => {
                let id = self.find(from)?;
                let other = match event {
                    Event::Exchange(..) => Some(self.find(to)?),
                    _ => None,
                };
                let (from, to) = (self.slot(from)?, self.slot(to)?);
                if from != to {
                    self.change(vec![(from, other), (to, Some(id))]);
                }
            }
            Event::Unlink(path) | Event::RemoveFolder(path) => {
                let id = self.find(path)?;
                let is_file = self.files.contains_key(&id);
                if is_file != matches!(event, Event::Unlink(_)) {
                    return Err("a file where a folder was removed, or the other way round".into());
                }
                if self.last.keys().any(|(folder, _)| *folder == id) {
                    return Err("it is not empty".into());
                }
                self.change(vec![(self.slot(path)?, None)]);
            }
            Event::Sync(path) | Event::SyncData(path) => {
                let id = self.find(path)?;
                if let Some(contents) = self.files.get_mut(&id) {
                    contents.synced.push(self.end);
                } else if matches!(event, Event::SyncData(_)) {
                    return Err("fdatasync of a folder".into());
                } else {
                    for change in &mut self.changes {
                        let here = change.edits.last().map(|((folder, _), _)| *folder);
                        if here == Some(id) && change.synced.is_none() {
                            change.synced = Some(self.end);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The changes that had happened at `point`.
    fn happened(&self, point: usize) -> &[Change] {
        let count = self.changes.partition_point(|change| change.event <= point);
        &self.changes[..count]
    }

    /// Which changes are certain at `point`.
    pub fn certain(&self, point: usize) -> Vec<bool> {
        let synced = |change: &Change| change.synced.is_some_and(|event| event <= point);
        let kept = self.happened(point).iter().map(synced).collect();
        self.with_earlier(kept)
    }

    /// All changes up to `point`.
    pub fn all(&self, point: usize) -> Vec<bool> {
        vec![true; self.happened(point).len()]
    }

    /// The certain changes, and all before them.
    pub fn least_in_order(&self, point: usize) -> Vec<bool> {
        let mut kept = self.certain(point);
        let last = kept.iter().rposition(|kept| *kept);
        kept[..last.unwrap_or(0)].fill(true);
        kept
    }

    /// [`least_in_order`](Self::least_in_order), and some in the order they happened.
    pub fn in_order(&self, point: usize, rng: &mut impl Rng) -> Vec<bool> {
        let mut kept = self.least_in_order(point);
        let least = kept.iter().filter(|kept| **kept).count();
        // Files that are being written have a name only where nearly all changes are there.
        let more = match rng.random_bool(0.5) {
            true => kept.len(),
            false => rng.random_range(least..=kept.len()),
        };
        kept[..more].fill(true);
        kept
    }

    /// The certain changes and any others.
    pub fn in_any_order(&self, point: usize, rng: &mut impl Rng) -> Vec<bool> {
        // Often nearly all or nearly none.
        let share = [0.1, 0.5, 0.9][rng.random_range(0..3)];
        let certain = self.certain(point).into_iter();
        self.with_earlier(certain.map(|kept| kept || rng.random_bool(share)).collect())
    }

    /// What was kept, and what happened before to the same names.
    fn with_earlier(&self, mut kept: Vec<bool>) -> Vec<bool> {
        let mut names = BTreeSet::new();
        let happened = &self.changes[..kept.len()];
        for (change, kept) in happened.iter().zip(&mut kept).rev() {
            *kept |= change.edits.iter().any(|(slot, _)| names.contains(slot));
            if *kept {
                names.extend(change.edits.iter().map(|(slot, _)| slot.clone()));
            }
        }
        kept
    }

    /// What a power loss at `point` leaves where of the changes those of `kept` are on the disk;
    /// `choose` gets what a file had when it was synced and after each later write.
    pub fn disk(
        &self,
        point: usize,
        kept: &[bool],
        choose: &mut dyn FnMut(&[Bytes]) -> Bytes,
    ) -> Disk {
        let changes = self.happened(point);
        assert_eq!(changes.len(), kept.len());
        let mut names = self.first.clone();
        for (change, _) in changes.iter().zip(kept).filter(|(_, kept)| **kept) {
            edit(&mut names, &change.edits);
        }
        let mut disk = Disk::new();
        let mut open = vec![(ROOT, PathBuf::new())];
        let mut seen = BTreeSet::new();
        while let Some((folder, path)) = open.pop() {
            let from = (folder, String::new());
            for ((_, name), id) in names.range(from..(folder + 1, String::new())) {
                assert!(seen.insert(*id), "{path:?}/{name} has another name, too");
                let path = path.join(name);
                let bytes = self.files.get(id).map(|file| match file.at(point) {
                    [(_, only)] => only.clone(),
                    versions => {
                        let versions: Vec<_> = versions.iter().map(|(_, b)| b.clone()).collect();
                        choose(&versions)
                    }
                });
                if bytes.is_none() {
                    open.push((*id, path.clone()));
                }
                disk.insert(path, bytes);
            }
        }
        disk
    }

    /// Events whose changes are not among `kept`.
    pub fn without(&self, kept: &[bool]) -> Vec<usize> {
        let changes = self.changes.iter().zip(kept);
        let lost = changes.filter(|(_, kept)| !**kept);
        lost.map(|(change, _)| change.event).collect()
    }

    /// As programs see it at `point`.
    pub fn seen(&self, point: usize) -> Disk {
        self.disk(point, &self.all(point), &mut |versions| {
            versions[versions.len() - 1].clone()
        })
    }
}

impl Contents {
    /// What was synced last before `point`, and what was written from there on.
    fn at(&self, point: usize) -> &[(usize, Bytes)] {
        let until = |event: usize| self.versions.partition_point(|(made, _)| *made <= event);
        let synced = self.synced.iter().rfind(|synced| **synced <= point);
        // Before its first sync, a file has what it had when it was made.
        let least = synced.map_or(1, |synced| until(*synced));
        &self.versions[least - 1..until(point)]
    }
}

fn edit(names: &mut BTreeMap<Slot, Id>, edits: &[(Slot, Option<Id>)]) {
    for (slot, id) in edits {
        match id {
            Some(id) => names.insert(slot.clone(), *id),
            None => names.remove(slot),
        };
    }
}

/// Every block as some of the versions have it, in a length that may have been.
pub fn torn(versions: &[Bytes], block: usize, rng: &mut impl Rng) -> Bytes {
    let lengths = versions.iter().map(|version| version.len());
    let (least, most) = (lengths.clone().min(), lengths.max());
    let (least, most) = (least.unwrap_or(0), most.unwrap_or(0));
    let length = match rng.random_bool(0.5) {
        true => versions[rng.random_range(0..versions.len())].len(),
        false => rng.random_range(least..=most),
    };
    let newest = [0.05, 0.5, 0.95][rng.random_range(0..3)];
    let mut bytes = vec![0; length];
    for (index, into) in bytes.chunks_mut(block).enumerate() {
        let version = match rng.random_bool(newest) {
            true => versions.len() - 1,
            false => rng.random_range(0..versions.len()),
        };
        let from = versions[version].chunks(block).nth(index).unwrap_or(&[]);
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
    }
    Arc::new(bytes)
}

/// The newest length, and no byte that was written since the last sync.
pub fn zeros(versions: &[Bytes]) -> Bytes {
    let length = versions[versions.len() - 1].len();
    let mut bytes = versions[0].to_vec();
    bytes.resize(length, 0);
    Arc::new(bytes)
}
