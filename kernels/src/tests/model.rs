//! The operators in f64 over a sequence's whole history, without a cache.

use super::Real;
use ratplus_graphs::pattern::Pattern;

/// Gated rows `[T][N]` of one sequence.
pub(crate) fn scan(x: &[Vec<f64>], gate: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut h = vec![0.0; x.first().map_or(0, Vec::len)];
    x.iter()
        .zip(gate)
        .map(|(x, gate)| {
            for ((h, &x), &gate) in h.iter_mut().zip(x).zip(gate) {
                let keep = 1.0 / (1.0 + (-gate).exp());
                let take = 1.0 / (1.0 + gate.exp());
                *h = keep * *h + take * x;
            }
            h.clone()
        })
        .collect()
}

/// Rotates one head of the token at `position`.
pub(crate) fn rotate(x: &[f64], position: usize, cos: &[f32], sin: &[f32]) -> Vec<f64> {
    let half = x.len() / 2;
    let mut out = vec![0.0; x.len()];
    for d in 0..half {
        let c = f64::from(cos[position * half + d]);
        let s = f64::from(sin[position * half + d]);
        out[d] = x[d] * c - x[d + half] * s;
        out[d + half] = x[d + half] * c + x[d] * s;
    }
    out
}

/// One head of one sequence.
pub(crate) struct History {
    pub pattern: Pattern,
    pub scale: f32,
    /// Rotated.
    pub queries: Vec<Vec<f64>>,
    /// Rotated, then rounded as the cache keeps them.
    pub keys: Vec<Vec<f64>>,
    pub values: Vec<Vec<f64>>,
}

impl History {
    pub(crate) fn new(pattern: Pattern, scale: f32) -> Self {
        Self {
            pattern,
            scale,
            queries: vec![],
            keys: vec![],
            values: vec![],
        }
    }

    pub(crate) fn push<T: Real>(&mut self, q: &[f64], k: &[f64], v: &[f64], tables: [&[f32]; 2]) {
        let position = self.queries.len();
        let [cos, sin] = tables;
        self.queries.push(rotate(q, position, cos, sin));
        let key = rotate(k, position, cos, sin);
        self.keys
            .push(key.into_iter().map(|x| T::of(x).real()).collect());
        self.values.push(v.to_vec());
    }

    /// The output at `position`.
    pub(crate) fn attend(&self, position: usize) -> Vec<f64> {
        self.attend_with(position, |x| x)
    }

    /// The output at `position` with what tensor cores multiply rounded to `T`: the rotated query,
    /// and the weights relative to the largest.
    pub(crate) fn attend_rounded<T: Real>(&self, position: usize) -> Vec<f64> {
        self.attend_with(position, |x| T::of(x).real())
    }

    fn attend_with(&self, position: usize, round: impl Fn(f64) -> f64) -> Vec<f64> {
        let query: Vec<_> = self.queries[position].iter().map(|&x| round(x)).collect();
        let seen: Vec<usize> = (0..self.keys.len())
            .filter(|&key| self.pattern.visible(position, key))
            .collect();
        let scores: Vec<f64> = seen
            .iter()
            .map(|&key| {
                let dot: f64 = query.iter().zip(&self.keys[key]).map(|(q, k)| q * k).sum();
                dot * f64::from(self.scale)
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut out = vec![0.0; query.len()];
        for (&key, weight) in seen.iter().zip(&weights) {
            for (out, v) in out.iter_mut().zip(&self.values[key]) {
                *out += round(*weight) / total * v;
            }
        }
        out
    }
}
