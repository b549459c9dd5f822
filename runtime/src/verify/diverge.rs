//! Names the first layer and tensor at which a backend leaves the reference.

use super::{Golden, Route, Verifier, VerifyError};
use crate::backend::BackendKind;
use ratplus_graphs::manifest::LogitsMode;
use ratplus_graphs::model::{self, FINAL_NORM};
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::tolerance::F32_LOGIT;

impl Verifier<'_> {
    /// Runs the backend and tract along `route` with every tap, and describes the first tensor
    /// in graph order, of the earliest run, that differs by more than the f32 tolerance (or, in
    /// low precision, eight roundings of its largest value).
    pub(super) fn first_divergence(
        &mut self,
        backend: BackendKind,
        golden: &Golden,
        route: Route,
    ) -> Result<String, VerifyError> {
        let manifest = self.package.manifest();
        let relative = match manifest.dtype {
            ElementType::F16 => 8.0 * f64::from(half::f16::EPSILON.to_f32()),
            ElementType::BF16 => 8.0 * f64::from(half::bf16::EPSILON.to_f32()),
            _ => F32_LOGIT,
        };
        let width = manifest.model.d_model;
        let names: Vec<_> = model::taps(&manifest.model, &manifest.shape(), 1)
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| manifest.logits == LogitsMode::All || name != FINAL_NORM)
            .collect();
        // One record per run: sequences' rows of every tap.
        type Record = Vec<Vec<(usize, usize, Vec<f32>)>>;
        let record = |backend: BackendKind| -> Result<Vec<Record>, VerifyError> {
            let mut session = self.open(backend, names.clone(), false)?;
            let mut runs = Vec::new();
            self.drive(&mut session, golden, route, &mut |seen| {
                runs.push(names.iter().map(|name| seen.tap(name, width)).collect());
            })?;
            Ok(runs)
        };
        let (expected, found) = (record(BackendKind::Tract)?, record(backend)?);
        for (expected, found) in expected.iter().zip(&found) {
            for (name, (expected, found)) in names.iter().zip(expected.iter().zip(found)) {
                let values = expected.iter().flat_map(|row| &row.2);
                let scale = values.fold(0.0f64, |most, &value| most.max(f64::from(value).abs()));
                for ((sequence, position, expected), (_, _, found)) in expected.iter().zip(found) {
                    let far = |(a, b): (&f32, &f32)| {
                        let difference = (f64::from(*a) - f64::from(*b)).abs();
                        difference.is_nan() || difference > relative * scale
                    };
                    if expected.len() != found.len() {
                        return Ok(format!("{name} is missing"));
                    }
                    if let Some(channel) = expected.iter().zip(found).position(far) {
                        return Ok(format!(
                            "first differs at {name}, sequence {sequence}, position {position}, channel \
                             {channel}: tract {}, {backend} {}",
                            expected[channel], found[channel]
                        ));
                    }
                }
            }
        }
        Ok("no intermediate tensor differs from tract's by more than rounding: the head does, or tract \
            differs from the golden file too"
            .into())
    }
}
