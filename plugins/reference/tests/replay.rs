//! The operators, replayed over random chunkings from poisoned state, against whole histories.

use proptest::prelude::*;
use ratplus_graphs::ops::{DilatedAttention, RecurrenceScan, dilated_attention, recurrence_scan};
use ratplus_graphs::pattern::Pattern;
use ratplus_reference::full::{self, FullAttention};
use ratplus_reference::*;
use ratplus_tests::times;

const BASE: f64 = 10000.0;

/// Uniform in -1..1, the same on every machine.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn list(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.next() * scale).collect()
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// `[B, L, N]` with each slot's next tokens first and poison after.
fn chunk(tokens: &[Vec<f32>], past: &[usize], take: &[usize], len: usize, n: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; tokens.len() * len * n];
    for (slot, tokens) in tokens.iter().enumerate() {
        let own = &tokens[past[slot] * n..(past[slot] + take[slot]) * n];
        out[slot * len * n..][..own.len()].copy_from_slice(own);
    }
    out
}

fn lengths(values: &[usize]) -> Vec<i64> {
    values.iter().map(|&x| x as i64).collect()
}

fn tables(max_seq_len: usize, dim: usize) -> (Vec<f32>, Vec<f32>) {
    (0..max_seq_len * (dim / 2))
        .map(|index| {
            let (position, channel) = (index / (dim / 2), index % (dim / 2));
            let angle = position as f64 * BASE.powf(-2.0 * channel as f64 / dim as f64);
            (angle.cos() as f32, angle.sin() as f32)
        })
        .unzip()
}

/// Per slot how many tokens each chunk takes, and the chunk's length.
type Chunks = Vec<(usize, Vec<usize>)>;

