//! Runs of engines along a route, and what they leave behind.

use super::{Golden, Route, Step, VerifyError};
use crate::backend::{Session, Step as Output};

/// One run of an engine on a route.
#[derive(Clone)]
pub(super) struct Turn {
    /// Sequences in the slots, from slot 0.
    sequences: std::ops::Range<usize>,
    /// Position of the run's first token.
    position: usize,
    step: Step,
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
    for first in (0..golden.batch()).step_by(batch) {
        let mut position = 0;
        for &step in &steps {
            let sequences = first..golden.batch().min(first + batch);
            turns.push(Turn {
                sequences,
                position,
                step,
            });
            position += step.tokens;
        }
    }
    Ok(turns)
}

impl Turn {
    pub fn run<'a>(
        &self,
        session: &'a mut Session,
        golden: &Golden,
        route: Route,
    ) -> Result<Seen<'a>, VerifyError> {
        let (batch, backend, position) = (session.batch(), session.backend(), self.position);
        if position == 0 {
            (0..batch).for_each(|slot| session.reset(slot));
        }
        let Step { engine_len, tokens } = self.step;
        let mut ids = vec![0; batch * engine_len];
        let mut seq_length = vec![0; batch];
        for (slot, sequence) in self.sequences.clone().enumerate() {
            let source = &golden.tokens[sequence][position..position + tokens];
            ids[slot * engine_len..slot * engine_len + tokens].copy_from_slice(source);
            seq_length[slot] = tokens as i64;
        }
        let output = session
            .run(engine_len, &ids, &seq_length)
            .map_err(|source| VerifyError::Backend {
                backend,
                route: format!("{route}, position {position}"),
                source,
            })?;
        Ok(Seen {
            output,
            turn: self.clone(),
        })
    }
}

/// What one run of an engine left behind.
pub(super) struct Seen<'a> {
    output: Output<'a>,
    turn: Turn,
}

impl Seen<'_> {
    /// Visits (sequence, position, row) of every logits row that means something.
    pub fn each_logits(&self, visit: &mut dyn FnMut(usize, usize, &[f32])) {
        for (slot, sequence) in self.turn.sequences.clone().enumerate() {
            for token in 0..self.turn.step.tokens {
                if let Some(row) = self.output.logits_at(slot, token) {
                    visit(sequence, self.turn.position + token, row);
                }
            }
        }
    }

    /// (sequence, position, row) of a tap that has a row for every token.
    pub fn tap(&self, name: &str, width: usize) -> Vec<(usize, usize, Vec<f32>)> {
        let Step { engine_len, tokens } = self.turn.step;
        let output = self.output.extra_output(name);
        let values = output.as_ref().map_or(&[][..], |(_, values)| values);
        let mut rows = Vec::new();
        for (slot, sequence) in self.turn.sequences.clone().enumerate() {
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
