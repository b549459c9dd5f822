//! tract in f32: what backends are compared with, and what rounding the weights may cost.

use super::choices::Chosen;
use super::{Golden, GoldenTap, Route, Row, STORED_WEIGHTS, Verifier, VerifyError};
use ratplus_graphs::tolerance::{
    F32_LOGIT, NAIVE_ROUNDING_FACTOR, STORED_WEIGHTS_MEAN_FACTOR, STORED_WEIGHTS_MEAN_ROWS,
};
use ratplus_runtime::backend::inspection::Exactness;
use ratplus_runtime::backend::{BackendKind, Session};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

/// Seeds of the noise that shows what rounding weights costs.
const NOISE_SEEDS: [u64; 2] = [0, 1];

impl Verifier<'_> {
    /// Random tokens, and what tract makes of them one by one without rounding.
    pub(super) fn reference_golden(&mut self) -> Result<Golden, VerifyError> {
        use rand::{Rng as _, SeedableRng};
        let manifest = self.package.manifest();
        let vocab = manifest.model.vocab_size;
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(self.options.seed);
        let total = self.options.tokens;
        let tokens: Vec<Vec<i64>> = (0..manifest.batch)
            .map(|_| {
                (0..total)
                    .map(|_| rng.random_range(0..vocab as i64))
                    .collect()
            })
            .collect();
        let taps = match self.options.reference_taps {
            true => GoldenTap::usual(&manifest.model),
            false => Vec::new(),
        };
        let tokens = Golden {
            logits: Vec::new(),
            taps: taps
                .into_iter()
                .map(|tap| tap.over(tokens.len() * total))
                .collect(),
            tokens,
            positions: (0..total).collect(),
            vocab_size: vocab,
        };
        self.exact(&tokens, Exactness::WithoutRounding)
    }

    /// Compares the golden file with tract on the weights as they are stored, where that is not as
    /// the file's model has them; returns what tract made of them.
    pub(super) fn stored_weights(
        &mut self,
        file: &Golden,
        rows: &mut Vec<Row>,
    ) -> Result<Option<Golden>, VerifyError> {
        if !self.package.manifest().rounds_weights() {
            return Ok(None);
        }
        let started = Instant::now();
        let exact = self.exact(file, Exactness::WithoutRounding)?;
        let (mut noise, mut mean_noise) = (0.0f64, 0.0f64);
        for seed in NOISE_SEEDS {
            let noisy = self.exact(file, Exactness::NoisyWeights(seed))?;
            let differences = exact.differences(&noisy);
            noise = noise.max(differences.max);
            mean_noise = mean_noise.max(differences.mean());
        }
        let differences = file.differences(&exact);
        let floor = F32_LOGIT * file.largest_logit();
        // Noise that overflows shows nothing.
        let tolerance = (NAIVE_ROUNDING_FACTOR * noise).max(floor);
        let tolerance = Some(tolerance).filter(|tolerance| tolerance.is_finite());
        let mean_tolerance = (differences.rows >= STORED_WEIGHTS_MEAN_ROWS)
            .then(|| (STORED_WEIGHTS_MEAN_FACTOR * mean_noise).max(floor))
            .filter(|most| most.is_finite());
        let mean_passed = mean_tolerance.is_none_or(|most| differences.mean() <= most);
        rows.push(Row {
            backend: BackendKind::Tract,
            route: Route::Decode.to_string(),
            tensor: STORED_WEIGHTS.into(),
            rows: differences.rows,
            max_error: differences.max,
            mean_error: differences.mean(),
            tolerance,
            mean_tolerance,
            tolerance_source: format!(
                "{STORED_WEIGHTS}: {NAIVE_ROUNDING_FACTOR} x what noise of up to half a step in every \
                 rounded weight makes of tract in f32, {STORED_WEIGHTS_MEAN_FACTOR} x in the mean"
            ),
            argmax_agreed: Some(differences.argmax_agreed),
            worst: differences.worst,
            asked: Vec::new(),
            histogram: differences.decades(),
            seconds: started.elapsed().as_secs_f64(),
            passed: tolerance.is_some_and(|most| differences.max <= most) && mean_passed,
            divergence: None,
        });
        Ok(Some(exact))
    }

    /// What tract makes of a golden file's tokens one by one, at its positions and, without noise,
    /// at its taps.
    pub(super) fn exact(&mut self, like: &Golden, how: Exactness) -> Result<Golden, VerifyError> {
        (self.progress)(&match how {
            Exactness::NoisyWeights(seed) => format!("reference: tract, decode, noise {seed}"),
            _ => "reference: tract, decode".into(),
        });
        let taps = match how {
            Exactness::NoisyWeights(_) => Vec::new(),
            _ => like.taps.clone(),
        };
        let mut session = self.open(BackendKind::Tract, self.graph_names(&taps), how)?;
        self.observe(&mut session, like, Route::Decode, taps, None)
    }

    /// What a session makes of a golden file's tokens along a route: its logits at those of the file's positions that
    /// the route shows, and `taps`. With `chosen` the reference takes these blocks in place of its own.
    pub(super) fn observe(
        &mut self,
        session: &mut Session,
        like: &Golden,
        route: Route,
        taps: Vec<GoldenTap>,
        chosen: Option<&Rc<Chosen>>,
    ) -> Result<Golden, VerifyError> {
        let total = like.seq_len();
        let names = self.graph_names(&taps);
        let mut rows: Vec<BTreeMap<usize, Vec<f32>>> = vec![BTreeMap::new(); like.batch()];
        let mut found = Golden {
            tokens: like.tokens.clone(),
            positions: Vec::new(),
            logits: Vec::new(),
            vocab_size: like.vocab_size,
            taps,
        };
        self.drive(session, like, route, chosen, &mut |seen| {
            seen.each_logits(&mut |sequence, position, row| {
                if like.positions.binary_search(&position).is_ok() {
                    rows[sequence].insert(position, row.to_vec());
                }
            });
            for (tap, name) in found.taps.iter_mut().zip(&names) {
                for (sequence, position, row) in seen.tap(name, tap.width) {
                    let start = (sequence * total + position) * tap.width;
                    tap.values[start..start + tap.width].copy_from_slice(&row);
                }
            }
        })?;
        // A prefill may show its last position only, and all sequences of a route the same.
        found.positions = rows[0].keys().copied().collect();
        found.logits = rows
            .into_iter()
            .flat_map(BTreeMap::into_values)
            .flatten()
            .collect();
        Ok(found)
    }
}