/// Chunks that consume `totals`.
fn chunks(mut seed: u64, totals: &[usize]) -> Chunks {
    let mut done = vec![0; totals.len()];
    let mut list = Vec::new();
    let mut draw = |below: usize| {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    while done != totals {
        let len = [1, 1, 2, 5, 9, 24][draw(6)];
        let take: Vec<_> = done
            .iter()
            .zip(totals)
            .map(|(&done, &total)| {
                let most = len.min(total - done);
                if draw(3) == 0 { draw(most + 1) } else { most }
            })
            .collect();
        for (done, take) in done.iter_mut().zip(&take) {
            *done += take;
        }
        list.push((len, take));
    }
    list
}

struct AttentionRun {
    attributes: DilatedAttention,
    dim: usize,
    max_seq_len: usize,
    query: Vec<Vec<f32>>,
    key: Vec<Vec<f32>>,
    value: Vec<Vec<f32>>,
}

impl AttentionRun {
    /// `group` query heads a key-value head.
    fn new(
        seed: u64,
        group: usize,
        patterns: Vec<Pattern>,
        totals: &[usize],
        max_seq_len: usize,
    ) -> Self {
        let dim = 4;
        let mut noise = Noise(seed);
        let width = patterns.len() * dim;
        let mut tokens = |width: usize, scale| {
            let slots = totals.iter().map(|total| noise.list(total * width, scale));
            slots.collect::<Vec<_>>()
        };
        Self {
            query: tokens(group * width, 3.0),
            key: tokens(width, 3.0),
            value: tokens(width, 1.0),
            attributes: DilatedAttention {
                num_heads: group * patterns.len(),
                patterns,
                scale: 0.5,
            },
            dim,
            max_seq_len,
        }
    }

    /// Outputs of each slot, `[T, H * dh]`.
    fn replay(&self, chunks: &Chunks, round: Round) -> Vec<Vec<f32>> {
        self.replay_rounding(chunks, Rounding::uniform(round))
    }

    fn replay_rounding(&self, chunks: &Chunks, rounding: Rounding) -> Vec<Vec<f32>> {
        let batch = self.query.len();
        let width = self.attributes.num_heads * self.dim;
        let kv_width = self.attributes.num_kv_heads() * self.dim;
        let layout = self.attributes.cache_layout(self.max_seq_len);
        let (cos, sin) = tables(self.max_seq_len, self.dim);
        let cache = batch * layout.rows() * self.dim;
        let (mut past_key, mut past_value) = (vec![f32::NAN; cache], vec![f32::NAN; cache]);
        let mut past = vec![0; batch];
        let mut collected = vec![Vec::new(); batch];
        for (seq_len, take) in chunks {
            let part = |tokens, width| chunk(tokens, &past, take, *seq_len, width);
            let query = part(&self.query, width);
            let [key, value] = [&self.key, &self.value].map(|tokens| part(tokens, kv_width));
            let (past_length, seq_length) = (lengths(&past), lengths(take));
            let tokens = |values, width| Input::f32s([batch, *seq_len, width], values);
            let rows = |values| Input::f32s([batch, layout.rows(), self.dim], values);
            let table = |values| Input::f32s([self.max_seq_len, self.dim / 2], values);
            let inputs = dilated_attention::Inputs {
                query: tokens(&query, width),
                key: tokens(&key, kv_width),
                value: tokens(&value, kv_width),
                past_key: rows(&past_key),
                past_value: rows(&past_value),
                past_length: Input::i64s([batch], &past_length),
                seq_length: Input::i64s([batch], &seq_length),
                cos: table(&cos),
                sin: table(&sin),
            };
            let dilated_attention::Outputs {
                output,
                present_key,
                present_value,
            } = run(&self.attributes, inputs, rounding).unwrap();
            for slot in 0..batch {
                let rows = &output[slot * seq_len * width..][..seq_len * width];
                let (valid, padding) = rows.split_at(take[slot] * width);
                collected[slot].extend_from_slice(valid);
                assert!(padding.iter().all(|&x| x == 0.0), "padding is not zero");
                let own = slot * layout.rows() * self.dim..(slot + 1) * layout.rows() * self.dim;
                if take[slot] == 0 {
                    let bits = |list: &[f32]| list.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(
                        bits(&present_key[own.clone()]),
                        bits(&past_key[own.clone()])
                    );
                    assert_eq!(bits(&present_value[own.clone()]), bits(&past_value[own]));
                }
                past[slot] += take[slot];
            }
            (past_key, past_value) = (present_key, present_value);
        }
        collected
    }

    fn expected(&self, slot: usize) -> Vec<f64> {
        let patterns: Vec<_> = self
            .attributes
            .patterns
            .iter()
            .map(|p| {
                let dilation = p.dilation.map_or(-1, |d| i64::from(d.get()));
                (dilation, i64::from(p.local_window), i64::from(p.initial))
            })
            .collect();
        let config = FullAttention {
            num_heads: self.attributes.num_heads,
            patterns: &patterns,
            head_dim: self.dim,
            scale: f64::from(self.attributes.scale),
            rope_base: Some(BASE),
        };
        full::attention(
            &config,
            &wide(&self.query[slot]),
            &wide(&self.key[slot]),
            &wide(&self.value[slot]),
        )
    }
}

fn worst(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found
        .iter()
        .zip(expected)
        .map(|(&a, &b)| (f64::from(a) - b).abs())
        // A NaN has to count.
        .fold(0.0, |worst, d| {
            if d <= worst {
                worst
            } else if d.is_nan() {
                f64::INFINITY
            } else {
                d
            }
        })
}

fn patterns() -> impl Strategy<Value = Vec<Pattern>> {
    let dilation = prop_oneof![Just(-1i64), 1..12i64, Just(100)];
    let one = (dilation, 0..14i64, 0..14i64)
        .prop_map(|(d, w, i)| Pattern::new(d, w, i).expect("a pattern"));
    prop::collection::vec(one, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: times(10_000) as u32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn attention_in_chunks_is_attention(
        seed: u64,
        group in 1..4usize,
        patterns in patterns(),
        totals in prop::collection::vec(0..48usize, 1..4),
    ) {
        let run = AttentionRun::new(seed, group, patterns, &totals, 50);
        let found = run.replay(&chunks(seed, &totals), exact);
        for (slot, found) in found.iter().enumerate() {
            let error = worst(found, &run.expected(slot));
            prop_assert!(error <= 2e-5, "slot {slot}: {error:e}");
        }
    }

    #[test]
    fn scan_in_chunks_is_the_recurrence(
        seed: u64,
        spread in prop_oneof![Just(1f32), Just(20.0), Just(1000.0)],
        totals in prop::collection::vec(0..60usize, 1..4),
    ) {
        let channels = 5;
        let mut noise = Noise(seed);
        let mut tokens = |scale| -> Vec<Vec<f32>> {
            totals.iter().map(|total| noise.list(total * channels, scale)).collect()
        };
        let (key, value, gate) = (tokens(1.0), tokens(2.0), tokens(spread));
        let batch = totals.len();
        let (mut state_key, mut state_value) = (vec![f32::NAN; batch * channels], vec![f32::NAN; batch * channels]);
        let mut past = vec![0; batch];
        let mut found = vec![[Vec::new(), Vec::new()]; batch];
        for (seq_len, take) in chunks(seed, &totals) {
            let part = |tokens| chunk(tokens, &past, &take, seq_len, channels);
            let (past_length, seq_length) = (lengths(&past), lengths(&take));
            let (k, v, g) = (part(&key), part(&value), part(&gate));
            let tokens = |values| Input::f32s([batch, seq_len, channels], values);
            let inputs = recurrence_scan::Inputs {
                key: tokens(&k),
                value: tokens(&v),
                gate: tokens(&g),
                state_key: Input::f32s([batch, channels], &state_key),
                state_value: Input::f32s([batch, channels], &state_value),
                past_length: Input::i64s([batch], &past_length),
                seq_length: Input::i64s([batch], &seq_length),
            };
            let recurrence_scan::Outputs {
                gated_key,
                gated_value,
                new_state_key: new_key,
                new_state_value: new_value,
            } = run(&RecurrenceScan::default(), inputs, Rounding::uniform(exact)).unwrap();
            for slot in 0..batch {
                for (list, rows) in found[slot].iter_mut().zip([&gated_key, &gated_value]) {
                    let rows = &rows[slot * seq_len * channels..][..seq_len * channels];
                    let (valid, padding) = rows.split_at(take[slot] * channels);
                    list.extend_from_slice(valid);
                    prop_assert!(padding.iter().all(|&x| x == 0.0));
                }
                let state = slot * channels..(slot + 1) * channels;
                if take[slot] == 0 {
                    let same = new_key[state.clone()].iter().zip(&state_key[state])
                        .all(|(a, b)| a.to_bits() == b.to_bits());
                    prop_assert!(same, "an idle slot's state changed");
                }
                past[slot] += take[slot];
            }
            (state_key, state_value) = (new_key, new_value);
        }
        for (slot, [found_key, found_value]) in found.iter().enumerate() {
            for (found, tokens) in [(found_key, &key), (found_value, &value)] {
                let expected = full::recurrence(&wide(&tokens[slot]), &wide(&gate[slot]), channels);
                let error = worst(found, &expected);
                prop_assert!(error <= 1e-6, "slot {slot}: {error:e}");
            }
        }
    }
}

/// A sequence that starts over does not see the one before it.
#[test]
fn past_length_zero_starts_over() {
    let pattern = Pattern::new(3, 4, 2).unwrap();
    let run = AttentionRun::new(1, 1, vec![pattern], &[20], 20);
    let clean = run.replay(&vec![(20, vec![20])], exact);
    // The replay starts from NaN; here it starts from another sequence's rows.
    let (cos, sin) = tables(20, run.dim);
    let rows = run.attributes.cache_layout(20).rows() * run.dim;
    let (old_key, old_value) = (vec![7.0; rows], vec![1e30; rows]);
    let dim = run.dim;
    let inputs = dilated_attention::Inputs {
        query: Input::f32s([1, 20, dim], &run.query[0]),
        key: Input::f32s([1, 20, dim], &run.key[0]),
        value: Input::f32s([1, 20, dim], &run.value[0]),
        past_key: Input::f32s([1, rows / dim, dim], &old_key),
        past_value: Input::f32s([1, rows / dim, dim], &old_value),
        past_length: Input::i64s([1], &[0]),
        seq_length: Input::i64s([1], &[20]),
        cos: Input::f32s([20, dim / 2], &cos),
        sin: Input::f32s([20, dim / 2], &sin),
    };
    let rounding = Rounding::uniform(exact);
    let output = ratplus_reference::run(&run.attributes, inputs, rounding)
        .unwrap()
        .output;
    assert_eq!(output, clean[0]);
}

/// Rounded keys and values are the same whether read from the chunk or from the cache, whatever
/// the types of both.
#[test]
fn low_precision_does_not_depend_on_the_chunking() {
    let bf16: Round = |x| half::bf16::from_f32(x).to_f32();
    let f16: Round = |x| half::f16::from_f32(x).to_f32();
    for (activations, cache, errors) in [
        (bf16, bf16, 1e-4..4e-2),
        (bf16, f16, 1e-4..4e-2),
        (f16, bf16, 1e-4..4e-2),
        (exact as Round, bf16, 1e-4..4e-2),
        (exact, f16, 1e-5..5e-3),
        (bf16, exact, 1e-4..4e-2),
    ] {
        let patterns = vec![Pattern::new(4, 5, 1).unwrap(), Pattern::DENSE];
        let mut run = AttentionRun::new(9, 1, patterns, &[40, 33], 40);
        for tokens in [&mut run.query, &mut run.key, &mut run.value] {
            tokens
                .iter_mut()
                .flatten()
                .for_each(|x| *x = activations(*x));
        }
        let rounding = Rounding { activations, cache };
        let whole = run.replay_rounding(&vec![(40, vec![40, 33])], rounding);
        for seed in 0..20 {
            let parts = run.replay_rounding(&chunks(seed, &[40, 33]), rounding);
            assert_eq!(whole, parts);
        }
        for (slot, found) in whole.iter().enumerate() {
            assert!(found.iter().all(|&x| activations(x) == x));
            let error = worst(found, &run.expected(slot));
            assert!(errors.contains(&error), "{error:e}");
        }
    }
}

/// Gates at and near saturation, token by token with the state in f32.
#[test]
fn a_long_memory_does_not_stall() {
    for logit in [4.6f32, 6.9, 9.2, 11.5, 16.6, 18.0, 40.0, 1e4, -40.0, -1e4] {
        let steps = 10_000;
        let (mut key, mut value) = (0f32, 0f32);
        for step in 0..steps {
            let (tokens, states) = ([1, 1, 1], [1, 1]);
            let inputs = recurrence_scan::Inputs {
                key: Input::f32s(tokens, &[1.0]),
                value: Input::f32s(tokens, &[-2.0]),
                gate: Input::f32s(tokens, std::slice::from_ref(&logit)),
                state_key: Input::f32s(states, std::slice::from_ref(&key)),
                state_value: Input::f32s(states, std::slice::from_ref(&value)),
                past_length: Input::i64s([1], std::slice::from_ref(&step)),
                seq_length: Input::i64s([1], &[1]),
            };
            // The stored rows are bf16, the state is not.
            let bf16: Round = |x| half::bf16::from_f32(x).to_f32();
            let outputs = run(&RecurrenceScan::default(), inputs, Rounding::uniform(bf16)).unwrap();
            let new_key = outputs.new_state_key[0];
            assert_eq!(outputs.gated_key[0], bf16(new_key));
            (key, value) = (new_key, outputs.new_state_value[0]);
        }
        let gate = full::sigmoid(f64::from(logit));
        let expected = 1.0 - gate.powi(steps as i32);
        assert!(
            (f64::from(key) - expected).abs() < 1e-3,
            "{logit}: {key} {expected}"
        );
        assert!((f64::from(value) + 2.0 * expected).abs() < 2e-3, "{logit}");
    }
}

#[test]
fn wrong_sizes_and_lengths_are_refused_by_name() {
    let attributes = DilatedAttention::ungrouped(vec![Pattern::DENSE], 1.0);
    let call = |query: &[f32], past: i64, seq: i64| {
        let (past, seq) = ([past], [seq]);
        let inputs = dilated_attention::Inputs {
            query: Input::f32s([1, 2, 2], query),
            key: Input::f32s([1, 2, 2], &[0.0; 4]),
            value: Input::f32s([1, 2, 2], &[0.0; 4]),
            past_key: Input::f32s([1, 3, 2], &[0.0; 6]),
            past_value: Input::f32s([1, 3, 2], &[0.0; 6]),
            past_length: Input::i64s([1], &past),
            seq_length: Input::i64s([1], &seq),
            cos: Input::f32s([3, 1], &[1.0; 3]),
            sin: Input::f32s([3, 1], &[0.0; 3]),
        };
        let result = run(&attributes, inputs, Rounding::uniform(exact));
        result.map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(call(&[0.0; 4], 1, 2), Ok(()));
    assert_eq!(
        call(&[0.0; 5], 1, 2).unwrap_err(),
        "DilatedAttention: query: expected 4 elements, found 5"
    );
    for (past, seq) in [(2, 2), (0, 3), (-1, 1), (4, 0), (i64::MAX, 1), (0, -1)] {
        let message = call(&[0.0; 4], past, seq).unwrap_err();
        assert!(
            message.starts_with("DilatedAttention: slot 0: past_length"),
            "{message}"
        );
    }
}
