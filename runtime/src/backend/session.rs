use super::ort::OrtDriver;
use super::tensorrt::TensorRtDriver;
use super::tract::TractDriver;
use super::{
    BackendError, BackendKind, EngineImplementations, InputProblem, NonFiniteLogits, OperatorTime,
    finite,
};
use crate::package::Package;
use ratplus_graphs::manifest::{Fallback, LogitsMode, Manifest, PackageShape, state_tensors};
use ratplus_graphs::model::taps;
use ratplus_graphs::ops::{TensorType, check_gpu_cache, check_lengths};
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

/// How a session is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads of each operator; `None` is the backend's choice. tract runs on one.
    pub threads: Option<usize>,
    /// ONNX Runtime: threads that wait sleep, instead of spinning for the next operator. Operators start
    /// later, and processors that others need as well are not held.
    pub passive_wait: bool,
    /// Intermediate tensors that every step also returns, by their names in the graph
    /// ([`ratplus_graphs::model::taps`] lists them).
    pub extra_outputs: Vec<String>,
    /// tract only: leave out every rounding to f16 or bf16 between operators, so that an f32 run of
    /// the package's weights can judge its roundings.
    pub without_rounding: bool,
    /// tract only: move every weight that is stored in f16, bf16 or integers by up to half a step of
    /// its type, at random from this seed. What comes of it shows what rounding the weights costs.
    pub weight_noise: Option<u64>,
    /// Number of the GPU, for backends that run on one.
    pub device: i32,
    /// ort-cuda and tensorrt: launch the decode engine's kernels one by one instead of replaying a CUDA
    /// graph. The numbers are the same.
    pub without_cuda_graph: bool,
    /// Time every operator of every run until [`Session::end_profile`], which slows them. Which
    /// implementations ran is then not looked at.
    pub profile: bool,
    /// Static lengths to open; `None` is all of the package.
    pub engines: Option<Vec<usize>>,
    /// Where ONNX Runtime is; see [`crate::ort_library`].
    pub onnxruntime: Option<PathBuf>,
    /// Where the library of RAT+ operators is; see [`crate::ort_library`].
    pub operators: Option<PathBuf>,
    /// Folder with TensorRT, or with TensorRT for RTX; see [`crate::nvinfer`].
    pub tensorrt: Option<PathBuf>,
    /// Where the library of RAT+ plugins is; see [`crate::nvinfer`].
    pub plugins: Option<PathBuf>,
}

/// One state tensor as it lies in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateBuffer {
    /// Name of the graph input.
    pub past: String,
    /// Name of the graph output.
    pub present: String,
    /// Type and shape.
    pub tensor: TensorType,
    /// Bytes of one side.
    pub bytes: usize,
    /// Whether past and present are the same memory.
    pub in_place: bool,
}

/// What a driver is told about a session's engines.
pub(super) struct Plan {
    pub manifest: Arc<Manifest>,
    pub kind: BackendKind,
    /// Indices of the opened engines in the manifest.
    pub engines: Vec<usize>,
    /// Extra outputs of each opened engine.
    pub taps: Vec<Vec<(String, TensorType)>>,
    pub threads: Option<usize>,
    pub passive_wait: bool,
    #[cfg_attr(not(feature = "tract"), expect(dead_code, reason = "for tract"))]
    pub without_rounding: bool,
    #[cfg_attr(not(feature = "tract"), expect(dead_code, reason = "for tract"))]
    pub weight_noise: Option<u64>,
    pub device: i32,
    pub without_cuda_graph: bool,
    pub profile: bool,
    pub onnxruntime: Option<PathBuf>,
    pub operators: Option<PathBuf>,
    pub tensorrt: Option<PathBuf>,
    pub plugins: Option<PathBuf>,
}

pub(super) enum Driver {
    Ort(OrtDriver),
    TensorRt(TensorRtDriver),
    Tract(TractDriver),
}

