//! What a session keeps in memory where ONNX Runtime runs it on a CPU, in closed form.

use crate::package::{EngineSize, LogitsMode, Manifest, WEIGHTS_FILE};
use serde::Serialize;
use std::collections::BTreeSet;

/// Pages of the program, of ONNX Runtime's library and of ours; measured with ONNX Runtime 1.31.
const LIBRARIES: u64 = 31 << 20;
/// What a process of them keeps of its own, whatever the package; measured likewise.
const PROCESS: u64 = 14 << 20;
/// A layer of an engine: its nodes as the package was checked, for every target, and as ONNX Runtime keeps
/// those that it runs; measured likewise.
const LAYER: u64 = 384 << 10;
/// Regions of ONNX Runtime's arena are as large as those before it together, and tensors leave gaps.
const ARENA: u64 = 2;

/// Bytes of a session of backend `ort-cpu` with all engines of a package open, each run at full length.
///
/// ```
/// use ratplus_graphs::memory::SessionMemory;
/// let memory = SessionMemory {
///     weights: 1000,
///     libraries: 100,
///     state: 50,
///     outputs: 1,
///     activations: 10,
///     graphs: 5,
///     process: 4,
/// };
/// assert_eq!((memory.file_backed(), memory.anonymous()), (1100, 70));
/// assert_eq!(memory.resident(), 1170);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SessionMemory {
    /// The weights' file, all of which is read for its checksum: pages that all processes share.
    pub weights: u64,
    /// Pages of the program and its libraries.
    pub libraries: u64,
    /// Caches and recurrent states of all slots.
    pub state: u64,
    /// Logits of all slots.
    pub outputs: u64,
    /// What ONNX Runtime keeps for the tensors between operators.
    pub activations: u64,
    /// Graphs of all engines.
    pub graphs: u64,
    /// Everything else of the process.
    pub process: u64,
}

impl SessionMemory {
    /// Of a package whose files are named.
    pub fn of(manifest: &Manifest) -> Self {
        let engines = || {
            let engines = manifest.engines.iter();
            engines.map(|engine| EngineSize {
                batch: engine.batch,
                seq_len: engine.seq_len,
            })
        };
        let weights = manifest.files.get(WEIGHTS_FILE);
        let layers = (manifest.model.num_layers * manifest.engines.len()) as u64;
        Self {
            weights: weights.map_or(0, |file| file.bytes),
            libraries: LIBRARIES,
            state: manifest.state_bytes,
            outputs: outputs(manifest, engines()),
            activations: engines().map(|size| activations(manifest, size)).sum(),
            graphs: LAYER * layers,
            process: PROCESS,
        }
    }

    /// Of a server of `manifest`'s model with `slots` slots.
    pub fn of_server(manifest: &Manifest, slots: usize) -> Self {
        let shape = manifest.shape().with_batch(slots);
        let mut other = Manifest::new(
            manifest.model.clone(),
            shape,
            manifest.precision.clone(),
            manifest.fallback,
            manifest.opset,
            &manifest.lengths(),
        );
        other.files.clone_from(&manifest.files);
        Self::of(&other)
    }

    /// What files back.
    pub fn file_backed(&self) -> u64 {
        self.weights + self.libraries
    }

    /// The process's own.
    pub fn anonymous(&self) -> u64 {
        self.state + self.outputs + self.activations + self.graphs + self.process
    }

    /// Both.
    pub fn resident(&self) -> u64 {
        self.file_backed() + self.anonymous()
    }
}

/// Engines of one batch share logits of last tokens.
fn outputs(manifest: &Manifest, engines: impl Iterator<Item = EngineSize>) -> u64 {
    let row = 4 * (manifest.batch * manifest.model.vocab_size) as u64;
    match manifest.logits {
        LogitsMode::All => engines.map(|size| row * size.seq_len as u64).sum(),
        LogitsMode::Last => {
            row * engines
                .map(|size| size.batch)
                .collect::<BTreeSet<_>>()
                .len() as u64
        }
    }
}

/// An engine has an arena of its own, which is as large as its widest place needs: `in_proj`'s result beside
/// its parts, or the feed-forward's hidden rows before and after their activation; and the residual.
fn activations(manifest: &Manifest, size: EngineSize) -> u64 {
    let spec = &manifest.model;
    let widest = (2 * spec.in_proj_rows()).max(2 * spec.d_ffn);
    let elements = size.batch * size.seq_len * (spec.d_model + widest);
    ARENA * (elements * manifest.dtype.size()) as u64
}
