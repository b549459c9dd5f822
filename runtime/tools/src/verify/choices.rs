//! Which blocks a backend's queries chose, and what the reference makes of the same.
//!
//! A choice is computed in f64 from the backend's own queries and keys. The reference is then given it, so that
//! a tie neither hides a wrong kernel nor fails a right one; and each chosen block is held to what the reference
//! scores it: no further below those that it would choose itself than roundings of the package's types may
//! move two scores.

use super::golden::{Golden, GoldenTap};
use super::report::ChoiceRow;
use super::{Differences, Route, Row, Verifier, VerifyError};
use ratplus_graphs::blocks::{BlockTopK, Score};
use ratplus_graphs::model::Tap;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::spec::ModelSpec;
use ratplus_graphs::tolerance::{F32_LOGIT, NAIVE_ROUNDING_FACTOR};
use ratplus_runtime::backend::inspection::{self, Exactness};
use ratplus_runtime::backend::{BackendKind, Session};
use std::rc::Rc;
use std::time::Instant;

/// Layers whose queries choose blocks, and how.
pub(super) fn choosing(spec: &ModelSpec) -> Vec<(usize, BlockTopK)> {
    let layers = 0..spec.num_layers;
    let choosing = layers.map(|layer| Some((layer, spec.block_top_k(layer)?)));
    choosing.flatten().collect()
}

/// What choices are made of: queries and keys of those layers, in this order.
pub(super) fn taps(spec: &ModelSpec, tokens: usize) -> Vec<GoldenTap> {
    let taps = choosing(spec).into_iter().flat_map(|(layer, _)| {
        [Tap::Query, Tap::GatedKey].map(|tap| GoldenTap {
            name: tap.name(layer),
            tap,
            layer: Some(layer),
            values: vec![0.0; tokens * tap.width(spec)],
            width: tap.width(spec),
        })
    });
    taps.collect()
}

/// The scores of earlier blocks with every query, layer by layer.
pub(super) struct Scores {
    /// By layer, `[sequence, position, head]`, each of the blocks before the query's own.
    layers: Vec<Vec<Vec<f64>>>,
}

/// By layer, `[sequence, position, head]`: blocks, ascending.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chosen {
    layers: Vec<Vec<Vec<u32>>>,
    seq_len: usize,
    heads: usize,
}

impl Scores {
    /// Of the taps of a run; keys are rounded to `cache`.
    pub fn of(spec: &ModelSpec, run: &Golden, cache: ElementType) -> Self {
        let layers = choosing(spec).into_iter().enumerate();
        let layers = layers.map(|(index, (_, blocks))| {
            let taps = &run.taps[2 * index..2 * index + 2];
            scores(
                spec,
                &blocks,
                [&taps[0].values, &taps[1].values],
                [run.batch(), run.seq_len()],
                cache,
            )
        });
        Self {
            layers: layers.collect(),
        }
    }

    /// The blocks with the greatest scores, of equal ones the lower.
    pub fn chosen(&self, spec: &ModelSpec, seq_len: usize) -> Chosen {
        let layers = self.layers.iter().zip(choosing(spec));
        let layers = layers.map(|(queries, (_, blocks))| {
            let queries = queries.iter().map(|scores| {
                let mut order: Vec<u32> = (0..scores.len() as u32).collect();
                let score = |block: &u32| ranked(scores[*block as usize]);
                order.sort_by(|a, b| score(b).total_cmp(&score(a)));
                order.truncate(blocks.top_k as usize - 1);
                order.sort_unstable();
                order
            });
            queries.collect()
        });
        Chosen {
            layers: layers.collect(),
            seq_len,
            heads: spec.num_heads(),
        }
    }

    /// Largest difference in each layer.
    fn differences(&self, other: &Self) -> Vec<f64> {
        let layers = self.layers.iter().zip(&other.layers);
        let largest = layers.map(|(ours, theirs)| {
            let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
            pairs.fold(0.0f64, |most, (a, b)| most.max((a - b).abs()))
        });
        largest.collect()
    }