/// The engines of a package, and one sequence per batch slot.
///
/// Every buffer that crosses a step is allocated once, here. With the RAT+ operators of ONNX
/// Runtime the caches are updated in place and shared by all engines; other implementations
/// write beside them and the two sides are swapped.
pub struct Session {
    plan: Plan,
    driver: Driver,
    lengths: Vec<usize>,
    past_length: Vec<i64>,
    seq_length: Vec<i64>,
    shape: PackageShape,
}

impl Session {
    /// Opens engines of `package` and runs each once on idle slots: ONNX Runtime shows then which
    /// implementation runs every custom node; TensorRT's plans were built with one and have no
    /// other.
    ///
    /// # Errors
    /// A library is missing, the package cannot run on this backend, an option names something
    /// the package does not have, or another implementation ran than the one asked for.
    pub fn open(
        package: &Package,
        kind: BackendKind,
        options: &SessionOptions,
    ) -> Result<Self, BackendError> {
        let plan = plan(package, kind, options)?;
        let driver = match kind {
            BackendKind::OrtCpu | BackendKind::OrtCuda | BackendKind::OrtFallback => {
                Driver::Ort(OrtDriver::open(package, &plan)?)
            }
            BackendKind::TensorRt | BackendKind::TensorRtRtx => {
                Driver::TensorRt(TensorRtDriver::open(package, &plan)?)
            }
            BackendKind::Tract => Driver::Tract(TractDriver::open(package, &plan)?),
        };
        let manifest = &plan.manifest;
        Ok(Self {
            driver,
            lengths: plan
                .engines
                .iter()
                .map(|&i| manifest.engines[i].seq_len)
                .collect(),
            past_length: vec![0; manifest.batch],
            seq_length: vec![0; manifest.batch],
            shape: manifest.shape(),
            plan,
        })
    }

    /// What runs the engines.
    pub fn backend(&self) -> BackendKind {
        self.plan.kind
    }

