//! Element types in bulk: casts that round to nearest even, and the search for values that are
//! not finite. Loops are branch-free over blocks so that they vectorize.

use super::tensor::StoredType;
use half::f16;
use half::slice::HalfFloatSliceExt;
use ratplus_graphs::ops::ElementType;

/// Elements converted at a time.
const TILE: usize = 1024;

/// What a conversion found; indices count elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Found {
    /// The source holds a NaN or an infinity.
    NonFinite { index: usize, value: f64 },
    /// A finite source has no finite counterpart.
    Overflow { index: usize, value: f64 },
}

impl Found {
    /// The same where `by` elements come before.
    pub(super) fn shifted(self, by: usize) -> Self {
        match self {
            Self::NonFinite { index, value } => Self::NonFinite {
                index: index + by,
                value,
            },
            Self::Overflow { index, value } => Self::Overflow {
                index: index + by,
                value,
            },
        }
    }
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

/// The first NaN or infinity among little-endian elements, unless they are allowed.
pub(super) fn refuse_non_finite(bytes: &[u8], dtype: ElementType, allow: bool) -> Option<Found> {
    if allow || !any_non_finite(bytes, dtype) {
        return None;
    }
    (0..bytes.len() / dtype.size())
        .map(|index| (index, element(bytes, dtype, index)))
        .find(|(_, value)| !value.is_finite())
        .map(|(index, value)| Found::NonFinite {
            index,
            value: value.into(),
        })
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

/// An f32 that rounds to any narrower type as `value` does: rounded towards zero, with the last bit
/// set where something was cut off.
fn round_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value || value.is_nan() {
        return nearest;
    }
    let beyond = f64::from(nearest).abs() > value.abs();
    f32::from_bits((nearest.to_bits() - u32::from(beyond)) | 1)
}

/// Converts little-endian elements of type `from` in `input` to `to` in `output`, which hold
/// equally many; every element is rounded once. NaNs and infinities are found unless
/// `allow_non_finite`; overflow always is.
pub(super) fn convert(
    input: &[u8],
    from: StoredType,
    output: &mut [u8],
    to: ElementType,
    allow_non_finite: bool,
) -> Option<Found> {
    debug_assert_eq!(input.len() / from.size(), output.len() / to.size());
    if from.element_type() == Some(to) {
        output.copy_from_slice(input);
        return refuse_non_finite(output, to, allow_non_finite);
    }
    let mut tile = [0.0f32; TILE];
    let blocks = input
        .chunks(TILE * from.size())
        .zip(output.chunks_mut(TILE * to.size()));
    for (block, (input, output)) in blocks.enumerate() {
        let tile = &mut tile[..input.len() / from.size()];
        let (doubles, _) = input.as_chunks();
        let double = |index: usize| f64::from_le_bytes(doubles[index]);
        match from.element_type() {
            Some(from) => load(input, from, tile),
            None => {
                for (index, value) in tile.iter_mut().enumerate() {
                    *value = match to {
                        ElementType::F32 => double(index) as f32,
                        _ => round_to_odd(double(index)),
                    };
                }
            }
        }
        store(tile, to, output);
        let found = judge(output, to, allow_non_finite, |index| {
            match from.element_type() {
                Some(_) => tile[index].into(),
                None => double(index),
            }
        });
        if let Some(found) = found {
            return Some(found.shifted(block * TILE));
        }
    }
    None
}

/// The first element of `output` that is not finite and must be, by what it was made from.
fn judge(
    output: &[u8],
    to: ElementType,
    allow_non_finite: bool,
    source: impl Fn(usize) -> f64,
) -> Option<Found> {
    // A source that is not finite never becomes finite, so this alone sees both mistakes.
    if !any_non_finite(output, to) {
        return None;
    }
    (0..output.len() / to.size()).find_map(|index| {
        let value = source(index);
        if !value.is_finite() {
            (!allow_non_finite).then_some(Found::NonFinite { index, value })
        } else {
            let overflows = !element(output, to, index).is_finite();
            overflows.then_some(Found::Overflow { index, value })
        }
    })
}

#[cfg(test)]
mod tests;