    fn largest(&self) -> Vec<f64> {
        let layers = self.layers.iter();
        let largest = layers.map(|layer| {
            let scores = layer.iter().flatten();
            scores.fold(0.0f64, |most, score| most.max(score.abs()))
        });
        largest.collect()
    }
}

fn scores(
    spec: &ModelSpec,
    blocks: &BlockTopK,
    [query, key]: [&[f32]; 2],
    [batch, seq_len]: [usize; 2],
    cache: ElementType,
) -> Vec<Vec<f64>> {
    let (dim, heads, kv_heads) = (spec.d_head, spec.num_heads(), spec.kv_heads());
    let rounded = |x: f64| match cache {
        ElementType::F16 => f64::from(half::f16::from_f32(x as f32)),
        ElementType::BF16 => f64::from(half::bf16::from_f32(x as f32)),
        _ => x,
    };
    let size = blocks.block_size as usize;
    let mut found = Vec::new();
    for sequence in 0..batch {
        // By key-value head and block: least and greatest, or the sum twice.
        let mut summaries: Vec<Vec<[Vec<f64>; 2]>> = vec![Vec::new(); kv_heads];
        for (head, summaries) in summaries.iter_mut().enumerate() {
            for position in 0..seq_len {
                let at = ((sequence * seq_len + position) * kv_heads + head) * dim;
                let key = rotated(spec, &key[at..at + dim], position);
                let key = key.into_iter().map(rounded).collect::<Vec<_>>();
                if position % size == 0 {
                    summaries.push([key.clone(), key]);
                    continue;
                }
                let Some([first, last]) = summaries.last_mut() else {
                    continue;
                };
                for ((first, last), key) in first.iter_mut().zip(last).zip(key) {
                    [*first, *last] = match blocks.score {
                        Score::Bounds => [first.min(key), last.max(key)],
                        Score::Mean => [*first + key; 2],
                    };
                }
            }
        }
        for position in 0..seq_len {
            for head in 0..heads {
                let at = ((sequence * seq_len + position) * heads + head) * dim;
                let query = rotated(spec, &query[at..at + dim], position);
                let earlier = &summaries[head * kv_heads / heads][..blocks.block_of(position)];
                let scores = earlier.iter().map(|[first, last]| {
                    let bounds = first.iter().zip(last);
                    let products = query
                        .iter()
                        .zip(bounds)
                        .map(|(q, (a, b))| (q * a).max(q * b));
                    products.sum()
                });
                found.push(scores.collect());
            }
        }
    }
    found
}

/// A score in its place among others: zeros are equal, and what is no number is below all.
fn ranked(score: f64) -> f64 {
    match score.is_nan() {
        true => f64::NEG_INFINITY,
        false => score + 0.0,
    }
}

/// After rotary embedding.
fn rotated(spec: &ModelSpec, token: &[f32], position: usize) -> Vec<f64> {
    let half = token.len() / 2;
    let mut turned: Vec<_> = token.iter().map(|&x| f64::from(x)).collect();
    if spec.rope {
        for channel in 0..half {
            let frequency = spec.rope_base.powf(-(channel as f64) / half as f64);
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (low, high) = (turned[channel], turned[channel + half]);
            turned[channel] = low * cos - high * sin;
            turned[channel + half] = high * cos + low * sin;
        }
    }
    turned
}

/// What a session takes in a step, of its slots.
pub(super) struct OfSlots {
    pub chosen: Rc<Chosen>,
    /// The sequence in slot 0.
    pub first: usize,
}

impl inspection::Choices for OfSlots {
    fn chosen(&self, nth: usize, slot: usize, position: usize, head: usize) -> &[u32] {
        let Chosen {
            layers,
            seq_len,
            heads,
        } = &*self.chosen;
        let query = ((self.first + slot) * seq_len + position) * heads + head;
        // Slots past the last sequence are idle.
        let queries = layers.get(nth).and_then(|layer| layer.get(query));
        queries.map_or(&[], Vec::as_slice)
    }
}