    /// The package's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.plan.manifest
    }

    /// Number of slots.
    pub fn batch(&self) -> usize {
        self.shape.batch
    }

    /// Tokens a sequence may have in all.
    pub fn max_seq_len(&self) -> usize {
        self.shape.max_seq_len
    }

    /// Size of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.plan.manifest.model.vocab_size
    }

    /// Static lengths of the opened engines, ascending.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Whether every token's logits are returned, and not the last one's of a chunk only.
    pub fn returns_all_logits(&self) -> bool {
        self.shape.logits == LogitsMode::All
    }

    /// Tokens that `slot` has seen.
    pub fn past_length(&self, slot: usize) -> usize {
        self.past_length[slot] as usize
    }

    /// Starts `slot` over. Nothing is cleared: no implementation reads rows of an earlier sequence,
    /// whatever they hold, NaN included.
    pub fn reset(&mut self, slot: usize) {
        self.past_length[slot] = 0;
    }

    /// Has `slot` count `length` tokens as seen, whatever its caches hold: for benchmarks. What it
    /// computes then means nothing.
    pub(crate) fn assume_past(&mut self, slot: usize, length: usize) {
        self.past_length[slot] = length as i64;
    }

    /// Has the caches' memory be there before it is written, for benchmarks: what was never written
    /// is read from one page of zeros. Other backends write theirs, or have them on a GPU.
    pub(crate) fn make_resident(&mut self) {
        if let Driver::Ort(driver) = &mut self.driver {
            driver.make_resident();
        }
    }

    /// Bytes of all state tensors, one side: the manifest's `state_bytes`.
    pub fn state_bytes(&self) -> u64 {
        self.state_buffers()
            .iter()
            .map(|buffer| buffer.bytes as u64)
            .sum()
    }

    /// Every state tensor. tract keeps states in f32, whatever the package's type.
    pub fn state_buffers(&self) -> Vec<StateBuffer> {
        let in_place = match &self.driver {
            Driver::Ort(driver) => driver.in_place(),
            Driver::TensorRt(driver) => driver.in_place(),
            Driver::Tract(_) => false,
        };
        state_tensors(&self.plan.manifest.model, &self.shape)
            .into_iter()
            .enumerate()
            .map(|(index, (past, present, tensor))| StateBuffer {
                bytes: match &self.driver {
                    Driver::Ort(driver) => driver.state_bytes(index),
                    Driver::TensorRt(driver) => driver.state_bytes(index),
                    Driver::Tract(driver) => driver.state_bytes(index),
                },
                past,
                present,
                tensor,
                in_place,
            })
            .collect()
    }

    /// Which implementation ran each custom node of each opened engine.
    pub fn implementations(&self) -> &[EngineImplementations] {
        match &self.driver {
            Driver::Ort(driver) => driver.implementations(),
            Driver::TensorRt(driver) => driver.implementations(),
            Driver::Tract(driver) => driver.implementations(),
        }
    }

    /// Ends a session opened with [`SessionOptions::profile`]: what the operators of each opened
    /// engine took, the most first; none where the engine did not run.
    ///
    /// # Errors
    /// The profile cannot be written or read.
    pub fn end_profile(self) -> Result<Vec<(String, Vec<OperatorTime>)>, BackendError> {
        match self.driver {
            Driver::Ort(driver) if self.plan.profile => driver.end_profile(),
            _ => Ok(Vec::new()),
        }
    }

    /// Runs the engine for chunks of `engine_len` tokens and advances every slot by its
    /// `seq_length`.
    ///
    /// `input_ids` holds `B x engine_len` tokens, slot after slot; those at or past a slot's
    /// `seq_length` are padding and may be any token of the vocabulary. A `seq_length` of 0 leaves
    /// its slot as it is. Logits that are no numbers are a slot's own matter and no error of the step:
    /// [`Step::checked_logits`] tells.
    ///
    /// # Errors
    /// [`BackendError::Input`] before anything ran. After any other error every slot starts over
    /// (`past_length` 0), because a run that failed halfway may have written to the caches.
    pub fn run(
        &mut self,
        engine_len: usize,
        input_ids: &[i64],
        seq_length: &[i64],
    ) -> Result<Step<'_>, BackendError> {
        let engine = self.check(engine_len, input_ids, seq_length)?;
        let past_length = &self.past_length;
        let result = match &mut self.driver {
            Driver::Ort(driver) => driver.run(engine, input_ids, past_length, seq_length),
            Driver::TensorRt(driver) => driver.run(engine, input_ids, past_length, seq_length),
            Driver::Tract(driver) => driver.run(engine, input_ids, past_length, seq_length),
        };
        if let Err(error) = result {
            self.past_length.fill(0);
            return Err(error);
        }
        for (past, seq) in self.past_length.iter_mut().zip(seq_length) {
            *past += seq;
        }
        self.seq_length.copy_from_slice(seq_length);
        Ok(Step {
            session: self,
            engine,
        })
    }

    /// The index of the engine, or everything wrong with a step.
    fn check(
        &self,
        engine_len: usize,
        input_ids: &[i64],
        seq_length: &[i64],
    ) -> Result<usize, BackendError> {
        let mut problems = Vec::new();
        let engine = self.lengths.iter().position(|&length| length == engine_len);
        if engine.is_none() {
            problems.push(InputProblem::EngineLength {
                lengths: self.lengths.clone(),
                found: engine_len,
            });
        }
        let batch = self.batch();
        let counts = [
            (
                "input_ids",
                batch.saturating_mul(engine_len),
                input_ids.len(),
            ),
            ("seq_length", batch, seq_length.len()),
        ];
        for (name, expected, found) in counts {
            if expected != found {
                problems.push(InputProblem::Count {
                    name,
                    expected,
                    found,
                });
            }
        }
        let Some(engine) = engine.filter(|_| problems.is_empty()) else {
            return Err(BackendError::Input(problems));
        };
        let vocab_size = self.vocab_size();
        for (at, &token) in input_ids.iter().enumerate() {
            if !usize::try_from(token).is_ok_and(|token| token < vocab_size) {
                problems.push(InputProblem::Token {
                    slot: at / engine_len,
                    index: at % engine_len,
                    token,
                    vocab_size,
                });
            }
        }
        let max = Some(self.max_seq_len());
        if let Err(error) = check_lengths(&self.past_length, seq_length, engine_len, max) {
            problems.push(InputProblem::Length(error));
        } else if seq_length.iter().all(|&length| length == 0) {
            problems.push(InputProblem::AllIdle);
        }
        if problems.is_empty() {
            Ok(engine)
        } else {
            Err(BackendError::Input(problems))
        }
    }
}

