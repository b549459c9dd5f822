//! Opens a package and checks it before anything runs it.

mod files;
mod guard;
mod plans;

#[doc(hidden)]
pub use guard::decode as decode_model;
pub use plans::{OpenedPlan, PlanTarget};

use crate::backend::BackendError;
use memmap2::Mmap;
use prost::Message;
use ratplus_graphs::model::{StoredTensor, storage};
use ratplus_graphs::none_wrong;
use ratplus_graphs::onnx::{ModelProto, ValueInfoProto};
use ratplus_graphs::ops::TensorType;
use ratplus_graphs::package::{
    Engine, MANIFEST_FILE, Manifest, ManifestErrors, Target, WEIGHTS_FILE,
};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest manifest that is read.
pub const MAX_MANIFEST_BYTES: u64 = 64 << 20;
/// Longest ONNX file that is read: weights are beside it.
pub const MAX_MODEL_BYTES: u64 = 64 << 20;

/// Everything wrong with a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageError {
    /// The package.
    pub dir: PathBuf,
    /// Each with the file, what was expected, what was found and what to do.
    pub problems: Vec<String>,
}

impl fmt::Display for PackageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "package `{}` cannot be used:", self.dir.display())?;
        self.problems
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for PackageError {}

/// How a package is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Compares sizes only. For a package that was checked before: weights of many gigabytes take
    /// seconds to hash.
    pub skip_checksum: bool,
}

/// An opened and checked package.
///
/// ```
/// use ratplus_runtime::Package;
/// let error = Package::open("no/such/folder").unwrap_err();
/// assert_eq!(error.problems.len(), 1, "{error}");
/// ```
#[derive(Debug)]
pub struct Package {
    dir: PathBuf,
    manifest: Arc<Manifest>,
    /// Checked, by file: one may be several engines'. They take a tenth of what they do decoded.
    models: BTreeMap<String, Vec<u8>>,
    storage: Vec<StoredTensor>,
    weights: Arc<Mmap>,
    weights_path: PathBuf,
    tokenizer: Option<Vec<u8>>,
    chat_template: Option<String>,
}

/// An engine, built for a target.
#[derive(Clone, Debug)]
pub struct EngineGraph<'a> {
    /// What it is.
    pub engine: &'a Engine,
    /// Its file in the package.
    pub file: &'a str,
    /// What the file holds.
    pub model: ModelProto,
}

impl Package {
    /// Opens the package in `dir` and checks every file.
    ///
    /// The weights are mapped, not read into memory: files of a package must not be changed in
    /// place while it is open (the exporter replaces them by rename).
    ///
    /// # Errors
    /// All problems at once.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, PackageError> {
        Self::open_with(dir, &OpenOptions::default())
    }

    /// [`open`](Self::open) with options.
    ///
    /// # Errors
    /// All problems at once.
    pub fn open_with(dir: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, PackageError> {
        let dir = dir.as_ref();
        let fail = |problems| PackageError {
            dir: dir.into(),
            problems,
        };
        let files = files::Files::new(dir).map_err(|problem| fail(vec![problem]))?;
        let json = files
            .read_at_most(MANIFEST_FILE, MAX_MANIFEST_BYTES)
            .map_err(|problem| fail(vec![problem]))?;
        let manifest = Manifest::parse(&json).map_err(|ManifestErrors(problems)| {
            let problems = problems.into_iter();
            fail(
                problems
                    .map(|problem| format!("{MANIFEST_FILE}: {problem}"))
                    .collect(),
            )
        })?;
        let contents = files.load(&manifest, options).map_err(fail)?;
        let (storage, weights_bytes) =
            storage(&manifest.model, &manifest.shape(), &manifest.precision);
        let mut problems = Vec::new();
        if contents.weights.len() as u64 != weights_bytes {
            problems.push(format!(
                "{WEIGHTS_FILE}: expected {weights_bytes} bytes for the model's sizes, found {}; export \
                 the package again",
                contents.weights.len()
            ));
        }
        let mut models = BTreeMap::new();
        let (engines, mut unread) = (manifest.engines.iter(), contents.models);
        for (engine, (&target, file)) in
            engines.flat_map(|engine| engine.files.iter().map(move |file| (engine, file)))
        {
            let Some(bytes) = unread.remove(file) else {
                continue;
            };
            match guard::decode(&manifest, engine, target, &storage, &bytes) {
                Ok(model) => drop(models.insert(file.clone(), model.encode_to_vec())),
                Err(found) => {
                    let found = found.into_iter();
                    problems.extend(found.map(|problem| format!("{file}: {problem}")));
                }
            }
        }
        none_wrong(problems).map_err(fail)?;
        Ok(Self {
            dir: dir.into(),
            manifest: Arc::new(manifest),
            models,
            storage,
            weights: Arc::new(contents.weights),
            weights_path: contents.weights_path,
            tokenizer: contents.tokenizer,
            chat_template: contents.chat_template,
        })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn shared_manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The checked graph for `target` of the manifest's engine `index`.
    ///
    /// # Errors
    /// There is none.
    pub fn graph(&self, index: usize, target: Target) -> Result<EngineGraph<'_>, BackendError> {
        let found = self.manifest.engines.get(index).and_then(|engine| {
            let file = engine.file(target)?;
            let model = ModelProto::decode(self.models.get(file)?.as_slice()).ok()?;
            Some(EngineGraph {
                engine,
                file,
                model,
            })
        });
        found.ok_or_else(|| BackendError::Unavailable {
            backend: target.to_string(),
            reason: format!("the package has no graph of its engine {index} for it"),
        })
    }

    /// Every tensor of the weights file.
    pub fn stored_tensors(&self) -> &[StoredTensor] {
        &self.storage
    }

    /// The weights file.
    pub fn weights(&self) -> &[u8] {
        &self.weights
    }

    /// The weights file itself, links resolved.
    pub fn weights_path(&self) -> &Path {
        &self.weights_path
    }

    /// The bytes of a checked graph for a runtime that is given the folder of
    /// [`weights_path`](Self::weights_path): they name the weights' real file, which in a model hub's
    /// cache is another than the package's, because runtimes refuse links that lead out of that
    /// folder. `taps` are outputs too.
    pub fn encode(&self, model: &ModelProto, taps: &[(String, TensorType)]) -> Vec<u8> {
        let mut model = model.clone();
        let name = self.weights_path.file_name().unwrap_or_default();
        if let Some(graph) = &mut model.graph {
            let tensors = graph.initializer.iter_mut();
            for entry in tensors.flat_map(|tensor| &mut tensor.external_data) {
                if entry.key == "location" {
                    entry.value = name.to_string_lossy().into_owned();
                }
            }
            let taps = taps.iter();
            graph
                .output
                .extend(taps.map(|(name, tensor)| ValueInfoProto::new(name, tensor)));
        }
        model.encode_to_vec()
    }

    pub(crate) fn weights_map(&self) -> &Arc<Mmap> {
        &self.weights
    }

    /// The checked bytes of the tokenizer, where the package has one.
    pub fn tokenizer_json(&self) -> Option<&[u8]> {
        self.tokenizer.as_deref()
    }

    /// The Jinja template of conversations, where the package has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }
}
