use super::*;
use approx::relative_eq;
use proptest::prelude::*;
use ratplus_tests::times;

const ALL: [(u32, usize, bool); 6] = [
    (4, 16, true),
    (4, 32, false),
    (4, 256, true),
    (8, 32, true),
    (8, 64, false),
    (8, 128, true),
];

/// Signed integers: scales are positive whichever side is larger, and what is reported is lost.
#[test]
fn dequantized_layouts_have_positive_scales() {
    // Blocks whose larger side is either, of zeros, and too small for a scale in f16.
    let block = |scale: f32| (0..32).map(move |i| scale * ((i * 37 % 101) as f32 - 49.0));
    let values: Vec<f32> = [1.0, -1.0, 0.0, 1e-9, 3e-5, -2e4]
        .into_iter()
        .flat_map(block)
        .collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    for bits in [4, 8] {
        let quantization = Quantization {
            layout: IntegerLayout::Dequantized,
            activations: Default::default(),
            ..quantization((bits, 32, true))
        };
        let mut quantizer = Quantizer::new(quantization, [3, 64]);
        let mut integers = Vec::new();
        for piece in bytes.chunks(100) {
            integers.extend(quantizer.push(piece).unwrap());
        }
        let (rest, lost) = quantizer.finish("w".into());
        let integers: Vec<i8> = match bits {
            4 => {
                let halves = integers.iter().flat_map(|byte| [byte << 4, byte & 0xf0]);
                halves.map(|half| half as i8 >> 4).collect()
            }
            _ => integers.iter().map(|&byte| byte as i8).collect(),
        };
        let (scales, _) = rest["w.scales"].as_chunks::<4>();
        let scales: Vec<_> = scales.iter().map(|&s| f32::from_le_bytes(s)).collect();
        assert!(
            scales.iter().all(|&scale| scale >= 2f32.powi(-24)),
            "{scales:?}"
        );
        let most = integers.iter().map(|&q| i32::from(q).abs()).max().unwrap();
        assert_eq!(most, 1 << (bits - 1));
        let restored = integers.iter().enumerate();
        let restored = restored.map(|(i, &q)| f64::from(scales[i / 32]) * f64::from(q));
        let (mut error, mut squares) = (0.0, 0.0);
        for (i, (restored, &value)) in restored.zip(&values).enumerate() {
            let value = f64::from(value);
            error += (restored - value).powi(2);
            squares += value.powi(2);
            let clipped = if bits == 4 { 4.0 } else { 0.51 };
            assert!((restored - value).abs() <= clipped * f64::from(scales[i / 32]));
        }
        assert!(relative_eq!(
            lost.relative_error,
            (error / squares).sqrt(),
            max_relative = 1e-3
        ));
    }
}

fn quantization((bits, block_size, symmetric): (u32, usize, bool)) -> Quantization {
    Quantization {
        bits,
        block_size,
        symmetric,
        layout: Default::default(),
        activations: Default::default(),
    }
}

/// Quantises in pieces of `piece` bytes and restores from the tensors' bytes alone, without the
/// roundings of a runtime's f32.
fn round_trip(
    quantization: Quantization,
    shape: [usize; 2],
    values: &[f32],
    piece: usize,
) -> (Vec<f64>, QuantizedWeight) {
    let mut quantizer = Quantizer::new(quantization, shape);
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut first = Vec::new();
    for piece in bytes.chunks(piece) {
        first.extend(quantizer.push(piece).unwrap());
    }
    let (mut tensors, lost) = quantizer.finish("w".into());
    let stored = quantization.tensors("w", shape);
    tensors.insert(stored[0].0.clone(), first);
    let mut stored = stored.iter().map(|(name, tensor)| {
        let bytes = tensors.remove(name).unwrap();
        assert_eq!(bytes.len(), tensor.bytes(), "{name}");
        bytes
    });
    let (integers, scales, zeros) = (
        stored.next().unwrap(),
        stored.next().unwrap(),
        stored.next(),
    );
    drop(stored);
    let (blocks, bits) = (quantization.blocks(shape[1]), quantization.bits as usize);
    // Every row starts a byte.
    let number = |bytes: &[u8], row: usize, row_of: usize, index: usize| match bits {
        4 => bytes[row * row_of.div_ceil(2) + index / 2] >> (4 * (index % 2)) & 15,
        _ => bytes[row * row_of + index],
    };
    let mut found = vec![0.0; values.len()];
    for row in 0..shape[0] {
        for column in 0..shape[1] {
            let block = column / quantization.block_size;
            let at = row * blocks + block;
            let scale = f32::from_le_bytes(scales[4 * at..4 * at + 4].try_into().unwrap());
            let q = number(&integers, row, blocks * quantization.block_size, column);
            let middle = quantization.middle() as u8;
            let zero = zeros
                .as_ref()
                .map_or(middle, |zeros| number(zeros, row, blocks, block));
            found[row * shape[1] + column] = f64::from(scale) * (f64::from(q) - f64::from(zero));
        }
    }
    assert!(tensors.is_empty());
    (found, lost)
}

