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
/// can be seen by a later token, head after head, of each the initial, dilated and window's rows; summaries
/// of blocks that they are in; and the recurrence state. Those of a whole sequence, cut anywhere, are its state.
pub fn written_pieces(
    spec: &ModelSpec,
    max_seq_len: usize,
    positions: Range<usize>,
) -> Vec<WrittenPiece> {
    let mut pieces = Vec::new();
    for (state, (layer, kind)) in StateKind::of_model(spec).enumerate() {
        let slot = kind.slot_shape(spec, layer, max_seq_len).into_iter();
        let of = slot.product();
        let mut piece = |elements: Range<usize>, lasts| {
            if !elements.is_empty() {
                pieces.push(WrittenPiece {
                    state,
                    elements,
                    of,
                    lasts,
                });
            }
        };
        match kind {
            StateKind::RecurrentKey | StateKind::RecurrentValue => piece(0..of, Some(0)),
            StateKind::Block => {
                let Some(blocks) = spec.block_top_k(layer) else {
                    continue;
                };
                for head in 0..spec.kv_heads() {
                    let first = head * blocks.summary_rows(max_seq_len);
                    let rows = blocks.written_rows(positions.clone());
                    let [start, end] =
                        [rows.start, rows.end].map(|row| (first + row) * spec.d_head);
                    piece(start..end, None);
                }
            }
            StateKind::Key | StateKind::Value => {
                for head in spec.cache_layout(layer, max_seq_len).heads() {
                    let runs = head.written_rows(positions.clone());
                    let window = Some(head.pattern.local_window as usize);
                    let [first, second] = runs.window;
                    for (run, lasts) in [
                        (runs.initial, None),
                        (runs.dilated, None),
                        (first, window),
                        (second, window),
                    ] {
                        let [start, end] =
                            [run.start, run.end].map(|row| (head.offset + row) * spec.d_head);
                        piece(start..end, lasts);
                    }
                }
            }
        }
    }
    pieces
}

/// Bytes of what tokens `positions` leave in a slot, in the package's types.
pub fn written_bytes(spec: &ModelSpec, shape: &PackageShape, positions: Range<usize>) -> u64 {
    let kinds: Vec<_> = StateKind::of_model(spec).collect();
    let pieces = written_pieces(spec, shape.max_seq_len, positions).into_iter();
    let bytes = pieces.map(|piece| {
        let (_, kind) = kinds[piece.state];
        let size = kind.dtype(shape).size();
        (piece.elements.len() * size) as u64
    });
    bytes.sum()
}
