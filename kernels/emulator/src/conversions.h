// Numbers as the GPU converts them.
#pragma once
#include "types.cuh"

namespace ratplus {

inline float from_bits(u32 bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
inline u32 to_bits(float value) {
    u32 bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float widen(float value) { return value; }
inline float widen(bf16 value) { return from_bits(static_cast<u32>(value.bits) << 16); }
// Without branches, so that loops of it are vector code.
inline float widen(f16 value) {
    const u32 sign = static_cast<u32>(value.bits & 0x8000u) << 16;
    const u32 rest = static_cast<u32>(value.bits & 0x7fffu) << 13;
    constexpr u32 INFINITE = 0x1fu << 23;
    const u32 not_finite = 0u - static_cast<u32>(rest >= INFINITE);
    const u32 not_number = 0u - static_cast<u32>(rest > INFINITE);
    // The exponents' biases differ by 112; the product is exact, that of a subnormal too.
    const u32 scaled = to_bits(from_bits(rest) * 0x1p112f);
    return from_bits((sign & ~not_number) | scaled | (not_finite & 0x7f800000u) | (not_number & 0x7fffffffu));
}

// Rounds to nearest even. Every NaN becomes 0x7fff.
template <typename T>
T narrow(float value);
template <>
inline float narrow<float>(float value) {
    return value;
}
template <>
inline bf16 narrow<bf16>(float value) {
    const u32 bits = to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return bf16{0x7fff};
    }
    return bf16{static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
template <>
inline f16 narrow<f16>(float value) {
    const u32 bits = to_bits(value);
    const u32 sign = bits >> 16 & 0x8000u;
    const u32 magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return f16{0x7fff};
    }
    if (magnitude >= 0x47800000u) {
        return f16{static_cast<u16>(sign | 0x7c00u)};
    }
    if (magnitude < 0x38800000u) {
        // Below 2^-14: the sum's last place is 2^-24, so the addition rounds.
        const u32 rounded = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);
        return f16{static_cast<u16>(sign | rounded)};
    }
    // The carry may run into the exponent, and up to infinity.
    const u32 rounded = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    return f16{static_cast<u16>(sign | rounded)};
}

// Two elements in one word, `low` first in memory.
template <typename T>
u32 pack2(float low, float high) {
    return narrow<T>(low).bits | static_cast<u32>(narrow<T>(high).bits) << 16;
}

}  // namespace ratplus
