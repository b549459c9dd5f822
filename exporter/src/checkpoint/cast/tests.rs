//! Casts against exact searches, and values that cannot be cast.

use super::*;
use half::bf16;

const TYPES: [ElementType; 3] = ElementType::ACTIVATIONS;

fn bytes_of(values: &[f32], dtype: ElementType) -> Vec<u8> {
    values
        .iter()
        .flat_map(|&value| match dtype {
            ElementType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            ElementType::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        })
        .collect()
}

fn run(
    values: &[f32],
    from: ElementType,
    to: ElementType,
    allow: bool,
) -> (Vec<u8>, Option<Found>) {
    let input = bytes_of(values, from);
    let mut output = vec![0; values.len() * to.size()];
    let found = convert(&input, stored(from), &mut output, to, allow);
    (output, found)
}

fn stored(dtype: ElementType) -> StoredType {
    let all = [StoredType::F32, StoredType::F16, StoredType::BF16];
    let found = all
        .into_iter()
        .find(|all| all.element_type() == Some(dtype));
    found.unwrap()
}

fn run_f64(values: &[f64], to: ElementType, allow: bool) -> (Vec<u8>, Option<Found>) {
    let input: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let mut output = vec![0; values.len() * to.size()];
    let found = convert(&input, StoredType::F64, &mut output, to, allow);
    (output, found)
}

/// Bit patterns that cover every exponent, both signs and the neighbourhood of every tie.
fn patterns() -> Vec<f32> {
    let mut values = Vec::new();
    for high in 0..=u16::MAX {
        for low in [
            0u32, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff,
        ] {
            values.push(f32::from_bits((u32::from(high) << 16) | low));
        }
    }
    values
}

/// Rounds by searching the exact values of all finite 16-bit floats.
fn nearest(value: f64, decode: impl Fn(u16) -> f32, infinity: u16) -> u16 {
    let magnitude = value.abs();
    let (mut low, mut high) = (0u16, infinity);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if f64::from(decode(middle)) <= magnitude {
            low = middle
        } else {
            high = middle
        }
    }
    let below = f64::from(decode(low));
    // Where the next value would be if the exponents went on.
    let above = if high == infinity {
        below + (below - f64::from(decode(low - 1)))
    } else {
        f64::from(decode(high))
    };
    let bits = match (magnitude - below).total_cmp(&(above - magnitude)) {
        std::cmp::Ordering::Less => low,
        std::cmp::Ordering::Greater => high,
        std::cmp::Ordering::Equal => low + (low & 1),
    };
    bits | if value.is_sign_negative() { 0x8000 } else { 0 }
}

#[test]
fn f16_agrees_with_an_exact_search() {
    for value in patterns().into_iter().filter(|value| value.is_finite()) {
        let found = run(&[value], ElementType::F32, ElementType::F16, true).0;
        let expected = nearest(value.into(), |bits| f16::from_bits(bits).to_f32(), 0x7c00);
        assert_eq!(
            u16::from_le_bytes([found[0], found[1]]),
            expected,
            "{value:e}"
        );
    }
}

#[test]
fn bf16_agrees_with_an_exact_search() {
    for value in patterns().into_iter().filter(|value| value.is_finite()) {
        let expected = nearest(value.into(), |bits| bf16::from_bits(bits).to_f32(), 0x7f80);
        assert_eq!(bf16_bits(value), expected, "{value:e}");
        assert_eq!(bf16::from_f32(value).to_bits(), expected, "{value:e}");
    }
    assert!(bf16::from_bits(bf16_bits(f32::from_bits(0x7f80_0001))).is_nan());
    assert!(bf16::from_bits(bf16_bits(f32::from_bits(0xffff_ffff))).is_nan());
}

#[test]
fn every_pair_of_types_agrees_with_the_half_crate() {
    let small: Vec<f32> = (0..5000).map(|i| (i as f32 - 2500.0) * 0.0137).collect();
    for from in TYPES {
        for to in TYPES {
            let (output, found) = run(&small, from, to, false);
            assert_eq!(found, None);
            let source = bytes_of(&small, from);
            let exact: Vec<f32> = (0..small.len())
                .map(|i| element(&source, from, i))
                .collect();
            assert_eq!(output, bytes_of(&exact, to), "{from} to {to}");
        }
    }
}

