//! tract, the reference.

use super::session::Plan;
use super::{BackendError, EngineImplementations, Implementation};
use crate::package::{EngineGraph, Package};
use ratplus_graphs::manifest::{INPUT_IDS, LOGITS, PAST_LENGTH, SEQ_LENGTH, state_tensors};
use ratplus_graphs::model::add_outputs;
use ratplus_tract::{Rounding, TensorRef, TractEngine, TractError, TractWeights};

struct Engine {
    file: String,
    engine: TractEngine,
    logits: Vec<f32>,
    taps: Vec<(String, Vec<f32>)>,
}

struct State {
    past: String,
    present: String,
    bytes: usize,
    /// Read side, write side.
    sides: [Vec<f32>; 2],
}

pub(super) struct TractDriver {
    engines: Vec<Engine>,
    states: Vec<State>,
    implementations: Vec<EngineImplementations>,
}

impl TractDriver {
    pub fn open(package: &Package, plan: &Plan) -> Result<Self, BackendError> {
        let manifest = &plan.manifest;
        let target = manifest.targets()[0];
        let mut weights = None;
        let (mut engines, mut implementations) = (Vec::new(), Vec::new());
        for (&index, taps) in plan.engines.iter().zip(&plan.taps) {
            let graph = package.graph(index, target)?;
            let EngineGraph {
                engine: info,
                file,
                model,
            } = graph;
            let failed = |source: TractError| BackendError::Tract {
                file: file.into(),
                source: source.into(),
            };
            let weights = match &weights {
                Some(weights) => weights,
                None => {
                    let dir = package.dir();
                    let loaded = match plan.weight_noise {
                        None => TractWeights::load(model, dir),
                        Some(seed) => TractWeights::load_with_noise(model, dir, seed),
                    };
                    weights.insert(loaded.map_err(failed)?)
                }
            };
            let mut tapped = model.clone();
            add_outputs(&mut tapped, taps);
            let rounding = if plan.without_rounding {
                Rounding::None
            } else {
                Rounding::AsStored
            };
            let engine = TractEngine::with_rounding(&tapped, weights, rounding).map_err(failed)?;
            implementations.push(EngineImplementations::uniform(
                &graph,
                &Implementation::Reference,
            ));
            let logits = info.outputs.iter().find(|output| output.name == LOGITS);
            engines.push(Engine {
                file: file.into(),
                engine,
                logits: vec![0.0; logits.map_or(0, |output| output.tensor.elements())],
                taps: taps
                    .iter()
                    .map(|(name, tensor)| (name.clone(), vec![0.0; tensor.elements()]))
                    .collect(),
            });
        }
        let states = state_tensors(&manifest.model, &manifest.shape())
            .into_iter()
            .map(|(past, present, tensor)| State {
                past,
                present,
                bytes: tensor.bytes(),
                sides: [(); 2].map(|()| vec![0.0; tensor.elements()]),
            })
            .collect();
        Ok(Self {
            engines,
            states,
            implementations,
        })
    }

    pub fn implementations(&self) -> &[EngineImplementations] {
        &self.implementations
    }

    pub fn state_bytes(&self, index: usize) -> usize {
        self.states[index].bytes
    }

    pub fn run(
        &mut self,
        engine: usize,
        input_ids: &[i64],
        past_length: &[i64],
        seq_length: &[i64],
    ) -> Result<(), BackendError> {
        let Engine {
            file,
            engine,
            logits,
            taps,
        } = &mut self.engines[engine];
        let mut inputs = vec![
            (INPUT_IDS, TensorRef::I64(input_ids)),
            (PAST_LENGTH, TensorRef::I64(past_length)),
            (SEQ_LENGTH, TensorRef::I64(seq_length)),
        ];
        let mut outputs = vec![(LOGITS, logits.as_mut_slice())];
        for state in &mut self.states {
            let [read, write] = &mut state.sides;
            inputs.push((&state.past, TensorRef::F32(read)));
            outputs.push((&state.present, write));
        }
        outputs.extend(
            taps.iter_mut()
                .map(|(name, values)| (name.as_str(), values.as_mut_slice())),
        );
        engine
            .run(&inputs, &mut outputs)
            .map_err(|source| BackendError::Tract {
                file: file.clone(),
                source: source.into(),
            })?;
        for state in &mut self.states {
            state.sides.swap(0, 1);
        }
        Ok(())
    }

    pub fn logits(&self, engine: usize) -> &[f32] {
        &self.engines[engine].logits
    }

    pub fn tap(&self, engine: usize, index: usize) -> &[f32] {
        &self.engines[engine].taps[index].1
    }
}
