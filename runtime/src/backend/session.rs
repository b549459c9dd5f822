use super::builder::{OpenedEngine, Opening, SessionBuilder};
use super::driver::{Driver, StepInputs};
use super::state::fingerprint;
use super::{BackendError, BackendKind, EngineImplementations, Step};
use crate::package::Package;
use ratplus_graphs::none_wrong;
use ratplus_graphs::ops::{TensorType, check_lengths};
use ratplus_graphs::package::{LogitsMode, Manifest, PackageShape, state_tensors};
use std::sync::Arc;

const ALL_IDLE: &str = "seq_length: expected at least one slot with 1 token or more, found none";

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

/// The engines of a package, and one sequence per batch slot.
///
/// Every buffer that crosses a step is allocated once, here. In ONNX Runtime and with TensorRT's plugins
/// the caches are updated in place and shared by all engines; TensorRT for RTX and tract write beside
/// them, and the two sides are swapped.
///
/// ```no_run
/// use ratplus_runtime::{BackendKind, Package, Session};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // A package of one slot.
/// let package = Package::open("model")?;
/// let mut session = Session::builder(&package).open(BackendKind::OrtCpu)?;
/// // Three tokens and padding through the engine of length 64, then one more token.
/// let mut chunk = [0; 64];
/// chunk[..3].copy_from_slice(&[17, 4, 9]);
/// session.run(64, &chunk, &[3])?;
/// let step = session.run(1, &[23], &[1])?;
/// println!("{:?}", step.last_logits(0));
/// assert_eq!(session.past_length(0), 4);
/// # Ok(())
/// # }
/// ```
pub struct Session {
    manifest: Arc<Manifest>,
    kind: BackendKind,
    pub(super) engines: Vec<OpenedEngine>,
    pub(super) driver: Box<dyn Driver>,
    lengths: Vec<usize>,
    pub(super) past_length: Vec<i64>,
    /// Of the last step.
    pub(super) seq_length: Vec<i64>,
    /// The engine of the last step.
    ran: Option<usize>,
    /// What a step of one slot is given by an engine of all.
    padded: Vec<i64>,
    shape: PackageShape,
    pub(super) fingerprint: String,
    /// Every so many steps fail once they have run, and the steps so far; see
    /// [`fail_every`](super::inspection::fail_every).
    pub(super) fails: Option<(u64, u64)>,
}

/// The session of engines that `driver` has opened.
pub(super) fn new(opening: Opening<'_>, driver: Box<dyn Driver>) -> Session {
    let manifest = opening.options.package.shared_manifest().clone();
    let lengths = opening.engines.iter().map(|engine| engine.seq_len);
    let mut lengths: Vec<_> = lengths.collect();
    lengths.sort_unstable();
    lengths.dedup();
    let longest = lengths.last().copied().unwrap_or(0);
    Session {
        kind: opening.kind,
        driver,
        lengths,
        engines: opening.engines,
        past_length: vec![0; manifest.batch],
        seq_length: vec![0; manifest.batch],
        ran: None,
        padded: vec![0; manifest.batch * longest],
        shape: manifest.shape(),
        fingerprint: fingerprint(&manifest),
        fails: None,
        manifest,
    }
}

