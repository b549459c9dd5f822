//! What a run of tokens leaves in a slot's states.

use super::state::{PackageShape, StateKind};
use crate::spec::ModelSpec;
use std::ops::Range;

/// Elements of a slot's part of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenPiece {
    /// Which of [`state_tensors`](super::state_tensors).
    pub state: usize,
    /// From the slot's first element of it on.
    pub elements: Range<usize>,
    /// How many elements that part has.
    pub of: usize,
    /// For how many tokens after the last one it is of use; `None` for ever.
    pub lasts: Option<usize>,
}

/// What tokens `positions` have left once they have run, and none after: the cache rows that hold them and
/// can be seen by a later token, head after head, of each the initial, dilated and window's rows; and the
/// recurrence state. Those of a whole sequence, cut anywhere, are its state.
pub fn written_pieces(
    spec: &ModelSpec,
    max_seq_len: usize,
    positions: Range<usize>,
) -> Vec<WrittenPiece> {
    let kinds = StateKind::all(spec.recurrence);
    let mut pieces = Vec::new();
    for layer in 0..spec.num_layers {
        let layout = spec.cache_layout(layer, max_seq_len);
        for (index, kind) in kinds.iter().enumerate() {
            let state = layer * kinds.len() + index;
            let of = kind
                .slot_shape(spec, layer, max_seq_len)
                .into_iter()
                .product();
            if matches!(kind, StateKind::RecurrentKey | StateKind::RecurrentValue) {
                pieces.push(WrittenPiece {
                    state,
                    elements: 0..of,
                    of,
                    lasts: Some(0),
                });
                continue;
            }
            for head in layout.heads() {
                let runs = head.written_rows(positions.clone());
                let window = Some(head.pattern.local_window as usize);
                let [first, second] = runs.window;
                for (run, lasts) in [
                    (runs.initial, None),
                    (runs.dilated, None),
                    (first, window),
                    (second, window),
                ] {
                    let [start, end] = [run.start, run.end].map(|row| head.offset + row);
                    if start < end {
                        pieces.push(WrittenPiece {
                            state,
                            elements: start * spec.d_head..end * spec.d_head,
                            of,
                            lasts,
                        });
                    }
                }
            }
        }
    }
    pieces
}

/// Bytes of what tokens `positions` leave in a slot, in the package's types.
pub fn written_bytes(spec: &ModelSpec, shape: &PackageShape, positions: Range<usize>) -> u64 {
    let kinds = StateKind::all(spec.recurrence);
    let pieces = written_pieces(spec, shape.max_seq_len, positions).into_iter();
    let bytes = pieces.map(|piece| {
        let size = kinds[piece.state % kinds.len()].dtype(shape).size();
        (piece.elements.len() * size) as u64
    });
    bytes.sum()
}
