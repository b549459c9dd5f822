//! What tokens leave, one after the other.

use super::TIME;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{Manifest, PackageShape, StateKind, WrittenPiece, written_pieces};
use ratplus_runtime::backend::inspection::{Exactness, Inspection};
use ratplus_runtime::backend::{BackendError, BackendKind, SessionBuilder, Step};
use std::time::Instant;

/// Of each token its logits, and the pieces of states that it wrote, in the order of [`written`].
pub(super) struct Trace {
    pub logits: Vec<Vec<f32>>,
    pub states: Vec<Vec<Vec<f32>>>,
}

impl Trace {
    /// Runs `tokens`, or as many as there is time for, and shows every step.
    pub fn run(
        sessions: &SessionBuilder<'_>,
        backend: BackendKind,
        exactness: Exactness,
        extra_outputs: &[String],
        tokens: &[u32],
        see: &mut dyn FnMut(&Step<'_>),
    ) -> Result<Self, BackendError> {
        let mut sessions = sessions.clone().engines([1]).inspect(Inspection {
            extra_outputs: extra_outputs.to_vec(),
            exactness,
            ..Inspection::default()
        });
        sessions.ort.passive_wait = true;
        let manifest = sessions.package().manifest();
        let mut session = sessions.open(backend)?;
        let started = Instant::now();
        let (mut logits, mut states) = (Vec::new(), Vec::new());
        for (position, token) in tokens.iter().enumerate() {
            // Only the reference, whose tokens the others take, may stop early.
            let late = exactness == Exactness::WithoutRounding && started.elapsed() > TIME;
            if late && position > 0 {
                break;
            }
            let step = session.run_slot(0, 1, &[*token])?;
            see(&step);
            logits.push(step.last_logits(0).unwrap_or_default().to_vec());
            let left = session.read_delta(0, position)?;
            states.push(pieces(manifest, backend, position, &left.bytes));
        }
        Ok(Self { logits, states })
    }

    /// How many tokens ran.
    pub fn tokens(&self) -> usize {
        self.logits.len()
    }
}

/// What the token at `position` has written as soon as it has run: (layer, kind, where).
pub(super) fn written(
    manifest: &Manifest,
    position: usize,
) -> impl Iterator<Item = (usize, StateKind, WrittenPiece)> {
    let kinds: Vec<_> = StateKind::of_model(&manifest.model).collect();
    let tokens = position..position + 1;
    let pieces = written_pieces(&manifest.model, manifest.max_seq_len, tokens).into_iter();
    pieces.map(move |piece| {
        let (layer, kind) = kinds[piece.state];
        (layer, kind, piece)
    })
}

/// The pieces that lie one after the other in `bytes`.
fn pieces(
    manifest: &Manifest,
    backend: BackendKind,
    position: usize,
    mut bytes: &[u8],
) -> Vec<Vec<f32>> {
    let shape = match backend {
        // It keeps every state in f32.
        BackendKind::Tract => PackageShape {
            cache_dtype: ElementType::F32,
            ..manifest.shape()
        },
        _ => manifest.shape(),
    };
    let pieces = written(manifest, position).map(|(_, kind, piece)| {
        let dtype = kind.dtype(&shape);
        let (own, rest) = bytes.split_at(piece.elements.len() * dtype.size());
        bytes = rest;
        floats(dtype, own)
    });
    pieces.collect()
}

fn floats(dtype: ElementType, bytes: &[u8]) -> Vec<f32> {
    let pairs = || bytes.as_chunks().0.iter().copied();
    match dtype {
        ElementType::F16 => pairs()
            .map(|pair| half::f16::from_le_bytes(pair).to_f32())
            .collect(),
        ElementType::BF16 => pairs()
            .map(|pair| half::bf16::from_le_bytes(pair).to_f32())
            .collect(),
        _ => {
            let words = bytes.as_chunks().0.iter();
            words.map(|word| f32::from_le_bytes(*word)).collect()
        }
    }
}
