//! The files of a package: places, sizes, checksums.

use super::{MAX_MODEL_BYTES, OpenOptions};
use crate::raw;
use memmap2::Mmap;
use ratplus_graphs::none_wrong;
use ratplus_graphs::package::{
    FileInfo, MANIFEST_FILE, MAX_CHAT_TEMPLATE_BYTES, MAX_TOKENIZER_BYTES, Manifest, WEIGHTS_FILE,
};
use ratplus_graphs::staging::{self, Aside};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const ADVICE: &str = "copy or export the package again";

/// A package's folder. A file may be a symbolic link, as in a model hub's cache, where it leads to
/// the folder itself or to the folder that holds the real manifest.
pub(super) struct Files {
    dir: PathBuf,
    roots: Vec<PathBuf>,
    /// What to do about a damaged file.
    advice: String,
}

/// What [`Files::load`] read.
pub(super) struct Contents {
    /// ONNX files by name.
    pub models: BTreeMap<String, Vec<u8>>,
    pub weights: Mmap,
    /// Where the weights really lie.
    pub weights_path: PathBuf,
    pub tokenizer: Option<Vec<u8>>,
    pub chat_template: Option<String>,
}

enum Loaded {
    Bytes(Vec<u8>),
    Map(Mmap),
    Checked,
}

impl Files {
    pub fn new(dir: &Path) -> Result<Self, String> {
        let aside = staging::set_aside(dir);
        if !dir.is_dir() || aside.is_some() {
            let found = "expected a folder that `ratplus export` wrote, found none";
            return Err(match aside {
                None => format!("{found}; check the path"),
                Some(Aside::Old(old)) => format!(
                    "{found}: an export is replacing it, or was cut off while it did, and the package of \
                     before lies whole in `{}`; if none runs, export again, which moves it back first, \
                     or move it yourself",
                    old.display()
                ),
                Some(Aside::New(new)) => format!(
                    "{found}: an export is replacing it, or was cut off while it did, and the new package \
                     lies whole in `{}`; if none runs, export again, which puts it in place first, or \
                     remove what is left of the one of before and move it yourself",
                    new.display()
                ),
            });
        }
        let canonical = |path: &Path| {
            path.canonicalize().map_err(|error| {
                let file = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                format!("{file}: {error}; expected a folder that `ratplus export` wrote")
            })
        };
        let manifest = canonical(&dir.join(MANIFEST_FILE))?;
        let mut roots = vec![canonical(dir)?];
        roots.extend(manifest.parent().map(Path::to_path_buf));
        Ok(Self {
            dir: dir.into(),
            roots,
            advice: ADVICE.into(),
        })
    }

    /// The same files, with other words for what to do about a damaged one.
    pub fn advising(self, advice: String) -> Self {
        Self { advice, ..self }
    }

    /// Maps a file whose size and checksum are as they were written down.
    pub fn map_checked(&self, name: &str, info: &FileInfo) -> Result<Mmap, String> {
        let (file, size) = self.open(name)?;
        self.check_size(name, info, size)?;
        let map = raw::map_file(&file).map_err(|error| format!("{name}: {error}"))?;
        self.check_content(name, info, &map)?;
        Ok(map)
    }

    fn check_size(&self, name: &str, info: &FileInfo, found: u64) -> Result<(), String> {
        if found == info.bytes {
            return Ok(());
        }
        Err(format!(
            "{name}: expected {} bytes, found {found}; {}",
            info.bytes, self.advice
        ))
    }

    fn check_content(&self, name: &str, info: &FileInfo, content: &[u8]) -> Result<(), String> {
        let found = FileInfo::of(content).blake3;
        if found == info.blake3 {
            return Ok(());
        }
        Err(format!(
            "{name}: expected BLAKE3 {}, found {found}; {}",
            info.blake3, self.advice
        ))
    }

    /// The regular file that `name` leads to.
    fn locate(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.dir.join(name);
        let real = path
            .canonicalize()
            .map_err(|error| format!("{name}: {error}; {}", self.advice))?;
        if !self.roots.iter().any(|root| real.starts_with(root)) {
            return Err(format!(
                "{name}: leads out of the package to `{}`; put the file into the folder",
                real.display()
            ));
        }
        // Before opening: a pipe would block.
        let metadata = real
            .metadata()
            .map_err(|error| format!("{name}: {error}"))?;
        if !metadata.is_file() {
            return Err(format!("{name}: expected a regular file; {}", self.advice));
        }
        Ok(real)
    }