/// What the reference makes of a backend's choices.
pub(super) struct Given {
    chosen: Rc<Chosen>,
    /// Without rounding.
    exact: Golden,
    scores: Scores,
    /// With the package's roundings, in low precision: logits and scores.
    naive: Option<(Golden, Scores)>,
}

impl Verifier<'_> {
    /// As `verify_backend` has it for logits along a route, of a model whose queries choose blocks.
    pub(super) fn verify_choices(
        &mut self,
        session: &mut Session,
        golden: &Golden,
        route: Route,
        choices: &mut Vec<ChoiceRow>,
    ) -> Result<Row, VerifyError> {
        let (backend, started) = (session.backend(), Instant::now());
        let manifest = self.package.manifest();
        let spec = &manifest.model;
        let tokens = golden.batch() * golden.seq_len();
        let seen = self.observe(session, golden, route, taps(spec, tokens), None)?;
        let given = self.given_of(golden, &seen)?;
        choices.extend(judged(spec, backend, route, &given));
        let scale = golden.largest_logit();
        let differences = match self.is_free(&given) {
            true => golden.differences(&seen),
            false => given.exact.differences(&seen),
        };
        let naive = given.naive.as_ref();
        let naive = naive.map(|(naive, _)| given.exact.differences(naive).max);
        let seconds = started.elapsed().as_secs_f64();
        if let Some(naive) = naive {
            let most = self.naive.entry("logits".into()).or_default();
            *most = most.max(naive);
        }
        if self.options.curves {
            self.logits_curve(backend, &differences.by_position);
        }
        let mut row = self.judge(
            backend,
            &route.to_string(),
            "logits",
            &differences,
            scale,
            seconds,
        )?;
        self.explain(&mut row, backend, golden, route, Some(&given.chosen))?;
        Ok(row)
    }

    /// As `verify_taps` has it, of a model whose queries choose blocks.
    pub(super) fn verify_taps_of_choices(
        &mut self,
        backend: BackendKind,
        golden: &Golden,
        route: Route,
        rows: &mut Vec<Row>,
    ) -> Result<(), VerifyError> {
        let started = Instant::now();
        let (seen, given, first) = self.taps_and_given(backend, golden, route)?;
        let free = self.is_free(&given);
        let seconds = started.elapsed().as_secs_f64();
        for (index, tap) in golden.taps.iter().enumerate() {
            let exact = &given.exact.taps[first + index];
            let expected = if free { tap } else { exact };
            let differences = expected.differences(&seen.taps[first + index], golden.seq_len());
            if let Some((naive, _)) = &given.naive {
                let naive = exact.differences(&naive.taps[first + index], golden.seq_len());
                let most = self.naive.entry(tap.name.clone()).or_default();
                *most = most.max(naive.max);
            }
            let scale = expected.largest();
            let route = route.to_string();
            rows.push(self.judge(backend, &route, &tap.name, &differences, scale, seconds)?);
        }
        Ok(())
    }

    /// What the backend makes of `golden` along `route`, what the reference makes of the same choices, and where the
    /// file's own taps begin in both: after those that choices are made of.
    fn taps_and_given(
        &mut self,
        backend: BackendKind,
        golden: &Golden,
        route: Route,
    ) -> Result<(Golden, Rc<Given>, usize), VerifyError> {
        let spec = &self.package.manifest().model;
        let mut all = taps(spec, golden.batch() * golden.seq_len());
        let first = all.len();
        all.extend(golden.taps.iter().cloned());
        let mut session = self.open(backend, self.graph_names(&all), Exactness::AsStored)?;
        let seen = self.observe(&mut session, golden, route, all, None)?;
        let given = self.given_of(golden, &seen)?;
        Ok((seen, given, first))
    }

    /// How far the backend's taps along `route` are from the reference's, in the order of `golden`, which says which
    /// they are.
    pub(super) fn tap_differences_of_choices(
        &mut self,
        backend: BackendKind,
        golden: &Golden,
        route: Route,
    ) -> Result<Vec<Differences>, VerifyError> {
        let (seen, given, first) = self.taps_and_given(backend, golden, route)?;
        let taps = given.exact.taps.iter().zip(&seen.taps).skip(first);
        let differences = taps.map(|(exact, seen)| exact.differences(seen, golden.seq_len()));
        Ok(differences.collect())
    }

    /// Whether a golden file holds of what is given: it has choices of its own, and weights that may be others'.
    fn is_free(&self, given: &Given) -> bool {
        let spec = &self.package.manifest().model;
        let quantized = self.package.manifest().precision.quantization.is_some();
        let free = given.scores.chosen(spec, given.chosen.seq_len) == *given.chosen;
        free && !self.low_precision() && !quantized
    }

    /// What the reference makes of the choices that a run's taps tell.
    fn given_of(&mut self, golden: &Golden, seen: &Golden) -> Result<Rc<Given>, VerifyError> {
        let manifest = self.package.manifest();
        let own = Scores::of(&manifest.model, seen, manifest.shape().cache_dtype);
        let chosen = own.chosen(&manifest.model, golden.seq_len());
        self.given(golden, chosen)
    }

    /// What the reference makes of these choices; the last ones' are kept.
    fn given(&mut self, golden: &Golden, chosen: Chosen) -> Result<Rc<Given>, VerifyError> {
        let manifest = self.package.manifest();
        let (spec, cache) = (&manifest.model, manifest.shape().cache_dtype);
        let mut taps = taps(spec, golden.batch() * golden.seq_len());
        taps.extend(golden.taps.iter().cloned());
        let names =
            |taps: &[GoldenTap]| taps.iter().map(|tap| tap.name.clone()).collect::<Vec<_>>();
        if let Some(given) = &self.given
            && *given.chosen == chosen
            && names(&given.exact.taps) == names(&taps)
        {
            return Ok(Rc::clone(given));
        }
        let chosen = Rc::new(chosen);
        let run = |of: &mut Self, how| -> Result<Golden, VerifyError> {
            (of.progress)("reference: tract, decode, with the backend's choices");
            let names = of.graph_names(&taps);
            let mut session = of.open(BackendKind::Tract, names, how)?;
            let choices = Some(&chosen);
            of.observe(&mut session, golden, Route::Decode, taps.clone(), choices)
        };
        let exact = run(self, Exactness::WithoutRounding)?;
        let naive = match self.low_precision() {
            true => {
                let naive = run(self, Exactness::AsStored)?;
                let scores = Scores::of(spec, &naive, cache);
                Some((naive, scores))
            }
            false => None,
        };
        let given = Rc::new(Given {
            chosen,
            scores: Scores::of(spec, &exact, ElementType::F32),
            exact,
            naive,
        });
        self.given = Some(Rc::clone(&given));
        Ok(given)
    }
}

