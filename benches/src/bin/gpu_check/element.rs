//! Elements of tensors, carried in f32.

use half::{bf16, f16};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::ops::ElementType;

/// The element types of the kernels.
pub const ALL: [ElementType; 3] = [ElementType::F32, ElementType::F16, ElementType::BF16];

/// As it is printed.
pub fn name(element: ElementType) -> &'static str {
    match element {
        ElementType::F16 => "f16",
        ElementType::BF16 => "bf16",
        _ => "f32",
    }
}

/// Rounds to nearest even.
pub fn round(element: ElementType) -> fn(f32) -> f32 {
    match element {
        ElementType::F16 => |x| f16::from_f32(x).to_f32(),
        ElementType::BF16 => |x| bf16::from_f32(x).to_f32(),
        _ => |x| x,
    }
}

/// Largest relative error of rounding.
pub fn unit(element: ElementType) -> f64 {
    let digits = match element {
        ElementType::F16 => 11,
        ElementType::BF16 => 8,
        _ => 24,
    };
    1.0 / f64::from(1u32 << digits)
}

/// As the device has them.
pub fn encode(element: ElementType, values: &[f32]) -> Vec<u8> {
    match element {
        ElementType::F16 => values
            .iter()
            .flat_map(|&x| f16::from_f32(x).to_ne_bytes())
            .collect(),
        ElementType::BF16 => values
            .iter()
            .flat_map(|&x| bf16::from_f32(x).to_ne_bytes())
            .collect(),
        _ => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
    }
}

/// From the device's.
pub fn decode(element: ElementType, bytes: &[u8]) -> Vec<f32> {
    let (pairs, fours) = (bytes.as_chunks().0, bytes.as_chunks().0);
    match element {
        ElementType::F16 => pairs
            .iter()
            .map(|&x| f16::from_ne_bytes(x).to_f32())
            .collect(),
        ElementType::BF16 => pairs
            .iter()
            .map(|&x| bf16::from_ne_bytes(x).to_f32())
            .collect(),
        _ => fours.iter().map(|&x| f32::from_ne_bytes(x)).collect(),
    }
}

/// Uniform values of magnitude up to `limit` that the type can hold.
pub fn random(element: ElementType, rng: &mut ChaCha8Rng, count: usize, limit: f32) -> Vec<f32> {
    let round = round(element);
    (0..count)
        .map(|_| round(rng.random_range(-limit..limit)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn values_go_there_and_back() {
        for element in ALL {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let values = random(element, &mut rng, 100, 2.0);
            let bytes = encode(element, &values);
            assert_eq!(bytes.len(), 100 * element.size());
            assert_eq!(decode(element, &bytes), values);
            assert!(decode(element, &[0xff; 16]).iter().all(|x| x.is_nan()));
            let rounded = f64::from(round(element)(1.0 / 3.0));
            assert!((rounded * 3.0 - 1.0).abs() <= unit(element));
        }
    }
}
