//! The golden cases through tract: logits and taps, whole, in chunks and token by token.

mod common;

use common::{Engines, Package, Trace, Weights, error, spec, uniform_chunks};
use ratplus_graphs::model::Tap;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{LogitsMode, PackageShape};
use ratplus_graphs::tolerance::F32_LOGIT;
use safetensors::{Dtype, SafeTensors};
use std::path::PathBuf;

fn folder(name: &str) -> PathBuf {
    [
        env!("CARGO_MANIFEST_DIR"),
        "..",
        "..",
        "tests",
        "golden",
        name,
    ]
    .iter()
    .collect()
}

fn f32s(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<f32>) {
    let view = file
        .tensor(name)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let values = match view.dtype() {
        Dtype::F32 => view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect(),
        Dtype::BF16 => view
            .data()
            .chunks_exact(2)
            .map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32())
            .collect(),
        other => panic!("{name}: {other:?}"),
    };
    (view.shape().to_vec(), values)
}

fn i64s(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<i64>) {
    let view = file
        .tensor(name)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(view.dtype(), Dtype::I64, "{name}");
    let values = view
        .data()
        .chunks_exact(8)
        .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
        .collect();
    (view.shape().to_vec(), values)
}

struct Golden {
    batch: usize,
    seq_len: usize,
    tokens: Vec<Vec<i64>>,
    positions: Vec<i64>,
    /// Per slot `[P][V]`.
    logits: Vec<Vec<Vec<f64>>>,
    /// Graph tensor and per slot `[T][width]`.
    taps: Vec<(String, Vec<Vec<Vec<f64>>>)>,
}

fn rows(values: &[f32], batch: usize, width: usize) -> Vec<Vec<Vec<f64>>> {
    values
        .chunks_exact(values.len() / batch)
        .map(|slot| {
            let wide = |row: &[f32]| row.iter().map(|&x| f64::from(x)).collect();
            slot.chunks_exact(width).map(wide).collect()
        })
        .collect()
}

/// `[B, H, T, dh]` as `[B, T, H * dh]`.
fn heads_last(shape: &[usize], values: &[f32]) -> Vec<f32> {
    let &[batch, heads, seq_len, dim] = shape else {
        panic!("{shape:?}");
    };
    let mut out = Vec::with_capacity(values.len());
    for slot in 0..batch {
        for token in 0..seq_len {
            for head in 0..heads {
                let at = ((slot * heads + head) * seq_len + token) * dim;
                out.extend(&values[at..at + dim]);
            }
        }
    }
    out
}

fn read_golden(name: &str, num_layers: usize) -> Golden {
    let bytes = std::fs::read(folder(name).join("golden.safetensors")).expect("a golden file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let (shape, tokens) = i64s(&file, "tokens");
    let (batch, seq_len) = (shape[0], shape[1]);
    let (shape, logits) = f32s(&file, "logits");
    let mut taps = Vec::new();
    for (golden, tap) in [
        ("layer0.gated_key", Tap::GatedKey),
        ("layer0.gated_value", Tap::GatedValue),
    ] {
        let (shape, values) = f32s(&file, golden);
        let values = heads_last(&shape, &values);
        taps.push((tap.name(0), rows(&values, batch, shape[1] * shape[3])));
    }
    for (golden, tap) in [
        ("layer0.hidden", Tap::Hidden.name(0)),
        // The residual stream, before the final norm.
        ("last_hidden", Tap::Hidden.name(num_layers - 1)),
    ] {
        let (shape, values) = f32s(&file, golden);
        taps.push((tap, rows(&values, batch, shape[2])));
    }
    Golden {
        batch,
        seq_len,
        tokens: tokens.chunks_exact(seq_len).map(<[i64]>::to_vec).collect(),
        positions: i64s(&file, "positions").1,
        logits: rows(&logits, batch, shape[2]),
        taps,
    }
}

fn check(name: &str, golden: &Golden, trace: &Trace, what: &str) {
    for slot in 0..golden.batch {
        let found: Vec<_> = golden
            .positions
            .iter()
            .map(|&position| trace.logits[slot][position as usize].clone())
            .collect();
        let difference = error(&found, &golden.logits[slot]);
        assert!(
            difference <= F32_LOGIT,
            "{name} {what} slot {slot}: logits {difference:e}"
        );
        let mut line = format!("{name} {what} slot {slot}: logits {difference:.1e}");
        for (tap, expected) in &golden.taps {
            let found: Vec<_> = trace.taps[tap][slot].iter().cloned().map(Some).collect();
            let difference = error(&found, &expected[slot]);
            assert!(
                difference <= F32_LOGIT,
                "{name} {what} slot {slot}: {tap} {difference:e}"
            );
            line += &format!(", {tap} {difference:.1e}");
        }
        println!("{line}");
    }
}

fn run(name: &str) {
    let config = std::fs::read(folder(name).join("config.json")).expect("a config");
    let spec = spec(serde_json::from_slice(&config).expect("json"));
    let golden = read_golden(name, spec.num_layers);
    let bytes = std::fs::read(folder(name).join("model.safetensors")).expect("a checkpoint");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let weights: Weights = file
        .names()
        .into_iter()
        .map(|name| (name.to_owned(), f32s(&file, name).1))
        .collect();
    let shape = PackageShape {
        batch: golden.batch,
        max_seq_len: golden.seq_len,
        dtype: ElementType::F32,
        cache_dtype: ElementType::F32,
        logits: LogitsMode::All,
    };
    let package = Package::new(&spec, shape, &weights);
    let lengths = vec![golden.seq_len; golden.batch];
    let mut taps: Vec<_> = golden.taps.iter().map(|(tap, _)| tap.as_str()).collect();
    taps.dedup();
    let engines = [1, 7, golden.seq_len];
    for inline in [false, true] {
        let mut engine: Engines = package.engines(&engines, inline, &taps);
        for chunk in engines {
            let trace = engine.run(&golden.tokens, &uniform_chunks(chunk, &lengths));
            check(
                name,
                &golden,
                &trace,
                &format!("inline {inline} in chunks of {chunk}"),
            );
        }
    }
}

#[test]
fn d16_w20_i4() {
    run("d16_w20_i4");
}

#[test]
fn head_hybrid() {
    run("head_hybrid");
}

#[test]
fn streaming() {
    run("streaming");
}

#[test]
fn attention_only() {
    run("attention_only");
}

#[test]
fn dense() {
    run("dense");
}

#[test]
fn head_dim_128() {
    run("head_dim_128");
}

#[test]
fn gqa() {
    run("gqa");
}

#[test]
fn gqa_head_hybrid() {
    run("gqa_head_hybrid");
}

#[test]
fn topk_bounds() {
    run("topk_bounds");
}

#[test]
fn topk_mean() {
    run("topk_mean");
}

#[test]
fn topk_dilated() {
    run("topk_dilated");
}

#[test]
fn kjv_hybrid() {
    run("kjv_hybrid");
}