fn plan(
    package: &Package,
    kind: BackendKind,
    options: &SessionOptions,
) -> Result<Plan, BackendError> {
    let manifest = package.shared_manifest().clone();
    if kind == BackendKind::OrtFallback && manifest.fallback == Fallback::None {
        return Err(BackendError::Unavailable {
            backend: kind.to_string(),
            reason:
                "the package has bare custom nodes and no functions to fall back to; export it \
                     with `--fallback function`, or use `ort-cpu`"
                    .into(),
        });
    }
    let by_onnxruntime = matches!(
        kind,
        BackendKind::OrtCpu | BackendKind::OrtCuda | BackendKind::OrtFallback
    );
    if by_onnxruntime && manifest.fallback == Fallback::TrtPlugins {
        return Err(BackendError::Unavailable {
            backend: kind.to_string(),
            reason:
                "the package is for TensorRT, or ONNX Runtime's TensorRT provider in a program \
                     of yours; export it with `--fallback function`"
                    .into(),
        });
    }
    if kind == BackendKind::OrtCuda && manifest.fallback == Fallback::Inline {
        return Err(BackendError::Unavailable {
            backend: kind.to_string(),
            reason: "the package has standard operators only, and no nodes for the CUDA kernels; \
                     export it with `--fallback function`"
                .into(),
        });
    }
    if options.profile && !kind.has_profiles() {
        return Err(BackendError::Option {
            option: "profile",
            expected: format!(
                "{} or {}, whose runs ONNX Runtime times",
                BackendKind::OrtCpu,
                BackendKind::OrtFallback
            ),
            found: kind.to_string(),
        });
    }
    if kind == BackendKind::OrtCuda {
        let shape = manifest.shape();
        check_gpu_cache(shape.dtype, shape.cache_dtype).map_err(|reason| {
            BackendError::Unavailable {
                backend: kind.to_string(),
                reason,
            }
        })?;
    }
    if options.threads == Some(0) {
        return Err(BackendError::Option {
            option: "threads",
            expected: "1 or more".into(),
            found: "0".into(),
        });
    }
    let lengths: Vec<_> = manifest
        .engines
        .iter()
        .map(|engine| engine.seq_len)
        .collect();
    let mut engines = Vec::new();
    match &options.engines {
        None => engines.extend(0..lengths.len()),
        Some(wanted) => {
            for length in wanted {
                let Some(index) = lengths.iter().position(|known| known == length) else {
                    return Err(BackendError::Option {
                        option: "engines",
                        expected: format!("lengths of the package, {lengths:?}"),
                        found: length.to_string(),
                    });
                };
                engines.push(index);
            }
            engines.sort_unstable();
            engines.dedup();
        }
    }
    if engines.is_empty() {
        return Err(BackendError::Option {
            option: "engines",
            expected: format!("at least one of {lengths:?}"),
            found: "none".into(),
        });
    }
    let extra = |index: usize| {
        let shape = manifest.shape();
        let mut known = taps(&manifest.model, &shape, &manifest.precision, lengths[index]);
        let names: Vec<_> = known.iter().map(|(name, _)| name.clone()).collect();
        if let Some(unknown) = options
            .extra_outputs
            .iter()
            .find(|name| !names.contains(name))
        {
            return Err(BackendError::Option {
                option: "extra_outputs",
                expected: format!("one of {}", names.join(", ")),
                found: unknown.clone(),
            });
        }
        known.retain(|(name, _)| options.extra_outputs.contains(name));
        Ok(known)
    };
    let taps = engines
        .iter()
        .map(|&index| extra(index))
        .collect::<Result<_, _>>()?;
    Ok(Plan {
        manifest,
        kind,
        engines,
        taps,
        threads: options.threads,
        passive_wait: options.passive_wait,
        without_rounding: options.without_rounding,
        weight_noise: options.weight_noise,
        device: options.device,
        without_cuda_graph: options.without_cuda_graph,
        profile: options.profile,
        onnxruntime: options.onnxruntime.clone(),
        operators: options.operators.clone(),
        tensorrt: options.tensorrt.clone(),
        plugins: options.plugins.clone(),
    })
}

