//! The vector registers, between tract's kernels and everyone else's code.

/// Declares the upper parts of the vector registers unused.
///
/// tract's AVX-512 kernels return with them in use, and code compiled for SSE then runs many times
/// slower until somebody declares this: libm's `exp` 17 times, measured on a Xeon with AMX.
pub(crate) fn release_upper_parts() {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the processor has AVX, and no caller may expect anything in these registers.
        unsafe { std::arch::x86_64::_mm256_zeroupper() }
    }
}