    /// Opens a file of the package and returns its size.
    fn open(&self, name: &str) -> Result<(File, u64), String> {
        let real = self.locate(name)?;
        let file = File::open(&real).map_err(|error| format!("{name}: {error}"))?;
        let size = file
            .metadata()
            .map_err(|error| format!("{name}: {error}"))?
            .len();
        Ok((file, size))
    }

    pub fn read_at_most(&self, name: &str, most: u64) -> Result<Vec<u8>, String> {
        let (file, size) = self.open(name)?;
        read(name, file, size, most)
    }

    /// Reads, or maps, every file of the manifest and compares sizes and checksums; all files at
    /// once, because hashing the weights is the longest part.
    pub fn load(
        &self,
        manifest: &Manifest,
        options: &OpenOptions,
    ) -> Result<Contents, Vec<String>> {
        let engines = manifest.engines.iter();
        let graphs: BTreeSet<_> = engines
            .flat_map(|engine| engine.files.values())
            .map(String::as_str)
            .collect();
        let limit = |name: &str| {
            if graphs.contains(name) {
                Some(MAX_MODEL_BYTES)
            } else if manifest.tokenizer.as_deref() == Some(name) {
                Some(MAX_TOKENIZER_BYTES)
            } else if manifest.chat_template.as_deref() == Some(name) {
                Some(MAX_CHAT_TEMPLATE_BYTES)
            } else {
                None
            }
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let tasks: Vec<_> = manifest
                .files
                .iter()
                .map(|(name, info)| {
                    let limit = limit(name);
                    (
                        name,
                        scope.spawn(move || self.load_one(name, info, limit, options)),
                    )
                })
                .collect();
            tasks
                .into_iter()
                .map(|(name, task)| {
                    let failed = |_| Err(format!("{name}: the check failed unexpectedly"));
                    (name.as_str(), task.join().unwrap_or_else(failed))
                })
                .collect()
        });
        let (mut problems, mut models) = (Vec::new(), BTreeMap::new());
        let (mut tokenizer, mut chat_template, mut weights) = (None, None, None);
        for (name, result) in results {
            match result {
                Ok(Loaded::Bytes(content)) if graphs.contains(name) => {
                    models.insert(name.to_owned(), content);
                }
                Ok(Loaded::Bytes(content)) if manifest.tokenizer.as_deref() == Some(name) => {
                    tokenizer = Some(content);
                }
                Ok(Loaded::Bytes(content)) => match String::from_utf8(content) {
                    Ok(text) => chat_template = Some(text),
                    Err(error) => problems.push(format!("{name}: expected UTF-8: {error}")),
                },
                Ok(Loaded::Map(map)) => weights = Some(map),
                Ok(Loaded::Checked) => {}
                Err(problem) => problems.push(problem),
            }
        }
        none_wrong(problems)?;
        // The manifest's own check has every needed name in `files`.
        let weights = weights.ok_or_else(|| vec![format!("{WEIGHTS_FILE}: missing; {ADVICE}")])?;
        let weights_path = self.locate(WEIGHTS_FILE).map_err(|problem| vec![problem])?;
        Ok(Contents {
            models,
            weights,
            weights_path,
            tokenizer,
            chat_template,
        })
    }

    fn load_one(
        &self,
        name: &str,
        info: &FileInfo,
        limit: Option<u64>,
        options: &OpenOptions,
    ) -> Result<Loaded, String> {
        let (file, size) = self.open(name)?;
        self.check_size(name, info, size)?;
        let loaded = match limit {
            Some(most) => Loaded::Bytes(read(name, file, size, most)?),
            None if name == WEIGHTS_FILE || !options.skip_checksum => {
                Loaded::Map(raw::map_file(&file).map_err(|error| format!("{name}: {error}"))?)
            }
            None => Loaded::Checked,
        };
        if !options.skip_checksum {
            let content: &[u8] = match &loaded {
                Loaded::Bytes(bytes) => bytes,
                Loaded::Map(map) => map,
                Loaded::Checked => return Ok(loaded),
            };
            self.check_content(name, info, content)?;
        }
        Ok(match loaded {
            Loaded::Map(_) if name != WEIGHTS_FILE => Loaded::Checked,
            loaded => loaded,
        })
    }
}

fn read(name: &str, file: File, size: u64, most: u64) -> Result<Vec<u8>, String> {
    if size > most {
        return Err(format!(
            "{name}: expected at most {most} bytes, found {size}"
        ));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // One byte more than announced shows a file that grew.
    file.take(size + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("{name}: {error}"))?;
    if bytes.len() as u64 != size {
        return Err(format!("{name}: changed while it was read; try again"));
    }
    Ok(bytes)
}
