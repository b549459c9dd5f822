//! Packages of many shapes in tract: custom operators, inline operators and the model's
//! definition in f64 agree.

mod common;

use common::{
    Package, Trace, error, forward, random_chunks, random_tokens, random_weights, round_to, spec,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{LogitsMode, PackageShape};
use ratplus_graphs::spec::{Activation, ModelSpec};
use ratplus_graphs::tolerance::F32_LOGIT;
use serde_json::json;

const LENGTHS: [usize; 4] = [1, 3, 8, 21];

fn model(patterns: serde_json::Value, recurrence: bool) -> ModelSpec {
    let layers = patterns.as_array().expect("a list").len();
    spec(json!({
        "vocab_size": 29, "d_model": 24, "num_layers": layers, "d_head": 8, "d_ffn": 40,
        "recurrence": recurrence, "patterns": patterns,
    }))
}

/// Models that differ from the released ones in what is computed between the operators.
fn variants() -> Vec<(&'static str, ModelSpec)> {
    let with = |changes: serde_json::Value| {
        let mut fields = json!({
            "vocab_size": 29, "d_model": 24, "num_layers": 2, "d_head": 8, "d_ffn": 40,
            "patterns": [{"dilation": 4, "local_window": 6, "initial": 2}, {"dilation": 1}],
        });
        let changes = changes.as_object().expect("fields").clone();
        fields.as_object_mut().expect("fields").extend(changes);
        spec(fields)
    };
    let mut found: Vec<_> = Activation::ALL
        .into_iter()
        .map(|activation| {
            let name: &str = activation.to_string().leak();
            (name, with(json!({"activation": activation})))
        })
        .collect();
    found.extend([
        ("no rotation", with(json!({"rope": false}))),
        ("another base", with(json!({"rope_base": 500000.0}))),
        ("tied", with(json!({"tie_embedding": true}))),
        (
            "tied, no rotation, no recurrence, tanh",
            with(json!({
                "tie_embedding": true, "rope": false, "recurrence": false, "activation": "fastgelu",
            })),
        ),
    ]);
    found
}

fn cases() -> Vec<(&'static str, ModelSpec)> {
    let p = |d: i64, w: i64, i: i64| json!({"dilation": d, "local_window": w, "initial": i});
    vec![
        ("uniform", model(json!([p(4, 6, 2), p(4, 6, 2)]), true)),
        ("layers", model(json!([p(1, 0, 0), p(8, 3, 0)]), true)),
        (
            "heads",
            model(
                json!([
                    [p(1, 0, 0), p(5, 3, 1), p(-1, 7, 2)],
                    [p(3, 0, 0), p(3, 0, 0), p(2, 1, 9)]
                ]),
                true,
            ),
        ),
        (
            "window only",
            model(json!([p(-1, 9, 0), p(-1, 1, 3)]), true),
        ),
        ("dense", model(json!([p(1, 4, 4), p(1, 0, 0)]), true)),
        (
            "attention only",
            model(json!([p(4, 6, 2), p(7, 5, 0)]), false),
        ),
        (
            "more initial than window",
            model(json!([p(6, 2, 11), p(-1, 0, 5)]), true),
        ),
        (
            "itself only",
            model(json!([p(-1, 0, 0), p(-1, 0, 0)]), true),
        ),
        (
            "one head without rows",
            model(json!([[p(-1, 0, 0), p(2, 0, 0), p(-1, 0, 1)]]), true),
        ),
        ("dilation past the end", model(json!([p(400, 2, 1)]), true)),
        ("window past the end", model(json!([p(5, 400, 300)]), true)),
    ]
}

fn shape(batch: usize, dtype: ElementType, logits: LogitsMode) -> PackageShape {
    PackageShape {
        batch,
        max_seq_len: 53,
        dtype,
        cache_dtype: dtype,
        logits,
    }
}

fn compare(name: &str, spec: &ModelSpec, logits: LogitsMode, seed: u64) {
    let weights = random_weights(spec, seed);
    let shape = shape(2, ElementType::F32, logits);
    let package = Package::new(spec, shape, &weights);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let lengths = [shape.max_seq_len, rng.random_range(1..shape.max_seq_len)];
    let tokens = random_tokens(&mut rng, spec.vocab_size, &lengths);
    let expected: Vec<_> = tokens
        .iter()
        .map(|slot| forward(spec, &weights, slot))
        .collect();
    let mut engines = [false, true].map(|inline| package.engines(&LENGTHS, inline, &[]));
    for round in 0..3 {
        let chunks = random_chunks(&mut rng, &LENGTHS, &lengths);
        let traces: Vec<Trace> = engines
            .iter_mut()
            .map(|e| e.run(&tokens, &chunks))
            .collect();
        for (trace, kind) in traces.iter().zip(["nodes", "bodies"]) {
            for (slot, expected) in expected.iter().enumerate() {
                let error = error(&trace.logits[slot], expected);
                assert!(
                    error <= F32_LOGIT / 10.0,
                    "{name}, {kind}, round {round}, slot {slot}: error {error:e} in {chunks:?}"
                );
            }
        }
        // The caches hold the same rows, unwritten (NaN) ones included.
        for (state, custom) in &traces[0].states {
            let inline = &traces[1].states[state];
            for (index, (a, b)) in custom.iter().zip(inline).enumerate() {
                assert!(
                    (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-4 * a.abs().max(1.0),
                    "{name}, {state}[{index}]: {a} with custom operators, {b} inline"
                );
            }
        }
    }
}

#[test]
fn custom_and_inline_operators_match_the_definition() {
    for (seed, (name, spec)) in cases().iter().chain(&variants()).enumerate() {
        compare(name, spec, LogitsMode::Last, seed as u64);
        compare(name, spec, LogitsMode::All, seed as u64 + 100);
    }
}

/// Packages with roundings, of activations, the cache or both: inline and custom operators round
/// at the same places, so they differ by flips of single roundings only; and both stay near the
/// definition on rounded weights.
#[test]
fn low_precision_packages_round_alike() {
    let unit = |dtype| match dtype {
        ElementType::F16 => 1.0 / 2048.0,
        ElementType::BF16 => 1.0 / 256.0,
        _ => 0.0f64,
    };
    let pairs = ElementType::ACTIVATIONS.map(|t| ElementType::ACTIVATIONS.map(|c| (t, c)));
    for (dtype, cache_dtype) in pairs.into_iter().flatten() {
        let unit = unit(dtype).max(unit(cache_dtype));
        if unit == 0.0 {
            continue;
        }
        for (seed, (name, spec)) in cases().iter().chain(&variants()).enumerate() {
            let mut weights = random_weights(spec, seed as u64);
            for value in weights.values_mut().flatten() {
                *value = round_to(dtype, *value);
            }
            let shape = PackageShape {
                cache_dtype,
                ..shape(2, dtype, LogitsMode::All)
            };
            let what = shape.types();
            let package = Package::new(spec, shape, &weights);
            let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
            let lengths = [40, 17];
            let tokens = random_tokens(&mut rng, spec.vocab_size, &lengths);
            let mut custom = package.engines(&LENGTHS, false, &[]);
            let mut inline = package.engines(&LENGTHS, true, &[]);
            let chunks = random_chunks(&mut rng, &LENGTHS, &lengths);
            let (custom, inline) = (custom.run(&tokens, &chunks), inline.run(&tokens, &chunks));
            let unrounded = unrounded_error(&package, &tokens, &chunks, &weights);
            assert!(
                unrounded <= F32_LOGIT / 10.0,
                "{name} {what}: {unrounded:e}"
            );
            for (slot, tokens) in tokens.iter().enumerate() {
                let expected = forward(spec, &weights, tokens);
                let (a, b) = (
                    error(&custom.logits[slot], &expected),
                    error(&inline.logits[slot], &expected),
                );
                println!("{what} {name} slot {slot}: custom {a:.2e} inline {b:.2e}");
                assert!(
                    a <= 16.0 * unit && b <= 2.0 * a + unit,
                    "{name} {what}: {a:e} {b:e}"
                );
                assert!(
                    a >= unit / 100.0,
                    "{name} {what}: {a:e} has no rounding in it"
                );
            }
            for (name, values) in &custom.states {
                let recurrent = name.contains("recurrent");
                assert!(
                    recurrent
                        || values
                            .iter()
                            .all(|&x| x.is_nan() || round_to(cache_dtype, x) == x),
                    "{name} holds values that are not {cache_dtype}"
                );
            }
        }
    }
}

/// The error of the package without its roundings; states and lengths as the package has them.
fn unrounded_error(
    package: &Package,
    tokens: &[Vec<i64>],
    chunks: &[common::Chunk],
    weights: &common::Weights,
) -> f64 {
    let mut engines = package.unrounded(&LENGTHS);
    let trace = engines.run(tokens, chunks);
    let slots = tokens.iter().zip(&trace.logits);
    slots
        .map(|(tokens, logits)| error(logits, &forward(&package.spec, weights, tokens)))
        .fold(0.0, f64::max)
}

/// The same token stream, the other slot holding anything: bit for bit the same.
#[test]
fn slots_do_not_see_each_other() {
    for (name, spec) in &cases() {
        let weights = random_weights(spec, 5);
        let package = Package::new(spec, shape(2, ElementType::F32, LogitsMode::All), &weights);
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mine = random_tokens(&mut rng, spec.vocab_size, &[30]).remove(0);
        for inline in [false, true] {
            let mut engines = package.engines(&LENGTHS, inline, &[]);
            let alone: Vec<_> = [8, 8, 1, 8, 8]
                .into_iter()
                .scan(30, |left, engine: usize| {
                    let length = engine.min(*left);
                    *left -= length;
                    Some(common::Chunk {
                        engine,
                        lengths: vec![length, 0],
                    })
                })
                .collect();
            let first = engines.run(&[mine.clone(), Vec::new()], &alone);
            let other = random_tokens(&mut rng, spec.vocab_size, &[33]).remove(0);
            let both: Vec<_> = alone
                .iter()
                .map(|chunk| common::Chunk {
                    engine: chunk.engine,
                    lengths: vec![chunk.lengths[0], chunk.engine],
                })
                .collect();
            let second = engines.run(&[mine.clone(), other], &both);
            assert_eq!(first.logits[0], second.logits[0], "{name} inline {inline}");
        }
    }
}
