//! Plain Rust: 4 lanes, which compilers turn into 128-bit vectors.

use super::{Dots, Gemm, Simd, dots, gemm};
use half::{bf16, f16};

/// What the target guarantees.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

/// Four f32, one 128-bit register.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct V([f32; 4]);

/// `a * b + c`, fused only where that is an instruction and not a library call.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

macro_rules! operations {
    ($($name:ident($($arg:ident),*) $body:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name($($arg: V),*) -> V {
            let mut out = [0.0; 4];
            for (i, lane) in out.iter_mut().enumerate() {
                $(let $arg = $arg.0[i];)*
                *lane = $body;
            }
            V(out)
        }
    )*};
}

impl Simd for Portable {
    type V = V;
    const LANES: usize = 4;
    const PANEL: usize = 8;

    operations! {
        add(a, b) a + b;
        sub(a, b) a - b;
        mul(a, b) a * b;
        div(a, b) a / b;
        mul_add(a, b, c) mul_add(a, b, c);
        neg_mul_add(a, b, c) mul_add(-a, b, c);
        max(a, b) if a > b { a } else { b };
        abs(a) a.abs();
        // Adding 1.5 * 2^23 leaves no bits below the units, for |a| < 2^22.
        round(a) (a + 12_582_912.0) - 12_582_912.0;
        pow2(n) f32::from_bits(((n as i32 + 127) as u32) << 23);
        select_negative(sign, a, b) if sign.is_sign_negative() { a } else { b };
        keep_between(v, low, x, high) if low <= x && x <= high { v } else { f32::NEG_INFINITY };
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        V([x; 4])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> V {
        // SAFETY: the caller vouches for 4 elements; arrays of f32 need only f32's alignment.
        V(unsafe { from.cast::<[f32; 4]>().read() })
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: V) {
        // SAFETY: as for `load`.
        unsafe { to.cast::<[f32; 4]>().write(v.0) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> V {
        // SAFETY: the caller vouches for 4 elements.
        let bits = unsafe { from.cast::<[u16; 4]>().read() };
        V(bits.map(|bits| f16::from_bits(bits).to_f32()))
    }

    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, v: V) {
        let bits = v.0.map(|lane| f16::from_f32(lane).to_bits());
        // SAFETY: the caller vouches for 4 elements.
        unsafe { to.cast::<[u16; 4]>().write(bits) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> V {
        // SAFETY: the caller vouches for 4 elements.
        let bits = unsafe { from.cast::<[u16; 4]>().read() };
        V(bits.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }

    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, v: V) {
        let bits = v.0.map(|lane| bf16::from_f32(lane).to_bits());
        // SAFETY: the caller vouches for 4 elements.
        unsafe { to.cast::<[u16; 4]>().write(bits) }
    }

    #[inline(always)]
    unsafe fn reduce_add(a: V) -> f32 {
        (a.0[0] + a.0[2]) + (a.0[1] + a.0[3])
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> V {
        // SAFETY: the caller vouches for 4 bytes.
        V(unsafe { from.cast::<[u8; 4]>().read() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn load_u4(from: *const u8, zero: V, scale: V) -> [V; 2] {
        // SAFETY: the caller vouches for 4 bytes.
        let bytes = unsafe { from.cast::<[u8; 4]>().read() };
        [0, 4].map(|shift| {
            let number = |i: usize| f32::from(bytes[i] >> shift & 15);
            V(std::array::from_fn(|i| {
                (number(i) - zero.0[i]) * scale.0[i]
            }))
        })
    }

    #[inline(always)]
    unsafe fn reduce_max(a: V) -> f32 {
        let larger = |a: f32, b: f32| if a > b { a } else { b };
        larger(larger(a.0[0], a.0[2]), larger(a.0[1], a.0[3]))
    }

    #[inline(always)]
    unsafe fn transpose8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..8 {
            for j in 0..8 {
                // SAFETY: the caller vouches for both blocks.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) };
            }
        }
    }

    #[inline(always)]
    unsafe fn gemm(g: &Gemm) {
        #[inline(never)]
        unsafe fn compiled(g: &Gemm) {
            // SAFETY: forwarded.
            unsafe { gemm::run::<Portable, Portable, 4, 2, 8>(g) }
        }
        // SAFETY: forwarded.
        unsafe { compiled(g) }
    }

    #[inline(always)]
    unsafe fn dots(d: &Dots) {
        #[inline(never)]
        unsafe fn compiled(d: &Dots) {
            // SAFETY: forwarded.
            unsafe { dots::run::<Portable, Portable>(d, 2) }
        }
        // SAFETY: forwarded.
        unsafe { compiled(d) }
    }
}
