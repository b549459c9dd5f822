//! Both operators over whole histories of one sequence, in f64.
//!
//! Written from the model's definition alone: no cache, no chunks, no rotary tables.

/// `1 / (1 + exp(-logit))`, without overflow or cancellation at either end.
pub fn sigmoid(logit: f64) -> f64 {
    if logit >= 0.0 {
        1.0 / (1.0 + (-logit).exp())
    } else {
        let small = logit.exp();
        small / (1.0 + small)
    }
}

/// The gated recurrence of one tensor (keys, or values): `[T, channels]` in and out, `gate` in
/// logits.
pub fn recurrence(tokens: &[f64], gate: &[f64], channels: usize) -> Vec<f64> {
    let mut output = vec![0.0; tokens.len()];
    for index in 0..tokens.len() {
        let before = if index < channels {
            0.0
        } else {
            output[index - channels]
        };
        let logit = gate[index];
        output[index] = sigmoid(logit) * before + sigmoid(-logit) * tokens[index];
    }
    output
}

/// Half-split rotary embedding of `[T, heads * head_dim]`, position `t` in row `t`.
pub fn rotary(tokens: &[f64], heads: usize, head_dim: usize, base: f64) -> Vec<f64> {
    let mut output = tokens.to_vec();
    let half = head_dim / 2;
    for (row, chunk) in output.chunks_exact_mut(heads * head_dim).enumerate() {
        for head in chunk.chunks_exact_mut(head_dim) {
            for channel in 0..half {
                let angle = row as f64 * base.powf(-2.0 * channel as f64 / head_dim as f64);
                let (low, high) = (head[channel], head[channel + half]);
                head[channel] = low * angle.cos() - high * angle.sin();
                head[channel + half] = high * angle.cos() + low * angle.sin();
            }
        }
    }
    output
}

/// `(D, W, I)` of one head, `D` -1 for none.
pub type RawPattern = (i64, i64, i64);

/// Whether query `i` sees key `j`.
pub fn visible(i: i64, j: i64, (d, w, first): RawPattern) -> bool {
    j <= i && ((d > 0 && (j + 1) % d == 0) || i - j <= w || j < first)
}

/// What [`attention`] needs besides the tokens.
#[derive(Clone, Copy, Debug)]
pub struct FullAttention<'a> {
    /// Query heads, the same number for each key-value head.
    pub num_heads: usize,
    /// One pattern per key-value head.
    pub patterns: &'a [RawPattern],
    /// Channels of one head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f64,
    /// Base of the rotary frequencies; none where nothing is rotated.
    pub rope_base: Option<f64>,
}

/// Causal attention of `[T, heads * head_dim]` queries, keys and values, before rotary
/// embedding, under the pattern of each key-value head. Query head `h` reads key-value head
/// `h / (heads / key-value heads)`.
pub fn attention(
    config: &FullAttention<'_>,
    query: &[f64],
    key: &[f64],
    value: &[f64],
) -> Vec<f64> {
    let (heads, dim) = (config.patterns.len(), config.head_dim);
    let (width, query_width) = (heads * dim, config.num_heads * dim);
    let rotated = |tokens: &[f64], heads| match config.rope_base {
        Some(base) => rotary(tokens, heads, dim, base),
        None => tokens.to_vec(),
    };
    let (query, key) = (rotated(query, config.num_heads), rotated(key, heads));
    let mut output = vec![0.0; query.len()];
    for query_head in 0..config.num_heads {
        let head = query_head / (config.num_heads / heads);
        let pattern = config.patterns[head];
        for i in 0..query.len() / query_width {
            let at = i * query_width + query_head * dim;
            let query = &query[at..at + dim];
            let mut scores = Vec::new();
            for j in 0..=i {
                if visible(i as i64, j as i64, pattern) {
                    let key = &key[j * width + head * dim..][..dim];
                    let dot: f64 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                    scores.push((j, dot * config.scale));
                }
            }
            let top = scores
                .iter()
                .fold(f64::NEG_INFINITY, |top, &(_, score)| top.max(score));
            let total: f64 = scores.iter().map(|&(_, score)| (score - top).exp()).sum();
            for &(j, score) in &scores {
                let weight = (score - top).exp() / total;
                for channel in 0..dim {
                    output[at + channel] += weight * value[j * width + head * dim + channel];
                }
            }
        }
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn sigmoid_keeps_both_tails() {
        assert_eq!(sigmoid(0.0), 0.5);
        assert_eq!(sigmoid(-1e4), 0.0);
        assert_eq!(sigmoid(1e4), 1.0);
        assert_abs_diff_eq!(sigmoid(-40.0), (-40f64).exp(), epsilon = 1e-32);
        assert!(sigmoid(f64::NAN).is_nan());
    }

    #[test]
    fn a_closed_gate_copies_and_an_open_one_holds() {
        let tokens = [1.0, 2.0, 3.0];
        assert_eq!(recurrence(&tokens, &[-1e4; 3], 1), tokens);
        assert_eq!(recurrence(&tokens, &[-1e4, 1e4, 1e4], 1), [1.0; 3]);
        assert_eq!(recurrence(&tokens, &[0.0; 3], 1), [0.5, 1.25, 2.125]);
    }

    #[test]
    fn the_rule_is_the_documented_one() {
        let seen: Vec<_> = (0..16).filter(|&j| visible(10, j, (4, 2, 1))).collect();
        assert_eq!(seen, [0, 3, 7, 8, 9, 10]);
        let seen: Vec<_> = (0..16).filter(|&j| visible(10, j, (-1, 2, 1))).collect();
        assert_eq!(seen, [0, 8, 9, 10]);
    }

    #[test]
    fn equal_scores_average_the_visible_values() {
        let config = FullAttention {
            num_heads: 1,
            patterns: &[(2, 0, 0)],
            head_dim: 2,
            scale: 1.0,
            rope_base: Some(10000.0),
        };
        let key = [0.0; 10];
        let query = [1.0; 10];
        let value: Vec<f64> = (0..10).map(f64::from).collect();
        let output = attention(&config, &query, &key, &value);
        // Query 4 sees keys 1, 3 and itself.
        assert_eq!(
            output[8..],
            [(2.0 + 6.0 + 8.0) / 3.0, (3.0 + 7.0 + 9.0) / 3.0]
        );
    }

    #[test]
    fn rotation_by_position() {
        let turned = rotary(&[1.0, 0.0, 1.0, 0.0], 1, 2, 10000.0);
        assert_eq!(turned[..2], [1.0, 0.0]);
        let expected = [1f64.cos(), 1f64.sin()];
        assert_abs_diff_eq!(turned[2..4], expected, epsilon = 1e-15);
    }
}
