//! What an export will write, before it writes anything.

use crate::ExportError;
use crate::package::PackageOptions;
use crate::publish::check_replaceable;
use prost::Message;
use ratplus_graphs::model::{self, StoredContent};
use ratplus_graphs::package::{self, FileInfo, Manifest};
use std::collections::BTreeMap;
use std::path::Path;

/// A package to be.
#[derive(Clone, Debug)]
pub struct ExportPlan {
    /// Its manifest, with every file's exact size; checksums are zeros.
    pub manifest: Manifest,
    /// Bytes of all files, the manifest included.
    pub bytes: u64,
    /// Bytes free on the target's file system for this user; `None` where it does not say.
    pub free: Option<u64>,
    /// By file, every engine's graphs.
    pub(crate) graphs: Vec<(String, Vec<u8>)>,
}

impl ExportPlan {
    /// What [`write`](crate::package::write) would put at `target`, down to the byte. A package that is
    /// there stays until the new one is whole, so both need room.
    ///
    /// # Errors
    /// Options are wrong, `target` holds something that is not a package, or the tokenizer cannot be
    /// read. Room is not checked: see [`check_room`](Self::check_room).
    pub fn new(target: &Path, options: &PackageOptions) -> Result<Self, ExportError> {
        options.validate()?;
        let target = std::path::absolute(target)
            .map_err(|error| ExportError::io("resolve", target, error))?;
        check_replaceable(&target)?;
        let mut manifest = options.manifest();
        let sized = |bytes| FileInfo {
            bytes,
            blake3: "0".repeat(64),
        };
        let mut graphs = Vec::new();
        for engine in &manifest.engines {
            for (&target, file) in &engine.files {
                // One graph may be every engine's.
                if graphs.iter().any(|(known, _)| known == file) {
                    continue;
                }
                let graph = model::build(&manifest.graph(engine, target));
                graphs.push((file.clone(), graph.encode_to_vec()));
            }
        }
        let sizes = graphs
            .iter()
            .map(|(file, graph)| (file, graph.len() as u64));
        let mut files: BTreeMap<_, _> = sizes
            .map(|(file, bytes)| (file.clone(), sized(bytes)))
            .collect();
        let (_, weights) = model::storage(&manifest.model, &manifest.shape(), &manifest.precision);
        files.insert(package::WEIGHTS_FILE.into(), sized(weights));
        if let Some(path) = &options.tokenizer {
            let metadata =
                std::fs::metadata(path).map_err(|error| ExportError::io("read", path, error))?;
            files.insert(package::TOKENIZER_FILE.into(), sized(metadata.len()));
        }
        if let Some(template) = &options.chat_template {
            files.insert(
                package::CHAT_TEMPLATE_FILE.into(),
                sized(template.len() as u64),
            );
        }
        manifest.files = files;
        let listed: u64 = manifest.files.values().map(|file| file.bytes).sum();
        Ok(Self {
            bytes: listed + manifest.to_json().len() as u64,
            free: free_bytes(&target),
            manifest,
            graphs,
        })
    }

    /// Everything in the weights file, and that file's length.
    pub(crate) fn contents(&self) -> (Vec<StoredContent>, u64) {
        let manifest = &self.manifest;
        model::stored_contents(&manifest.model, &manifest.shape(), &manifest.precision)
    }

    /// Refuses a package larger than the room there is for it.
    ///
    /// # Errors
    /// `target`'s file system has less than [`bytes`](Self::bytes) free.
    pub fn check_room(&self, target: &Path) -> Result<(), ExportError> {
        match self.free {
            Some(free) if free < self.bytes => Err(ExportError::Room {
                path: target.into(),
                needed: self.bytes,
                free,
            }),
            _ => Ok(()),
        }
    }
}

/// Bytes that this user can write where `target` is or would be.
fn free_bytes(target: &Path) -> Option<u64> {
    let folder = target.ancestors().find(|folder| folder.is_dir())?;
    let found = rustix::fs::statvfs(folder).ok()?;
    // File systems without a size of their own say 0 of 0.
    (found.f_blocks > 0).then(|| found.f_bavail.saturating_mul(found.f_frsize))
}
