//! AVX-512: 16 lanes.

use super::{Avx2, Dots, Gemm, Simd, dots, gemm};
use std::arch::x86_64::*;

/// AVX-512 F, BW, DQ and VL, with AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

macro_rules! operations {
    ($($name:ident($($arg:ident),*) $body:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name($($arg: __m512),*) -> __m512 {
            // SAFETY: the caller vouches for AVX-512.
            unsafe { $body }
        }
    )*};
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// bf16, rounded to nearest even.
#[inline(always)]
unsafe fn narrow(v: __m512) -> __m256i {
    // SAFETY: the caller vouches for AVX-512.
    unsafe {
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        let rounded = _mm512_add_epi32(bits, bias);
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
        let narrow = _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, nan, quiet));
        _mm512_cvtepi32_epi16(narrow)
    }
}

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const PANEL: usize = 64;

    operations! {
        add(a, b) _mm512_add_ps(a, b);
        sub(a, b) _mm512_sub_ps(a, b);
        mul(a, b) _mm512_mul_ps(a, b);
        div(a, b) _mm512_div_ps(a, b);
        mul_add(a, b, c) _mm512_fmadd_ps(a, b, c);
        neg_mul_add(a, b, c) _mm512_fnmadd_ps(a, b, c);
        max(a, b) _mm512_max_ps(a, b);
        abs(a) _mm512_abs_ps(a);
        round(a) _mm512_roundscale_ps::<NEAREST>(a);
        pow2(n) _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(
            _mm512_cvtps_epi32(n),
            _mm512_set1_epi32(127),
        )));
        select_negative(sign, a, b)
            _mm512_mask_mov_ps(b, _mm512_movepi32_mask(_mm512_castps_si512(sign)), a);
        keep_between(v, low, x, high) {
            let above = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(low, x);
            let keep = _mm512_mask_cmp_ps_mask::<_CMP_LE_OQ>(above, x, high);
            _mm512_mask_mov_ps(_mm512_set1_ps(f32::NEG_INFINITY), keep, v)
        };
    }

    intrinsics! {
        fn exp2_split(x: __m512) -> (__m512, __m512) {
            // The rest of an infinity is 0.
            let n = _mm512_roundscale_ps::<NEAREST>(x);
            (n, _mm512_reduce_ps::<NEAREST>(x))
        }

        fn exp2_scale(p: __m512, n: __m512) -> __m512 {
            // What is below the normal numbers counts as 0, as it is slow to compute with.
            let normal = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(n, _mm512_set1_ps(-126.0));
            _mm512_maskz_scalef_ps(normal, p, n)
        }

        fn div_near_one(a: __m512, b: __m512) -> __m512 {
            // One step of Newton's doubles the 14 bits.
            let r = _mm512_rcp14_ps(b);
            let r = _mm512_mul_ps(r, _mm512_fnmadd_ps(b, r, _mm512_set1_ps(2.0)));
            _mm512_mul_ps(a, r)
        }

        fn stream(to: *mut f32, v: __m512) {
            _mm512_stream_ps(to, v)
        }

        fn splat(x: f32) -> __m512 {
            _mm512_set1_ps(x)
        }

        fn load(from: *const f32) -> __m512 {
            _mm512_loadu_ps(from)
        }

        fn store(to: *mut f32, v: __m512) {
            _mm512_storeu_ps(to, v)
        }

        fn load_f16(from: *const u16) -> __m512 {
            _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
        }

        fn store_f16(to: *mut u16, v: __m512) {
            _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<NEAREST>(v))
        }

        fn load_bf16(from: *const u16) -> __m512 {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }

        fn stream_f16(to: *mut u16, v: __m512) {
            _mm256_stream_si256(to.cast(), _mm512_cvtps_ph::<NEAREST>(v))
        }

        fn store_bf16(to: *mut u16, v: __m512) {
            _mm256_storeu_si256(to.cast(), narrow(v))
        }

        fn stream_bf16(to: *mut u16, v: __m512) {
            _mm256_stream_si256(to.cast(), narrow(v))
        }

        fn reduce_add(a: __m512) -> f32 {
            _mm512_reduce_add_ps(a)
        }

        fn reduce_add_each(a: [__m512; 4]) -> [f32; 4] {
            // Lanes 0 to 3 of every quarter together, then the quarters.
            let [a, b, c, d] = a;
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
            let high = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
            let quarters = _mm512_add_ps(low, high);
            let halves = _mm256_add_ps(
                _mm512_castps512_ps256(quarters),
                _mm512_extractf32x8_ps::<1>(quarters),
            );
            let sums = _mm_add_ps(
                _mm256_castps256_ps128(halves),
                _mm256_extractf128_ps::<1>(halves),
            );
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), sums);
            out
        }

        fn load_u8(from: *const u8) -> __m512 {
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())))
        }

        fn load_u4(from: *const u8, zero: __m512, scale: __m512) -> [__m512; 2] {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            let numbers = _mm512_setr_ps(
                0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
            );
            let numbers = _mm512_mul_ps(_mm512_sub_ps(numbers, zero), scale);
            // The index is the lowest four bits.
            let upper = _mm512_srli_epi32::<4>(bytes);
            [_mm512_permutexvar_ps(bytes, numbers), _mm512_permutexvar_ps(upper, numbers)]
        }

        fn reduce_max(a: __m512) -> f32 {
            _mm512_reduce_max_ps(a)
        }
    }

    #[inline(always)]
    unsafe fn transpose8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: forwarded; AVX-512 implies AVX2 here.
        unsafe { Avx2::transpose8(from, from_stride, to, to_stride) }
    }

    #[inline(always)]
    unsafe fn gemm(g: &Gemm) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        unsafe fn compiled(g: &Gemm) {
            // SAFETY: forwarded. 24 sums, 4 vectors of `b` and a factor fit 32 registers.
            unsafe { gemm::run::<Avx512, Avx512, 6, 4, 16>(g) }
        }
        // SAFETY: forwarded.
        unsafe { compiled(g) }
    }

    #[inline(always)]
    unsafe fn dots(d: &Dots) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        unsafe fn compiled(d: &Dots) {
            // SAFETY: forwarded. 24 sums and a vector of `w` fit 32 registers.
            unsafe { dots::run::<Avx512, Avx512>(d, 6) }
        }
        // SAFETY: forwarded.
        unsafe { compiled(d) }
    }
}

