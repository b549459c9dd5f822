use super::gpu::element;
use super::machine::{Machine, Way};
use super::model::History;
use super::{Real, assert_bits, random, rng};
use crate::Serial;
use crate::attention::{AttentionParams, attention_workspace_bytes};
use half::{bf16, f16};
use proptest::prelude::*;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::pattern::Pattern;
use ratplus_tests::times;

/// What stays the same over a replay.
pub(super) struct Setup {
    pub(super) layout: CacheLayout,
    pub(super) patterns: Vec<Pattern>,
    /// Query heads.
    pub(super) num_heads: usize,
    pub(super) batch: usize,
    pub(super) head_dim: usize,
    pub(super) scale: f32,
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
}

impl Setup {
    pub(super) fn new(
        patterns: Vec<Pattern>,
        max_seq_len: usize,
        batch: usize,
        head_dim: usize,
    ) -> Self {
        let half = head_dim / 2;
        let angle = |i: usize| {
            let (position, d) = (i / half, i % half);
            position as f64 * 10000f64.powf(-(d as f64) / half as f64)
        };
        let table = |f: fn(f64) -> f64| {
            (0..max_seq_len * half)
                .map(|i| f(angle(i)) as f32)
                .collect()
        };
        Self {
            layout: CacheLayout::new(&patterns, max_seq_len),
            num_heads: patterns.len(),
            patterns,
            batch,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }

    /// Channels of a token's query.
    pub(super) fn width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Elements of a slot's cache.
    pub(super) fn cache(&self) -> usize {
        self.layout.rows() * self.head_dim
    }
}

/// The inputs of one call.
#[derive(Clone)]
pub(super) struct Chunk<T> {
    pub(super) seq_len: usize,
    pub(super) query: Vec<T>,
    pub(super) key: Vec<T>,
    pub(super) value: Vec<T>,
    pub(super) past: Vec<i64>,
    pub(super) seq: Vec<i64>,
}

/// Keys and values of all slots.
pub(super) type Cache<T> = [Vec<T>; 2];

/// Runs a chunk on `cache`, in place or into buffers that held NaN; returns the output.
pub(super) fn run<T: Real>(
    setup: &Setup,
    machine: Machine,
    way: &Way,
    chunk: &Chunk<T>,
    cache: &mut Cache<T>,
    aliased: bool,
) -> Vec<T> {
    let mut fresh = cache.clone().map(|c| vec![T::poison(); c.len()]);
    let target = if aliased { &mut *cache } else { &mut fresh };
    let present = [target[0].as_mut_ptr(), target[1].as_mut_ptr()];
    let past = if aliased {
        present.map(<*mut T>::cast_const)
    } else {
        [cache[0].as_ptr(), cache[1].as_ptr()]
    };
    let mut output = vec![T::poison(); chunk.query.len()];
    let bytes = attention_workspace_bytes::<T, T>(
        &setup.layout,
        setup.batch,
        chunk.seq_len,
        setup.head_dim,
    );
    // The workspace holds NaN; half of the runs let the kernel find its own.
    let mut workspace = vec![f32::NAN; bytes.div_ceil(4)];
    let params = AttentionParams {
        layout: &setup.layout,
        num_heads: setup.num_heads,
        scale: setup.scale,
        batch: setup.batch,
        seq_len: chunk.seq_len,
        head_dim: setup.head_dim,
        query: chunk.query.as_ptr(),
        key: chunk.key.as_ptr(),
        value: chunk.value.as_ptr(),
        past_key: past[0],
        past_value: past[1],
        past_length: chunk.past.as_ptr(),
        seq_length: chunk.seq.as_ptr(),
        cos: setup.cos.as_ptr(),
        sin: setup.sin.as_ptr(),
        output: output.as_mut_ptr(),
        present_key: present[0],
        present_value: present[1],
        workspace: if aliased {
            std::ptr::null_mut()
        } else {
            workspace.as_mut_ptr().cast()
        },
    };
    // SAFETY: every buffer has its tensor's size.
    unsafe { machine.attention(way, &params) };
    if !aliased {
        *cache = fresh;
    }
    output
}

fn reals<T: Real>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| v.real()).collect()
}

/// How a replay chooses its chunks.
#[derive(Clone, Copy)]
pub(super) enum Chunks {
    /// Random lengths, slots of their own lengths, idle and restarting slots.
    Random,
    /// Chunks of this length, all slots full.
    Fixed(usize),
    /// One chunk of this length, then chunks of that one.
    Then(usize, usize),
}

