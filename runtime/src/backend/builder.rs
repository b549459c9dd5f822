//! Opens sessions.

use super::inspection::Inspection;
use super::{
    BackendError, BackendKind, CudaOptions, OrtOptions, Session, TensorRtOptions, driver, session,
};
use crate::engine::Limits;
use crate::package::{EngineGraph, Package};
use crate::raw::EMULATED;
use ratplus_graphs::model::taps;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::ops::TensorType;
use ratplus_graphs::package::{Engine, Fallback, Manifest, Target};

/// How a session of a package is opened; see [`Session::builder`].
///
/// ```no_run
/// use ratplus_runtime::{BackendKind, Package, Session};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let package = Package::open("model")?;
/// // Engines of other lengths would take memory for nothing where only single tokens run.
/// let mut sessions = Session::builder(&package).threads(4).engines([1]);
/// sessions.ort.passive_wait = true;
/// let session = sessions.open(BackendKind::OrtCpu)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SessionBuilder<'a> {
    pub(super) package: &'a Package,
    pub(super) threads: Option<usize>,
    engines: Option<Vec<usize>>,
    pub(super) up_front: bool,
    /// For the backends of ONNX Runtime.
    pub ort: OrtOptions,
    /// For backends on NVIDIA GPUs.
    pub cuda: CudaOptions,
    /// For TensorRT and TensorRT for RTX.
    pub tensorrt: TensorRtOptions,
    pub(super) inspection: Inspection,
}

impl<'a> SessionBuilder<'a> {
    pub(super) fn new(package: &'a Package) -> Self {
        Self {
            package,
            threads: None,
            engines: None,
            up_front: false,
            ort: OrtOptions::default(),
            cuda: CudaOptions::default(),
            tensorrt: TensorRtOptions::default(),
            inspection: Inspection::default(),
        }
    }

    /// The package.
    pub fn package(&self) -> &'a Package {
        self.package
    }

    /// Threads of each operator, the backend's choice unless given. tract runs on one.
    pub fn threads(mut self, threads: impl Into<Option<usize>>) -> Self {
        self.threads = threads.into();
        self
    }

    /// Opens engines of these static lengths only.
    pub fn engines(mut self, lengths: impl IntoIterator<Item = usize>) -> Self {
        self.engines = Some(lengths.into_iter().collect());
        self
    }

    /// Opens every engine before anything runs, so that no request waits for one: for servers.
    pub fn up_front(mut self) -> Self {
        self.up_front = true;
        self
    }

    /// What is to be seen of the session besides its logits.
    #[doc(hidden)]
    pub fn inspect(mut self, inspection: Inspection) -> Self {
        self.inspection = inspection;
        self
    }

    /// Opens the engines, and runs each that decodes once on idle slots, on a GPU every one. ONNX
    /// Runtime shows then which implementation runs every custom node; TensorRT's plans were built
    /// with one and have no other.
    ///
    /// With ONNX Runtime on a CPU it opens one, that of single tokens where there is one, and every other
    /// when it first runs, unless [`up_front`](Self::up_front) was called.
    ///
    /// # Errors
    /// A library is missing, the package cannot run on this backend, an option names something
    /// the package does not have, or another implementation ran than the one asked for.
    pub fn open(&self, kind: BackendKind) -> Result<Session, BackendError> {
        let dir = self.package.dir();
        let _span =
            tracing::info_span!("open", backend = %kind, package = %dir.display()).entered();
        let opened = has_backend(kind).and_then(|()| {
            let opening = self.opening(kind)?;
            let driver = driver::open(&opening)?;
            Ok(session::new(opening, driver))
        });
        opened.inspect_err(|error| tracing::error!(%error, "not opened"))
    }

    /// Whether the package and the options are such as [`open`](Self::open) wants for this backend, as far as that can be
    /// told without the backend's libraries and its GPU: for programs that prepare what another machine runs.
    ///
    /// # Errors
    /// The package cannot run on this backend, or an option names something that it does not have.
    pub fn check(&self, kind: BackendKind) -> Result<(), BackendError> {
        driver::check(&self.opening(kind)?)
    }

    /// What has to be opened.
    fn opening(&self, kind: BackendKind) -> Result<Opening<'_>, BackendError> {
        let refused = |option, expected: String, found: &str| BackendError::Option {
            option,
            expected,
            found: found.into(),
        };
        if let Some(threads) = self.threads
            && !(1..=i32::MAX as usize).contains(&threads)
        {
            let (expected, found) = (format!("1 to {}", i32::MAX), threads.to_string());
            return Err(refused("threads", expected, &found));
        }
        if self.inspection.profile && !kind.has_profiles() {
            let expected = format!(
                "{} or {}, whose runs ONNX Runtime times",
                BackendKind::OrtCpu,
                BackendKind::OrtFallback
            );
            return Err(refused("profile", expected, kind.name()));
        }
        let manifest = self.package.manifest();
        let Limits { lengths, .. } = manifest.into();
        let wanted = self.engines.as_ref();
        if let Some(unknown) =
            wanted.and_then(|wanted| wanted.iter().find(|length| !lengths.contains(length)))
        {
            let expected = format!("lengths of the package, {lengths:?}");
            return Err(refused("engines", expected, &unknown.to_string()));
        }
        let mut engines = Vec::new();
        for (index, engine) in manifest.engines.iter().enumerate() {
            let &Engine { batch, seq_len, .. } = engine;
            if wanted.is_none_or(|wanted| wanted.contains(&seq_len)) {
                engines.push(OpenedEngine {
                    index,
                    seq_len,
                    batch,
                    taps: self.taps(seq_len, target(kind, manifest))?,
                });
            }
        }
        if engines.is_empty() {
            let expected = format!("at least one of {lengths:?}");
            return Err(refused("engines", expected, "none"));
        }
        Ok(Opening {
            options: self,
            kind,
            engines,
        })
    }

    /// The extra outputs that are asked for, of the engine of a length.
    fn taps(
        &self,
        seq_len: usize,
        target: Target,
    ) -> Result<Vec<(String, TensorType)>, BackendError> {
        let wanted = &self.inspection.extra_outputs;
        let manifest = self.package.manifest();
        let mut known = taps(
            &manifest.model,
            &manifest.shape(),
            &manifest.precision,
            seq_len,
            target.products(manifest.fallback),
        );
        let names: Vec<_> = known.iter().map(|(name, _)| name.as_str()).collect();
        if let Some(unknown) = wanted.iter().find(|name| !names.contains(&name.as_str())) {
            return Err(BackendError::Option {
                option: "extra_outputs",
                expected: format!("one of {}", names.join(", ")),
                found: unknown.clone(),
            });
        }
        known.retain(|(name, _)| wanted.contains(name));
        Ok(known)
    }
}

