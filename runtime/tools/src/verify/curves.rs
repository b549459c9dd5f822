//! Differences by layer and position.

use super::{Curve, Golden, GoldenTap, Route, Verifier, VerifyError, shown_route};
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::backend::inspection::Exactness;

/// Layers that are looked at, at most: from the first to the last, evenly.
const MAX_LAYERS: usize = 5;

fn shown_layers(num_layers: usize) -> Vec<usize> {
    let last = num_layers.saturating_sub(1);
    let count = MAX_LAYERS.min(num_layers);
    let mut layers: Vec<_> = (0..count).map(|n| n * last / (count - 1).max(1)).collect();
    layers.dedup();
    layers
}

impl Verifier<'_> {
    /// The golden file's tokens, with the residual stream that tract in f32 has after some layers.
    pub(super) fn layers(&mut self, golden: &Golden) -> Result<Golden, VerifyError> {
        let model = &self.package.manifest().model;
        let tokens = golden.batch() * golden.seq_len();
        let taps = shown_layers(model.num_layers).into_iter();
        let like = Golden {
            taps: taps
                .map(|layer| GoldenTap::hidden(model, layer).over(tokens))
                .collect(),
            ..golden.clone()
        };
        self.exact(&like, Exactness::WithoutRounding)
    }

    /// How far the backend is from `layers`' residual streams, along the route that taps are compared along.
    pub(super) fn layer_curves(
        &mut self,
        backend: BackendKind,
        layers: &Golden,
        routes: &[Route],
    ) -> Result<(), VerifyError> {
        let Some(route) = shown_route(routes).filter(|_| !backend.runs_plans()) else {
            return Ok(());
        };
        let differences = match self.sees_choices(backend) {
            true => self.tap_differences_of_choices(backend, layers, route)?,
            false => self.tap_differences(backend, layers, route)?,
        };
        for (tap, differences) in layers.taps.iter().zip(differences) {
            self.curves.push(Curve {
                backend,
                layer: tap.layer,
                max_errors: differences.by_position,
            });
        }
        Ok(())
    }

    /// Takes in what one route's logits differ by.
    pub(super) fn logits_curve(&mut self, backend: BackendKind, by_position: &[f64]) {
        let same = |curve: &&mut Curve| curve.backend == backend && curve.layer.is_none();
        let Some(curve) = self.curves.iter_mut().find(same) else {
            self.curves.push(Curve {
                backend,
                layer: None,
                max_errors: by_position.to_vec(),
            });
            return;
        };
        let most = &mut curve.max_errors;
        most.resize(most.len().max(by_position.len()), 0.0);
        for (most, &found) in most.iter_mut().zip(by_position) {
            *most = most.max(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_shown_evenly_from_the_first_to_the_last() {
        for (layers, shown) in [
            (1, &[0][..]),
            (2, &[0, 1]),
            (4, &[0, 1, 2, 3]),
            (24, &[0, 5, 11, 17, 23]),
        ] {
            assert_eq!(shown_layers(layers), shown);
        }
    }
}