#[test]
fn the_first_value_that_is_not_finite_is_found_wherever_it_is() {
    for from in TYPES {
        for to in TYPES {
            for (index, value) in [
                (0, f32::NAN),
                (1023, f32::INFINITY),
                (1024, f32::NEG_INFINITY),
                (2999, f32::NAN),
            ] {
                let mut values = vec![1.0f32; 3000];
                values[index] = value;
                values[2999] = f32::NAN;
                let (_, found) = run(&values, from, to, false);
                match found {
                    Some(Found::NonFinite {
                        index: at,
                        value: is,
                    }) => {
                        assert_eq!(at, index);
                        assert!(is == f64::from(value) || is.is_nan() && value.is_nan());
                    }
                    other => panic!("{from} to {to}: {other:?}"),
                }
                let (output, found) = run(&values, from, to, true);
                assert_eq!(found, None);
                assert!(!element(&output, to, index).is_finite());
            }
        }
    }
}

#[test]
fn overflow_is_found_even_where_infinities_are_allowed() {
    for (value, to) in [
        (f32::MAX, ElementType::BF16),
        (65520.0, ElementType::F16),
        (-1e30, ElementType::F16),
    ] {
        for allow in [false, true] {
            let mut values = vec![0.5f32; 2000];
            values[1500] = value;
            if allow {
                values[7] = f32::INFINITY;
            }
            let (_, found) = run(&values, ElementType::F32, to, allow);
            let value = value.into();
            assert_eq!(found, Some(Found::Overflow { index: 1500, value }));
        }
    }
    assert_eq!(
        run(&[65519.0], ElementType::F32, ElementType::F16, false).1,
        None
    );
}

/// Where two roundings, f64 to f32 to 16 bits, would not be one: next to the ties of the
/// narrower type.
#[test]
fn f64_is_rounded_once() {
    let close = |tie: f64| {
        [
            tie,
            tie.next_up(),
            tie.next_down(),
            tie * (1.0 + 1e-12),
            tie * (1.0 - 1e-12),
        ]
    };
    for bits in (0..0x7f80u16).step_by(3) {
        let (low, high) = (
            bf16::from_bits(bits).to_f64(),
            bf16::from_bits(bits + 1).to_f64(),
        );
        let top = bits + 1 == 0x7f80;
        let tie = if top {
            low * (1.0 + 2f64.powi(-9))
        } else {
            (low + high) / 2.0
        };
        for value in close(tie).into_iter().flat_map(|value| [value, -value]) {
            let (found, _) = run_f64(&[value], ElementType::BF16, true);
            let expected = nearest(value, |bits| bf16::from_bits(bits).to_f32(), 0x7f80);
            assert_eq!(found, expected.to_le_bytes(), "{value:e} to bf16");
        }
    }
    for bits in 0..0x7bffu16 {
        let (low, high) = (
            f16::from_bits(bits).to_f64(),
            f16::from_bits(bits + 1).to_f64(),
        );
        for value in close((low + high) / 2.0) {
            let (found, _) = run_f64(&[value], ElementType::F16, true);
            let expected = nearest(value, |bits| f16::from_bits(bits).to_f32(), 0x7c00);
            assert_eq!(found, expected.to_le_bytes(), "{value:e} to f16");
        }
    }
    for value in patterns().into_iter().filter(|value| value.is_finite()) {
        for exact in [f64::from(value), f64::from(value) * (1.0 + f64::EPSILON)] {
            let (found, _) = run_f64(&[exact], ElementType::F32, true);
            assert_eq!(found, value.to_le_bytes(), "{exact:e} to f32");
        }
    }
    for to in TYPES {
        let (found, _) = run_f64(&[1e-320, -1e-60, 0.0, -0.0], to, false);
        let expected = bytes_of(&[0.0, -0.0, 0.0, -0.0], to);
        assert_eq!(found, expected);
    }
}

#[test]
fn f64_values_without_a_finite_counterpart_are_found() {
    let f32_max = f64::from(f32::MAX);
    for (value, to) in [
        (1e300, ElementType::F32),
        (f32_max * (1.0 + 2f64.powi(-24)), ElementType::F32),
        (-1e39, ElementType::BF16),
        (f32_max, ElementType::BF16),
        (65520.0, ElementType::F16),
        (1e40, ElementType::F16),
    ] {
        for allow in [false, true] {
            let mut values = vec![0.25; 3000];
            values[2500] = value;
            if allow {
                values[7] = f64::NEG_INFINITY;
            }
            let (_, found) = run_f64(&values, to, allow);
            assert_eq!(found, Some(Found::Overflow { index: 2500, value }));
        }
    }
    assert_eq!(
        run_f64(&[f32_max, 65519.9], ElementType::F32, false).1,
        None
    );
    for value in [f64::NAN, f64::INFINITY] {
        for to in TYPES {
            let (_, found) = run_f64(&[1.0, value], to, false);
            assert!(matches!(found, Some(Found::NonFinite { index: 1, .. })));
            let (output, found) = run_f64(&[1.0, value], to, true);
            assert_eq!(found, None);
            let kept = element(&output, to, 1);
            assert!(kept.is_nan() == value.is_nan() && !kept.is_finite());
        }
    }
}