/// Feeds sequences through the cache and compares every output with the model.
///
/// # Panics
/// A result is wrong.
pub(super) fn replay<T: Real>(
    setup: &Setup,
    machine: Machine,
    seed: u64,
    tokens: usize,
    chunks: Chunks,
) {
    let mut rng = rng(seed);
    let batch = setup.batch;
    let new_history = || -> Vec<History> {
        let patterns = setup.patterns.iter();
        patterns.map(|&p| History::new(p, setup.scale)).collect()
    };
    let mut cache: Cache<T> = [(); 2].map(|()| vec![T::poison(); batch * setup.cache()]);
    let mut histories: Vec<_> = (0..batch).map(|_| new_history()).collect();
    let mut fed = 0;
    while fed < tokens {
        let seq_len = match chunks {
            Chunks::Fixed(length) => length,
            Chunks::Then(first, _) if fed == 0 => first,
            Chunks::Then(_, length) => length,
            Chunks::Random => match rng.random_range(0..3) {
                0 => 1,
                1 => rng.random_range(1..=8),
                _ => rng.random_range(1..=tokens),
            },
        };
        fed += seq_len;
        let chunk = next_chunk(setup, &mut rng, seq_len, chunks, &mut histories, &mut cache);
        let before = cache.clone();
        let ways = machine.ways();
        let output = run(setup, machine, &ways[0].1, &chunk, &mut cache, false);
        for (index, (name, way)) in ways.iter().enumerate() {
            for &aliased in machine.aliasings(index) {
                let mut other = before.clone();
                let again = run(setup, machine, way, &chunk, &mut other, aliased);
                let place = format!("{machine:?} {name} aliased {aliased}");
                assert_bits(&output, &again, &place);
                for i in 0..2 {
                    assert_bits(&cache[i], &other[i], &place);
                }
            }
        }
        for (slot, history) in histories.iter().enumerate() {
            check_outputs(setup, machine, slot, &chunk, &output, history);
            check_cache(setup, slot, &before, &cache, history, &chunk);
        }
        isolation(setup, machine, &chunk, &before, &output, &cache);
    }
}

fn next_chunk<T: Real>(
    setup: &Setup,
    rng: &mut ChaCha8Rng,
    seq_len: usize,
    chunks: Chunks,
    histories: &mut [Vec<History>],
    cache: &mut Cache<T>,
) -> Chunk<T> {
    let (batch, width, dim) = (setup.batch, setup.width(), setup.head_dim);
    let count = batch * seq_len * width;
    let mut chunk = Chunk {
        seq_len,
        query: random::<T>(rng, count, 2.0),
        key: random::<T>(rng, count, 2.0),
        value: random::<T>(rng, count, 2.0),
        past: vec![],
        seq: vec![],
    };
    for (slot, history) in histories.iter_mut().enumerate() {
        let room = setup.layout.max_seq_len() - history[0].keys.len();
        let random_chunks = matches!(chunks, Chunks::Random);
        if room == 0 || (random_chunks && rng.random_bool(0.1)) {
            // Starts over; whatever the cache holds must not matter.
            for (head, &pattern) in history.iter_mut().zip(&setup.patterns) {
                *head = History::new(pattern, setup.scale);
            }
            for c in cache.iter_mut() {
                c[slot * setup.cache()..][..setup.cache()].fill(T::poison());
            }
        }
        let past = history[0].keys.len();
        let most = seq_len.min(setup.layout.max_seq_len() - past);
        let tokens = if random_chunks && rng.random_bool(0.5) {
            rng.random_range(0..=most)
        } else {
            most
        };
        chunk.past.push(past as i64);
        chunk.seq.push(tokens as i64);
        for t in 0..seq_len {
            let at = (slot * seq_len + t) * width;
            if t >= tokens {
                for buffer in [&mut chunk.query, &mut chunk.key, &mut chunk.value] {
                    buffer[at..at + width].fill(T::poison());
                }
                continue;
            }
            for (index, head) in history.iter_mut().enumerate() {
                let own = at + index * dim..at + (index + 1) * dim;
                head.push::<T>(
                    &reals(&chunk.query[own.clone()]),
                    &reals(&chunk.key[own.clone()]),
                    &reals(&chunk.value[own]),
                    [&setup.cos, &setup.sin],
                );
            }
        }
    }
    chunk
}