/// The results of one run, until the next.
pub struct Step<'a> {
    session: &'a Session,
    engine: usize,
}

impl<'a> Step<'a> {
    /// All logits: `[B, V]` at each slot's last valid token, or `[B, L, V]`. Rows of padding and
    /// of idle slots mean nothing.
    pub fn logits(&self) -> &'a [f32] {
        match &self.session.driver {
            Driver::Ort(driver) => driver.logits(self.engine),
            Driver::TensorRt(driver) => driver.logits(self.engine),
            Driver::Tract(driver) => driver.logits(self.engine),
        }
    }

    /// Shape of [`logits`](Self::logits).
    pub fn logits_shape(&self) -> Vec<usize> {
        let Session { shape, lengths, .. } = self.session;
        match shape.logits {
            LogitsMode::Last => vec![shape.batch, self.session.vocab_size()],
            LogitsMode::All => {
                vec![shape.batch, lengths[self.engine], self.session.vocab_size()]
            }
        }
    }

    /// Logits `[V]` after token `index` of the chunk of `slot`; `None` for padding, idle slots, and
    /// where the package returns the last token's only.
    pub fn logits_at(&self, slot: usize, index: usize) -> Option<&'a [f32]> {
        let length = usize::try_from(*self.session.seq_length.get(slot)?).ok()?;
        if index >= length {
            return None;
        }
        let row = match self.session.shape.logits {
            LogitsMode::Last => (index + 1 == length).then_some(slot)?,
            LogitsMode::All => slot * self.session.lengths[self.engine] + index,
        };
        let vocab_size = self.session.vocab_size();
        self.logits().get(row * vocab_size..(row + 1) * vocab_size)
    }

    /// Logits `[V]` after the last token of `slot`; `None` for an idle slot.
    pub fn last_logits(&self, slot: usize) -> Option<&'a [f32]> {
        let length = usize::try_from(*self.session.seq_length.get(slot)?).ok()?;
        self.logits_at(slot, length.checked_sub(1)?)
    }

    /// The slot's result: its [`last_logits`](Self::last_logits) where all are numbers, or which is
    /// not; `None` for an idle slot.
    ///
    /// A step that came back without an error may hold slots that failed and slots that did not: a
    /// damaged weight or state spoils the sequence that meets it, and no other.
    pub fn checked_logits(&self, slot: usize) -> Option<Result<&'a [f32], NonFiniteLogits>> {
        let length = usize::try_from(*self.session.seq_length.get(slot)?).ok()?;
        self.checked_logits_at(slot, length.checked_sub(1)?)
    }

    /// [`logits_at`](Self::logits_at) in the same way. A token that is not a number can spoil those
    /// before it in its chunk, too: products with a weight of 0.
    pub fn checked_logits_at(
        &self,
        slot: usize,
        index: usize,
    ) -> Option<Result<&'a [f32], NonFiniteLogits>> {
        let logits = self.logits_at(slot, index)?;
        let past = self.session.past_length[slot] - self.session.seq_length[slot];
        let step = past as usize + index + 1;
        Some(finite(logits).map_err(|source| NonFiniteLogits { step, slot, source }))
    }

    /// An extra output in f32, and its shape; `None` where it was not asked for.
    pub fn extra_output(&self, name: &str) -> Option<(Vec<usize>, Cow<'a, [f32]>)> {
        let taps = &self.session.plan.taps[self.engine];
        let index = taps.iter().position(|(tap, _)| tap == name)?;
        let values = match &self.session.driver {
            Driver::Ort(driver) => driver.tap(self.engine, index),
            // Plans have none, and none were asked for.
            Driver::TensorRt(_) => return None,
            Driver::Tract(driver) => Cow::Borrowed(driver.tap(self.engine, index)),
        };
        Some((taps[index].1.shape.clone(), values))
    }
}
