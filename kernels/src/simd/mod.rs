//! Vectors of f32 and the few operations that the kernels need.

/// Methods of [`Simd`], whose callers vouch for the instructions, the elements and the alignment.
#[cfg(target_arch = "x86_64")]
macro_rules! intrinsics {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)? { $($body:tt)* })*) => {$(
        #[inline(always)]
        unsafe fn $name($($arg: $ty),*) $(-> $out)? {
            // SAFETY: the caller vouches for it.
            unsafe { $($body)* }
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dots;
mod gemm;
mod math;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, dot_bf16, dots_bf16};
pub(crate) use dots::{COLUMNS, Dots, write_sums};
pub(crate) use gemm::{Gemm, Into};
pub(crate) use math::{exp2, exp2_one, gate_blend, normal_cdf, sigmoid};
pub(crate) use portable::Portable;

/// No instruction set has more lanes.
pub(crate) const MAX_LANES: usize = 16;

/// Has what was [streamed](Simd::stream) before seen by every thread that sees what comes after.
#[inline(always)]
pub(crate) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of every x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// Has the caches fetch `bytes` from `address` on, where the machine can; nothing is read.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T, bytes: usize) {
    const LINE: usize = 64;
    for at in (0..bytes).step_by(LINE) {
        let line = address.cast::<i8>().wrapping_add(at);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: part of every x86-64; an address that cannot be read is ignored.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

/// The sums of all lanes of each, all in the order of [`Simd::reduce_add_each`].
///
/// # Safety
/// The machine has `S`.
#[inline(always)]
pub(crate) unsafe fn reduce_add_all<S: Simd, const N: usize, const M: usize>(
    lanes: [[S::V; N]; M],
) -> [[f32; N]; M] {
    let mut sums = [[0.0; N]; M];
    let fours = lanes.as_flattened().chunks(4);
    for (lanes, sums) in fours.zip(sums.as_flattened_mut().chunks_mut(4)) {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            let mut four = [S::splat(0.0); 4];
            four[..lanes.len()].copy_from_slice(lanes);
            sums.copy_from_slice(&S::reduce_add_each(four)[..lanes.len()]);
        }
    }
    sums
}

/// An instruction set. Every method may only be called on a machine that has it, and is only
/// fast when inlined into a function compiled for it.
#[allow(clippy::missing_safety_doc)] // One condition for all, above; pointers as their names say.
pub trait Simd: Copy + Send + Sync + 'static {
    /// A vector.
    type V: Copy;
    /// f32 in a vector.
    const LANES: usize;
    /// Columns of [`Gemm`]'s register blocks.
    const PANEL: usize;

    /// `x` in every lane.
    unsafe fn splat(x: f32) -> Self::V;
    /// Loads f32 from any address.
    unsafe fn load(from: *const f32) -> Self::V;
    /// Stores f32 past the caches, to an address that is a multiple of 64 bytes; another thread may
    /// look after a [`fence`].
    #[inline(always)]
    unsafe fn stream(to: *mut f32, v: Self::V) {
        // SAFETY: forwarded.
        unsafe { Self::store(to, v) }
    }
    /// Stores f32 to any address.
    unsafe fn store(to: *mut f32, v: Self::V);
    /// Loads f16.
    unsafe fn load_f16(from: *const u16) -> Self::V;
    /// Stores f16, rounded to nearest even.
    unsafe fn store_f16(to: *mut u16, v: Self::V);
    /// Stores f16 as [`stream`](Simd::stream) does, to a multiple of what is stored.
    #[inline(always)]
    unsafe fn stream_f16(to: *mut u16, v: Self::V) {
        // SAFETY: forwarded.
        unsafe { Self::store_f16(to, v) }
    }
    /// Loads bf16.
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    /// Stores bf16, rounded to nearest even.
    unsafe fn store_bf16(to: *mut u16, v: Self::V);

    /// Stores bf16 as [`stream`](Simd::stream) does, to a multiple of what is stored.
    #[inline(always)]
    unsafe fn stream_bf16(to: *mut u16, v: Self::V) {
        // SAFETY: forwarded.
        unsafe { Self::store_bf16(to, v) }
    }

    /// `a + b`
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c - a * b`
    unsafe fn neg_mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `|a|`
    unsafe fn abs(a: Self::V) -> Self::V;
    /// The nearest integer.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `2^n` for integers `-127 <= n <= 127`; 0 for -127.
    unsafe fn pow2(n: Self::V) -> Self::V;
    /// The integer nearest to `x <= 0`, and the rest of at most 1/2; for what is below -127, minus
    /// infinity included, anything that [`exp2_scale`](Simd::exp2_scale) makes 0 of.
    #[inline(always)]
    unsafe fn exp2_split(x: Self::V) -> (Self::V, Self::V) {
        // SAFETY: forwarded.
        unsafe {
            let x = Self::max(Self::splat(-127.0), x);
            let n = Self::round(x);
            (n, Self::sub(x, n))
        }
    }
    /// `p 2^n`, for the integers of [`exp2_split`](Simd::exp2_split).
    #[inline(always)]
    unsafe fn exp2_scale(p: Self::V, n: Self::V) -> Self::V {
        // SAFETY: forwarded.
        unsafe { Self::mul(p, Self::pow2(n)) }
    }
    /// `a / b` to 2 units in the last place, for `1 <= b <= 2`.
    #[inline(always)]
    unsafe fn div_near_one(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: forwarded.
        unsafe { Self::div(a, b) }
    }
    /// `a` where `sign` has its sign bit set, else `b`.
    unsafe fn select_negative(sign: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// `v` where `low <= x <= high`, else minus infinity.
    unsafe fn keep_between(v: Self::V, low: Self::V, x: Self::V, high: Self::V) -> Self::V;
    /// The sum of all lanes.
    unsafe fn reduce_add(a: Self::V) -> f32;
    /// The sum of all lanes of each, all in one order.
    #[inline(always)]
    unsafe fn reduce_add_each(a: [Self::V; 4]) -> [f32; 4] {
        let [a, b, c, d] = a;
        // SAFETY: forwarded.
        unsafe {
            [
                Self::reduce_add(a),
                Self::reduce_add(b),
                Self::reduce_add(c),
                Self::reduce_add(d),
            ]
        }
    }
    /// Loads bytes as whole numbers.
    unsafe fn load_u8(from: *const u8) -> Self::V;
    /// Loads a vector's number of bytes as two vectors, of the lower four bits of each and of the upper
    /// ones: `scale (q - zero)`.
    unsafe fn load_u4(from: *const u8, zero: Self::V, scale: Self::V) -> [Self::V; 2];
    /// The largest lane.
    unsafe fn reduce_max(a: Self::V) -> f32;

    /// Writes the transpose of the 8 x 8 block at `from` (rows `from_stride` apart) to `to`.
    unsafe fn transpose8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize);
    /// Runs `gemm`.
    unsafe fn gemm(gemm: &Gemm);
    /// Runs `dots`.
    unsafe fn dots(dots: &Dots);
}