/// `d` over pairs of bf16: `w` and `x` hold two in each f32, and `depth` and their strides count pairs;
/// `c` holds f32.
///
/// # Safety
/// As [`Simd::dots`], and the machine has AVX-512 with BF16.
pub(crate) unsafe fn dots_bf16(d: &Dots) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    unsafe fn compiled(d: &Dots) {
        // SAFETY: forwarded.
        unsafe { dots::run::<Avx512, Pairs>(d, 6) }
    }
    // SAFETY: forwarded.
    unsafe { compiled(d) }
}

/// Multiplies pairs of bf16 and adds both products, with two bf16 in each f32 of the operands.
struct Pairs;

impl gemm::Multiply<Avx512> for Pairs {
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bf16")]
        unsafe fn dot(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: plain bits either way.
            let [a, b] = [a, b].map(|x| unsafe { std::mem::transmute::<__m512, __m512bh>(x) });
            _mm512_dpbf16_ps(c, a, b)
        }
        // SAFETY: the caller vouches for AVX-512 with BF16.
        unsafe { dot(a, b, c) }
    }
}

/// `g` over pairs of bf16: `a` and `b` hold two in each f32, and `depth` and their strides count
/// pairs; `c` holds f32.
///
/// # Safety
/// As [`Simd::gemm`], and the machine has AVX-512 with BF16.
pub(crate) unsafe fn dot_bf16(g: &Gemm) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    unsafe fn compiled(g: &Gemm) {
        // SAFETY: forwarded.
        unsafe { gemm::run::<Avx512, Pairs, 6, 4, 16>(g) }
    }
    // SAFETY: forwarded.
    unsafe { compiled(g) }
}
