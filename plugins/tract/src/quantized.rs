//! Matrices of block-wise integers. tract has no product with them: they are widened to f32 once,
//! when weights are loaded.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::precision::{IntegerLayout, Quantization};

/// The matrix `[outputs, inputs]`, row by row, from the bytes of its constants;
/// `noise` moves every value by up to half a step, as rounding did.
///
/// # Errors
/// The bytes are not those of such a matrix.
pub(crate) fn widen(
    quantization: Quantization,
    [outputs, inputs]: [usize; 2],
    constants: &[Vec<u8>],
    noise: &mut Option<ChaCha8Rng>,
) -> Result<Vec<f32>, String> {
    let block_size = quantization.block_size;
    let row_blocks = quantization.blocks(inputs);
    let bits = quantization.bits as usize;
    let zero_bytes = (row_blocks * bits).div_ceil(8);
    let signed = quantization.layout == IntegerLayout::Dequantized;
    let row_elements = if signed {
        inputs
    } else {
        row_blocks * block_size
    };
    let [blocks, scales] = [0, 1].map(|part| constants.get(part).map_or(&[][..], |part| part));
    let zero_points = constants.get(2);
    for (what, found, row_bits) in [
        ("integers", Some(blocks.len()), row_elements * bits),
        ("scales", Some(scales.len()), row_blocks * 32),
        ("zero points", zero_points.map(Vec::len), zero_bytes * 8),
    ] {
        let expected = row_bits.checked_mul(outputs).map(|bits| bits.div_ceil(8));
        if found.is_some_and(|found| expected != Some(found)) {
            return Err(format!(
                "{what}: expected {row_bits} bits for each of {outputs} rows, found {found:?} bytes in all"
            ));
        }
    }
    // The lower half of a byte comes first.
    let integer = |byte: u8, index: usize| match (bits, index % 2) {
        (4, 0) => byte & 15,
        (4, _) => byte >> 4,
        _ => byte,
    };
    let mut matrix = Vec::with_capacity(outputs * inputs);
    for row in 0..outputs {
        for column in 0..inputs {
            let block = column / block_size;
            let index = row * row_blocks + block;
            let element = row * row_elements + column;
            let byte = blocks[element * bits / 8];
            let zero = match zero_points {
                Some(points) => {
                    i32::from(integer(points[row * zero_bytes + block * bits / 8], block))
                }
                None => quantization.middle() as i32,
            };
            let found = integer(byte, element);
            let steps = match (signed, bits) {
                (false, _) => i32::from(found) - zero,
                (true, 4) => i32::from((found << 4) as i8 >> 4),
                (true, _) => i32::from(found as i8),
            };
            let mut scale = [0; 4];
            scale.copy_from_slice(&scales[4 * index..4 * index + 4]);
            let moved = noise
                .as_mut()
                .map_or(0.0, |rng| rng.random_range(-0.5..0.5));
            matrix.push(f32::from_le_bytes(scale) * (steps as f32 + moved));
        }
    }
    Ok(matrix)
}