fn check_outputs<T: Real>(
    setup: &Setup,
    machine: Machine,
    slot: usize,
    chunk: &Chunk<T>,
    output: &[T],
    history: &[History],
) {
    let (past, tokens) = (chunk.past[slot] as usize, chunk.seq[slot] as usize);
    for t in 0..chunk.seq_len {
        for (index, head) in history.iter().enumerate() {
            let at = (slot * chunk.seq_len + t) * setup.width() + index * setup.head_dim;
            let got = &output[at..at + setup.head_dim];
            if t >= tokens {
                assert!(
                    got.iter().all(|x| x.bits() == 0),
                    "{machine:?} slot {slot} padded row {t}"
                );
                continue;
            }
            let want = head.attend(past + t);
            // Values are up to 2. Besides the rounding of the result, a rotated key may round
            // to the other neighbour when f32 and f64 differ by a hair.
            let mut tolerance = 2e-5 + if T::UNIT > 1e-6 { T::UNIT } else { 0.0 };
            if machine.rounds_operands(&setup.layout, element::<T>(), setup.head_dim, chunk.seq_len)
            {
                let naive = head.attend_rounded::<T>(past + t);
                let errors = naive.iter().zip(&want).map(|(a, b)| (a - b).abs());
                tolerance += 2.0 * errors.fold(0.0, f64::max);
            }
            for (d, (got, want)) in got.iter().zip(&want).enumerate() {
                let error = (got.real() - want).abs();
                assert!(
                    error <= T::UNIT * want.abs() + tolerance,
                    "{machine:?} {} slot {slot} past {past} of {tokens} row {t} head {index} channel \
                     {d}: {} is not {want}",
                    head.pattern,
                    got.real()
                );
            }
        }
    }
}

/// Rows hold what the layout says they hold; all others are as before.
fn check_cache<T: Real>(
    setup: &Setup,
    slot: usize,
    before: &Cache<T>,
    cache: &Cache<T>,
    history: &[History],
    chunk: &Chunk<T>,
) {
    let dim = setup.head_dim;
    let length = (chunk.past[slot] + chunk.seq[slot]) as usize;
    for (index, head) in setup.layout.heads().iter().enumerate() {
        for row in 0..head.rows {
            let at = slot * setup.cache() + (head.offset + row) * dim;
            let place = format!("{} slot {slot} row {row} after {length}", head.pattern);
            let Some(position) = head.position_of_row(row, length) else {
                for i in 0..2 {
                    assert_bits(&cache[i][at..at + dim], &before[i][at..at + dim], &place);
                }
                continue;
            };
            assert_eq!(
                reals(&cache[1][at..at + dim]),
                history[index].values[position],
                "{place}"
            );
            for (got, want) in cache[0][at..at + dim]
                .iter()
                .zip(&history[index].keys[position])
            {
                // One unit in the last place: f32 and f64 may round to different neighbours.
                let tolerance = 2.0 * T::UNIT * want.abs() + 1e-6;
                assert!(
                    (got.real() - want).abs() <= tolerance,
                    "{place}: {} {want}",
                    got.real()
                );
            }
        }
    }
}

/// Runs again with NaN in every slot but one: that one's bits stay.
fn isolation<T: Real>(
    setup: &Setup,
    machine: Machine,
    chunk: &Chunk<T>,
    before: &Cache<T>,
    output: &[T],
    after: &Cache<T>,
) {
    fn poison_but<T: Real>(buffer: &mut [T], own: std::ops::Range<usize>) {
        let end = buffer.len();
        buffer[..own.start].fill(T::poison());
        buffer[own.end..end].fill(T::poison());
    }
    if setup.batch == 1 {
        return;
    }
    for slot in 0..setup.batch {
        let (mut other, mut cache) = (chunk.clone(), before.clone());
        let tokens = chunk.seq_len * setup.width();
        let own = slot * tokens..(slot + 1) * tokens;
        let rows = slot * setup.cache()..(slot + 1) * setup.cache();
        for buffer in [&mut other.query, &mut other.key, &mut other.value] {
            poison_but(buffer, own.clone());
        }
        for c in &mut cache {
            poison_but(c, rows.clone());
        }
        let again = run(
            setup,
            machine,
            &machine.ways()[0].1,
            &other,
            &mut cache,
            true,
        );
        let place = format!("{machine:?} slot {slot}");
        assert_bits(&output[own.clone()], &again[own], &place);
        for i in 0..2 {
            assert_bits(&after[i][rows.clone()], &cache[i][rows.clone()], &place);
        }
    }
}

fn all_types(setup: &Setup, seed: u64, tokens: usize, chunks: Chunks) {
    for machine in Machine::cpus() {
        types_on(machine, setup, seed, tokens, chunks);
    }
}

