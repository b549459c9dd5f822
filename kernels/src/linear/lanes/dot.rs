//! Integers as they are multiplied.

use std::arch::x86_64::*;
use std::mem::transmute;

/// Vectors of one `u32` at most.
pub(super) const MOST: usize = 8;

/// How integers are multiplied.
pub(super) trait Dot {
    /// `u32` of a row for one of the matrix.
    const PIECES: usize;
    /// Vectors that [`unpack`](Dot::unpack) makes.
    const STEPS: usize;
    /// Zero point that sums have already: of unpacked integers, or by what they start from.
    const ZERO: f32;
    /// Elements of a row whose panel lies in the first cache: whole blocks.
    const DEPTH: usize;
    /// Whether rows are integers: they have scales of their own and sums that start from a number, in any
    /// order.
    const BYTES: bool;

    /// Vectors of one `u32` of each column, in the order of laid out rows.
    unsafe fn unpack(stored: __m512i) -> [__m512i; MOST];
    /// `sum` and the product.
    unsafe fn dot(sum: __m512i, w: __m512i, x: __m512i) -> __m512i;
    /// Both sums together.
    #[inline(always)]
    unsafe fn sum(a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: the caller vouches for the instructions.
        unsafe { _mm512_add_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)) }
    }
}

/// What was unpacked, and what nobody looks at.
#[inline(always)]
unsafe fn unpacked<const N: usize>(vectors: [__m512i; N]) -> [__m512i; MOST] {
    // SAFETY: the caller vouches for the instructions.
    let none = unsafe { _mm512_setzero_si512() };
    std::array::from_fn(|at| *vectors.get(at).unwrap_or(&none))
}

/// The lowest `BITS` bits, less the middle of their range.
#[inline(always)]
unsafe fn lowest<const BITS: usize>(stored: __m512i) -> __m512 {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        // A whole number as the lowest bits of 2^23 and more.
        let magic = _mm512_set1_epi32(0x4b00_0000);
        let mask = _mm512_set1_epi32((1 << BITS) - 1);
        // (stored & mask) | magic
        let bits = _mm512_ternarylogic_epi32::<0xea>(stored, mask, magic);
        let middle = _mm512_set1_ps((8_388_608 + (1 << (BITS - 1))) as f32);
        _mm512_sub_ps(_mm512_castsi512_ps(bits), middle)
    }
}

/// As f32.
pub(super) struct Floats<const BITS: usize>;

impl<const BITS: usize> Dot for Floats<BITS> {
    const PIECES: usize = 1;
    const STEPS: usize = 32 / BITS;
    const ZERO: f32 = (1 << (BITS - 1)) as f32;
    const DEPTH: usize = 256;
    const BYTES: bool = false;

    #[inline(always)]
    unsafe fn unpack(stored: __m512i) -> [__m512i; MOST] {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            if BITS == 4 {
                let numbers = _mm512_setr_ps(
                    -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0,
                    6.0, 7.0,
                );
                // The lowest four bits of an index count.
                let number = |q| _mm512_castps_si512(_mm512_permutexvar_ps(q, numbers));
                return [
                    number(stored),
                    number(_mm512_srli_epi32::<4>(stored)),
                    number(_mm512_srli_epi32::<8>(stored)),
                    number(_mm512_srli_epi32::<12>(stored)),
                    number(_mm512_srli_epi32::<16>(stored)),
                    number(_mm512_srli_epi32::<20>(stored)),
                    number(_mm512_srli_epi32::<24>(stored)),
                    number(_mm512_srli_epi32::<28>(stored)),
                ];
            }
            let number = |shifted| _mm512_castps_si512(lowest::<BITS>(shifted));
            unpacked([
                number(stored),
                number(_mm512_srli_epi32::<8>(stored)),
                number(_mm512_srli_epi32::<16>(stored)),
                number(_mm512_srli_epi32::<24>(stored)),
            ])
        }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            let [sum, w, x] = [
                _mm512_castsi512_ps(sum),
                _mm512_castsi512_ps(w),
                _mm512_castsi512_ps(x),
            ];
            _mm512_castps_si512(_mm512_fmadd_ps(w, x, sum))
        }
    }
}

