//! AVX2: 8 lanes.

use super::{Dots, Gemm, Simd, dots, gemm};
use std::arch::x86_64::*;

/// AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

macro_rules! operations {
    ($($name:ident($($arg:ident),*) $body:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name($($arg: __m256),*) -> __m256 {
            // SAFETY: the caller vouches for AVX2 and FMA.
            unsafe { $body }
        }
    )*};
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// The low and the high half.
#[inline(always)]
unsafe fn halves(a: __m256) -> (__m128, __m128) {
    // SAFETY: the caller vouches for AVX2.
    unsafe { (_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a)) }
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const PANEL: usize = 16;

    operations! {
        add(a, b) _mm256_add_ps(a, b);
        sub(a, b) _mm256_sub_ps(a, b);
        mul(a, b) _mm256_mul_ps(a, b);
        div(a, b) _mm256_div_ps(a, b);
        mul_add(a, b, c) _mm256_fmadd_ps(a, b, c);
        neg_mul_add(a, b, c) _mm256_fnmadd_ps(a, b, c);
        max(a, b) _mm256_max_ps(a, b);
        abs(a) _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
        round(a) _mm256_round_ps::<NEAREST>(a);
        pow2(n) _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
            _mm256_cvtps_epi32(n),
            _mm256_set1_epi32(127),
        )));
        select_negative(sign, a, b) _mm256_blendv_ps(b, a, sign);
        keep_between(v, low, x, high) {
            let above = _mm256_cmp_ps::<_CMP_LE_OQ>(low, x);
            let below = _mm256_cmp_ps::<_CMP_LE_OQ>(x, high);
            let outside = _mm256_set1_ps(f32::NEG_INFINITY);
            _mm256_blendv_ps(outside, v, _mm256_and_ps(above, below))
        };
    }

    intrinsics! {
        fn stream(to: *mut f32, v: __m256) {
            _mm256_stream_ps(to, v)
        }

        fn splat(x: f32) -> __m256 {
            _mm256_set1_ps(x)
        }

        fn load(from: *const f32) -> __m256 {
            _mm256_loadu_ps(from)
        }

        fn store(to: *mut f32, v: __m256) {
            _mm256_storeu_ps(to, v)
        }

        fn load_f16(from: *const u16) -> __m256 {
            _mm256_cvtph_ps(_mm_loadu_si128(from.cast()))
        }

        fn store_f16(to: *mut u16, v: __m256) {
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v))
        }

        fn load_bf16(from: *const u16) -> __m256 {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }

        fn store_bf16(to: *mut u16, v: __m256) {
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_castsi256_ps(_mm256_add_epi32(bits, bias));
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v);
            let quiet = _mm256_castsi256_ps(_mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000)));
            let chosen = _mm256_castps_si256(_mm256_blendv_ps(rounded, quiet, nan));
            let narrow = _mm256_srli_epi32::<16>(chosen);
            // Packs within 128-bit halves: the second and third quarter belong together.
            let packed = _mm256_packus_epi32(narrow, narrow);
            let ordered = _mm256_permute4x64_epi64::<0b00_00_10_00>(packed);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(ordered));
        }

        fn reduce_add(a: __m256) -> f32 {
            let (low, high) = halves(a);
            let four = _mm_add_ps(low, high);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }

        fn reduce_add_each(a: [__m256; 4]) -> [f32; 4] {
            let [a, b, c, d] = a;
            let sums = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let (low, high) = halves(sums);
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), _mm_add_ps(low, high));
            out
        }

        fn load_u8(from: *const u8) -> __m256 {
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())))
        }

        fn load_u4(from: *const u8, zero: __m256, scale: __m256) -> [__m256; 2] {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            let low = _mm256_and_si256(bytes, _mm256_set1_epi32(15));
            let high = _mm256_srli_epi32::<4>(bytes);
            let (low, high) = (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high));
            [
                _mm256_mul_ps(_mm256_sub_ps(low, zero), scale),
                _mm256_mul_ps(_mm256_sub_ps(high, zero), scale),
            ]
        }

        fn reduce_max(a: __m256) -> f32 {
            let (low, high) = halves(a);
            let four = _mm_max_ps(low, high);
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }

        fn transpose8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            let mut r = [_mm256_setzero_ps(); 8];
            for (i, row) in r.iter_mut().enumerate() {
                *row = _mm256_loadu_ps(from.add(i * from_stride));
            }
            // Pairs of rows interleaved, then pairs of pairs, then the 128-bit halves.
            let mut p = r;
            for i in 0..4 {
                p[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                p[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            let mut q = p;
            for i in 0..2 {
                let [a, b, c, d] = [p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]];
                q[4 * i] = _mm256_shuffle_ps::<0b01_00_01_00>(a, c);
                q[4 * i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a, c);
                q[4 * i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(b, d);
                q[4 * i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(b, d);
            }
            for i in 0..4 {
                let (a, b) = (q[i], q[i + 4]);
                _mm256_storeu_ps(to.add(i * to_stride), _mm256_permute2f128_ps::<0x20>(a, b));
                _mm256_storeu_ps(
                    to.add((i + 4) * to_stride),
                    _mm256_permute2f128_ps::<0x31>(a, b),
                );
            }
        }
    }

    #[inline(always)]
    unsafe fn gemm(g: &Gemm) {
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn compiled(g: &Gemm) {
            // SAFETY: forwarded. 12 sums, 2 vectors of `b` and a factor fit 16 registers.
            unsafe { gemm::run::<Avx2, Avx2, 6, 2, 12>(g) }
        }
        // SAFETY: forwarded.
        unsafe { compiled(g) }
    }

    #[inline(always)]
    unsafe fn dots(d: &Dots) {
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn compiled(d: &Dots) {
            // SAFETY: forwarded. 12 sums and a vector of `w` fit 16 registers.
            unsafe { dots::run::<Avx2, Avx2>(d, 3) }
        }
        // SAFETY: forwarded.
        unsafe { compiled(d) }
    }
}