pub(super) fn types_on(machine: Machine, setup: &Setup, seed: u64, tokens: usize, chunks: Chunks) {
    replay::<f32>(setup, machine, seed, tokens, chunks);
    replay::<f16>(setup, machine, seed, tokens, chunks);
    replay::<bf16>(setup, machine, seed, tokens, chunks);
}

pub(super) fn pattern(dilation: i64, window: i64, initial: i64) -> Pattern {
    Pattern::new(dilation, window, initial).unwrap()
}

#[test]
fn every_small_pattern_in_random_chunks() {
    for window in 0..10 {
        for initial in 0..10 {
            let dilations = [-1, 1, 2, 3, 4, 5, 6, 7, 8, 9];
            let patterns = dilations.map(|d| pattern(d, window, initial)).to_vec();
            let setup = Setup::new(patterns, 37, 2, 4);
            for machine in Machine::cpus() {
                let seed = (window * 10 + initial) as u64;
                replay::<f32>(&setup, machine, seed, 60, Chunks::Random);
            }
        }
    }
}

pub(super) fn patterns() -> impl Strategy<Value = Vec<Pattern>> {
    let dilation = prop_oneof![Just(-1i64), 1i64..10, 10i64..100];
    let window = prop_oneof![Just(0i64), 0i64..10, 10i64..200];
    let initial = prop_oneof![Just(0i64), 0i64..10, 10i64..150];
    let one = (dilation, window, initial).prop_map(|(d, w, i)| pattern(d, w, i));
    proptest::collection::vec(one, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(times(24) as u32))]

    #[test]
    fn any_chunking_agrees_with_the_model(
        patterns in patterns(), seed: u64, max in 1usize..300, batch in 1usize..4, half in 1usize..20,
    ) {
        let setup = Setup::new(patterns, max, batch, 2 * half);
        all_types(&setup, seed, max, Chunks::Random);
    }
}

#[test]
fn usual_head_dimensions() {
    for (dim, seed) in [(64, 1), (128, 2), (80, 3), (256, 4)] {
        let patterns = vec![
            Pattern::DENSE,
            pattern(16, 0, 4),
            pattern(4, 70, 2),
            pattern(-1, 33, 5),
        ];
        let setup = Setup::new(patterns, 300, 1, dim);
        all_types(&setup, seed, 300, Chunks::Random);
        all_types(&setup, seed, 300, Chunks::Fixed(130));
    }
}

#[test]
fn chunks_longer_than_the_window_write_each_ring_row_once() {
    let patterns = vec![pattern(-1, 5, 3), pattern(3, 7, 0), pattern(50, 1, 60)];
    let setup = Setup::new(patterns, 200, 2, 8);
    for length in [1, 6, 64, 65, 200] {
        all_types(&setup, 7, 200, Chunks::Fixed(length));
    }
}

#[test]
fn long_sequences_decode_in_parts() {
    // More keys than two parts, one head, and threads to spare.
    let setup = Setup::new(vec![Pattern::DENSE], 1300, 1, 8);
    all_types(&setup, 8, 1290, Chunks::Then(1260, 1));
    let setup = Setup::new(vec![pattern(-1, 1100, 3), pattern(2, 5, 0)], 1300, 1, 34);
    all_types(&setup, 9, 1290, Chunks::Then(1270, 3));
}

#[test]
fn impossible_lengths_are_refused_before_anything_is_written() {
    let setup = Setup::new(vec![Pattern::DENSE], 4, 1, 2);
    let x = [1f32; 4];
    let (mut output, mut keys, mut values) = ([7f32; 4], [7f32; 8], [7f32; 8]);
    for (past, seq) in [(3i64, 2i64), (-1, 1), (0, 3)] {
        let params = AttentionParams {
            layout: &setup.layout,
            num_heads: setup.num_heads,
            scale: 1.0,
            batch: 1,
            seq_len: 2,
            head_dim: 2,
            query: x.as_ptr(),
            key: x.as_ptr(),
            value: x.as_ptr(),
            past_key: keys.as_ptr(),
            past_value: values.as_ptr(),
            past_length: &past,
            seq_length: &seq,
            cos: setup.cos.as_ptr(),
            sin: setup.sin.as_ptr(),
            output: output.as_mut_ptr(),
            present_key: keys.as_mut_ptr(),
            present_value: values.as_mut_ptr(),
            workspace: std::ptr::null_mut(),
        };
        // SAFETY: every buffer has its tensor's size.
        let error = unsafe { crate::dilated_attention(&params, &Serial) }.unwrap_err();
        assert_eq!(error.max_seq_len, 4);
    }
    assert_eq!((output, keys, values), ([7.0; 4], [7.0; 8], [7.0; 8]));
}
