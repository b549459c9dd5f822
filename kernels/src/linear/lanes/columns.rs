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
        let bits = match operator.weight {
            WeightType::Blocks { bits, .. } => bits as usize,
            WeightType::Float(_) => 8,
        };
        let blocks = operator.blocks();
        let points_stride = (blocks * bits).div_ceil(8);
        Self {
            weight: params.weight,
            scales: params.scales,
            points: params.zero_points,
            bits,
            blocks,
            block_bytes: operator.block_size() * bits / 8,
            points_stride,
            points_bytes: points_stride * operator.out_features,
        }
    }

    /// Units of a block.
    pub fn units(&self) -> usize {
        self.block_bytes / UNIT
    }
}

/// Sixteen columns.
pub(super) trait Places {
    /// The matrix's row of one.
    fn row(&self, n: usize) -> usize;

    /// What `load` makes of the address of each, as [`transposed`] has it, the first one's being `from`.
    ///
    /// # Safety
    /// The machine has AVX-512.
    unsafe fn load(
        &self,
        from: *const u8,
        stride: usize,
        load: impl Fn(*const u8) -> __m128i,
    ) -> [__m512i; 4];
}

/// All of them, from this one on.
pub(super) struct Whole(pub usize);

impl Places for Whole {
    #[inline(always)]
    fn row(&self, n: usize) -> usize {
        self.0 + n
    }

    #[inline(always)]
    unsafe fn load(
        &self,
        from: *const u8,
        stride: usize,
        load: impl Fn(*const u8) -> __m128i,
    ) -> [__m512i; 4] {
        // Two addresses and four strides: sixteen addresses would not stay in registers.
        let upper = from.wrapping_add(8 * stride);
        let strides = [stride, 3 * stride, 5 * stride, 7 * stride].map(opaque);
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            transposed(|n| {
                let base = if n < 8 { from } else { upper };
                let [one, three, five, seven] = strides;
                load(base.wrapping_add(match n % 8 {
                    0 => 0,
                    1 => one,
                    2 => 2 * one,
                    3 => three,
                    4 => 4 * one,
                    5 => five,
                    6 => 2 * three,
                    _ => seven,
                }))
            })
        }
    }
}

/// `x`, so that the compiler keeps it and makes no other addresses of what it is.
#[inline(always)]
fn opaque(x: usize) -> usize {
    let mut x = x;
    // SAFETY: no instruction.
    unsafe {
        std::arch::asm!("/* {} */", inout(reg) x, options(pure, nomem, nostack, preserves_flags))
    };
    x
}

/// So many from the first on; those past the last are the last one again.
pub(super) struct Clamped {
    pub first: usize,
    pub there: usize,
}

impl Places for Clamped {
    #[inline(always)]
    fn row(&self, n: usize) -> usize {
        self.first + n.min(self.there - 1)
    }

    #[inline(always)]
    unsafe fn load(
        &self,
        from: *const u8,
        stride: usize,
        load: impl Fn(*const u8) -> __m128i,
    ) -> [__m512i; 4] {
        // SAFETY: the caller vouches for the instructions.
        unsafe { transposed(|n| load(from.wrapping_add(n.min(self.there - 1) * stride))) }
    }
}

/// Sixteen columns of the matrix.
pub(super) struct Columns<'a, P> {
    pub matrix: &'a Matrix,
    pub places: P,
}

impl<P: Places> Columns<'_, P> {
    /// Four `u32` of each column: the vector `j` has the `j`th of all.
    #[inline(always)]
    pub unsafe fn unit(&self, at: usize) -> [__m512i; 4] {
        let stride = self.matrix.blocks * self.matrix.block_bytes;
        let first = self
            .matrix
            .weight
            .wrapping_add(self.places.row(0) * stride + at);
        // SAFETY: the caller's contract: columns have 16 bytes there.
        unsafe {
            self.places
                .load(first, stride, |from| _mm_loadu_si128(from.cast()))
        }
    }

    /// The scales of `there` blocks from `block` on.
    #[inline(always)]
    pub unsafe fn scales(&self, block: usize, there: usize) -> [__m512; QUAD] {
        let mask = 0xf >> (QUAD - there);
        // SAFETY: the caller's contract: columns have so many blocks; what is masked is not read.
        unsafe {
            let stride = 4 * self.matrix.blocks;
            let at = self.places.row(0) * self.matrix.blocks + block;
            let first = self.matrix.scales.wrapping_add(at).cast();
            let scales = self.places.load(first, stride, |from| {
                _mm_maskz_loadu_epi32(mask, from.cast())
            });
            scales.map(|v| _mm512_castsi512_ps(v))
        }
    }

    /// What is added to the integers of `QUAD` blocks from `block` on, a multiple of it: `zero` less their
    /// zero point, of a matrix that has zero points.
    #[inline(always)]
    pub unsafe fn shifts(&self, block: usize, zero: f32) -> [__m512; QUAD] {
        let matrix = self.matrix;
        // SAFETY: the caller's contract.
        unsafe {
            let mut points = [0u32; LANES];
            for (n, point) in points.iter_mut().enumerate() {
                let at = self.places.row(n) * matrix.points_stride + block * matrix.bits / 8;
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
