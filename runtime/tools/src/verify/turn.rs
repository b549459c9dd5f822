//! Runs of engines along a route, and what they leave behind.

use super::choices::{Chosen, OfSlots};
use super::{Golden, Route, VerifyError};
use ratplus_runtime::backend::{Session, Step, inspection};
use ratplus_runtime::planner::Chunk;
use std::rc::Rc;

/// One run of an engine on a route.
#[derive(Clone)]
pub(super) struct Turn {
    /// The first slot that runs.
    slot: usize,
    /// Whether its engine runs no other.
    apart: bool,
    /// Sequences in the slots from there on.
    sequences: std::ops::Range<usize>,
    /// Position of the run's first token.
    position: usize,
    step: Chunk,
}

/// Every run that takes all sequences along `route`.
pub(super) fn turns(
    session: &Session,
    golden: &Golden,
    route: Route,
) -> Result<Vec<Turn>, VerifyError> {
    let steps = route
        .steps(golden.seq_len(), session.lengths(), session.max_seq_len())
        .map_err(|error| VerifyError::Mismatch(vec![error.to_string()]))?;
    let batch = session.batch();
    let mut turns = Vec::new();
    let apart = route == Route::DecodeApart;
    for first in (0..golden.batch()).step_by(if apart { 1 } else { batch }) {
        let mut position = 0;
        for &step in &steps {
            let count = if apart { 1 } else { batch };
            turns.push(Turn {
                slot: if apart { first % batch } else { 0 },
                apart,
                sequences: first..golden.batch().min(first + count),
                position,
                step,
            });
            position += step.tokens;
        }
    }
    Ok(turns)
}

impl Turn {
    /// The reference's choices in this run.
    pub fn choices(&self, chosen: &Rc<Chosen>) -> Rc<dyn inspection::Choices> {
        Rc::new(OfSlots {
            chosen: Rc::clone(chosen),
            first: self.sequences.start,
        })
    }

    pub fn run<'a>(
        &self,
        session: &'a mut Session,
        golden: &Golden,
        route: Route,
    ) -> Result<Seen<'a>, VerifyError> {
        let (batch, backend, position) = (session.batch(), session.backend(), self.position);
        let failed = |source| VerifyError::Backend {
            backend,
            route: format!("{route}, position {position}"),
            source,
        };
        let seen = |output| Seen {
            output,
            turn: self.clone(),
        };
        if position == 0 {
            let slots = self.slot..self.slot + if self.apart { 1 } else { batch };
            slots.for_each(|slot| session.reset(slot));
        }
        let Chunk { engine_len, tokens } = self.step;
        if self.apart {
            let source = &golden.tokens[self.sequences.start][position..position + tokens];
            let ids: Vec<_> = source.iter().map(|&token| token as u32).collect();
            let output = session.run_slot(self.slot, engine_len, &ids);
            return output.map(seen).map_err(failed);
        }
        let mut ids = vec![0; batch * engine_len];
        let mut seq_length = vec![0; batch];
        for (slot, sequence) in self.sequences.clone().enumerate() {
            let source = &golden.tokens[sequence][position..position + tokens];
            ids[slot * engine_len..slot * engine_len + tokens].copy_from_slice(source);
            seq_length[slot] = tokens as i64;
        }
        let output = session.run(engine_len, &ids, &seq_length);
        output.map(seen).map_err(failed)
    }
}

/// What one run of an engine left behind.
pub(super) struct Seen<'a> {
    output: Step<'a>,
    turn: Turn,
}

impl Seen<'_> {
    /// Visits (sequence, position, row) of every logits row that means something.
    pub fn each_logits(&self, visit: &mut dyn FnMut(usize, usize, &[f32])) {
        for (slot, sequence) in (self.turn.slot..).zip(self.turn.sequences.clone()) {
            for token in 0..self.turn.step.tokens {
                if let Some(row) = self.output.logits_at(slot, token) {
                    visit(sequence, self.turn.position + token, row);
                }
            }
        }
    }

    /// (sequence, position, row) of a tap that has a row for every token.
    pub fn tap(&self, name: &str, width: usize) -> Vec<(usize, usize, Vec<f32>)> {
        let Chunk { engine_len, tokens } = self.turn.step;
        let output = inspection::extra_output(&self.output, name);
        let values = output.as_ref().map_or(&[][..], |(_, values)| values);
        let mut rows = Vec::new();
        for (slot, sequence) in (self.turn.slot..).zip(self.turn.sequences.clone()) {
            for token in 0..tokens {
                let start = (slot * engine_len + token) * width;
                // A tap that is missing or short compares as wrong, not as absent.
                let row = values
                    .get(start..start + width)
                    .unwrap_or_default()
                    .to_vec();
                rows.push((sequence, self.turn.position + token, row));
            }
        }
        rows
    }
}
