//! What `verify` found.

use super::{Decade, Golden, Worst};
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::Fallback;
use ratplus_graphs::tolerance::OutputTolerance;
use ratplus_runtime::backend::{BackendError, BackendKind, Session};
use serde::Serialize;

/// Everything measured.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// The program that ran.
    pub tool: String,
    /// Type of the package's activations.
    pub dtype: ElementType,
    /// Type of its KV cache.
    pub cache_dtype: ElementType,
    /// Both in words.
    #[serde(skip)]
    pub types: String,
    /// How its custom nodes are written.
    pub fallback: Fallback,
    /// Its batch.
    pub batch: usize,
    /// What outputs were compared with.
    pub golden: String,
    /// Sequences compared.
    pub sequences: usize,
    /// Tokens of each.
    pub seq_len: usize,
    /// Largest absolute golden logit.
    pub largest_logit: f64,
    /// Whether every row passed and logits of every backend that ran were compared.
    pub passed: bool,
    /// One row per backend, route and tensor.
    pub rows: Vec<Row>,
    /// Which implementation ran the custom nodes.
    pub implementations: Vec<Implementations>,
    /// Backends that did not run.
    pub skipped: Vec<Skip>,
    /// Which blocks queries chose, where they choose: a row a backend, route and layer. The reference of such a
    /// model is given the backend's choice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<ChoiceRow>,
    /// With [`VerifyOptions::curves`](super::VerifyOptions::curves).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub curves: Vec<Curve>,
    /// What outputs were compared with, where no golden file was given.
    #[serde(skip)]
    pub reference: Option<Golden>,
}

/// The largest difference at every position.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Curve {
    /// The backend.
    pub backend: BackendKind,
    /// The layer after which the residual stream was compared; `None`: the logits, over all routes.
    pub layer: Option<usize>,
    /// From position 0 on; 0 where nothing was compared.
    #[serde(serialize_with = "finite_or_texts")]
    pub max_errors: Vec<f64>,
}

/// The choices of one layer's queries.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ChoiceRow {
    /// The backend.
    pub backend: BackendKind,
    /// The way through the sequence.
    pub route: String,
    /// The layer.
    pub layer: usize,
    /// Queries, each of a head, with more earlier blocks than they see.
    pub queries: u64,
    /// Those that chose the reference's blocks.
    pub agreed: u64,
    /// How far the reference scores a chosen block below the lowest that it would choose, at most.
    #[serde(serialize_with = "finite_or_text")]
    pub largest_gap: f64,
    /// The largest gap that roundings explain: twice what they may move a score.
    #[serde(serialize_with = "finite_or_text")]
    pub tolerance: f64,
    /// Whether they explain all.
    pub passed: bool,
}

/// Tensor of the row that compares logits of the stored weights, in f32, with the golden file's.
pub const STORED_WEIGHTS: &str = "stored weights";

/// One comparison.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Row {
    /// The backend.
    pub backend: BackendKind,
    /// The way through the sequence.
    pub route: String,
    /// `logits`, a tap, or [`STORED_WEIGHTS`].
    pub tensor: String,
    /// Rows compared: (sequence, position) pairs.
    pub rows: u64,
    /// Largest absolute difference.
    #[serde(serialize_with = "finite_or_text")]
    pub max_error: f64,
    /// Mean absolute difference.
    #[serde(serialize_with = "finite_or_text")]
    pub mean_error: f64,
    /// Largest difference that passes, finite; none of tract where it sets that of others, nor where there
    /// is nothing that it could come from: such a row passes by `asked` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// Largest mean difference that passes, finite; of [`STORED_WEIGHTS`] only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_tolerance: Option<f64>,
    /// Where the tolerance comes from.
    pub tolerance_source: String,
    /// What is held to tolerances of the caller's own, in place of `tolerance`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<Asked>,
    /// Elements by the size of their differences.
    pub histogram: Vec<Decade>,
    /// Rows whose likeliest token agrees; of logits only.
    pub argmax_agreed: Option<u64>,
    /// Where the largest difference was.
    pub worst: Option<Worst>,
    /// Wall time of the route.
    pub seconds: f64,
    /// Whether it is within tolerance; a row that compared nothing is, and says so with
    /// `rows` 0.
    pub passed: bool,
    /// Where a failing backend first leaves the reference.
    pub divergence: Option<String>,
}

impl Row {
    /// Whether the difference is larger than the tolerance that comes from the package's types.
    pub fn beyond_default(&self) -> bool {
        self.tolerance.is_some_and(|most| self.max_error > most)
    }
}

/// A statistic of a row, held to a tolerance that the caller asked for.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Asked {
    /// The tolerance.
    #[serde(flatten)]
    pub tolerance: OutputTolerance,
    /// What was found.
    #[serde(serialize_with = "finite_or_text")]
    pub found: f64,
}

impl Asked {
    /// Whether it is kept.
    pub fn kept(&self) -> bool {
        self.found <= self.tolerance.most
    }
}

/// JSON has no infinity.
fn finite_or_text<S: serde::Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() {
        serializer.serialize_f64(*value)
    } else {
        serializer.serialize_str("infinite")
    }
}

fn finite_or_texts<S: serde::Serializer>(values: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
    struct One(f64);
    impl Serialize for One {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            finite_or_text(&self.0, serializer)
        }
    }
    serializer.collect_seq(values.iter().map(|&value| One(value)))
}

/// Which implementation ran the custom nodes of a backend.
#[derive(Clone, Debug, Serialize)]
pub struct Implementations {
    /// The backend.
    pub backend: BackendKind,
    /// One line per engine, or one for all where they agree.
    pub engines: Vec<String>,
}

impl Implementations {
    /// What the session proved of the engines that it has opened.
    pub fn of(backend: BackendKind, session: &Session) -> Self {
        let found = session.implementations();
        let mut engines: Vec<_> = found.iter().map(ToString::to_string).collect();
        let same = found
            .iter()
            .map(|engine| engine.to_string().replacen(&engine.file, "", 1));
        let mut same: Vec<_> = same.collect();
        same.dedup();
        if let ([line], true) = (same.as_slice(), engines.len() > 1) {
            engines = vec![format!("all {} engines{line}", engines.len())];
        }
        Self { backend, engines }
    }
}

/// A backend that did not run, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Skip {
    /// The backend.
    pub backend: BackendKind,
    /// Why.
    pub reason: String,
}

impl Skip {
    pub(super) fn new(backend: BackendKind, reason: &BackendError) -> Self {
        Self {
            backend,
            reason: reason.to_string(),
        }
    }
}

/// A route may hold none of the golden file's positions; all routes of a backend may not.
pub(super) fn passed(rows: &[Row], implementations: &[Implementations]) -> bool {
    let compared = |backend| {
        rows.iter()
            .any(|row| row.backend == backend && row.tensor == "logits" && row.rows > 0)
    };
    !implementations.is_empty()
        && rows.iter().all(|row| row.passed)
        && implementations.iter().all(|found| compared(found.backend))
}
