//! Which instructions the kernels use.

use std::sync::OnceLock;

/// Instructions that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// [`Isa::Avx512`], and AMX tiles for products of bf16.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// [`Isa::Avx512`], and its dot products of bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What the target guarantees.
    Portable,
}

impl Isa {
    /// What this machine has and this process may use, fastest first; the last is always
    /// [`Isa::Portable`].
    ///
    /// Linux gives AMX to processes that have asked for it (`arch_prctl` of
    /// `ARCH_REQ_XCOMP_PERM`), which is for the program to do and not for a library: ONNX Runtime
    /// does when it is loaded.
    pub fn available() -> Vec<Self> {
        let mut found = Self::of_processor();
        found.push(Self::Portable);
        found
    }

    /// What goes beyond the target's guarantee.
    #[cfg(target_arch = "x86_64")]
    fn of_processor() -> Vec<Self> {
        let mut found = Vec::new();
        let avx2 = std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("f16c");
        let avx512 = std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512vl");
        if avx2 && avx512 {
            let dots = std::arch::is_x86_feature_detected!("avx512bf16");
            let tiles = crate::simd::amx::is_present();
            if tiles && crate::simd::amx::is_permitted() {
                found.push(Self::Amx);
            }
            // Where there is AMX, these dot products are slower than f32's (`timing` among the
            // tests).
            if dots && !tiles {
                found.push(Self::Avx512Bf16);
            }
            found.push(Self::Avx512);
            if dots && tiles {
                found.push(Self::Avx512Bf16);
            }
        }
        if avx2 {
            found.push(Self::Avx2);
        }
        found
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of_processor() -> Vec<Self> {
        Vec::new()
    }

    /// The first of [`Isa::available`], found on the first call.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// `"avx512 with amx"`, `"avx512 with bf16"`, `"avx512"`, `"avx2"` or `"portable"`.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => "avx512 with amx",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => "avx512 with bf16",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }
}

/// [`Isa::name`] of what runs on this machine.
pub fn isa() -> &'static str {
    Isa::best().name()
}

/// Compiles a body that is generic over `Simd` once per instruction set and picks one at run
/// time. The body has to be `#[inline(always)]`, and so does all it calls, to be compiled with
/// the instruction set of the function it ends up in.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$($t:ident),+>($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// The machine has `isa`, and the body's own conditions hold.
        $vis unsafe fn $name<$($t: crate::element::Element),+>(isa: crate::isa::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            unsafe fn avx512<$($t: crate::element::Element),+>($($arg: $ty),*) {
                // SAFETY: forwarded; the features are those that this `Simd` needs.
                unsafe { $body::<crate::simd::Avx512, $($t),+>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2<$($t: crate::element::Element),+>($($arg: $ty),*) {
                // SAFETY: forwarded; the features are those that this `Simd` needs.
                unsafe { $body::<crate::simd::Avx2, $($t),+>($($arg),*) }
            }
            match isa {
                #[cfg(target_arch = "x86_64")]
                crate::isa::Isa::Amx
                | crate::isa::Isa::Avx512Bf16
                | crate::isa::Isa::Avx512 => {
                    // SAFETY: forwarded; the machine has the instruction set.
                    unsafe { avx512::<$($t),+>($($arg),*) }
                }
                // SAFETY: forwarded; the machine has the instruction set.
                #[cfg(target_arch = "x86_64")]
                crate::isa::Isa::Avx2 => unsafe { avx2::<$($t),+>($($arg),*) },
                // SAFETY: forwarded; needs nothing special.
                crate::isa::Isa::Portable => unsafe { $body::<crate::simd::Portable, $($t),+>($($arg),*) },
            }
        }
    };
}
pub(crate) use kernel;
