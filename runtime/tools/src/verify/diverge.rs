//! Names the first layer and tensor at which a backend leaves the reference.

use super::choices::Chosen;
use super::turn::turns;
use super::{Golden, Route, Verifier, VerifyError};
use ratplus_graphs::model::{self, FINAL_NORM};
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{LogitsMode, Products};
use ratplus_graphs::tolerance::F32_LOGIT;
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::backend::inspection::{self, Exactness};
use std::rc::Rc;

impl Verifier<'_> {
    /// Runs the backend and tract along `route` with every tap, and describes the first tensor
    /// in graph order, of the earliest run, that differs by more than the f32 tolerance (or, in
    /// low precision, eight roundings of its largest value). With `chosen` tract takes these blocks in place of
    /// its own.
    pub(super) fn first_divergence(
        &mut self,
        backend: BackendKind,
        golden: &Golden,
        route: Route,
        chosen: Option<&Rc<Chosen>>,
    ) -> Result<String, VerifyError> {
        if backend.runs_plans() {
            return Ok(
                "plans have no intermediate outputs: ort-cuda on the same package names the \
                       tensor if it differs too"
                    .into(),
            );
        }
        let manifest = self.package.manifest();
        let shape = manifest.shape();
        let roundings = [shape.dtype, shape.cache_dtype].map(|dtype| match dtype {
            ElementType::F16 => 8.0 * f64::from(half::f16::EPSILON.to_f32()),
            ElementType::BF16 => 8.0 * f64::from(half::bf16::EPSILON.to_f32()),
            _ => F32_LOGIT,
        });
        let of_rows = match manifest.precision.rounds_rows() {
            true => 8.0 / 127.0,
            false => 0.0,
        };
        let relative = roundings[0].max(roundings[1]).max(of_rows);
        let taps: Vec<_> = model::taps(
            &manifest.model,
            &shape,
            &manifest.precision,
            1,
            Products::Floats,
        )
        .into_iter()
        .map(|(name, tensor)| (name, tensor.shape.last().copied().unwrap_or(1)))
        .filter(|(name, _)| manifest.logits == LogitsMode::All || name != FINAL_NORM)
        .collect();
        let names: Vec<_> = taps.iter().map(|(name, _)| name.clone()).collect();
        let mut expected = self.open(BackendKind::Tract, names.clone(), Exactness::AsStored)?;
        let mut found = self.open(backend, names.clone(), Exactness::AsStored)?;
        for turn in turns(&found, golden, route)? {
            let expected = match chosen {
                None => turn.run(&mut expected, golden, route)?,
                Some(chosen) => inspection::with_choices(turn.choices(chosen), || {
                    turn.run(&mut expected, golden, route)
                })?,
            };
            let found = turn.run(&mut found, golden, route)?;
            for (name, width) in &taps {
                let (expected, found) = (expected.tap(name, *width), found.tap(name, *width));
                if let Some(place) = first_difference(&expected, &found, relative) {
                    return Ok(format!("first differs at {name}, {place}"));
                }
            }
        }
        Ok(
            "no intermediate tensor differs from tract's by more than rounding: the head does, or \
            tract differs from the golden file too"
                .into(),
        )
    }
}

/// (sequence, position, row) of a tap.
type TapRows = [(usize, usize, Vec<f32>)];

/// Where `found` first differs by more than `relative` of the largest expected value.
fn first_difference(expected: &TapRows, found: &TapRows, relative: f64) -> Option<String> {
    let values = expected.iter().flat_map(|(_, _, row)| row);
    let scale = values.fold(0.0f64, |most, &value| most.max(f64::from(value).abs()));
    let far = |(a, b): (&f32, &f32)| {
        let difference = (f64::from(*a) - f64::from(*b)).abs();
        difference.is_nan() || difference > relative * scale
    };
    expected
        .iter()
        .zip(found)
        .find_map(|((sequence, position, expected), (_, _, found))| {
            if expected.len() != found.len() {
                return Some("which is missing".into());
            }
            let channel = expected.iter().zip(found).position(far)?;
            Some(format!(
                "sequence {sequence}, position {position}, channel {channel}: tract {}, found {}",
                expected[channel], found[channel]
            ))
        })
}
