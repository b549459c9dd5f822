//! Element types and their conversions to and from f32 vectors.

use crate::simd::{MAX_LANES, Simd};
use half::{bf16, f16};
use ratplus_graphs::ops::ElementType;

/// An element type of the operators: `f32`, [`half::f16`] or [`half::bf16`].
pub trait Element: Copy + Send + Sync + 'static + sealed::Convert {
    /// The type as the operator schemas name it.
    const TYPE: ElementType;
}

/// Evaluates an expression with the Rust type of an [`ElementType`], f32 where it is no
/// activation's.
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            ::ratplus_graphs::ops::ElementType::F16 => {
                type $T = ::half::f16;
                $body
            }
            ::ratplus_graphs::ops::ElementType::BF16 => {
                type $T = ::half::bf16;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}
pub(crate) use with_element;

impl Element for f32 {
    const TYPE: ElementType = ElementType::F32;
}

impl Element for f16 {
    const TYPE: ElementType = ElementType::F16;
}

impl Element for bf16 {
    const TYPE: ElementType = ElementType::BF16;
}

pub(crate) mod sealed {
    use super::*;

    /// Conversions; f32 to narrower types rounds to nearest even.
    pub trait Convert: Copy {
        /// Zero.
        const ZERO: Self;

        /// Loads `LANES` elements.
        ///
        /// # Safety
        /// They are readable, and the machine has `S`.
        unsafe fn load<S: Simd>(from: *const Self) -> S::V;

        /// Stores `LANES` elements.
        ///
        /// # Safety
        /// They are writable, and the machine has `S`.
        unsafe fn store<S: Simd>(to: *mut Self, v: S::V);

        /// Stores `LANES` elements, past the caches where the machine can.
        ///
        /// # Safety
        /// As [`Convert::store`], to a multiple of what is stored; other threads look after a
        /// [`fence`](crate::simd::fence).
        unsafe fn stream<S: Simd>(to: *mut Self, v: S::V);

        /// Loads the first `count < LANES` elements, zero in the other lanes.
        ///
        /// # Safety
        /// As [`Convert::load`], for `count` elements.
        #[inline(always)]
        unsafe fn load_partial<S: Simd>(from: *const Self, count: usize) -> S::V {
            let mut lanes = [Self::ZERO; MAX_LANES];
            // SAFETY: the caller vouches for `count < LANES <= MAX_LANES` elements.
            unsafe {
                std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count);
                Self::load::<S>(lanes.as_ptr())
            }
        }

        /// Stores the first `count < LANES` lanes.
        ///
        /// # Safety
        /// As [`Convert::store`], for `count` elements.
        #[inline(always)]
        unsafe fn store_partial<S: Simd>(to: *mut Self, v: S::V, count: usize) {
            let mut lanes = [Self::ZERO; MAX_LANES];
            // SAFETY: the caller vouches for `count < LANES <= MAX_LANES` elements.
            unsafe {
                Self::store::<S>(lanes.as_mut_ptr(), v);
                std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
            }
        }
    }

    macro_rules! convert {
        ($($type:ty, $zero:expr, $load:ident, $store:ident, $stream:ident;)*) => {$(
            impl Convert for $type {
                const ZERO: Self = $zero;

                #[inline(always)]
                unsafe fn load<S: Simd>(from: *const Self) -> S::V {
                    // SAFETY: forwarded; `f16` and `bf16` are transparent over `u16`.
                    unsafe { S::$load(from.cast()) }
                }

                #[inline(always)]
                unsafe fn store<S: Simd>(to: *mut Self, v: S::V) {
                    // SAFETY: forwarded; `f16` and `bf16` are transparent over `u16`.
                    unsafe { S::$store(to.cast(), v) }
                }

                #[inline(always)]
                unsafe fn stream<S: Simd>(to: *mut Self, v: S::V) {
                    // SAFETY: forwarded, alignment too; `f16` and `bf16` are transparent over `u16`.
                    unsafe { S::$stream(to.cast(), v) }
                }
            }
        )*};
    }

    convert! {
        f32, 0.0, load, store, stream;
        f16, f16::ZERO, load_f16, store_f16, stream_f16;
        bf16, bf16::ZERO, load_bf16, store_bf16, stream_bf16;
    }
}
