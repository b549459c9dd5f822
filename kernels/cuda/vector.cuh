// Sixteen bytes of elements as f32, and rows of any length.
#pragma once
#include "device.cuh"

namespace ratplus {

// Elements in sixteen bytes.
template <typename T>
constexpr i32 LANE_ELEMENTS = 16 / static_cast<i32>(sizeof(T));

// Two elements of one word.
template <typename T>
RATPLUS_DEVICE void unpack2(u32 word, float& low, float& high);
template <>
RATPLUS_DEVICE void unpack2<bf16>(u32 word, float& low, float& high) {
    low = from_bits(word << 16);
    high = from_bits(word & 0xffff0000u);
}
template <>
RATPLUS_DEVICE void unpack2<f16>(u32 word, float& low, float& high) {
    low = widen(f16{static_cast<u16>(word)});
    high = widen(f16{static_cast<u16>(word >> 16)});
}

template <typename T>
RATPLUS_DEVICE void unpack(const Vec16& v, float (&out)[LANE_ELEMENTS<T>]);
template <>
RATPLUS_DEVICE void unpack<float>(const Vec16& v, float (&out)[4]) {
    RATPLUS_UNROLL
    for (i32 i = 0; i < 4; ++i) {
        out[i] = from_bits(v.word[i]);
    }
}
template <>
RATPLUS_DEVICE void unpack<bf16>(const Vec16& v, float (&out)[8]) {
    RATPLUS_UNROLL
    for (i32 i = 0; i < 4; ++i) {
        unpack2<bf16>(v.word[i], out[2 * i], out[2 * i + 1]);
    }
}
template <>
RATPLUS_DEVICE void unpack<f16>(const Vec16& v, float (&out)[8]) {
    RATPLUS_UNROLL
    for (i32 i = 0; i < 4; ++i) {
        unpack2<f16>(v.word[i], out[2 * i], out[2 * i + 1]);
    }
}

// Rounds to T.
template <typename T>
RATPLUS_DEVICE Vec16 pack(const float (&in)[LANE_ELEMENTS<T>]) {
    Vec16 v;
    RATPLUS_UNROLL
    for (i32 i = 0; i < 4; ++i) {
        v.word[i] = pack2<T>(in[2 * i], in[2 * i + 1]);
    }
    return v;
}
template <>
RATPLUS_DEVICE Vec16 pack<float>(const float (&in)[4]) {
    Vec16 v;
    RATPLUS_UNROLL
    for (i32 i = 0; i < 4; ++i) {
        v.word[i] = to_bits(in[i]);
    }
    return v;
}

// f32 that are sixteen bytes apart or a multiple, `COUNT` of them.
template <i32 COUNT>
RATPLUS_DEVICE void load_floats(const float* from, float (&out)[COUNT]) {
    RATPLUS_UNROLL
    for (i32 i = 0; i < COUNT; i += 4) {
        const Vec16 v = load16(from + i);
        RATPLUS_UNROLL
        for (i32 j = 0; j < 4; ++j) {
            out[i + j] = from_bits(v.word[j]);
        }
    }
}
template <i32 COUNT>
RATPLUS_DEVICE void store_floats(float* to, const float (&in)[COUNT]) {
    RATPLUS_UNROLL
    for (i32 i = 0; i < COUNT; i += 4) {
        store16(to + i, Vec16{{to_bits(in[i]), to_bits(in[i + 1]), to_bits(in[i + 2]), to_bits(in[i + 3])}});
    }
}

// Rounds to T and back.
template <typename T>
RATPLUS_DEVICE float rounded(float value) {
    return widen(narrow<T>(value));
}

constexpr float LOG2_E = 1.4426950408889634f;
// Below every finite score; not minus infinity, so that differences are never NaN.
constexpr float LOWEST = -3.402823466e38f;

}  // namespace ratplus
