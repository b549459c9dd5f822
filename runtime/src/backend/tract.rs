//! tract, the reference.

use super::builder::Opening;
use super::driver::{Driver, Sides, StepInputs};
use super::error::run_error;
use super::implementation::EngineNodes;
use super::inspection::Exactness;
use super::{BackendError, EngineImplementations, Implementation};
use crate::package::EngineGraph;
use ratplus_graphs::model::{ReferenceOptions, Rounding, reference, reference_weights};
use ratplus_graphs::package::{
    INPUT_IDS, LOGITS, PAST_LENGTH, SEQ_LENGTH, WEIGHTS_FILE, state_tensors,
};
use ratplus_tract::{TensorRef, TractEngine, TractWeights};
use std::borrow::Cow;
use std::ops::Range;

struct Engine {
    /// Its name.
    file: String,
    engine: TractEngine,
    /// Slots that it runs.
    batch: usize,
    /// Of all slots.
    logits: Vec<f32>,
    taps: Vec<(String, Vec<f32>)>,
}

struct State {
    past: String,
    present: String,
    sides: [Vec<f32>; 2],
}

struct TractDriver {
    engines: Vec<Engine>,
    states: Vec<State>,
    batch: usize,
    sides: Sides,
    implementations: Vec<EngineImplementations>,
}

pub(super) fn open(opening: &Opening<'_>) -> Result<Box<dyn Driver>, BackendError> {
    let (manifest, package) = (opening.manifest(), opening.options.package);
    let exactness = opening.options.inspection.exactness;
    let (spec, shape) = (&manifest.model, manifest.shape());
    let stored = reference_weights(spec, &shape, &manifest.precision);
    let path = package.weights_path();
    let weights = match exactness {
        Exactness::NoisyWeights(seed) => TractWeights::load_with_noise(&stored, path, seed),
        _ => TractWeights::load(&stored, path),
    };
    let weights = weights.map_err(run_error(WEIGHTS_FILE))?;
    let (mut engines, mut implementations) = (Vec::new(), Vec::new());
    for opened in &opening.engines {
        let info = &manifest.engines[opened.index];
        let _span = tracing::debug_span!("build", file = info.name).entered();
        let names: Vec<_> = opened.taps.iter().map(|(name, _)| name.clone()).collect();
        let graph = reference(&ReferenceOptions {
            sizes: manifest.sizes(info),
            rounding: match exactness {
                Exactness::AsStored => Rounding::AsStored,
                _ => Rounding::None,
            },
            inline: false,
            taps: &names,
        });
        let engine = TractEngine::new(&graph, &weights).map_err(run_error(&info.name))?;
        let seen = EngineGraph {
            engine: info,
            file: &info.name,
            model: graph.model,
        };
        let by = Implementation::Reference;
        let nodes = EngineNodes::of(&seen);
        implementations.push(EngineImplementations::uniform(nodes, &by));
        let logits = info.outputs.iter().find(|output| output.name == LOGITS);
        let logits = logits.map_or(0, |output| output.tensor.elements());
        let taps = opened.taps.iter();
        engines.push(Engine {
            file: info.name.clone(),
            engine,
            batch: opened.batch,
            logits: vec![0.0; logits / opened.batch * manifest.batch],
            taps: taps
                .map(|(name, tensor)| (name.clone(), vec![0.0; tensor.elements()]))
                .collect(),
        });
    }
    let states = state_tensors(&manifest.model, &manifest.shape())
        .into_iter()
        .map(|(past, present, tensor)| State {
            past,
            present,
            sides: [(); 2].map(|()| vec![0.0; tensor.elements()]),
        })
        .collect();
    Ok(Box::new(TractDriver {
        engines,
        states,
        batch: manifest.batch,
        sides: Sides::new(manifest.batch, false),
        implementations,
    }))
}

/// The part of `slots` in what all of `batch` slots have.
fn part(values: &[f32], slots: &Range<usize>, batch: usize) -> Range<usize> {
    let each = values.len() / batch;
    slots.start * each..slots.end * each
}

impl Driver for TractDriver {
    fn implementations(&self) -> &[EngineImplementations] {
        &self.implementations
    }

    fn in_place(&self) -> bool {
        false
    }

    /// In f32, whatever the package's type.
    fn slot_bytes(&self, state: usize) -> usize {
        size_of_val(&self.states[state].sides[0][..]) / self.batch
    }

    fn run(
        &mut self,
        engine: usize,
        slot: usize,
        inputs: StepInputs<'_>,
    ) -> Result<(), BackendError> {
        let Self {
            engines,
            states,
            batch,
            sides,
            ..
        } = self;
        let Engine {
            file,
            engine,
            batch: own,
            logits,
            taps,
        } = &mut engines[engine];
        let slots = slot..slot + *own;
        let Ok(side) = sides.gather(slots.clone(), inputs.past_length, |slot, from| {
            for State { sides, .. } in &mut *states {
                let part = part(&sides[0], &(slot..slot + 1), *batch);
                let [first, second] = sides;
                match from {
                    0 => second[part.clone()].copy_from_slice(&first[part]),
                    _ => first[part.clone()].copy_from_slice(&second[part]),
                }
            }
            Ok::<_, std::convert::Infallible>(())
        });
        let mut tensors = vec![
            (INPUT_IDS, TensorRef::I64(inputs.input_ids)),
            (PAST_LENGTH, TensorRef::I64(inputs.past_length)),
            (SEQ_LENGTH, TensorRef::I64(inputs.seq_length)),
        ];
        let own = |values: &mut [f32]| part(values, &slots, *batch);
        let at = own(logits);
        let mut outputs = vec![(LOGITS, &mut logits[at])];
        for state in states {
            let at = own(&mut state.sides[0]);
            let [first, second] = &mut state.sides;
            let (read, write) = match side {
                0 => (first, second),
                _ => (second, first),
            };
            tensors.push((&state.past, TensorRef::F32(&read[at.clone()])));
            outputs.push((&state.present, &mut write[at]));
        }
        for (name, values) in taps {
            let at = own(values);
            outputs.push((name, &mut values[at]));
        }
        engine
            .run(&tensors, &mut outputs)
            .map_err(run_error(file))?;
        sides.swap(slots);
        Ok(())
    }

    fn logits(&self, engine: usize) -> &[f32] {
        &self.engines[engine].logits
    }

    fn tap(&self, engine: usize, index: usize) -> Option<Cow<'_, [f32]>> {
        Some(Cow::Borrowed(&self.engines[engine].taps[index].1))
    }

    fn read_state(
        &mut self,
        state: usize,
        slot: usize,
        at: usize,
        bytes: &mut [u8],
    ) -> Result<(), BackendError> {
        let values = &self.states[state].sides[self.sides.of(slot)];
        let values = &values[part(values, &(slot..slot + 1), self.batch)];
        let values = &values[at / size_of::<f32>()..];
        for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
            *bytes = value.to_le_bytes();
        }
        Ok(())
    }

    fn write_state(
        &mut self,
        state: usize,
        slot: usize,
        at: usize,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        let values = &mut self.states[state].sides[self.sides.of(slot)];
        let own = part(values, &(slot..slot + 1), self.batch);
        let values = &mut values[own][at / size_of::<f32>()..];
        for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        Ok(())
    }
}
