//! Rows of the input beside integers.

use super::Product;
use ratplus_graphs::ops::{Linear, linear::WeightType};
use std::arch::x86_64::*;
use std::mem::transmute;

/// A laid out row: so many elements, `u32` of pairs or of fours a piece, then of each block the sum, the scale, and what
/// sums of bytes start from.
#[derive(Clone, Copy)]
pub(in crate::linear) struct RowLayout {
    /// `u32` of a piece.
    pub depth: usize,
    /// Pieces.
    pub pieces: usize,
    /// Blocks.
    pub blocks: usize,
}

impl RowLayout {
    pub fn new(product: Product, operator: &Linear) -> Self {
        let (pieces, elements) = match product {
            Product::Floats => (1, 1),
            Product::Bf16 { pieces } => (pieces, 2),
            Product::Bytes => (1, 4),
        };
        let (blocks, block_size) = (operator.blocks(), operator.block_size());
        Self {
            depth: blocks * block_size / elements,
            pieces,
            blocks,
        }
    }

    /// Where the sums of blocks start.
    pub fn sums(&self) -> usize {
        self.depth * self.pieces
    }

    /// Where the scales start.
    pub fn scales(&self) -> usize {
        self.sums() + self.blocks
    }

    /// Where the integers start that sums of bytes start from: what the middle of the matrix's range adds.
    pub fn starts(&self) -> usize {
        self.scales() + self.blocks
    }

    /// f32 of a row.
    pub fn floats(&self) -> usize {
        self.starts() + self.blocks
    }
}

/// Elements that are laid out at a time.
const STEP: usize = 16;

/// Lays out the blocks from `first` on of a row, whose elements are `values`.
///
/// # Safety
/// The row has them, of `block_size` elements each, and `to` is a [`RowLayout`]; the machine has
/// what `product` needs.
pub(in crate::linear) unsafe fn lay_out(
    product: Product,
    operator: &Linear,
    first: usize,
    values: &[f32],
    to: *mut f32,
) {
    let layout = RowLayout::new(product, operator);
    let WeightType::Blocks { bits, block_size } = operator.weight else {
        return;
    };
    for (block, values) in (first..).zip(values.chunks_exact(block_size)) {
        // SAFETY: forwarded.
        unsafe {
            let sum = to.add(layout.sums() + block);
            match product {
                Product::Floats => {
                    let to = to.add(block * block_size);
                    std::ptr::copy_nonoverlapping(values.as_ptr(), to, block_size);
                    *sum = total(values);
                }
                Product::Bf16 { pieces } => {
                    *sum = 0.0;
                    for piece in 0..pieces {
                        let to = to.add(piece * layout.depth + block * block_size / 2);
                        *sum += bf16_piece(bits, piece, values, to.cast());
                    }
                }
                Product::Bytes => {
                    let to = to.add(block * block_size / 4);
                    let (total, scale) = rounded_to_bytes(bits, values, to.cast());
                    (*sum, *sum.add(layout.blocks)) = (total as f32, scale);
                    let start = sum.add(2 * layout.blocks).cast::<i32>();
                    *start = -(1 << (bits - 1)) * total;
                }
            }
        }
    }
}

/// The sum of all.
#[target_feature(enable = "avx512f")]
unsafe fn total(values: &[f32]) -> f32 {
    let mut sum = _mm512_setzero_ps();
    for values in values.chunks_exact(STEP) {
        // SAFETY: a chunk is a vector.
        sum = _mm512_add_ps(sum, unsafe { _mm512_loadu_ps(values.as_ptr()) });
    }
    _mm512_reduce_add_ps(sum)
}

/// Pairs of bf16: of `values`, or of what rounding them leaves; and their sum.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn bf16_piece(bits: u32, piece: usize, values: &[f32], to: *mut u16) -> f32 {
    let mut sum = _mm512_setzero_ps();
    // What one `u32` of four-bit integers is unpacked to.
    let order = _mm256_setr_epi16(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    for (place, values) in values.chunks_exact(STEP).enumerate() {
        // SAFETY: a chunk is a vector; plain bits either way.
        unsafe {
            let x = _mm512_loadu_ps(values.as_ptr());
            let wide = |pairs| {
                let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(pairs));
                _mm512_castsi512_ps(wide)
            };
            let mut rounded = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
            if piece == 1 {
                let rest = _mm512_sub_ps(x, wide(rounded));
                rounded = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(rest));
            }
            sum = _mm512_add_ps(sum, wide(rounded));
            if bits == 4 {
                rounded = _mm256_permutexvar_epi16(order, rounded);
            }
            _mm256_storeu_si256(to.add(place * STEP).cast(), rounded);
        }
    }
    _mm512_reduce_add_ps(sum)
}

/// Fours of bytes, their sum, and the scale: the largest magnitude is 127.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn rounded_to_bytes(bits: u32, values: &[f32], to: *mut i8) -> (i32, f32) {
    let mut largest = _mm512_setzero_ps();
    let mut unordered = 0;
    for values in values.chunks_exact(STEP) {
        // SAFETY: a chunk is a vector.
        let x = unsafe { _mm512_loadu_ps(values.as_ptr()) };
        largest = _mm512_max_ps(_mm512_abs_ps(x), largest);
        unordered |= _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    }
    let scale = match unordered {
        0 => _mm512_reduce_max_ps(largest) / 127.0,
        _ => f32::NAN,
    };
    let by = _mm512_set1_ps(if scale == 0.0 { 1.0 } else { scale });
    // What one `u32` of four-bit integers is unpacked to.
    let order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    let mut sum = _mm512_setzero_si512();
    for (place, values) in values.chunks_exact(STEP).enumerate() {
        // SAFETY: a chunk is a vector, and `to` has as many bytes.
        unsafe {
            let x = _mm512_div_ps(_mm512_loadu_ps(values.as_ptr()), by);
            let q =
                _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            // Of scales that are no normal numbers, or of what is no number, more may come.
            let q = _mm512_max_epi32(_mm512_set1_epi32(-128), q);
            let q = _mm512_min_epi32(_mm512_set1_epi32(127), q);
            sum = _mm512_add_epi32(sum, q);
            let mut bytes = _mm512_cvtepi32_epi8(q);
            if bits == 4 {
                bytes = _mm_shuffle_epi8(bytes, order);
            }
            _mm_storeu_si128(to.add(place * STEP).cast(), bytes);
        }
    }
    (_mm512_reduce_add_epi32(sum), scale)
}
