//! RAT+ checkpoints to ONNX packages.
//!
//! - [`checkpoint`]: opens `.pth` and safetensors files and streams their tensors.
//! - [`official`]: the names of released checkpoints, the only place that knows them.
//! - [`resolve`]: sizes and patterns from checkpoint, configuration, options and path.
//! - [`synthetic`]: random weights of any size, for benchmarks.
//! - [`quantize`]: matrices as block-wise integers.
//! - [`plan`]: what an export would write, and whether there is room.
//! - [`package`]: writes the package; [`publish`]: beside the target, then in its place.
//!
//! ```no_run
//! use ratplus_exporter::{Checkpoint, CheckpointWeights, PackageOptions, ResolveOptions};
//! use ratplus_exporter::{package, resolve};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open("model.pth")?;
//! let model = resolve::resolve(&checkpoint, &ResolveOptions::default())?;
//! let mut weights = CheckpointWeights::new(&checkpoint, &model.sources, Default::default());
//! let options = PackageOptions::new(model.spec, package::DEFAULT_MAX_SEQ_LEN);
//! package::write("model".as_ref(), &options, &mut weights, &mut |_| ())?;
//! # Ok(())
//! # }
//! ```

pub mod checkpoint;
mod config;
pub mod official;
pub mod package;
pub mod plan;
pub mod publish;
pub mod quantize;
pub mod resolve;
pub mod synthetic;
mod weights_file;

pub use checkpoint::{Checkpoint, CheckpointError, ReadOptions};
pub use package::{CheckpointWeights, PackageOptions, Progress, WeightSource, Written};
pub use plan::ExportPlan;
// What options are made of.
pub use ratplus_graphs::{
    ElementType, Fallback, LogitsMode, ModelSpec, Precision, Quantization, SpecialTokens,
};
pub use resolve::{ResolveError, ResolveOptions, Resolved};
pub use synthetic::SyntheticWeights;

use std::path::{Path, PathBuf};

/// Why an export did not happen. Nothing was left behind, but where a variant says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// Options that cannot work.
    #[error("the export's options do not fit:\n  {}", .0.join("\n  "))]
    Options(Vec<String>),
    /// The target holds something else.
    #[error("{}: {problem}; give another directory to `target`, or remove it first", path.display())]
    Target {
        /// The path.
        path: PathBuf,
        /// Expected and found.
        problem: String,
    },
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The package is in its place, but what comes after that failed.
    #[error(
        "{}: the new package is in place, but cannot {action} {}: {source}; check the disk, and what is \
         left goes with the next export there",
        target.display(),
        path.display()
    )]
    Published {
        /// The package.
        target: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Neither package has the target's name.
    #[error(
        "cannot rename a package into place at {}: {source}; the one that was there lies whole in {}: \
         export again, which moves it back first, or move it yourself",
        target.display(),
        old.display()
    )]
    SetAside {
        /// Where nothing is now.
        target: PathBuf,
        /// The package that was there.
        old: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The old package could not be renamed, and removing it did not end.
    #[error(
        "cannot replace the package at {}: {source}; the new one lies whole in {}: export again, which \
         puts it in place first, or remove what is left of the one of before and move it yourself",
        target.display(),
        ready.display()
    )]
    HalfReplaced {
        /// Where some files of the old package may be.
        target: PathBuf,
        /// The new package.
        ready: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The target's file system is too full.
    #[error(
        "{}: expected room for {needed} bytes on its file system, found {free}; free some, or give a \
         directory elsewhere to `target`",
        path.display()
    )]
    Room {
        /// Where the package would be.
        path: PathBuf,
        /// Bytes of the package.
        needed: u64,
        /// Bytes that this user can write.
        free: u64,
    },
    /// A weight's bytes are not what its shape says, or its values cannot be stored as asked.
    #[error("tensor `{name}`: {problem}")]
    Weight {
        /// Name in the package.
        name: String,
        /// Expected and found.
        problem: String,
    },
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl ExportError {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }

    pub(crate) fn target(path: &Path, problem: &str) -> Self {
        Self::Target {
            path: path.into(),
            problem: problem.into(),
        }
    }
}