/// What rounding to the nearest of equal steps over the block's range would do.
fn naive_squares(quantization: Quantization, values: &[f32]) -> f64 {
    let extreme = |pick: fn(f32, f32) -> f32| values.iter().copied().fold(0.0, pick);
    let (low, high) = (extreme(f32::min), extreme(f32::max));
    let levels = quantization.largest() as f32;
    let (step, zero) = match quantization.symmetric {
        true => (low.abs().max(high) / (levels / 2.0).floor(), 0.0),
        false => (
            (high - low) / levels,
            (-low * levels / (high - low)).round(),
        ),
    };
    let error = |&value: &f32| {
        let q = (value / step + zero).round();
        let q = match quantization.symmetric {
            true => q,
            false => q.clamp(0.0, levels),
        };
        f64::from(value - step * (q - zero)).powi(2)
    };
    if step > 0.0 {
        values.iter().map(error).sum()
    } else {
        0.0
    }
}

fn weights(count: usize) -> impl Strategy<Value = Vec<f32>> {
    let one = prop_oneof![
        8 => -1.0f32..1.0,
        1 => Just(0.0),
        1 => -30.0f32..30.0,
        1 => (-1.0f32..1.0).prop_map(|value| value * 1e-30),
    ];
    proptest::collection::vec(one, count)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: times(10_000) as u32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Never worse than the naive way, in whatever pieces the bytes come, and the reported
    /// error is the one that the stored bytes have.
    #[test]
    fn nothing_is_lost_that_need_not_be(
        which in 0..ALL.len(),
        (columns, values) in (1usize..300).prop_flat_map(|n| (Just(n), weights(3 * n))),
        piece in 1usize..700,
    ) {
        let quantization = quantization(ALL[which]);
        let (found, lost) = round_trip(quantization, [3, columns], &values, piece);
        let squares = |pairs: &mut dyn Iterator<Item = (f32, f64)>| -> f64 {
            pairs.map(|(a, b)| (f64::from(a) - b).powi(2)).sum()
        };
        let all = squares(&mut values.iter().copied().zip(found.iter().copied()));
        let norm: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
        let expected = if norm > 0.0 { (all / norm).sqrt() } else { 0.0 };
        prop_assert!((lost.relative_error - expected).abs() <= 1e-3 * expected + 1e-7);
        for (row, found) in values.chunks(columns).zip(found.chunks(columns)) {
            let blocks = row.chunks(quantization.block_size);
            for (block, found) in blocks.zip(found.chunks(quantization.block_size)) {
                let ours = squares(&mut block.iter().copied().zip(found.iter().copied()));
                let naive = naive_squares(quantization, block);
                let norm: f64 = block.iter().map(|&v| f64::from(v).powi(2)).sum();
                prop_assert!(ours <= 1.01 * naive + 1e-11 * norm, "{ours:e} against {naive:e}");
            }
        }
    }
}

#[test]
fn values_on_the_grid_come_back_exactly() {
    for which in ALL {
        let quantization = quantization(which);
        let middle = quantization.middle() as i32;
        let low = if quantization.symmetric { -middle } else { -3 };
        let levels = quantization.largest() as i32;
        // Every block has both ends of the range.
        let steps = |i: i32| match i % quantization.block_size as i32 {
            0 => 0,
            1 => levels,
            _ => (i * 7) % (levels + 1),
        };
        let values: Vec<f32> = (0..quantization.block_size as i32 * 2 + 5)
            .map(|i| 0.25 * (low + steps(i)) as f32)
            .collect();
        let (found, lost) = round_trip(quantization, [1, values.len()], &values, 11);
        let values: Vec<_> = values.into_iter().map(f64::from).collect();
        assert_eq!(found, values, "{quantization}");
        assert_eq!((lost.relative_error, lost.max_error), (0.0, 0.0));
    }
}

/// A range may be wider than f32, whose ends are not.
#[test]
fn values_at_both_ends_of_f32_keep_their_integers() {
    for which in ALL {
        let quantization = quantization(which);
        let values: Vec<f32> = [1.8e38, -1.8e38, 0.0, 1e38].repeat(8);
        let (found, _) = round_trip(quantization, [1, values.len()], &values, 11);
        let step = 4e38 / f64::from(quantization.largest());
        for (&value, found) in values.iter().zip(found) {
            let error = (f64::from(value) - found).abs();
            assert!(error <= step, "{quantization}: {found:e} for {value:e}");
        }
    }
}

#[test]
fn zeros_and_tiny_values_stay_finite() {
    for which in ALL {
        let quantization = quantization(which);
        for value in [
            0.0,
            f32::from_bits(1),
            1e-42,
            f32::MIN_POSITIVE,
            1e-35,
            1e30,
        ] {
            let (found, lost) = round_trip(quantization, [2, 40], &[value; 80], 64);
            assert!(
                found.iter().all(|v| v.is_finite()),
                "{quantization} {value:e}"
            );
            assert!(lost.relative_error.is_finite());
            // Below, a step is no number to divide by, and the block is 0.
            if value == 0.0 || value >= 1e-35 {
                let near = |v: &f64| relative_eq!(*v, f64::from(value), max_relative = 0.01);
                assert!(
                    found.iter().all(near),
                    "{quantization} {value:e}: {}",
                    found[0]
                );
            }
        }
    }
}

#[test]
fn a_value_that_is_not_finite_is_named() {
    let mut quantizer = Quantizer::new(quantization((4, 32, true)), [2, 3]);
    let values = [0.0, 1.0, 2.0, 3.0, f32::NAN, 5.0];
    let bytes: Vec<u8> = values.iter().flat_map(|v: &f32| v.to_le_bytes()).collect();
    assert_eq!(quantizer.push(&bytes), Err(NotFinite { index: [1, 1] }));
}
