//! Element types in bulk: casts that round to nearest even, and the search for values that are
//! not finite. Loops are branch-free over blocks so that they vectorize.

use half::f16;
use half::slice::HalfFloatSliceExt;
use ratplus_graphs::ops::ElementType;

/// Elements converted at a time.
const TILE: usize = 1024;

/// What a conversion found; indices count elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Found {
    /// The source holds a NaN or an infinity.
    NonFinite { index: usize, value: f32 },
    /// A finite source has no finite counterpart.
    Overflow { index: usize, value: f32 },
}

const F32_EXPONENT: u32 = 0x7f80_0000;
const F16_EXPONENT: u16 = 0x7c00;
const BF16_EXPONENT: u16 = 0x7f80;

/// Whether any of the little-endian elements is a NaN or an infinity.
fn any_non_finite(bytes: &[u8], dtype: ElementType) -> bool {
    fn any16(bytes: &[u8], mask: u16) -> bool {
        bytes.chunks(8192).any(|block| {
            block
                .chunks_exact(2)
                .map(|b| u16::from_le_bytes([b[0], b[1]]) & mask == mask)
                .fold(false, |any, hit| any | hit)
        })
    }
    match dtype {
        ElementType::F16 => any16(bytes, F16_EXPONENT),
        ElementType::BF16 => any16(bytes, BF16_EXPONENT),
        _ => bytes.chunks(8192).any(|block| {
            block
                .chunks_exact(4)
                .map(|b| {
                    u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & F32_EXPONENT == F32_EXPONENT
                })
                .fold(false, |any, hit| any | hit)
        }),
    }
}

/// The element at `index`, exactly.
fn element(bytes: &[u8], dtype: ElementType, index: usize) -> f32 {
    let mut tile = [0.0; 1];
    let size = dtype.size();
    load(&bytes[index * size..][..size], dtype, &mut tile);
    tile[0]
}

/// The first NaN or infinity among little-endian elements.
pub(super) fn first_non_finite(bytes: &[u8], dtype: ElementType) -> Option<Found> {
    if !any_non_finite(bytes, dtype) {
        return None;
    }
    (0..bytes.len() / dtype.size())
        .map(|index| (index, element(bytes, dtype, index)))
        .find(|(_, value)| !value.is_finite())
        .map(|(index, value)| Found::NonFinite { index, value })
}

/// Exact: every f16 and bf16 is an f32.
fn load(bytes: &[u8], dtype: ElementType, tile: &mut [f32]) {
    match dtype {
        ElementType::F16 => {
            let mut halves = [f16::ZERO; TILE];
            let halves = &mut halves[..tile.len()];
            for (half, b) in halves.iter_mut().zip(bytes.chunks_exact(2)) {
                *half = f16::from_le_bytes([b[0], b[1]]);
            }
            halves.convert_to_f32_slice(tile);
        }
        ElementType::BF16 => {
            for (value, b) in tile.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
            }
        }
        _ => {
            for (value, b) in tile.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
    }
}

/// Rounds to nearest, ties to even; a NaN stays one.
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > F32_EXPONENT {
        quiet
    } else {
        rounded
    }) as u16
}

fn store(tile: &[f32], dtype: ElementType, bytes: &mut [u8]) {
    match dtype {
        ElementType::F16 => {
            let mut halves = [f16::ZERO; TILE];
            let halves = &mut halves[..tile.len()];
            halves.convert_from_f32_slice(tile);
            for (b, half) in bytes.chunks_exact_mut(2).zip(&*halves) {
                b.copy_from_slice(&half.to_le_bytes());
            }
        }
        ElementType::BF16 => {
            for (b, &value) in bytes.chunks_exact_mut(2).zip(tile) {
                b.copy_from_slice(&bf16_bits(value).to_le_bytes());
            }
        }
        _ => {
            for (b, value) in bytes.chunks_exact_mut(4).zip(tile) {
                b.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

/// Converts little-endian elements of type `from` in `input` to `to` in `output`, which hold
/// equally many. NaNs and infinities are found unless `allow_non_finite`; overflow always is.
pub(super) fn convert(
    input: &[u8],
    from: ElementType,
    output: &mut [u8],
    to: ElementType,
    allow_non_finite: bool,
) -> Option<Found> {
    debug_assert_eq!(input.len() / from.size(), output.len() / to.size());
    if from == to {
        output.copy_from_slice(input);
        return if allow_non_finite {
            None
        } else {
            first_non_finite(output, to)
        };
    }
    let mut tile = [0.0f32; TILE];
    let blocks = input
        .chunks(TILE * from.size())
        .zip(output.chunks_mut(TILE * to.size()));
    for (block, (input, output)) in blocks.enumerate() {
        let tile = &mut tile[..input.len() / from.size()];
        load(input, from, tile);
        store(tile, to, output);
        // A source that is not finite never becomes finite, so this alone sees both mistakes.
        if !any_non_finite(output, to) {
            continue;
        }
        for (offset, &value) in tile.iter().enumerate() {
            let index = block * TILE + offset;
            if !value.is_finite() {
                if !allow_non_finite {
                    return Some(Found::NonFinite { index, value });
                }
            } else if !element(output, to, offset).is_finite() {
                return Some(Found::Overflow { index, value });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
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
        let found = convert(&input, from, &mut output, to, allow);
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
    fn nearest(value: f32, decode: impl Fn(u16) -> f32, infinity: u16) -> u16 {
        let magnitude = f64::from(value.abs());
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
            let expected = nearest(value, |bits| f16::from_bits(bits).to_f32(), 0x7c00);
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
            let expected = nearest(value, |bits| bf16::from_bits(bits).to_f32(), 0x7f80);
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
                            assert!(is == value || is.is_nan() && value.is_nan());
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
                assert_eq!(found, Some(Found::Overflow { index: 1500, value }));
            }
        }
        assert_eq!(
            run(&[65519.0], ElementType::F32, ElementType::F16, false).1,
            None
        );
    }
}