impl Session {
    /// How a session of `package` is to be opened.
    pub fn builder(package: &Package) -> SessionBuilder<'_> {
        SessionBuilder::new(package)
    }

    /// What runs the engines.
    pub fn backend(&self) -> BackendKind {
        self.kind
    }

    /// The package's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
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
        self.manifest.model.vocab_size
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

    /// Bytes of all state tensors, one side: the manifest's `state_bytes`.
    pub fn state_bytes(&self) -> u64 {
        self.state_buffers()
            .iter()
            .map(|buffer| buffer.bytes as u64)
            .sum()
    }

    /// Every state tensor. tract keeps states in f32, whatever the package's type.
    pub fn state_buffers(&self) -> Vec<StateBuffer> {
        let states = state_tensors(&self.manifest.model, &self.shape).into_iter();
        states
            .map(|(past, present, tensor)| StateBuffer {
                past,
                present,
                bytes: tensor.bytes(),
                tensor,
                in_place: self.driver.in_place(),
            })
            .collect()
    }

    /// Which implementation runs each custom node of each engine that has been opened: with ONNX Runtime on a
    /// CPU, those that have run.
    pub fn implementations(&self) -> &[EngineImplementations] {
        self.driver.implementations()
    }

    /// Runs chunks of up to `engine_len` tokens in all slots, at once where the package has an engine of
    /// that length for all, else one after the other, and advances every slot by its `seq_length`.
    ///
    /// `input_ids` holds `B x engine_len` tokens, slot after slot; those at or past a slot's
    /// `seq_length` are padding and may be any token of the vocabulary. A `seq_length` of 0 leaves
    /// its slot as it is. Logits that are no numbers are a slot's own matter and no error of the step:
    /// [`Step::checked_logits`] tells.
    ///
    /// # Errors
    /// [`BackendError::Input`] before anything ran. After any other error the slots of the engine that failed
    /// start over (`past_length` 0), because a run that failed halfway may have written to the caches; where
    /// slots ran one after the other, those before have advanced.
    pub fn run(
        &mut self,
        engine_len: usize,
        input_ids: &[i64],
        seq_length: &[i64],
    ) -> Result<Step<'_>, BackendError> {
        self.check(engine_len, 0, self.batch(), input_ids, seq_length)?;
        self.seq_length.copy_from_slice(seq_length);
        if let Some(engine) = self.engine(engine_len, self.batch()) {
            self.run_engine(engine, 0, input_ids)?;
        } else if let Some(engine) = self.engine(engine_len, 1) {
            for (slot, ids) in input_ids.chunks_exact(engine_len).enumerate() {
                if seq_length[slot] > 0 {
                    self.run_engine(engine, slot, ids)?;
                }
            }
        }
        self.last_step()
    }

    /// Runs a chunk of up to `engine_len` tokens in `slot` alone, and advances it by `tokens`. Where the
    /// package has an engine of that length for one slot, no other is computed.
    ///
    /// # Errors
    /// [`BackendError::Input`] before anything ran. After any other error the slot starts over, and so
    /// do the others where their engine ran.
    pub fn run_slot(
        &mut self,
        slot: usize,
        engine_len: usize,
        tokens: &[u32],
    ) -> Result<Step<'_>, BackendError> {
        let batch = self.batch();
        if slot >= batch || tokens.len() > engine_len {
            let (name, expected, found) = match slot < batch {
                true => ("tokens", engine_len, tokens.len()),
                false => ("slot", batch - 1, slot),
            };
            let most = format!("{name}: expected at most {expected}, found {found}");
            return Err(BackendError::Input(vec![most]));
        }
        self.ran = None;
        let mut ids = std::mem::take(&mut self.padded);
        self.seq_length.fill(0);
        self.seq_length[slot] = tokens.len() as i64;
        let one = self.engine(engine_len, 1);
        let (first, count) = match one {
            Some(_) => (slot, 1),
            None => (0, batch),
        };
        let used = (count * engine_len).min(ids.len());
        ids[..used].fill(0);
        let row = ids[..used].chunks_mut(engine_len.max(1)).nth(slot - first);
        for (id, &token) in row.into_iter().flatten().zip(tokens) {
            *id = token.into();
        }
        let seq_length = &self.seq_length[first..first + count];
        let checked = self.check(engine_len, first, count, &ids[..used], seq_length);
        let ran = checked.and_then(|()| match one.or(self.engine(engine_len, batch)) {
            Some(engine) => self.run_engine(engine, first, &ids[..used]),
            None => Ok(()),
        });
        self.padded = ids;
        ran?;
        self.last_step()
    }

    /// The results of the last run.
    ///
    /// # Errors
    /// [`BackendError::Input`]: nothing has run.
    pub fn last_step(&self) -> Result<Step<'_>, BackendError> {
        let nothing = || BackendError::Input(vec![ALL_IDLE.into()]);
        Ok(Step {
            engine: self.ran.ok_or_else(nothing)?,
            session: self,
        })
    }

    /// The engine of this length for so many slots.
    fn engine(&self, seq_len: usize, batch: usize) -> Option<usize> {
        let mut engines = self.engines.iter();
        engines.position(|engine| (engine.seq_len, engine.batch) == (seq_len, batch))
    }

    /// Runs an engine on its slots from `slot` on, and advances them by their `seq_length`.
    fn run_engine(
        &mut self,
        engine: usize,
        slot: usize,
        input_ids: &[i64],
    ) -> Result<(), BackendError> {
        let slots = slot..slot + self.engines[engine].batch;
        let inputs = StepInputs {
            input_ids,
            past_length: &self.past_length[slots.clone()],
            seq_length: &self.seq_length[slots.clone()],
        };
        self.ran = None;
        let seq_len = self.engines[engine].seq_len;
        let _span = tracing::trace_span!("step", seq_len, slot, slots = slots.len()).entered();
        let ran = self.driver.run(engine, slot, inputs);
        if let Err(error) = ran.and_then(|()| super::inspection::injected(&mut self.fails)) {
            tracing::error!(%error, "the step failed");
            self.past_length[slots].fill(0);
            return Err(error);
        }
        self.ran = Some(engine);
        for slot in slots {
            self.past_length[slot] += self.seq_length[slot];
        }
        Ok(())
    }

    /// Everything wrong with a step of `count` slots from `first` on.
    fn check(
        &self,
        engine_len: usize,
        first: usize,
        count: usize,
        input_ids: &[i64],
        seq_length: &[i64],
    ) -> Result<(), BackendError> {
        let mut problems = Vec::new();
        if !self.lengths.contains(&engine_len) {
            problems.push(format!(
                "engine length: expected one of {:?}, found {engine_len}",
                self.lengths
            ));
        }
        let counts = [
            (
                "input_ids",
                count.saturating_mul(engine_len),
                input_ids.len(),
            ),
            ("seq_length", count, seq_length.len()),
        ];
        for (name, expected, found) in counts {
            if expected != found {
                problems.push(format!("{name}: expected {expected} values, found {found}"));
            }
        }
        none_wrong(problems).map_err(BackendError::Input)?;
        let (mut problems, vocab_size) = (Vec::new(), self.vocab_size());
        for (at, &token) in input_ids.iter().enumerate() {
            if !usize::try_from(token).is_ok_and(|token| token < vocab_size) {
                problems.push(format!(
                    "slot {}: token {} of the chunk is {token}, expected 0 to {}",
                    first + at / engine_len,
                    at % engine_len,
                    vocab_size - 1
                ));
            }
        }
        let max = Some(self.max_seq_len());
        let past_length = &self.past_length[first..first + count];
        if let Err(mut error) = check_lengths(past_length, seq_length, engine_len, max) {
            error.slot += first;
            problems.push(error.to_string());
        } else if seq_length.iter().all(|&length| length == 0) {
            problems.push(ALL_IDLE.into());
        }
        none_wrong(problems).map_err(BackendError::Input)
    }
}
