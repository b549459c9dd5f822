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

/// `1 / (1 + e^-x)`; the relative error of its lower tail is `|x|` times 1e-7.
///
/// # Safety
/// The machine has `S`.
#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: forwarded.
    unsafe {
        let one = S::splat(1.0);
        let e = exp2::<S>(S::mul(S::splat(-LOG2_E), S::abs(x)));
        S::div(S::select_negative(x, e, one), S::add(one, e))
    }
}

/// Powers of `1 / (1 + z / 2)` in the exponent of `erfc(z)`, less `z^2`: Numerical Recipes (2nd
/// edition, section 6.2), within 1.2e-7 of it.
const ERFC: [f32; 10] = [
    -1.265_512_2,
    1.000_023_7,
    0.374_091_96,
    0.096_784_18,
    -0.186_288_06,
    0.278_868_07,
    -1.135_204,
    1.488_515_9,
    -0.822_152_23,
    0.170_872_77,
];

/// `(1 + erf(x / sqrt 2)) / 2`: the normal distribution's.
///
/// # Safety
/// The machine has `S`.
#[inline(always)]
pub(crate) unsafe fn normal_cdf<S: Simd>(x: S::V) -> S::V {
    // SAFETY: forwarded.
    unsafe {
        let (one, half) = (S::splat(1.0), S::splat(0.5));
        let z = S::mul(S::abs(x), S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = S::div(one, S::mul_add(half, z, one));
        let mut p = S::splat(ERFC[9]);
        for &power in ERFC[..9].iter().rev() {
            p = S::mul_add(p, t, S::splat(power));
        }
        let exponent = S::neg_mul_add(z, z, p);
        let erfc = S::mul(t, exp2::<S>(S::mul(exponent, S::splat(LOG2_E))));
        let tail = S::mul(half, erfc);
        S::select_negative(x, tail, S::sub(one, tail))
    }
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
