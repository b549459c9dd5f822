//! Rotary embedding and attention of single queries in f64, and what the same rounding costs
//! when done naively.

use ratplus_graphs::pattern::Pattern;

/// Rotary tables `[M, head_dim / 2]`.
pub struct Tables {
    /// Channels of a head.
    pub head_dim: usize,
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

impl Tables {
    /// For positions below `max_seq_len`, base 10000.
    pub fn new(head_dim: usize, max_seq_len: usize) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|d| 10000f64.powf(-(d as f64) / half as f64))
            .collect();
        let rows = crate::parallel::map(max_seq_len.div_ceil(1024), |part| {
            let positions = part * 1024..max_seq_len.min((part + 1) * 1024);
            let angles =
                positions.flat_map(|position| frequencies.iter().map(move |f| position as f64 * f));
            angles
                .map(|angle| (angle.cos() as f32, angle.sin() as f32))
                .unzip::<_, _, Vec<_>, Vec<_>>()
        });
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for (c, s) in rows {
            cos.extend(c);
            sin.extend(s);
        }
        Self { head_dim, cos, sin }
    }

    /// One head of the token at `position`, turned.
    pub fn rotate(&self, x: &[f32], position: usize) -> Vec<f64> {
        let half = self.head_dim / 2;
        let mut turned = vec![0.0; self.head_dim];
        for d in 0..half {
            let cos = f64::from(self.cos[position * half + d]);
            let sin = f64::from(self.sin[position * half + d]);
            let (low, high) = (f64::from(x[d]), f64::from(x[d + half]));
            turned[d] = low * cos - high * sin;
            turned[d + half] = high * cos + low * sin;
        }
        turned
    }
}

/// What one query gives.
pub struct Answer {
    /// In f64.
    pub exact: Vec<f64>,
    /// Largest error of a channel where the rotated query, and the weights relative to the
    /// largest, are rounded to the element type, as tensor cores need them.
    pub naive_error: f64,
}

/// Rotated keys and values of a query's history, as the cache keeps them.
pub trait History {
    /// Writes the key at `position`.
    fn key(&self, position: usize, to: &mut [f32]);
    /// Writes the value at `position`.
    fn value(&self, position: usize, to: &mut [f32]);
}

/// The output of a rotated query at `position`.
pub fn attend(
    pattern: Pattern,
    scale: f32,
    query: &[f64],
    position: usize,
    history: &impl History,
    round: fn(f32) -> f32,
) -> Answer {
    let dim = query.len();
    let seen: Vec<usize> = (0..=position)
        .filter(|&key| pattern.visible(position, key))
        .collect();
    let rounded: Vec<f64> = query.iter().map(|&x| f64::from(round(x as f32))).collect();
    let mut row = vec![0.0; dim];
    let mut scores = [
        Vec::with_capacity(seen.len()),
        Vec::with_capacity(seen.len()),
    ];
    for &key in &seen {
        history.key(key, &mut row);
        for (scores, query) in scores.iter_mut().zip([query, &rounded[..]]) {
            let products = query.iter().zip(&row).map(|(q, &k)| q * f64::from(k));
            scores.push(products.sum::<f64>() * f64::from(scale));
        }
    }
    let weights = scores.map(|scores| {
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        scores
            .into_iter()
            .map(|score| (score - top).exp())
            .collect::<Vec<_>>()
    });
    let totals = [0, 1].map(|which| weights[which].iter().sum::<f64>());
    let mut mixed = [vec![0.0; dim], vec![0.0; dim]];
    for (index, &key) in seen.iter().enumerate() {
        history.value(key, &mut row);
        let exact = weights[0][index] / totals[0];
        let naive = f64::from(round(weights[1][index] as f32)) / totals[1];
        for (d, &v) in row.iter().enumerate() {
            mixed[0][d] += exact * f64::from(v);
            mixed[1][d] += naive * f64::from(v);
        }
    }
    let [exact, naive] = mixed;
    let errors = exact.iter().zip(&naive).map(|(a, b)| (a - b).abs());
    let naive_error = errors.fold(0.0, f64::max);
    Answer { exact, naive_error }
}

