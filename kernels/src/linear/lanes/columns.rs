//! Sixteen columns of the matrix, rearranged in registers.

use super::super::LinearParams;
use super::{LANES, QUAD, UNIT};
use ratplus_graphs::ops::linear::WeightType;
use std::arch::x86_64::*;

/// Where the matrix is.
pub(super) struct Matrix {
    pub weight: *const u8,
    pub scales: *const f32,
    pub points: *const u8,
    pub bits: usize,
    /// Blocks of a row.
    pub blocks: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Bytes of a row's zero points.
    pub points_stride: usize,
    /// Bytes of all zero points.
    pub points_bytes: usize,
}

impl Matrix {
    pub fn new<T>(params: &LinearParams<'_, T>) -> Self {
        let operator = params.operator;
        let (bits, block_size) = match operator.weight {
            WeightType::Blocks { bits, block_size } => (bits as usize, block_size),
            WeightType::Float(_) => (8, 1),
        };
        let blocks = operator.blocks();
        let points_stride = (blocks * bits).div_ceil(8);
        Self {
            weight: params.weight,
            scales: params.scales,
            points: params.zero_points,
            bits,
            blocks,
            block_bytes: block_size * bits / 8,
            points_stride,
            points_bytes: points_stride * operator.out_features,
        }
    }

    /// Units of a block.
    pub fn units(&self) -> usize {
        self.block_bytes / UNIT
    }
}

/// Addresses of sixteen columns; those past the last are the last one again.
pub(super) struct Columns<'a> {
    pub matrix: &'a Matrix,
    rows: [usize; LANES],
}

impl<'a> Columns<'a> {
    #[inline(always)]
    pub fn new(matrix: &'a Matrix, first: usize, there: usize) -> Self {
        let rows = std::array::from_fn(|n| first + n.min(there - 1));
        Self { matrix, rows }
    }

    /// Four `u32` of each column: the vector `j` has the `j`th of all.
    #[inline(always)]
    pub unsafe fn unit(&self, at: usize) -> [__m512i; 4] {
        let stride = self.matrix.blocks * self.matrix.block_bytes;
        // SAFETY: the caller's contract: columns have 16 bytes there.
        unsafe {
            transposed(|n| {
                let from = self.matrix.weight.add(self.rows[n] * stride + at);
                _mm_loadu_si128(from.cast())
            })
        }
    }

    /// The scales of `there` blocks from `block` on.
    #[inline(always)]
    pub unsafe fn scales(&self, block: usize, there: usize) -> [__m512; QUAD] {
        let mask = 0xf >> (QUAD - there);
        // SAFETY: the caller's contract: columns have so many blocks; what is masked is not read.
        unsafe {
            let scales = transposed(|n| {
                let at = self.rows[n] * self.matrix.blocks + block;
                _mm_maskz_loadu_epi32(mask, self.matrix.scales.add(at).cast())
            });
            scales.map(|v| _mm512_castsi512_ps(v))
        }
    }

    /// What is added to the integers of `QUAD` blocks from `block` on, a multiple of it: `zero` less their
    /// zero point.
    #[inline(always)]
    pub unsafe fn shifts(&self, block: usize, zero: f32) -> [__m512; QUAD] {
        let matrix = self.matrix;
        // SAFETY: the caller's contract.
        unsafe {
            if matrix.points.is_null() {
                let middle = (1 << (matrix.bits - 1)) as f32;
                return [_mm512_set1_ps(zero - middle); QUAD];
            }
            let mut points = [0u32; LANES];
            for (point, &row) in points.iter_mut().zip(&self.rows) {
                let at = row * matrix.points_stride + block * matrix.bits / 8;
                let there = 4.min(matrix.points_bytes - at);
                let mut bytes = [0; 4];
                if there == 4 {
                    bytes = matrix.points.add(at).cast::<[u8; 4]>().read();
                } else {
                    std::ptr::copy_nonoverlapping(matrix.points.add(at), bytes.as_mut_ptr(), there);
                }
                *point = u32::from_le_bytes(bytes);
            }
            let points = _mm512_loadu_si512(points.as_ptr().cast());
            let mask = _mm512_set1_epi32((1 << matrix.bits) - 1);
            let zero = _mm512_set1_ps(zero);
            let mut shifts = [zero; QUAD];
            for (place, shift) in shifts.iter_mut().enumerate() {
                let bits = _mm512_set1_epi32((place * matrix.bits) as i32);
                let point = _mm512_and_si512(_mm512_srlv_epi32(points, bits), mask);
                *shift = _mm512_sub_ps(zero, _mm512_cvtepi32_ps(point));
            }
            shifts
        }
    }
}

/// Four `u32` of each of sixteen: the vector `j` has the `j`th of all.
#[inline(always)]
unsafe fn transposed(load: impl Fn(usize) -> __m128i) -> [__m512i; 4] {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let rows = |i: usize| {
            let v = _mm512_castsi128_si512(load(i));
            let v = _mm512_inserti32x4::<1>(v, load(4 + i));
            let v = _mm512_inserti32x4::<2>(v, load(8 + i));
            _mm512_inserti32x4::<3>(v, load(12 + i))
        };
        let [a, b, c, d] = [rows(0), rows(1), rows(2), rows(3)];
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}