/// As bf16, of which so many make an element of a row.
pub(super) struct Bf16<const PIECES: usize, const BITS: usize>;

impl<const PIECES: usize, const BITS: usize> Dot for Bf16<PIECES, BITS> {
    const PIECES: usize = PIECES;
    const STEPS: usize = 16 / BITS;
    const ZERO: f32 = (1 << (BITS - 1)) as f32;
    const DEPTH: usize = 512;
    const BYTES: bool = false;

    #[inline(always)]
    unsafe fn unpack(stored: __m512i) -> [__m512i; MOST] {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            if BITS == 4 {
                // The lowest five bits of an index count, of which the highest makes no difference.
                let numbers = _mm512_loadu_si512((&raw const NIBBLES).cast());
                let number = |q| _mm512_permutexvar_epi16(q, numbers);
                return unpacked([
                    number(stored),
                    number(_mm512_srli_epi32::<4>(stored)),
                    number(_mm512_srli_epi32::<8>(stored)),
                    number(_mm512_srli_epi32::<12>(stored)),
                ]);
            }
            // f32 of so few bits are bf16 with zeros behind.
            let number = |shifted| _mm512_castps_si512(lowest::<BITS>(shifted));
            let pair = |low, high| {
                let low = _mm512_srli_epi32::<16>(number(low));
                _mm512_mask_blend_epi16(0xaaaa_aaaa, low, number(high))
            };
            let upper = _mm512_srli_epi32::<16>(stored);
            unpacked([
                pair(stored, _mm512_srli_epi32::<8>(stored)),
                pair(upper, _mm512_srli_epi32::<24>(stored)),
            ])
        }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bf16")]
        unsafe fn dot(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
            // SAFETY: plain bits either way.
            let [w, x] = [w, x].map(|it| unsafe { transmute::<__m512i, __m512bh>(it) });
            _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum), w, x))
        }
        // SAFETY: the caller vouches for AVX-512 with BF16.
        unsafe { dot(sum, w, x) }
    }
}

/// bf16 of -8 to 7, twice.
static NIBBLES: [u16; 32] = {
    let mut numbers = [0; 32];
    let mut at = 0;
    while at < 32 {
        let number = (at % 16) as i32 - 8;
        numbers[at] = ((number as f32).to_bits() >> 16) as u16;
        at += 1;
    }
    numbers
};

/// As bytes, with rows that are rounded to bytes.
pub(super) struct Bytes<const BITS: usize>;

impl<const BITS: usize> Dot for Bytes<BITS> {
    const PIECES: usize = 1;
    const STEPS: usize = 8 / BITS;
    const ZERO: f32 = (1 << (BITS - 1)) as f32;
    const DEPTH: usize = 512;
    const BYTES: bool = true;

    #[inline(always)]
    unsafe fn unpack(stored: __m512i) -> [__m512i; MOST] {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            if BITS == 8 {
                return unpacked([stored]);
            }
            let low = _mm512_set1_epi32(0x0f0f_0f0f);
            let upper = _mm512_srli_epi32::<4>(stored);
            unpacked([_mm512_and_si512(stored, low), _mm512_and_si512(upper, low)])
        }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
        #[inline]
        #[target_feature(enable = "avx512f,avx512vnni")]
        unsafe fn dot(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
            _mm512_dpbusd_epi32(sum, w, x)
        }
        // SAFETY: the caller vouches for AVX-512 with VNNI.
        unsafe { dot(sum, w, x) }
    }

    #[inline(always)]
    unsafe fn sum(a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: the caller vouches for the instructions. At most 256 products of 128 and 128: exact.
        unsafe { _mm512_cvtepi32_ps(_mm512_add_epi32(a, b)) }
    }
}
