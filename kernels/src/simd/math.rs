//! Functions made of [`Simd`] operations.

use super::{MAX_LANES, Simd};

const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// `(2^f - 1) / f` on `|f| <= 1/2`, ascending powers: a least-maximum fit of the relative error
/// of `2^f`, which is 2e-9 before rounding.
const EXP2: [f32; 6] = [
    std::f32::consts::LN_2,
    0.240_226_48,
    0.055_503_324,
    0.009_618_437,
    0.001_339_887_5,
    0.000_153_534_11,
];

/// `2^f` for `|f| <= 1/2`.
#[inline(always)]
unsafe fn exp2_rest<S: Simd>(f: S::V) -> S::V {
    // SAFETY: the caller vouches for `S`.
    unsafe {
        let mut p = S::splat(EXP2[5]);
        p = S::mul_add(p, f, S::splat(EXP2[4]));
        p = S::mul_add(p, f, S::splat(EXP2[3]));
        p = S::mul_add(p, f, S::splat(EXP2[2]));
        p = S::mul_add(p, f, S::splat(EXP2[1]));
        p = S::mul_add(p, f, S::splat(EXP2[0]));
        S::mul_add(p, f, S::splat(1.0))
    }
}

/// `2^x` for `x <= 0` to 1.5 units in the last place; 0 below -126.5, minus infinity included.
/// NaN stays NaN.
///
/// # Safety
/// The machine has `S`.
#[inline(always)]
pub(crate) unsafe fn exp2<S: Simd>(x: S::V) -> S::V {
    // SAFETY: forwarded.
    unsafe {
        let (n, f) = S::exp2_split(x);
        S::exp2_scale(exp2_rest::<S>(f), n)
    }
}

/// [`exp2`] of one number.
///
/// # Safety
/// The machine has `S`.
#[inline(always)]
pub(crate) unsafe fn exp2_one<S: Simd>(x: f32) -> f32 {
    let mut lanes = [0.0; MAX_LANES];
    // SAFETY: no vector has more lanes.
    unsafe { S::store(lanes.as_mut_ptr(), exp2::<S>(S::splat(x))) };
    lanes[0]
}

/// `g * h + (1 - g) * x` with `g = sigmoid(gate)`, for two pairs of `h` and `x`.
///
/// The smaller of `g` and `1 - g` is computed, never as a difference, and moves the other side's
/// operand: a gate of plus or minus infinity gives `h` or `x` itself. Its relative error is
/// `|gate|` times 1e-7: what that makes of the result is less than a rounding.
///
/// # Safety
/// The machine has `S`.
#[inline(always)]
pub(crate) unsafe fn gate_blend<S: Simd>(gate: S::V, h: [S::V; 2], x: [S::V; 2]) -> [S::V; 2] {
    // SAFETY: forwarded.
    unsafe {
        let e = exp2::<S>(S::mul(S::splat(-LOG2_E), S::abs(gate)));
        let small = S::div_near_one(e, S::add(S::splat(1.0), e));
        [
            move_base::<S>(gate, small, h[0], x[0]),
            move_base::<S>(gate, small, h[1], x[1]),
        ]
    }
}

/// The operand with the larger weight, moved by `small` of the way to the other.
#[inline(always)]
unsafe fn move_base<S: Simd>(gate: S::V, small: S::V, h: S::V, x: S::V) -> S::V {
    // SAFETY: the caller vouches for `S`.
    unsafe {
        let base = S::select_negative(gate, x, h);
        let other = S::select_negative(gate, h, x);
        S::mul_add(small, S::sub(other, base), base)
    }
}
