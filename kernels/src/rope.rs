//! Rotary embedding, half-split.

use crate::element::{Element, sealed::Convert};
use crate::simd::Simd;

/// Rotates one head of one token: `x` and `out` have `2 * half` elements, `cos` and `sin` have
/// `half`. The result is multiplied by `factor`.
///
/// # Safety
/// The pointers have that many elements, `out` does not overlap the others, and the machine has
/// `S`.
#[inline(always)]
pub(crate) unsafe fn rotate<S: Simd, T: Element, O: Element>(
    x: *const T,
    cos: *const f32,
    sin: *const f32,
    half: usize,
    factor: f32,
    out: *mut O,
) {
    // SAFETY: all offsets are below `2 * half`, or `half` for the tables.
    unsafe {
        let factor = S::splat(factor);
        let mut d = 0;
        while d + S::LANES <= half {
            let (low, high) = (T::load::<S>(x.add(d)), T::load::<S>(x.add(half + d)));
            let (c, s) = (S::load(cos.add(d)), S::load(sin.add(d)));
            let first = S::neg_mul_add(high, s, S::mul(low, c));
            let second = S::mul_add(low, s, S::mul(high, c));
            O::store::<S>(out.add(d), S::mul(first, factor));
            O::store::<S>(out.add(half + d), S::mul(second, factor));
            d += S::LANES;
        }
        let rest = half - d;
        if rest > 0 {
            let low = T::load_partial::<S>(x.add(d), rest);
            let high = T::load_partial::<S>(x.add(half + d), rest);
            let c = f32::load_partial::<S>(cos.add(d), rest);
            let s = f32::load_partial::<S>(sin.add(d), rest);
            let first = S::neg_mul_add(high, s, S::mul(low, c));
            let second = S::mul_add(low, s, S::mul(high, c));
            O::store_partial::<S>(out.add(d), S::mul(first, factor), rest);
            O::store_partial::<S>(out.add(half + d), S::mul(second, factor), rest);
        }
    }
}
