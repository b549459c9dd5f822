//! What comes after the product.

use super::LinearParams;
use crate::element::Element;
use crate::simd::{MAX_LANES, Simd, normal_cdf, sigmoid};
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::spec::Activation;

/// `v` rounded to `T`.
///
/// # Safety
/// The machine has `S`.
#[inline(always)]
pub(super) unsafe fn rounded<S: Simd, T: Element>(v: S::V) -> S::V {
    if T::TYPE == ElementType::F32 {
        return v;
    }
    let mut lanes = [T::ZERO; MAX_LANES];
    // SAFETY: no vector has more lanes.
    unsafe {
        T::store::<S>(lanes.as_mut_ptr(), v);
        T::load::<S>(lanes.as_ptr())
    }
}

/// Writes the columns from `first` to before `last` of the output's row `row`.
///
/// # Safety
/// There are as many sums, in whole vectors; nobody else writes the columns; the machine has `S`.
#[inline(always)]
pub(super) unsafe fn finish_row<S: Simd, T: Element>(
    params: &LinearParams<'_, T>,
    sums: *const f32,
    row: usize,
    first: usize,
    last: usize,
) {
    let start = row * params.operator.out_features;
    let mut column = first;
    // SAFETY: the caller's contract.
    unsafe {
        while column < last {
            let count = S::LANES.min(last - column);
            let at = start + column;
            let mut v = S::load(sums.add(column - first));
            if !params.residual.is_null() {
                let residual = params.residual.add(at);
                let residual = match count == S::LANES {
                    true => T::load::<S>(residual),
                    false => T::load_partial::<S>(residual, count),
                };
                v = S::add(residual, v);
            }
            if let Some(activation) = params.operator.activation {
                v = activate::<S>(activation, rounded::<S, T>(v));
            }
            let to = params.output.add(at);
            match count == S::LANES {
                true => T::store::<S>(to, v),
                false => T::store_partial::<S>(to, v, count),
            }
            column += S::LANES;
        }
    }
}

/// # Safety
/// The machine has `S`.
#[inline(always)]
unsafe fn activate<S: Simd>(activation: Activation, x: S::V) -> S::V {
    // SAFETY: forwarded.
    unsafe {
        match activation {
            Activation::Gelu => S::mul(x, normal_cdf::<S>(x)),
            Activation::FastGelu => {
                // (1 + tanh u) / 2 is the sigmoid of 2 u.
                let root = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
                let cubic = S::mul_add(S::mul(x, x), S::splat(0.044715), S::splat(1.0));
                let inner = S::mul(S::mul(cubic, x), S::splat(root as f32));
                S::mul(x, sigmoid::<S>(inner))
            }
            Activation::Silu => S::mul(x, sigmoid::<S>(x)),
            Activation::Relu => S::max(S::splat(0.0), x),
            Activation::ReluSquared => {
                let positive = S::max(S::splat(0.0), x);
                S::mul(positive, positive)
            }
        }
    }
}