/// How the choices stand to the reference's scores.
fn judged(spec: &ModelSpec, backend: BackendKind, route: Route, given: &Given) -> Vec<ChoiceRow> {
    let free = given.scores.chosen(spec, given.chosen.seq_len);
    let exact = given
        .scores
        .largest()
        .into_iter()
        .map(|largest| F32_LOGIT * largest);
    // Two scores move.
    let slack: Vec<f64> = match &given.naive {
        None => exact.map(|exact| 2.0 * exact).collect(),
        Some((_, naive)) => {
            let naive = given.scores.differences(naive).into_iter();
            let slack = naive
                .zip(exact)
                .map(|(naive, exact)| (NAIVE_ROUNDING_FACTOR * naive).max(exact));
            slack.map(|one| 2.0 * one).collect()
        }
    };
    let layers = choosing(spec).into_iter().enumerate();
    let rows = layers.map(|(index, (layer, _))| {
        let (mut queries, mut agreed, mut largest_gap) = (0, 0, 0.0f64);
        let of_queries = given.chosen.layers[index].iter().zip(&free.layers[index]);
        for ((found, expected), scores) in of_queries.zip(&given.scores.layers[index]) {
            // Where all earlier blocks are chosen, there is no choice.
            if expected.len() == scores.len() {
                continue;
            }
            queries += 1;
            agreed += u64::from(found == expected);
            let of = |blocks: &[u32]| {
                blocks
                    .iter()
                    .map(|&block| scores[block as usize])
                    .fold(f64::INFINITY, f64::min)
            };
            largest_gap = largest_gap.max(of(expected) - of(found));
        }
        let tolerance = slack[index];
        ChoiceRow {
            backend,
            route: route.to_string(),
            layer,
            queries,
            agreed,
            largest_gap,
            tolerance,
            passed: largest_gap <= tolerance,
        }
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratplus_graphs::pattern::Pattern;
    use ratplus_graphs::spec::LayerPatterns;

    /// One layer of one head of two channels without rotation, blocks of two.
    fn spec(top_k: i64, score: Score) -> ModelSpec {
        let blocks = BlockTopK::new(2, top_k, score, Pattern::NONE).unwrap();
        ModelSpec {
            vocab_size: 1,
            d_model: 2,
            num_layers: 1,
            d_head: 2,
            rope: false,
            patterns: vec![LayerPatterns::BlockTopK(blocks)],
            ..ModelSpec::default()
        }
    }

    /// Keys whose first channel is told, and queries of one.
    fn run(spec: &ModelSpec, keys: &[f32]) -> Golden {
        let mut taps = taps(spec, keys.len());
        taps[0].values = keys.iter().flat_map(|_| [1.0, 0.0]).collect();
        taps[1].values = keys.iter().flat_map(|&key| [key, 0.0]).collect();
        Golden {
            tokens: vec![vec![0; keys.len()]],
            positions: Vec::new(),
            logits: Vec::new(),
            vocab_size: 1,
            taps,
        }
    }

    fn given(spec: &ModelSpec, exact: &[f32], naive: Option<&[f32]>, chosen: &[f32]) -> Given {
        let scores = |keys: &[f32]| Scores::of(spec, &run(spec, keys), ElementType::F32);
        Given {
            chosen: Rc::new(scores(chosen).chosen(spec, chosen.len())),
            exact: run(spec, exact),
            scores: scores(exact),
            naive: naive.map(|keys| (run(spec, keys), scores(keys))),
        }
    }

    const KEYS: [f32; 8] = [1.0, 3.0, -2.0, 5.0, 4.0, 0.0, 0.0, 0.0];

    #[test]
    fn choices_are_of_the_greatest_scores() {
        for (score, expected) in [(Score::Bounds, [1, 2]), (Score::Mean, [0, 2])] {
            let spec = spec(3, score);
            let found = Scores::of(&spec, &run(&spec, &KEYS), ElementType::F32).chosen(&spec, 8);
            assert_eq!(found.layers[0][7], expected, "{score}");
            assert_eq!(found.layers[0][..2], [[0u32; 0]; 2], "{score}");
        }
    }

    #[test]
    fn a_choice_further_off_than_roundings_explain_fails() {
        let spec = spec(2, Score::Bounds);
        let rows = |given: &Given| judged(&spec, BackendKind::OrtCpu, Route::Decode, given);
        let same = rows(&given(&spec, &KEYS, None, &KEYS));
        // Queries with two earlier blocks and more.
        assert_eq!(
            (same[0].queries, same[0].agreed, same[0].passed),
            (4, 4, true)
        );
        // The third block instead of the second: 1 below.
        let mut other = KEYS;
        other[4] = 6.0;
        let wrong = given(&spec, &KEYS, None, &other);
        let row = &rows(&wrong)[0];
        assert_eq!((row.queries, row.agreed, row.largest_gap), (4, 2, 1.0));
        assert!(!row.passed && row.tolerance < 1.0, "{row:?}");
        // Roundings that move a score by 0.3 move two by 0.6, of which twice as much passes.
        let mut rounded = KEYS;
        rounded[4] += 0.3;
        let explained = given(&spec, &KEYS, Some(&rounded), &other);
        let row = &rows(&explained)[0];
        assert!(row.passed && row.tolerance < 1.3, "{row:?}");
    }
}