/// The largest error relative to its bound, and where it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Worst {
    /// Above 1 where the bound is exceeded.
    pub ratio: f64,
    /// The place and the values.
    pub place: String,
}

impl Worst {
    /// Takes in one more value. What is not a number exceeds every bound.
    pub fn see(&mut self, got: f32, want: f64, bound: f64, place: impl FnOnce() -> String) {
        let error = (f64::from(got) - want).abs() / bound;
        let ratio = if error.is_nan() { f64::INFINITY } else { error };
        if ratio > self.ratio {
            self.ratio = ratio;
            self.place = format!("{}: {got} is not {want}", place());
        }
    }

    /// Takes in another's.
    pub fn merge(&mut self, other: Self) {
        if other.ratio > self.ratio {
            *self = other;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratplus_reference::full;

    struct Rows(Vec<Vec<f32>>, Vec<Vec<f32>>);

    impl History for Rows {
        fn key(&self, position: usize, to: &mut [f32]) {
            to.copy_from_slice(&self.0[position]);
        }
        fn value(&self, position: usize, to: &mut [f32]) {
            to.copy_from_slice(&self.1[position]);
        }
    }

    #[test]
    fn one_query_agrees_with_the_reference() {
        let (tokens, dim) = (40, 6);
        let tables = Tables::new(dim, tokens);
        let value =
            |i: usize, salt: usize| ((i * 7919 + salt * 104_729) % 1000) as f32 / 500.0 - 1.0;
        let [query, key, val] = [1, 2, 3].map(|salt| {
            (0..tokens * dim)
                .map(|i| value(i, salt))
                .collect::<Vec<f32>>()
        });
        let rows = |x: &[f32]| x.chunks(dim).map(<[f32]>::to_vec).collect::<Vec<_>>();
        let turned = rows(&key).into_iter().enumerate().map(|(position, row)| {
            let row = tables.rotate(&row, position);
            row.into_iter().map(|x| x as f32).collect()
        });
        let history = Rows(turned.collect(), rows(&val));
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        for raw in [(1, 0, 0), (4, 3, 2), (-1, 5, 1)] {
            let config = full::FullAttention {
                num_heads: 1,
                patterns: &[raw],
                head_dim: dim,
                scale: 0.5,
                rope_base: Some(10000.0),
            };
            let want = full::attention(&config, &wide(&query), &wide(&key), &wide(&val));
            let pattern = Pattern::new(raw.0, raw.1, raw.2).unwrap();
            for position in 0..tokens {
                let own = tables.rotate(&query[position * dim..][..dim], position);
                let half = crate::element::round(ratplus_graphs::ops::ElementType::BF16);
                let answer = attend(pattern, 0.5, &own, position, &history, half);
                for (got, want) in answer.exact.iter().zip(&want[position * dim..]) {
                    assert!(
                        approx::abs_diff_eq!(got, want, epsilon = 1e-6),
                        "{raw:?} {position}: {got} {want}"
                    );
                }
                assert!(answer.naive_error < 0.03, "{}", answer.naive_error);
                if position > 4 {
                    assert!(answer.naive_error > 0.0);
                }
            }
        }
    }

    #[test]
    fn the_worst_value_counts() {
        let mut worst = Worst::default();
        worst.see(1.0, 1.0, 0.1, || "a".into());
        worst.see(1.0, 1.05, 0.1, || "b".into());
        worst.see(1.0, 1.01, 0.1, || "c".into());
        assert!(worst.place.starts_with("b: 1 is not 1.05"), "{worst:?}");
        assert!((0.4..0.6).contains(&worst.ratio));
        worst.see(f32::NAN, 1.0, 0.1, || "d".into());
        assert_eq!(worst.ratio, f64::INFINITY);
    }
}
