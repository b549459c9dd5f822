//! Panels of bf16 queries, the blocks of keys they see, and what is computed of both.

use crate::simd::amx;
use crate::simd::{Avx512, Gemm, Into, Simd, dot_bf16, exp2};
use half::bf16;
use std::arch::x86_64::*;

/// Queries of a panel.
pub(super) const PANEL: usize = 64;
/// Both products are this deep, or a multiple.
pub(super) const DEPTH: usize = 32;

/// Queries, one a column, and their sums.
pub(super) struct Panel {
    /// `[dim / 2, PANEL]`: pairs, rotated; negative where the scale is.
    pub query: *mut f32,
    /// `[dim, PANEL]`: weighted sums of values.
    pub sums: *mut f32,
    /// `[KEYS, PANEL]`: scores.
    pub score: *mut f32,
    /// `[KEYS / 2, PANEL]`: pairs of weights.
    pub weight: *mut f32,
    /// `[PANEL]`: the largest score so far, before the factor.
    pub max: *mut f32,
    /// `[PANEL]`: the sum of the weights so far.
    pub total: *mut f32,
}

/// A block of keys and values.
pub(super) struct Keys {
    pub key: *const bf16,
    pub key_stride: usize,
    pub value: *const bf16,
    pub value_stride: usize,
    pub count: usize,
    pub first: *mut f32,
    pub last: *mut f32,
}

/// `c += a b`, or `c = a b`: `a` is bf16 `[rows, depth]`, `b` are pairs `[depth / 2, PANEL]`, `c` is
/// f32 `[rows, PANEL]`. With tiles, rows are computed in thirty-twos: all have room for that.
pub(super) struct Product {
    pub rows: usize,
    pub depth: usize,
    pub a: *const bf16,
    pub a_stride: usize,
    pub b: *const f32,
    pub c: *mut f32,
    pub adds: bool,
}

impl Product {
    #[inline(always)]
    pub(super) unsafe fn run<const AMX: bool>(&self) {
        // SAFETY: the caller's contract.
        unsafe {
            if !AMX {
                dot_bf16(&Gemm {
                    rows: self.rows,
                    vectors: PANEL / Avx512::LANES,
                    depth: self.depth / 2,
                    a: self.a.cast(),
                    a_stride: self.a_stride / 2,
                    transposed: false,
                    b: self.b,
                    b_stride: PANEL,
                    c: self.c,
                    c_stride: PANEL,
                    into: if self.adds { Into::Sums } else { Into::Zeros },
                });
                return;
            }
            for row in (0..self.rows).step_by(32) {
                for column in (0..PANEL).step_by(32) {
                    amx::product(&amx::Product {
                        a: self.a.add(row * self.a_stride).cast(),
                        a_stride: self.a_stride * size_of::<bf16>(),
                        b: self.b.add(column).cast(),
                        b_stride: PANEL * size_of::<f32>(),
                        c: self.c.add(row * PANEL + column).cast(),
                        c_stride: PANEL * size_of::<f32>(),
                        steps: self.depth / DEPTH,
                        adds: self.adds,
                    });
                }
            }
        }
    }
}

/// Turns scores into pairs of weights relative to each query's largest score so far, and rescales
/// the sums to it.
#[inline(always)]
pub(super) unsafe fn softmax<const MASKED: bool>(
    dim: usize,
    panel: &Panel,
    keys: &Keys,
    start: usize,
    factor: f32,
) {
    const N: usize = PANEL / 16;
    // SAFETY: all within the panel.
    unsafe {
        let zero = _mm512_setzero_ps();
        let (mut old, mut queries, mut sum) = ([zero; N], [zero; N], [zero; N]);
        let lanes = _mm512_setr_ps(
            0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
        );
        for n in 0..N {
            old[n] = _mm512_loadu_ps(panel.max.add(16 * n));
            queries[n] = _mm512_add_ps(_mm512_set1_ps((start + 16 * n) as f32), lanes);
        }
        let mut new = old;
        for row in 0..keys.count {
            for n in 0..N {
                let at = panel.score.add(row * PANEL + 16 * n);
                let mut score = _mm512_loadu_ps(at);
                if MASKED {
                    let first = _mm512_set1_ps(*keys.first.add(row));
                    let last = _mm512_set1_ps(*keys.last.add(row));
                    score = Avx512::keep_between(score, first, queries[n], last);
                    _mm512_storeu_ps(at, score);
                }
                new[n] = Avx512::max(score, new[n]);
            }
        }
        let half = _mm512_set1_epi32(0x8000);
        let scale = _mm512_set1_ps(factor);
        for pair in 0..keys.count / 2 {
            for n in 0..N {
                let at = panel.score.add(2 * pair * PANEL + 16 * n);
                let low = power(_mm512_loadu_ps(at), new[n], scale);
                let high = power(_mm512_loadu_ps(at.add(PANEL)), new[n], scale);
                sum[n] = _mm512_add_ps(sum[n], _mm512_add_ps(low, high));
                // To the nearest bf16, ties away from zero.
                let low = _mm512_add_epi32(_mm512_castps_si512(low), half);
                let high = _mm512_add_epi32(_mm512_castps_si512(high), half);
                let low = _mm512_srli_epi32::<16>(low);
                let both = _mm512_mask_mov_epi16(low, 0xaaaa_aaaa, high);
                let to = panel.weight.add(pair * PANEL + 16 * n);
                _mm512_storeu_si512(to.cast(), both);
            }
        }
        for n in 0..N {
            let at = 16 * n;
            let factor = power(old[n], new[n], scale);
            let total = _mm512_loadu_ps(panel.total.add(at));
            _mm512_storeu_ps(panel.max.add(at), new[n]);
            _mm512_storeu_ps(panel.total.add(at), _mm512_fmadd_ps(total, factor, sum[n]));
            if _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(factor, _mm512_set1_ps(1.0)) == 0 {
                continue;
            }
            for d in 0..dim {
                let sums = panel.sums.add(d * PANEL + at);
                _mm512_storeu_ps(sums, _mm512_mul_ps(_mm512_loadu_ps(sums), factor));
            }
        }
    }
}

/// `2^(scale (x - most))`
#[inline(always)]
unsafe fn power(x: __m512, most: __m512, scale: __m512) -> __m512 {
    // SAFETY: the caller vouches for AVX-512.
    unsafe { exp2::<Avx512>(_mm512_mul_ps(_mm512_sub_ps(x, most), scale)) }
}