/// Whether this build has a backend.
fn has_backend(kind: BackendKind) -> Result<(), BackendError> {
    let Some(feature) = kind.missing_feature() else {
        return Ok(());
    };
    Err(BackendError::Unavailable {
        backend: kind.to_string(),
        reason: format!("this build has none; build ratplus-runtime with its feature `{feature}`"),
    })
}

/// What the graphs are built for that a backend of ONNX Runtime runs; tract's have their own.
fn target(kind: BackendKind, manifest: &Manifest) -> Target {
    match kind {
        BackendKind::OrtCpu if manifest.fallback != Fallback::Inline => Target::Cpu,
        // The CPU, where the emulator's products run, has none in bf16.
        BackendKind::OrtCuda if !(EMULATED && manifest.dtype == ElementType::BF16) => Target::Cuda,
        _ => Target::Portable,
    }
}

/// A session that is being opened.
pub(super) struct Opening<'a> {
    pub options: &'a SessionBuilder<'a>,
    pub kind: BackendKind,
    /// In the manifest's order.
    pub engines: Vec<OpenedEngine>,
}

/// An engine of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OpenedEngine {
    /// Index in the manifest.
    pub index: usize,
    /// Its static length.
    pub seq_len: usize,
    /// Slots that it runs: all of the session, or one.
    pub batch: usize,
    /// Its extra outputs, with the shape of all slots.
    pub taps: Vec<(String, TensorType)>,
}

impl<'a> Opening<'a> {
    pub fn manifest(&self) -> &'a Manifest {
        self.options.package.manifest()
    }

    /// What a backend of ONNX Runtime runs.
    pub fn target(&self) -> Target {
        target(self.kind, self.manifest())
    }

    /// The engine at `position` of those opened, built for `target`.
    pub fn graph(&self, position: usize, target: Target) -> Result<EngineGraph<'a>, BackendError> {
        let index = self.engines[position].index;
        self.options.package.graph(index, target)
    }

    /// This backend cannot be used.
    pub fn unavailable(&self, reason: impl Into<String>) -> BackendError {
        BackendError::Unavailable {
            backend: self.kind.to_string(),
            reason: reason.into(),
        }
    }
}
